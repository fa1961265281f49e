"""Exports a run directory to a verified bundle: the ONNX graph, the gate and the bundle's files."""

import os

# The server sets this too: onnxruntime's wheels for Linux otherwise send usage data to their publisher.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

"""From a run directory to a verified bundle: the graph, the gate and the artifact's format."""

import os

# As the server: onnxruntime's wheels for Linux otherwise send usage data to their maker.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

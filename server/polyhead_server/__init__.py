"""Serves a bundle over gRPC: embeddings and the answers of all heads from one forward pass.

The way of a text, one module a step::

    rpc/request_decoder -> rpc/inference_service -> inference/pipeline -> admission -> tokenization -> scheduler
        -> executor -> engines -> postprocessing -> rpc/response_encoder
"""

import os

# onnxruntime's Linux wheels send usage data to Microsoft, with an id that they store in the home directory, unless this
# is set when they are imported. ORT_DISABLE_TELEMETRY=0 in the environment permits it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# gRPC's core writes lines of its own to standard error, past the log and its format, and blocks while nobody reads
# them. It reads the variable when it is imported. What matters reaches the log through the server.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

# OpenBLAS reads it when numpy is imported. Its threads wait for the next product of matrices in a busy loop, on the
# cores that compute batches: with them, counting the traffic took 6 % of the throughput of two cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

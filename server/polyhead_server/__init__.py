"""Serves a bundle over gRPC: one pass, every answer.

The data's way, one file a step, no way back::

    text -> service -> pipeline -> admission -> tokenization -> batching -> engine -> heads -> service -> answer
            (wire in)  (the order)  (may it      (ids)           (who rides   (numbers) (labels,   (wire out)
                                     enter?)                      together)              norms)
"""

import os

# onnxruntime's wheels for Linux otherwise send usage data to their maker, with an id that they leave in the home
# directory; they look at this when they are imported. Whoever wants that says ORT_DISABLE_TELEMETRY=0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

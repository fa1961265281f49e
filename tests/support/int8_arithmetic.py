"""How exactly the CPU of the tests computes with 8-bit numbers.

Without 8-bit dot products, onnxruntime adds pairs of products in 16 bits, which sometimes overflows. Random
weights suffer more from that than trained ones, so tests of their int8 variants allow more there.
"""

from __future__ import annotations

from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def is_exact() -> bool:
    """Returns whether the CPU has 8-bit dot products: VNNI, or those of Arm."""
    flags = _CPUINFO.read_text("utf-8") if _CPUINFO.exists() else ""
    return "vnni" in flags or "asimddp" in flags


# Limits of the gate for the int8 variant of a model with random weights.
LIMITS: dict[str, float] = {} if is_exact() else {"difference": 0.5, "cosine_mean": 0.1, "cosine_worst": 0.3}

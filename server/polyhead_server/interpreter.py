"""Settings of the Python interpreter for a process that serves."""

from __future__ import annotations

import gc
import sys

# A compute thread that has finished a batch needs the interpreter to take the next one while the event loop is busy. By
# default it waits up to 5 ms, and a core idles with it.
SWITCH_INTERVAL_S = 0.0005
# Objects that may come to exist before the garbage collector looks for cycles among them. The calls in flight hold
# thousands, so that Python's default of 700 makes it look, in vain, several times per hundred calls.
GC_THRESHOLD = 10_000


def configure_interpreter() -> None:
    """Sets the switch interval and the threshold of the garbage collector."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.set_threshold(GC_THRESHOLD, *gc.get_threshold()[1:])

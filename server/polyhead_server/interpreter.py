"""Settings of the Python interpreter for a process that serves."""

from __future__ import annotations

import sys

# A compute thread that has finished a batch needs the interpreter to take the next one while the event loop is busy. By
# default it waits up to 5 ms, and a core idles with it.
SWITCH_INTERVAL_S = 0.0005


def configure_interpreter() -> None:
    """Sets the switch interval."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)

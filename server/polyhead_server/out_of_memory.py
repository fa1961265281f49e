"""Ends a process that has run out of memory, so that its supervisor starts another.

Such a process cannot even report the failure to its clients. It exits instead: gRPC ends its calls with UNAVAILABLE,
which clients retry elsewhere. Every RPC, thread and event-loop boundary calls this for errors that it did not expect.
"""

from __future__ import annotations

import os
import select
import sys

_MESSAGE = b"polyhead-serve: out of memory; exiting so that the supervisor restarts the process\n"

_standard_error = select.poll()
_standard_error.register(2, select.POLLOUT)


def exit_if_out_of_memory(error: BaseException | None) -> None:
    """Exits the process with code 1 if ``error`` reports a lack of memory; otherwise returns.

    Args:
        error: Any error that a boundary has caught.
    """
    if _is_out_of_memory(error):
        # os.write and os._exit allocate nothing; logging or a normal interpreter exit would.
        try:
            # A pipe that nobody reads must not keep the process.
            if _standard_error.poll(0):
                os.write(2, _MESSAGE)
        finally:
            os._exit(1)


def _is_out_of_memory(error: BaseException | None) -> bool:
    # A message built by the server can always be serialized, unless memory for its bytes is missing. A message that
    # cannot be parsed may come from a client, which must not be able to end the server, so a DecodeError counts only
    # when protobuf blames an allocation.
    # Without memory nothing can be imported, and an error of protobuf means that its module already is.
    if (protobuf := sys.modules.get("google.protobuf.message")) is not None:
        if isinstance(error, protobuf.DecodeError):
            return "alloc" in str(error)
        if isinstance(error, protobuf.EncodeError):
            return True
    return isinstance(error, MemoryError)

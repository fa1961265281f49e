"""A process that finds no memory any more ends.

Such a process cannot even say so to its clients: it leaves, and whoever supervises it starts another. Calls that it had
are ended with UNAVAILABLE, which clients try again elsewhere. What finds no memory is gRPC's code, protobuf's or ours,
and all that they have in common is the log.
"""

from __future__ import annotations

import logging
import os

from google.protobuf.message import DecodeError, EncodeError


class OutOfMemoryFilter(logging.Filter):
    """Ends the process when the log is told of a lack of memory."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Lets every record pass, or does not return."""
        if record.exc_info and _tells_of_it(record.exc_info[1]):
            # By nothing that takes memory.
            os.write(2, b"polyhead-serve: no memory is left; the process ends, to be started again\n")
            os._exit(1)
        return True


def _tells_of_it(error: BaseException | None) -> bool:
    # A message that we made can always be written, if there is room for its bytes. What cannot be read may come from a
    # client, who must not be able to end us.
    return isinstance(error, MemoryError | EncodeError) or (isinstance(error, DecodeError) and "alloc" in str(error))

"""Request ids: a client's own where it is safe in logs and searches, otherwise a random one."""

from __future__ import annotations

import os
import re

REQUEST_ID = "x-request-id"
# A client's request id is used unchanged or not at all.
_VALID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


def request_id(received: str) -> str:
    """Returns the id of a call.

    Args:
        received: The id that the client sent; empty for none.
    """
    return received if _VALID.fullmatch(received) else os.urandom(8).hex()

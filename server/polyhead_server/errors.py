"""What can go wrong with an item, a call or the server. Nothing here knows gRPC; ``statuses`` maps these to codes.

::

    ServerError
    +-- InvalidRequestError     the client must change what it sends
    |   +-- TextTooLongError    only under TRUNCATION_POLICY_ERROR
    |   +-- FingerprintMismatchError  another model answers than the client expects
    +-- ExpiredError            the caller's deadline passed before the answer was computed
    +-- OverloadedError         too much is waiting; try again after ``retry_after_s``
    +-- NotReadyError           the model is still being loaded
    +-- DrainingError           the server is shutting down; another one may answer
    +-- UnauthenticatedError    the call carries no key that this server knows
    +-- PermissionDeniedError   its key is good, for other methods
    +-- InternalError           our fault; carries an id that stands in the log
    +-- ReloadError             the new bundle cannot take over; the old one stays. Sent to operators only
    +-- StartupError            the server cannot start as it was told to; never sent to a client
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from types import MappingProxyType
from typing import Self

logger = logging.getLogger(__name__)


class ServerError(Exception):
    """Base of all errors of the server.

    Attributes:
        metadata: Facts for programs, which go into the details of the status.
    """

    metadata: Mapping[str, str] = MappingProxyType({})


class InvalidRequestError(ServerError):
    """The client must change what it sends.

    Attributes:
        reason: A constant for programs, such as ``TEXT_NOT_UTF8``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class TextTooLongError(InvalidRequestError):
    """The text has more tokens than the model reads, and the client asked not to truncate."""

    def __init__(self, tokens: int, max_tokens: int) -> None:
        super().__init__("TEXT_TOO_LONG", f"the text has {tokens} tokens; the model reads {max_tokens}")
        self.metadata = {"tokens": str(tokens), "max_tokens": str(max_tokens)}


class FingerprintMismatchError(InvalidRequestError):
    """Another model answers than the client expects.

    Args:
        what: ``embedding_space``, or the name of a head.
        expected: Fingerprint that the client named.
        actual: Fingerprint of what answers; empty for a head that the model has not.
    """

    def __init__(self, what: str, expected: str, actual: str) -> None:
        super().__init__(
            "FINGERPRINT_MISMATCH", f"{what}: expected {expected}, the model has {actual or 'no such head'}"
        )
        self.metadata = {"what": what, "expected": expected, "actual": actual}


class ExpiredError(ServerError):
    """The caller's deadline passed before the answer was computed; nothing was computed for it."""

    def __init__(self) -> None:
        super().__init__("the deadline passed while the item was waiting")


class OverloadedError(ServerError):
    """Too much is waiting already.

    Attributes:
        retry_after_s: Seconds after which trying again makes sense.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = max(retry_after_s, 0.01)

    @classmethod
    def late(cls, wait_s: float, limit_s: float) -> Self:
        """The item would wait too long."""
        # Half of what waits has to go before it makes a difference: those that come back sooner are refused again.
        return cls(
            f"the expected wait is {wait_s:.2f} s, the limit for this item {limit_s:.2f} s",
            max(wait_s - limit_s, wait_s / 2),
        )

    @classmethod
    def full(cls, tokens: int, max_tokens: int, wait_s: float) -> Self:
        """The queue has no room for the item."""
        return cls(f"{tokens} tokens would wait, the limit is {max_tokens}", wait_s / 2)


class NotReadyError(ServerError):
    """The model is not ready to answer."""

    def __init__(self) -> None:
        super().__init__("the model is being loaded")


class DrainingError(ServerError):
    """The server is shutting down; every item that it accepted before was answered."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down; items without an answer were not accepted")


class UnauthenticatedError(ServerError):
    """The call carries no key that this server knows, whatever is wrong with the one that it carries."""

    def __init__(self) -> None:
        super().__init__('no valid key; send one as metadata "authorization: Bearer KEY"')


class PermissionDeniedError(ServerError):
    """The call's key is good, but not for this method, whether there is such a method or not."""

    def __init__(self) -> None:
        super().__init__("this key may not call this method")


class InternalError(ServerError):
    """Something failed that is not the client's fault.

    Attributes:
        incident: The id under which the log tells what happened.
    """

    def __init__(self, incident: str) -> None:
        super().__init__(f"internal error, incident {incident}")
        self.incident = incident

    @classmethod
    def logged(cls, what: str, cause: BaseException | None = None) -> InternalError:
        """Logs ``what`` happened, with the traceback of ``cause``, once, and returns the error to send."""
        incident = uuid.uuid4().hex[:12]
        logger.error("incident %s: %s", incident, what, exc_info=cause)
        return cls(incident)


class ReloadError(ServerError):
    """The new bundle cannot take over; the old one goes on answering."""


class StartupError(ServerError):
    """The server cannot start as it was told to."""

"""Errors of items, calls and the server, independent of gRPC; ``rpc/status.py`` converts them to statuses.

A message or its metadata never repeats text of the request, whose length only the client knows; it names our own words,
numbers and limits.

Each class names its canonical status code (google.rpc.Code) and its reason, as plain strings::

    ServerError
    +-- InvalidRequestError            INVALID_ARGUMENT, own reasons              the client must change the request
    |   +-- TextTooLongError           OUT_OF_RANGE, TEXT_TOO_LONG                TRUNCATION_POLICY_ERROR only
    |   +-- TooManyItemsError          TOO_MANY_ITEMS                             send smaller messages
    |   +-- TaskNotAvailableError      TASK_NOT_AVAILABLE                         the model has no head for the task
    |   +-- UnknownPromptError         UNKNOWN_PROMPT                             the model has no prompt of that name
    |   +-- NoveltyNotAvailableError   NOVELTY_NOT_AVAILABLE                      the model has no novelty of texts
    |   +-- EncodingOverflowError      ENCODING_OVERFLOW                          the encoding has too small a range
    |   +-- FingerprintMismatchError   FAILED_PRECONDITION, FINGERPRINT_MISMATCH  not the model that the client expects
    |   +-- IncompleteRequestError     INVALID_ARGUMENT, INCOMPLETE_REQUEST       the call ended before its message
    |   +-- CompressedMessageError     UNIMPLEMENTED, COMPRESSED_MESSAGE          this service accepts no compression
    |   +-- MessageTooLargeError       RESOURCE_EXHAUSTED, MESSAGE_TOO_LARGE      send smaller messages
    +-- ModelNotFoundError             NOT_FOUND, MODEL_NOT_FOUND                 the request names another model
    +-- PathNotFoundError              NOT_FOUND, PATH_NOT_FOUND                  HTTP: no such path
    +-- NotSupportedError              UNIMPLEMENTED, NOT_SUPPORTED               an RPC that the model cannot answer
    +-- ExpiredError                   DEADLINE_EXCEEDED, DEADLINE_EXPIRED        the deadline passed in the queue
    +-- RequestTimeoutError            DEADLINE_EXCEEDED, REQUEST_TIMEOUT         the request message did not arrive
    +-- OverloadedError                RESOURCE_EXHAUSTED, OVERLOADED             retry after ``retry_after_s``
    +-- NotReadyError                  UNAVAILABLE, NOT_READY                     the model is still loading
    +-- DrainingError                  UNAVAILABLE, DRAINING                      shutting down; use another server
    +-- WatchEndedError                UNAVAILABLE, WATCH_ENDED                  a limit of health watches; watch again
    +-- StreamAgeError                 UNAVAILABLE, STREAM_AGE                   continue on another stream
    +-- ReplicaLostError               UNAVAILABLE, REPLICA_LOST                 Ray Serve: the replica ended; retry
    +-- ModelReplacedError             UNAVAILABLE, MODEL_REPLACED                --fronts: another model answers; retry
    +-- UnauthenticatedError           UNAUTHENTICATED, same                      no valid API key
    +-- PermissionDeniedError          PERMISSION_DENIED, same                    the API key does not allow the method
    +-- InternalError                  INTERNAL, same                             logged under an incident id
    +-- ReloadError                    FAILED_PRECONDITION, RELOAD_REFUSED        admin service; the old model stays
    +-- CandidateError                 FAILED_PRECONDITION, CANDIDATE_REFUSED     admin service; the served model stays
    +-- DriftNotAvailableError         FAILED_PRECONDITION, DRIFT_NOT_AVAILABLE   admin service; states why
    +-- StartupError                   never sent                                 the server cannot start as configured
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, Self

logger = logging.getLogger(__name__)

# Names in a message; few enough that a response has room for the errors of all items.
_MAX_LISTED = 8
# Seconds after which a client that reads its responses has made room for others.
_UNREAD_RETRY_S = 1.0


class ServerError(Exception):
    """Base class of all errors of the server.

    Attributes:
        code: Name of the canonical status code, such as ``INVALID_ARGUMENT``.
        reason: Machine-readable constant, unique to one cause; listed in docs/reference/errors.md.
        metadata: Machine-readable facts for the details of the status.
    """

    code: ClassVar[str]
    reason: str
    metadata: Mapping[str, str] = MappingProxyType({})


class InvalidRequestError(ServerError):
    """The client must change the request.

    Args:
        reason: Machine-readable constant, such as ``TEXT_NOT_UTF8``.
        message: Text for the client's developer.
    """

    code = "INVALID_ARGUMENT"

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class TextTooLongError(InvalidRequestError):
    """The text exceeds the token limit, and the client asked for an error instead of truncation."""

    code = "OUT_OF_RANGE"
    reason = "TEXT_TOO_LONG"

    def __init__(self, tokens: int, max_tokens: int) -> None:
        super().__init__(self.reason, f"the text has {tokens} tokens; the limit is {max_tokens}")
        self.metadata = {"tokens": str(tokens), "max_tokens": str(max_tokens)}


class TooManyItemsError(InvalidRequestError):
    """The message has more items than a message may have, or than answers fit into a response.

    Args:
        max_items: Number of items that a message with the same options may have.
        why: Clause that states where the limit comes from.
    """

    code = "INVALID_ARGUMENT"
    reason = "TOO_MANY_ITEMS"

    def __init__(self, max_items: int, why: str) -> None:
        super().__init__(self.reason, f"the message has too many items; at most {max_items} {why}")
        self.metadata = {"max_items": str(max_items)}


class TaskNotAvailableError(InvalidRequestError):
    """The message requests a task for which the model has no head.

    Args:
        task: Name of the task.
        heads: Names of the heads that the model has, with their kinds.
    """

    code = "INVALID_ARGUMENT"
    reason = "TASK_NOT_AVAILABLE"

    def __init__(self, task: str, heads: str) -> None:
        super().__init__(self.reason, f"the model has no head for {task}; its heads are: {heads or 'none'}")
        self.metadata = {"task": task, "heads": heads}


class UnknownPromptError(InvalidRequestError):
    """The message names a prompt that the model does not have.

    Args:
        names: Names of the prompts that it has.
    """

    code = "INVALID_ARGUMENT"
    reason = "UNKNOWN_PROMPT"

    def __init__(self, names: Sequence[str]) -> None:
        known = f"its prompts are: {_listed(names)}" if names else "it has none; omit the name"
        super().__init__(self.reason, f"the model has no such prompt; {known}")


class NoveltyNotAvailableError(InvalidRequestError):
    """The message requests the novelty of its texts, and the model was trained without it."""

    code = "INVALID_ARGUMENT"
    reason = "NOVELTY_NOT_AVAILABLE"

    def __init__(self) -> None:
        super().__init__(self.reason, "the model has no novelty: train it with training.novelty, or do not request it")


class EncodingOverflowError(InvalidRequestError):
    """A number of the embedding is beyond the range of the encoding that the client requests.

    Args:
        largest: Largest number of the encoding.
    """

    code = "INVALID_ARGUMENT"
    reason = "ENCODING_OVERFLOW"

    def __init__(self, largest: float) -> None:
        problem = f"the embedding has a value beyond {largest:g}, the largest of the encoding; request float32"
        super().__init__(self.reason, problem)


class FingerprintMismatchError(InvalidRequestError):
    """The serving model is not the one that the client expects.

    Args:
        component: ``embedding_space``, the name of a head of the model, or ``head`` for one that it does not have.
        actual: Fingerprint of the serving model; empty if the model has no such head.
    """

    code = "FAILED_PRECONDITION"
    reason = "FINGERPRINT_MISMATCH"

    def __init__(self, component: str, actual: str) -> None:
        super().__init__(
            self.reason,
            f"{component}: the model has {actual}, and the request expects another"
            if actual
            else "the request expects a head that the model does not have",
        )
        self.metadata = {"component": component, "actual": actual}


class IncompleteRequestError(InvalidRequestError):
    """The client ended its side of a unary call without sending a whole message."""

    code = "INVALID_ARGUMENT"
    reason = "INCOMPLETE_REQUEST"

    def __init__(self) -> None:
        super().__init__(self.reason, "the call ended before its request message was complete")


class CompressedMessageError(InvalidRequestError):
    """The message is compressed, and the service accepts only uncompressed messages."""

    code = "UNIMPLEMENTED"
    reason = "COMPRESSED_MESSAGE"

    def __init__(self) -> None:
        super().__init__(self.reason, "this service accepts no compressed messages")


class MessageTooLargeError(InvalidRequestError):
    """The message is larger than the service accepts.

    Args:
        problem: States the limit.
    """

    code = "RESOURCE_EXHAUSTED"
    reason = "MESSAGE_TOO_LARGE"

    def __init__(self, problem: str) -> None:
        super().__init__(self.reason, problem)


class RequestTimeoutError(ServerError):
    """The request message did not arrive in time."""

    code = "DEADLINE_EXCEEDED"
    reason = "REQUEST_TIMEOUT"

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"the request message did not arrive within {timeout_s:g} s")


class ModelNotFoundError(ServerError):
    """The request names a model or a version that this server does not serve.

    Args:
        served: Names of the models that it serves; none for a caller who must not learn them.
    """

    code = "NOT_FOUND"
    reason = "MODEL_NOT_FOUND"

    def __init__(self, *served: str) -> None:
        if not served:
            super().__init__("this server serves no model with this name and version")
            return
        if len(served) == 1:
            super().__init__(f"this server serves model {served[0]!r}, version 1, and no other")
            return
        names = _listed([repr(name) for name in served])
        super().__init__(f"this server serves the models {names}, version 1 of each, and no other")


class PathNotFoundError(ServerError):
    """HTTP: the server has no such path."""

    code = "NOT_FOUND"
    reason = "PATH_NOT_FOUND"

    def __init__(self) -> None:
        super().__init__("this server has no such path; GET /openapi.json lists them")


class NotSupportedError(ServerError):
    """The method belongs to a protocol that this server speaks, but the model cannot answer it."""

    code = "UNIMPLEMENTED"
    reason = "NOT_SUPPORTED"


class ExpiredError(ServerError):
    """The caller's deadline passed while the item was queued; it was not computed."""

    code = "DEADLINE_EXCEEDED"
    reason = "DEADLINE_EXPIRED"

    def __init__(self) -> None:
        super().__init__("the deadline passed while the item was queued")


class OverloadedError(ServerError):
    """The queue is too long to accept the item.

    Attributes:
        retry_after_s: Seconds after which a retry has a chance; at least 0.01.
    """

    code = "RESOURCE_EXHAUSTED"
    reason = "OVERLOADED"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = max(retry_after_s, 0.01)

    @classmethod
    def late(cls, wait_s: float, limit_s: float) -> Self:
        """The expected wait of the item exceeds its limit."""
        # Half of the queue must be computed before a retry makes a difference: an earlier one is refused again.
        return cls(
            f"the expected wait is {wait_s:.2f} s, the limit for this item {limit_s:.2f} s",
            max(wait_s - limit_s, wait_s / 2),
        )

    @classmethod
    def full(cls, tokens: int, max_tokens: int, wait_s: float) -> Self:
        """The queue has no capacity for the item's tokens."""
        return cls(f"{tokens} tokens would wait, the limit is {max_tokens}", wait_s / 2)

    @classmethod
    def unread(cls, max_bytes: int) -> Self:
        """The client has not read the responses of earlier calls."""
        problem = f"more than {max_bytes} bytes of earlier responses have not been read"
        return cls(problem, _UNREAD_RETRY_S)

    @classmethod
    def bodies(cls, max_bytes: int) -> Self:
        """The bodies of all HTTP calls in progress are too large together."""
        return cls(f"the bodies of all calls in progress have more than {max_bytes} bytes", _UNREAD_RETRY_S)


class NotReadyError(ServerError):
    """The model is still loading."""

    code = "UNAVAILABLE"
    reason = "NOT_READY"

    def __init__(self) -> None:
        super().__init__("the model is being loaded")


class DrainingError(ServerError):
    """The server is shutting down; every item that it accepted has been answered."""

    code = "UNAVAILABLE"
    reason = "DRAINING"

    def __init__(self) -> None:
        super().__init__("the server is shutting down; items without an answer were not accepted")


class WatchEndedError(ServerError):
    """A limit on the number or the duration of health watches ended this one."""

    code = "UNAVAILABLE"
    reason = "WATCH_ENDED"

    def __init__(self) -> None:
        super().__init__("a limit of the health service ended this watch; watch again")


class StreamAgeError(ServerError):
    """The stream has reached its maximum age; every item that it accepted has been answered."""

    code = "UNAVAILABLE"
    reason = "STREAM_AGE"

    def __init__(self) -> None:
        super().__init__("the stream has reached its maximum age; send items without an answer on another stream")


class ReplicaLostError(ServerError):
    """The replica of Ray Serve that had the call ended before it answered."""

    code = "UNAVAILABLE"
    reason = "REPLICA_LOST"

    def __init__(self) -> None:
        super().__init__("the replica that had this call ended before it answered; send the call again")


class ModelReplacedError(ServerError):
    """The engine process ended before it answered, and its successor serves another model."""

    code = "UNAVAILABLE"
    reason = "MODEL_REPLACED"

    def __init__(self) -> None:
        super().__init__("the model was replaced before it answered; send the text again")


class UnauthenticatedError(ServerError):
    """The call carries no valid API key. The message never says what is wrong with the key."""

    code = "UNAUTHENTICATED"
    reason = "UNAUTHENTICATED"

    def __init__(self) -> None:
        super().__init__('no valid API key; send one as metadata "authorization: Bearer KEY"')


class PermissionDeniedError(ServerError):
    """The API key is valid but does not allow this method. The message never says whether the method exists.

    Attributes:
        key: Name of the key, for the log; not part of the message.
    """

    code = "PERMISSION_DENIED"
    reason = "PERMISSION_DENIED"

    def __init__(self, key: str) -> None:
        super().__init__("this API key may not call this method")
        self.key = key


class InternalError(ServerError):
    """A fault of the server.

    Attributes:
        incident: Random id that the log line with the traceback carries.
    """

    code = "INTERNAL"
    reason = "INTERNAL"

    def __init__(self, incident: str) -> None:
        super().__init__(f"internal error, incident {incident}")
        self.incident = incident

    @classmethod
    def logged(cls, message: str, cause: BaseException | None = None) -> InternalError:
        """Logs ``message`` once, with the traceback of ``cause``, and returns the error to send."""
        incident = uuid.uuid4().hex[:12]
        logger.error("incident %s: %s", incident, message, exc_info=cause)
        return cls(incident)


class ReloadError(ServerError):
    """The new bundle cannot be served or must not replace the old one, which keeps serving."""

    code = "FAILED_PRECONDITION"
    reason = "RELOAD_REFUSED"


class CandidateError(ServerError):
    """A candidate cannot be loaded, compared, promoted or used as a canary; the served model is unchanged."""

    code = "FAILED_PRECONDITION"
    reason = "CANDIDATE_REFUSED"


class DriftNotAvailableError(ServerError):
    """The server does not count its traffic, or the bundle has no reference to compare it with."""

    code = "FAILED_PRECONDITION"
    reason = "DRIFT_NOT_AVAILABLE"


class StartupError(ServerError):
    """The server cannot start as configured. Printed by the command line, never sent to a client.

    Attributes:
        transient: Whether another attempt may succeed.
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")

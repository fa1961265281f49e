"""Every error that a client can receive has a status code and a reason, and its details are machine-readable."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2
from polyhead_server import errors
from polyhead_server.rpc.status import CODES, DOMAIN, status


def all_subclasses(kind: type[errors.ServerError]) -> set[type[errors.ServerError]]:
    return {kind}.union(*(all_subclasses(child) for child in kind.__subclasses__()))


SENT = all_subclasses(errors.ServerError) - {errors.ServerError, errors.StartupError}

EXAMPLES = [
    (errors.InvalidRequestError("TEXT_NOT_UTF8", "no"), 3, "TEXT_NOT_UTF8"),
    (errors.TextTooLongError(10, 5), 11, "TEXT_TOO_LONG"),
    (errors.ExpiredError(), 4, "DEADLINE_EXPIRED"),
    (errors.TooManyItemsError(5, "are allowed"), 3, "TOO_MANY_ITEMS"),
    (errors.TaskNotAvailableError("sentiment", "topic (softmax)"), 3, "TASK_NOT_AVAILABLE"),
    (errors.UnknownPromptError(["query"]), 3, "UNKNOWN_PROMPT"),
    (errors.NoveltyNotAvailableError(), 3, "NOVELTY_NOT_AVAILABLE"),
    (errors.EncodingOverflowError(65504.0), 3, "ENCODING_OVERFLOW"),
    (errors.FingerprintMismatchError("embedding_space", "b"), 9, "FINGERPRINT_MISMATCH"),
    (errors.OverloadedError.late(3.0, 1.0), 8, "OVERLOADED"),
    (errors.IncompleteRequestError(), 3, "INCOMPLETE_REQUEST"),
    (errors.CompressedMessageError(), 12, "COMPRESSED_MESSAGE"),
    (errors.MessageTooLargeError("no"), 8, "MESSAGE_TOO_LARGE"),
    (errors.RequestTimeoutError(60), 4, "REQUEST_TIMEOUT"),
    (errors.WatchEndedError(), 14, "WATCH_ENDED"),
    (errors.StreamAgeError(), 14, "STREAM_AGE"),
    (errors.ReplicaLostError(), 14, "REPLICA_LOST"),
    (errors.ModelReplacedError(), 14, "MODEL_REPLACED"),
    (errors.ModelNotFoundError("demo"), 5, "MODEL_NOT_FOUND"),
    (errors.PathNotFoundError(), 5, "PATH_NOT_FOUND"),
    (errors.NotSupportedError("no"), 12, "NOT_SUPPORTED"),
    (errors.NotReadyError(), 14, "NOT_READY"),
    (errors.DrainingError(), 14, "DRAINING"),
    (errors.UnauthenticatedError(), 16, "UNAUTHENTICATED"),
    (errors.PermissionDeniedError("shop"), 7, "PERMISSION_DENIED"),
    (errors.InternalError("abc"), 13, "INTERNAL"),
    (errors.ReloadError("no"), 9, "RELOAD_REFUSED"),
    (errors.CandidateError("no"), 9, "CANDIDATE_REFUSED"),
    (errors.DriftNotAvailableError("no"), 9, "DRIFT_NOT_AVAILABLE"),
]


def test_every_error_that_reaches_a_client_names_its_code_and_reason() -> None:
    for kind in SENT:
        assert "code" in vars(kind), kind
        # The reasons of InvalidRequestError itself belong to its instances.
        assert kind is errors.InvalidRequestError or "reason" in vars(kind), kind


def test_codes_are_those_of_grpc() -> None:
    assert {kind.code for kind in SENT} <= set(CODES)
    assert {code.name: code.value[0] for code in grpc.StatusCode} == CODES


def test_every_error_has_an_example() -> None:
    assert {type(error) for error, _, _ in EXAMPLES} == SENT


@pytest.mark.parametrize(("error", "code", "reason"), EXAMPLES)
def test_error_has_its_code_and_reason(error: errors.ServerError, code: int, reason: str) -> None:
    wire = status(error)
    info = error_details_pb2.ErrorInfo()
    assert wire.details[0].Unpack(info)
    assert (wire.code, wire.message, info.reason, info.domain) == (code, str(error), reason, DOMAIN)


def test_overload_states_a_retry_delay_above_zero() -> None:
    retry = error_details_pb2.RetryInfo()
    assert status(errors.OverloadedError.late(3.0, 1.0)).details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 2000
    for error in (errors.OverloadedError.late(1.0, 1.0), errors.OverloadedError.full(10, 9, 0.0)):
        assert error.retry_after_s > 0


def test_facts_are_machine_readable() -> None:
    info = error_details_pb2.ErrorInfo()
    assert status(errors.TextTooLongError(10, 5)).details[0].Unpack(info)
    assert dict(info.metadata) == {"tokens": "10", "max_tokens": "5"}
    assert status(errors.FingerprintMismatchError("topic", "b")).details[0].Unpack(info)
    assert dict(info.metadata) == {"component": "topic", "actual": "b"}

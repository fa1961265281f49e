"""Every error of the server has its status, and the details say what programs need."""

from __future__ import annotations

import pytest
from google.rpc import error_details_pb2
from polyhead_server import errors
from polyhead_server.rpc.status import DOMAIN, TABLE, status


def all_subclasses(kind: type[errors.ServerError]) -> set[type[errors.ServerError]]:
    return {kind}.union(*(all_subclasses(child) for child in kind.__subclasses__()))


def test_every_error_that_reaches_a_client_is_in_the_table() -> None:
    assert all_subclasses(errors.ServerError) - {errors.ServerError, errors.StartupError} == set(TABLE)


EXAMPLES = [
    (errors.InvalidRequestError("TEXT_NOT_UTF8", "no"), 3, "TEXT_NOT_UTF8"),
    (errors.TextTooLongError(10, 5), 11, "TEXT_TOO_LONG"),
    (errors.ExpiredError(), 4, "DEADLINE_EXPIRED"),
    (errors.FingerprintMismatchError("embedding_space", "a", "b"), 9, "FINGERPRINT_MISMATCH"),
    (errors.OverloadedError.late(3.0, 1.0), 8, "OVERLOADED"),
    (errors.NotReadyError(), 14, "NOT_READY"),
    (errors.DrainingError(), 14, "DRAINING"),
    (errors.UnauthenticatedError(), 16, "UNAUTHENTICATED"),
    (errors.PermissionDeniedError(), 7, "PERMISSION_DENIED"),
    (errors.InternalError("abc"), 13, "INTERNAL"),
    (errors.ReloadError("no"), 9, "RELOAD_REFUSED"),
]


def test_every_error_has_an_example() -> None:
    assert {type(error) for error, _, _ in EXAMPLES} == set(TABLE)


@pytest.mark.parametrize(("error", "code", "reason"), EXAMPLES)
def test_error_has_its_code_and_reason(error: errors.ServerError, code: int, reason: str) -> None:
    wire = status(error)
    info = error_details_pb2.ErrorInfo()
    assert wire.details[0].Unpack(info)
    assert (wire.code, wire.message, info.reason, info.domain) == (code, str(error), reason, DOMAIN)


def test_overload_says_when_to_try_again_and_never_at_once() -> None:
    retry = error_details_pb2.RetryInfo()
    assert status(errors.OverloadedError.late(3.0, 1.0)).details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 2000
    for error in (errors.OverloadedError.late(1.0, 1.0), errors.OverloadedError.full(10, 9, 0.0)):
        assert error.retry_after_s > 0


def test_facts_are_there_for_programs() -> None:
    info = error_details_pb2.ErrorInfo()
    assert status(errors.TextTooLongError(10, 5)).details[0].Unpack(info)
    assert dict(info.metadata) == {"tokens": "10", "max_tokens": "5"}

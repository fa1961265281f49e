from __future__ import annotations

import math
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2
from polyhead_client import Answer, ItemError, ItemFailedError, PolyheadError, Result, UnavailableError, errors
from polyhead_client.types import Fingerprints, Truncation


def test_every_status_code_maps_to_an_error_class() -> None:
    assert set(errors._BY_CODE) == set(grpc.StatusCode) - {grpc.StatusCode.OK}
    assert all(issubclass(kind, PolyheadError) for kind in errors._BY_CODE.values())


class Raised(grpc.RpcError):
    """An error as gRPC raises it, with the methods of a call."""

    def __init__(self, code: grpc.StatusCode, details: str, *trailing: tuple[str, str | bytes]) -> None:
        super().__init__()
        methods = {"code": code, "details": details, "trailing_metadata": trailing}
        self.__dict__.update({name: (lambda value=value: value) for name, value in methods.items()})


def caught(raised: Raised) -> PolyheadError:
    with pytest.raises(PolyheadError) as info, errors.map_grpc_errors():
        raise raised
    return info.value


def test_write_on_a_stream_that_has_just_ended_raises_unavailable() -> None:
    error = caught(Raised(grpc.StatusCode.INTERNAL, "Internal error from Core"))
    assert (type(error), error.code) == (UnavailableError, "UNAVAILABLE")
    assert type(caught(Raised(grpc.StatusCode.INTERNAL, "anything else"))) is errors.ServerError


def test_stream_that_a_proxy_reset_raises_unavailable() -> None:
    message = "Stream removed (RST_STREAM (Received RST_STREAM with error code 2))"
    error = caught(Raised(grpc.StatusCode.INTERNAL, message))
    assert (type(error), error.code) == (UnavailableError, "UNAVAILABLE")
    # A server that says so in a status of its own is at fault.
    assert type(caught(Raised(grpc.StatusCode.INTERNAL, message, ("key", "value")))) is errors.ServerError


@pytest.mark.parametrize(
    ("pushback", "seconds"), [("250", 0.25), ("1", 0.001), ("-1", math.inf), ("soon", math.inf), ("9" * 5000, math.inf)]
)
def test_push_back_is_a_delay_or_forbids_retries(pushback: str, seconds: float) -> None:
    raised = Raised(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", ("grpc-retry-pushback-ms", pushback))
    assert caught(raised).retry_after_s == seconds


class PairsAsKeys(tuple[tuple[str, str], ...]):
    """Metadata as in older versions of grpc.aio, whose ``keys`` yields pairs."""

    __slots__ = ()

    def keys(self) -> Iterator[tuple[str, str]]:
        return iter(self)


def test_metadata_whose_keys_are_pairs_is_read() -> None:
    raised = Raised(grpc.StatusCode.UNAVAILABLE, "busy")
    metadata = PairsAsKeys([("grpc-retry-pushback-ms", "250")])
    with pytest.raises(TypeError):
        dict(metadata)  # control
    raised.__dict__["trailing_metadata"] = lambda: metadata
    assert caught(raised).retry_after_s == 0.25


def test_retry_info_is_used_without_push_back() -> None:
    status = status_pb2.Status(code=8)
    status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=2)))
    details = ("grpc-status-details-bin", status.SerializeToString())
    assert caught(Raised(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", details)).retry_after_s == 2.0
    assert caught(Raised(grpc.StatusCode.RESOURCE_EXHAUSTED, "too large")).retry_after_s is None


def test_unreadable_details_are_ignored() -> None:
    error = caught(Raised(grpc.StatusCode.INVALID_ARGUMENT, "no", ("grpc-status-details-bin", b"\xff\xff\xff")))
    assert (type(error), error.message, error.reason) == (errors.InvalidRequestError, "no", "")


def test_unreadable_detail_does_not_hide_another() -> None:
    status = status_pb2.Status(code=8)
    for value in (b"\xff\xff\xff", error_details_pb2.ErrorInfo(reason="OVERLOADED").SerializeToString()):
        status.details.add(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=value)
    assert (errors.reason_of(status), errors.retry_after_of(status)) == ("OVERLOADED", None)


def test_docstring_lists_every_error() -> None:
    kinds = [kind.__name__ for kind in PolyheadError.__subclasses__()]
    assert len(kinds) == 7
    assert all(f"+-- {kind} " in str(errors.__doc__) for kind in kinds)


def test_unwrap_returns_the_result() -> None:
    result = Result(Truncation(False, 3, 3), Fingerprints("", {}))
    assert Answer("1", result=result).unwrap() is result


def test_unwrap_raises_the_item_error() -> None:
    answer = Answer("1", error=ItemError("OUT_OF_RANGE", "TEXT_TOO_LONG", "300 tokens"))
    with pytest.raises(ItemFailedError, match="OUT_OF_RANGE: item '1': 300 tokens") as caught:
        answer.unwrap()
    assert (caught.value.item_id, caught.value.code, caught.value.reason) == ("1", "OUT_OF_RANGE", "TEXT_TOO_LONG")


def test_item_error_keeps_the_retry_delay() -> None:
    answer = Answer("1", error=ItemError("RESOURCE_EXHAUSTED", "OVERLOADED", "busy", retry_after_s=1.5))
    with pytest.raises(ItemFailedError) as caught:
        answer.unwrap()
    assert caught.value.retry_after_s == 1.5


@pytest.mark.parametrize("code", ["OK", "nonsense", "UNKNOWN"])
def test_unknown_status_code_is_a_server_error(code: str) -> None:
    assert type(errors.error_for_code(code, "odd")) is errors.ServerError

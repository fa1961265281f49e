from __future__ import annotations

import grpc
import pytest
from polyhead_client import Answer, ItemError, ItemFailedError, PolyheadError, Result, errors
from polyhead_client.results import Fingerprints, Truncation


def test_every_status_code_has_an_error_of_its_own_tree() -> None:
    assert set(errors._BY_CODE) == set(grpc.StatusCode) - {grpc.StatusCode.OK}
    assert all(issubclass(kind, PolyheadError) for kind in errors._BY_CODE.values())


def test_docstring_draws_every_error() -> None:
    kinds = [kind.__name__ for kind in PolyheadError.__subclasses__()]
    assert len(kinds) == 7
    assert all(f"+-- {kind} " in str(errors.__doc__) for kind in kinds)


def test_unwrap_gives_the_result() -> None:
    result = Result(Truncation(False, 3, 3), Fingerprints("", {}))
    assert Answer("1", result=result).unwrap() is result


def test_unwrap_raises_the_items_error() -> None:
    answer = Answer("1", error=ItemError("OUT_OF_RANGE", "TEXT_TOO_LONG", "300 tokens"))
    with pytest.raises(ItemFailedError, match="OUT_OF_RANGE: item '1': 300 tokens") as caught:
        answer.unwrap()
    assert (caught.value.item_id, caught.value.code, caught.value.reason) == ("1", "OUT_OF_RANGE", "TEXT_TOO_LONG")


def test_item_keeps_what_the_server_told_about_trying_again() -> None:
    answer = Answer("1", error=ItemError("RESOURCE_EXHAUSTED", "OVERLOADED", "busy", retry_after_s=1.5))
    with pytest.raises(ItemFailedError) as caught:
        answer.unwrap()
    assert caught.value.retry_after_s == 1.5


@pytest.mark.parametrize("code", ["OK", "nonsense", "UNKNOWN"])
def test_code_that_names_no_error_is_the_servers_fault(code: str) -> None:
    assert type(errors.error_named(code, "odd")) is errors.ServerError

"""The arguments of the application on Ray Serve, without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from polyhead_server.ray_serve.arguments import Arguments
from polyhead_server.settings import Settings
from pydantic import ValidationError


def make(**values: Any) -> Arguments:
    return Arguments.model_validate({"bundle": "/models/demo", **values})


def test_values_of_the_command_line_become_settings_of_their_types() -> None:
    arguments = make(max_queue_s="5", threads="2", no_playground="true", engine="onnx", cpus_per_replica="0.5")
    settings = arguments.settings(cores=3)
    assert settings.bundle == Path("/models/demo")
    assert (settings.max_queue_s, settings.threads, settings.no_playground) == (5.0, 2, True)
    assert (settings.engine, settings.cores, arguments.cpus_per_replica) == ("onnx", 3, 0.5)


def test_defaults_are_those_of_the_server() -> None:
    settings, plain = make().settings(), Settings(bundle=Path("/models/demo"))
    deployment = {"listen", "allow_plaintext", "max_connection_age_s", "max_connection_age_grace_s"}
    assert {name for name, value in vars(settings).items() if value != getattr(plain, name)} == deployment


def test_streams_end_at_their_age() -> None:
    assert make(max_stream_age_s=45).settings().stream_age_s() == pytest.approx(45)


def test_every_argument_has_a_description() -> None:
    assert all(field.description for field in Arguments.model_fields.values())


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"bundel": "/x"}, "bundel\n  Extra inputs are not permitted"),
        ({"threads": "two"}, "threads\n  Input should be a valid integer"),
        ({"engine": "jax"}, "engine\n  Input should be 'auto', 'onnx' or 'torch'"),
        ({"max_queue_s": -1}, "max_queue_s -1.0 is less than the minimum of 0"),
        ({"min_replicas": 3, "max_replicas": 2}, "max_replicas 2 is less than min_replicas 3"),
        ({"min_replicas": 0}, "min_replicas\n  Input should be greater than or equal to 1"),
        ({"api_keys": "keys.toml"}, "or allow_plaintext_keys if something else encrypts"),
        ({"dialects": "soap"}, "dialects soap: name at least one of polyhead, oip, tei"),
        (
            {"bundle": "no/such/folder"},
            "no/such/folder does not exist here; name a folder by its absolute path, which every node has",
        ),
    ],
)
def test_invalid_arguments_are_refused_with_their_name(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError) as error:
        make(**values)
    assert problem in str(error.value)


def test_a_relative_bundle_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert make(bundle="demo").bundle == tmp_path / "demo"


def test_keys_are_accepted_where_something_else_encrypts() -> None:
    assert make(api_keys="keys.toml", allow_plaintext_keys=True).settings().api_keys == "keys.toml"


def test_a_replica_accepts_its_streams_and_the_calls_that_its_queue_has_tokens_for() -> None:
    assert make(max_streams=10, max_queue_tokens=1280).max_ongoing_requests == 20
    assert make(max_streams=10, max_queue_tokens=1).max_ongoing_requests == 11

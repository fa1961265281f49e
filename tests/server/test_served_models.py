"""Several models on the command line: their names, their folders, and the settings of single ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from polyhead_server import cli
from polyhead_server.errors import StartupError
from polyhead_server.served_models import ServedBundle, parse_bundles
from polyhead_server.settings import Settings


@pytest.mark.parametrize(
    ("argument", "bundle", "name"),
    [
        ("bundles/tickets", "bundles/tickets", ""),
        ("tickets=bundles/a", "bundles/a", "tickets"),
        # Only the first = separates a name.
        ("tickets=a=b", "a=b", "tickets"),
        # A folder whose path has a =.
        ("./a=b", "a=b", ""),
        ("/bundles/a=b", "/bundles/a=b", ""),
    ],
)
def test_one_bundle_may_have_a_name(argument: str, bundle: str, name: str) -> None:
    settings = Settings(**parse_bundles([argument]))
    assert (settings.bundle, settings.served_name, settings.models) == (Path(bundle), name, ())
    assert settings.of_models() == [settings]


def test_several_bundles_have_settings_of_their_own() -> None:
    values = parse_bundles(["tickets=bundles/a", "re-views.2=b"])
    own = "re-views.2.max-queue-s=5, tickets.variant=fp32,re-views.2.max_windows=3"
    settings = Settings(**values, max_queue_s=9.0, model_settings=own)
    assert settings.models == (ServedBundle("tickets", Path("bundles/a")), ServedBundle("re-views.2", Path("b")))
    tickets, reviews = settings.of_models()
    assert (tickets.bundle, tickets.served_name) == (Path("bundles/a"), "tickets")
    assert (tickets.max_queue_s, tickets.variant, tickets.max_windows) == (9.0, "fp32", 32)
    assert (reviews.bundle, reviews.served_name) == (Path("b"), "re-views.2")
    assert (reviews.max_queue_s, reviews.variant, reviews.max_windows) == (5.0, "auto", 3)
    assert tickets.of_models() == [tickets]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["a=x", "b"], "b has no name: each of several bundles is given as NAME=DIR"),
        (["a=x", "b=y", "a=z"], "two bundles have the name a"),
        (["a=x", "b="], "b= names no folder"),
        (["=x"], "'' is not a valid name"),
        (["a b=x"], "'a b' is not a valid name"),
        ([f"{'a' * 65}=x"], "is not a valid name"),
    ],
)
def test_names_that_clash_or_are_invalid_are_refused(arguments: list[str], problem: str) -> None:
    with pytest.raises(StartupError, match=problem):
        parse_bundles(arguments)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"workers": 2}, "--workers 2 serves one model, and 2 are given: start a server for each"),
        ({"fronts": 1}, "--fronts 1 serves one model"),
        ({"served_name": "a"}, "--served-name a names one model"),
        ({"public_key": "k", "signature": "s"}, "--signature is that of one bundle"),
        ({"model_settings": "a"}, r"a: write NAME\.FLAG=VALUE, such as a\.max-queue-s=5"),
        ({"model_settings": "max-queue-s=5"}, "write NAME.FLAG=VALUE"),
        ({"model_settings": "c.variant=fp32"}, "there is no model c; there are a, b"),
        ({"model_settings": "a.listen=x"}, "only these flags may differ between models: public-key"),
        ({"model_settings": "a.max-windows=x"}, "a.max-windows=x: is not a valid integer"),
        ({"model_settings": "a.max-queue-s=x"}, "a.max-queue-s=x: is not a valid number"),
        ({"model_settings": "a.max-windows=0"}, "a.max-windows=0: is less than the minimum of 1"),
        ({"model_settings": "a.max-queue-s=nan"}, "is less than the minimum of 0"),
        ({"model_settings": "a.engine=tf"}, "a.engine=tf: must be one of auto, onnx, torch"),
    ],
)
def test_settings_that_cannot_work_are_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(StartupError, match=problem):
        Settings(**parse_bundles(["a=x", "b=y"]), **values)


def test_settings_of_single_models_require_several() -> None:
    with pytest.raises(StartupError, match="--model-settings requires several models"):
        Settings(**parse_bundles(["a=x"]), model_settings="a.variant=fp32")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "Missing argument"),
        (["a=x", "b=y", "--workers", "2"], "--workers 2 serves one model"),
        (["a=x", "--served-name", "b"], "the model has two names, a and --served-name b"),
    ],
)
def test_command_reports_what_is_wrong(arguments: list[str], problem: str) -> None:
    result = CliRunner().invoke(cli.main, arguments)
    assert (result.exit_code, problem in result.output) == (2, True), result.output

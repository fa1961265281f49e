from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from polyhead_server import cli, settings
from polyhead_server.errors import StartupError
from polyhead_server.workers import ipc


@pytest.mark.parametrize(
    ("content", "cores"), [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("?", 8)]
)
def test_cores_are_bounded_by_the_quota(
    content: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu_max = tmp_path / "cpu.max"
    cpu_max.write_text(content)
    monkeypatch.setattr(settings, "CGROUP_CPU_MAX", cpu_max)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert settings.usable_cores() == cores


def test_cores_without_a_cgroup_are_those_of_the_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "CGROUP_CPU_MAX", tmp_path / "missing")
    assert settings.usable_cores() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("name", "value"), [("threads", -1), ("stream_window", 0), ("workers", 0)])
def test_number_with_which_nothing_works_is_refused(name: str, value: int) -> None:
    with pytest.raises(StartupError, match=name.replace("_", "-")):
        settings.Settings(bundle=Path("x"), **{name: value})  # type: ignore[arg-type]


def test_threads_that_were_asked_for_are_taken() -> None:
    assert settings.Settings(bundle=Path("x"), threads=3).compute_threads("cuda") == 3


def test_gpu_is_fed_by_two_threads() -> None:
    assert settings.Settings(bundle=Path("x")).compute_threads("cuda") == 2


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:1", True),
        ("127.8.8.8:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("unix:/run/polyhead.sock", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("localhost.example.org:1", False),
    ],
)
def test_address_is_local_when_no_other_machine_reaches_it(address: str, local: bool) -> None:
    assert settings.is_local(address) == local


PUBLIC, TLS = {"listen": "0.0.0.0:1"}, {"tls_cert": "cert", "tls_key": "key"}


@pytest.mark.parametrize(
    ("values", "flags"),
    [
        ({"tls_cert": "cert"}, ("--tls-cert", "--tls-key")),
        ({"tls_key": "key"}, ("--tls-cert", "--tls-key")),
        ({"tls_client_ca": "ca"}, ("--tls-client-ca", "--tls-cert")),
        (PUBLIC, ("--listen 0.0.0.0:1", "--tls-cert", "--allow-plaintext")),
        (PUBLIC | {"api_keys": "keys", "allow_plaintext": True}, ("--api-keys", "--allow-plaintext-keys")),
        (PUBLIC | {"api_keys": "keys", "allow_plaintext_keys": True}, ("--allow-plaintext",)),
    ],
)
def test_plain_text_beyond_loopback_and_half_of_a_pair_are_refused(
    values: dict[str, Any], flags: tuple[str, ...]
) -> None:
    with pytest.raises(StartupError) as caught:
        settings.Settings(bundle=Path("x"), **values)
    assert all(flag in str(caught.value) for flag in flags)


@pytest.mark.parametrize(
    "values",
    [
        {"api_keys": "keys"},
        PUBLIC | TLS,
        PUBLIC | TLS | {"api_keys": "keys", "tls_client_ca": "ca"},
        PUBLIC | {"allow_plaintext": True},
        PUBLIC | {"allow_plaintext": True, "allow_plaintext_keys": True, "api_keys": "keys"},
    ],
)
def test_what_is_encrypted_local_or_wished_for_is_allowed(values: dict[str, Any]) -> None:
    assert settings.Settings(bundle=Path("x"), **values)


def test_boolean_setting_is_a_flag_and_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[settings.Settings] = []
    monkeypatch.setattr(cli, "run", lambda settings, *_, **__: told.append(settings))
    for arguments, environment in (
        (["x"], {}),
        (["x", "--no-reflection"], {}),
        (["x"], {"POLYHEAD_NO_REFLECTION": "1"}),
    ):
        assert CliRunner().invoke(cli.main, arguments, env=environment).exit_code == 0
    assert [one.no_reflection for one in told] == [False, True, True]


def test_settings_hold_paths_and_no_secret(tmp_path: Path) -> None:
    """They are logged, shown and handed to workers: what they name is read elsewhere."""
    for name in ("cert", "key", "keys"):
        (tmp_path / name).write_text("the secret")
    told = settings.Settings(
        bundle=Path("x"),
        tls_cert=str(tmp_path / "cert"),
        tls_key=str(tmp_path / "key"),
        api_keys=str(tmp_path / "keys"),
    )
    assert "the secret" not in repr(told) + ipc.encode_notification(ipc.CONFIGURE, ipc.WorkerConfig(told)).decode()

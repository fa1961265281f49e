"""Settings: validation, cores, flags and environment variables."""

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
def test_cores_are_limited_by_the_cpu_quota(
    content: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu_max = tmp_path / "cpu.max"
    cpu_max.write_text(content)
    monkeypatch.setattr(settings, "CGROUP_CPU_MAX", cpu_max)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert settings.usable_cores() == cores


def test_cores_without_a_cgroup_equal_the_cpu_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "CGROUP_CPU_MAX", tmp_path / "missing")
    assert settings.usable_cores() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("name", "value"), [("threads", -1), ("stream_window", 0), ("workers", 0)])
def test_number_below_its_minimum_is_refused(name: str, value: int) -> None:
    with pytest.raises(StartupError, match=name.replace("_", "-")):
        settings.Settings(bundle=Path("x"), **{name: value})  # type: ignore[arg-type]


def test_signature_without_a_key_to_verify_it_is_refused() -> None:
    with pytest.raises(StartupError, match="--signature requires --public-key"):
        settings.Settings(bundle=Path("x"), signature="x.sig")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"fronts": 2, "workers": 2}, "--fronts 2 and --workers 2 exclude each other"),
        ({"fronts": 2, "listen": "unix:/x"}, "--fronts 2 cannot share --listen unix:/x"),
        ({"fronts": 2, "http_listen": "unix:/x"}, "--fronts 2 cannot share --http-listen unix:/x"),
        ({"fronts": 1, "max_items_per_message": 1_000_001}, "--max-items-per-message 1000001"),
        ({"fronts": -1}, "--fronts -1 is less than the minimum of 0"),
    ],
)
def test_fronts_refuse_what_they_cannot_do(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(StartupError, match=problem):
        settings.Settings(bundle=Path("x"), **values)


@pytest.mark.parametrize("values", [{"drift_bucket_s": 86_401.0}, {"drift_bucket_s": 80.0}, {"drift_window_s": 60.0}])
def test_window_of_too_few_or_too_many_buckets_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(StartupError, match="is not 2 to 1000 times --drift-bucket-s"):
        settings.Settings(bundle=Path("x"), **values)


def test_window_may_be_disabled_whatever_the_bucket() -> None:
    assert not settings.Settings(bundle=Path("x"), drift_window_s=0.0, drift_bucket_s=80.0).drift_window_s


def test_one_front_may_listen_on_a_unix_socket() -> None:
    one = settings.Settings(bundle=Path("x"), fronts=1, listen="unix:/x")
    assert one.connection_age_s() is None
    assert settings.Settings(bundle=Path("x"), fronts=2).connection_age_s() == 300


def test_explicit_thread_count_is_used() -> None:
    assert settings.Settings(bundle=Path("x"), threads=3).compute_threads("cuda") == 3


def test_gpu_gets_two_compute_threads() -> None:
    assert settings.Settings(bundle=Path("x")).compute_threads("cuda") == 2


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
def test_plaintext_beyond_loopback_and_incomplete_tls_flags_are_refused(
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
def test_encrypted_local_or_explicitly_allowed_plaintext_is_accepted(values: dict[str, Any]) -> None:
    assert settings.Settings(bundle=Path("x"), **values)


def test_boolean_setting_is_a_flag_and_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[settings.Settings] = []
    monkeypatch.setattr(cli, "run", lambda settings, *_, **__: parsed.append(settings))
    for arguments, environment in (
        (["x"], {}),
        (["x", "--no-reflection"], {}),
        (["x"], {"POLYHEAD_NO_REFLECTION": "1"}),
    ):
        assert CliRunner().invoke(cli.main, arguments, env=environment).exit_code == 0
    assert [one.no_reflection for one in parsed] == [False, True, True]


def test_settings_contain_paths_and_no_secrets(tmp_path: Path) -> None:
    """Settings are logged and sent to workers, so the files that they name are read elsewhere."""
    for name in ("cert", "key", "keys"):
        (tmp_path / name).write_text("the secret")
    made = settings.Settings(
        bundle=Path("x"),
        tls_cert=str(tmp_path / "cert"),
        tls_key=str(tmp_path / "key"),
        api_keys=str(tmp_path / "keys"),
    )
    assert "the secret" not in repr(made) + ipc.encode_notification(ipc.CONFIGURE, ipc.WorkerConfig(made)).decode()

"""API keys: the format of their file, the scopes, and the command that creates keys."""

from __future__ import annotations

import datetime
import hashlib
import hmac
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from polyhead.v1 import admin_service_pb2, inference_service_pb2
from polyhead_server.errors import PermissionDeniedError, StartupError, UnauthenticatedError
from polyhead_server.security.api_keys import SCOPES, Keys, create, main, read

ANALYZE = "/polyhead.v1.InferenceService/Analyze"
INFO = "/polyhead.v1.InferenceService/GetModelInfo"
STREAM_EMBED = "/polyhead.v1.InferenceService/StreamEmbed"
RELOAD = "/polyhead.v1.AdminService/Reload"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
DIGEST = hashlib.sha256(b"secret").hexdigest()
VALID = f'[[keys]]\nname = "shop"\nsha256 = "{DIGEST}"\nscopes = ["infer"]\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def write(path: Path, text: str) -> Path:
    fresh = path.with_suffix(".fresh")
    fresh.write_text(text)
    fresh.chmod(0o600)
    return fresh.rename(path)


def allowed(keys: Keys, presented: str) -> set[str]:
    """Which of five methods a key may call."""

    def may(method: str) -> bool:
        try:
            keys.authorize(presented, method)
        except PermissionDeniedError:
            return False
        return True

    return {method for method in (ANALYZE, INFO, STREAM_EMBED, RELOAD, REFLECTION) if may(method)}


@pytest.mark.parametrize(
    ("scopes", "methods"),
    [
        ('"infer"', {ANALYZE, STREAM_EMBED}),
        ('"info"', {INFO}),
        ('"admin"', {RELOAD}),
        ('"StreamEmbed", "info"', {STREAM_EMBED, INFO}),
        ("", set()),
    ],
)
def test_scope_allows_its_methods_and_no_other(scopes: str, methods: set[str], path: Path) -> None:
    keys = Keys(write(path, VALID.replace('"infer"', scopes)))
    assert allowed(keys, "secret") == methods


def test_every_rpc_belongs_to_exactly_one_scope() -> None:
    services = [inference_service_pb2.DESCRIPTOR, admin_service_pb2.DESCRIPTOR]
    rpcs = [
        f"/{service.full_name}/{method.name}"
        for file in services
        for service in file.services_by_name.values()
        for method in service.methods
    ]
    groups = [SCOPES[name] for name in ("infer", "info", "admin")]
    assert len(rpcs) > 8
    assert [sum(rpc in group for group in groups) for rpc in rpcs] == [1] * len(rpcs)


def test_key_is_identified_by_its_name(path: Path) -> None:
    other = VALID.replace("shop", "other").replace(DIGEST, hashlib.sha256(b"another").hexdigest())
    keys = Keys(write(path, VALID + other))
    assert (keys.authorize("secret", ANALYZE), keys.authorize("another", ANALYZE)) == ("shop", "other")


@pytest.mark.parametrize("presented", ["", "Secret", "secret ", DIGEST, "shop", "sécret"])
def test_wrong_key_is_rejected(presented: str, path: Path) -> None:
    with pytest.raises(UnauthenticatedError):
        Keys(write(path, VALID)).authorize(presented, ANALYZE)


def test_every_key_is_compared_in_constant_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"key-{number}" for number in range(5)]
    entries = [VALID.replace("shop", name).replace(DIGEST, hashlib.sha256(name.encode()).hexdigest()) for name in names]
    keys = Keys(write(path, "".join(entries)))
    compared: list[bytes] = []
    compare = hmac.compare_digest

    def counting(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    for name in (names[0], names[-1]):
        compared.clear()
        keys.authorize(name, ANALYZE)
        assert len(compared) == len(names)


def test_expired_key_is_rejected(path: Path) -> None:
    expires = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
    now = expires.timestamp() - 1
    keys = Keys(write(path, VALID + "expires = 2030-01-01T00:00:00Z\n"), lambda: now)
    assert keys.authorize("secret", ANALYZE) == "shop"
    now = expires.timestamp()
    with pytest.raises(UnauthenticatedError):
        keys.authorize("secret", ANALYZE)


@pytest.mark.parametrize("text", ["", "[[keys]", VALID.replace("infer", "everything")])
def test_invalid_new_file_keeps_the_old_scopes_and_is_logged(
    text: str, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = Keys(write(path, VALID))
    write(path, text)
    keys.refresh()
    assert keys.authorize("secret", ANALYZE) == "shop"
    assert f"{path}" in caplog.text
    assert "stays in force" in caplog.text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", 'no entry "keys"'),
        ("keys = 3", "is not a valid key file"),
        ("keys = [3]", "key 1 requires name, sha256 and scopes"),
        ("\xff", "is not a valid key file"),
        (VALID + 'owner = "x"\n', "and nothing else"),
        (VALID.replace("shop", "a b"), "a name has"),
        (VALID.replace(DIGEST, "secret"), "key shop: sha256 must be 64"),
        (VALID.replace("infer", "Infer"), "key shop: 'Infer' is not a valid scope; the scopes are infer, info, admin"),
        (VALID + "expires = 2030-01-01\n", "key shop: expires must be a time with its zone"),
        (VALID + "expires = 2030-01-01T00:00:00\n", "key shop: expires must be a time with its zone"),
        (VALID + VALID, "two keys have the same name"),
        (VALID + VALID.replace("shop", "other"), "two keys have the same sha256"),
    ],
)
def test_error_message_names_the_file_and_the_mistake(text: str, problem: str, path: Path) -> None:
    path.write_bytes(text.encode("latin-1"))
    path.chmod(0o600)
    with pytest.raises(StartupError) as caught:
        read(path)
    assert problem in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("mode", "valid"), [(0o600, True), (0o644, True), (0o664, False), (0o606, False)])
def test_file_that_other_users_may_write_to_is_refused(mode: int, valid: bool, path: Path) -> None:
    write(path, VALID).chmod(mode)
    if valid:
        assert len(read(path)) == 1
    else:
        with pytest.raises(StartupError, match="chmod go-w"):
            read(path)


def test_created_key_is_accepted_and_not_stored(path: Path) -> None:
    first = create(path, "shop", ["infer"], None)
    keys = Keys(path)
    second = create(path, "probe", ["info"], datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1))
    keys.refresh()
    assert (keys.authorize(first, ANALYZE), keys.authorize(second, INFO)) == ("shop", "probe")
    assert not any(key in path.read_text() or key in repr(read(path)) for key in (first, second))
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("empty", ["", "\n", "keys = []\n", "keys = [ ]"])
def test_first_key_replaces_an_empty_list(empty: str, path: Path) -> None:
    write(path, empty)
    first, second = (create(path, name, ["infer"], None) for name in ("shop", "probe"))
    assert [Keys(path).authorize(key, ANALYZE) for key in (first, second)] == ["shop", "probe"]


def test_empty_file_that_other_users_may_write_to_is_refused(path: Path) -> None:
    write(path, "").chmod(0o666)
    with pytest.raises(StartupError, match="chmod go-w"):
        create(path, "shop", ["infer"], None)


@pytest.mark.parametrize("name", ["shop", 'a"b', "", "a b"])
def test_failed_creation_leaves_the_file_unchanged(name: str, path: Path) -> None:
    create(path, "shop", ["infer"], None)
    before = path.read_bytes()
    with pytest.raises(StartupError):
        create(path, name, ["infer"], None)
    assert path.read_bytes() == before


def test_command_prints_only_the_key(path: Path) -> None:
    result = CliRunner().invoke(main, [str(path), "shop", "--scope", "infer", "--scope", "info", "--days", "90"])
    assert result.exit_code == 0
    (key,) = result.stdout.split()
    assert allowed(Keys(path), key) == {ANALYZE, STREAM_EMBED, INFO}
    (entry,) = tomllib.loads(path.read_text())["keys"]
    assert (entry["expires"] - datetime.datetime.now(datetime.UTC)).days in {89, 90}


def test_command_reports_what_is_wrong(path: Path) -> None:
    create(path, "shop", ["infer"], None)
    result = CliRunner().invoke(main, [str(path), "shop", "--scope", "infer"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "two keys have the same name" in result.stderr

"""The file of keys: what it may say, what a key may do, how one is made."""

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
from polyhead_server.security.api_keys import RIGHTS, Keys, main, make, read

ANALYZE = "/polyhead.v1.InferenceService/Analyze"
INFO = "/polyhead.v1.InferenceService/GetModelInfo"
STREAM_EMBED = "/polyhead.v1.InferenceService/StreamEmbed"
RELOAD = "/polyhead.v1.AdminService/Reload"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
DIGEST = hashlib.sha256(b"secret").hexdigest()
GOOD = f'[[keys]]\nname = "shop"\nsha256 = "{DIGEST}"\nrights = ["infer"]\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def write(path: Path, text: str) -> Path:
    fresh = path.with_suffix(".fresh")
    fresh.write_text(text)
    fresh.chmod(0o600)
    return fresh.rename(path)


def allowed(keys: Keys, shown: str) -> set[str]:
    """Which of five methods a key may call."""

    def may(method: str) -> bool:
        try:
            keys.authorize(shown, method)
        except PermissionDeniedError:
            return False
        return True

    return {method for method in (ANALYZE, INFO, STREAM_EMBED, RELOAD, REFLECTION) if may(method)}


@pytest.mark.parametrize(
    ("rights", "methods"),
    [
        ('"infer"', {ANALYZE, STREAM_EMBED}),
        ('"info"', {INFO}),
        ('"admin"', {RELOAD}),
        ('"reflection"', {REFLECTION}),
        ('"StreamEmbed", "info"', {STREAM_EMBED, INFO}),
        ("", set()),
    ],
)
def test_right_allows_its_methods_and_no_other(rights: str, methods: set[str], path: Path) -> None:
    keys = Keys(write(path, GOOD.replace('"infer"', rights)))
    assert allowed(keys, "secret") == methods


def test_every_rpc_is_under_one_right() -> None:
    services = [inference_service_pb2.DESCRIPTOR, admin_service_pb2.DESCRIPTOR]
    rpcs = [
        f"/{service.full_name}/{method.name}"
        for file in services
        for service in file.services_by_name.values()
        for method in service.methods
    ]
    groups = [RIGHTS[name] for name in ("infer", "info", "admin")]
    assert len(rpcs) > 8
    assert [sum(rpc in group for group in groups) for rpc in rpcs] == [1] * len(rpcs)


def test_key_is_known_by_its_name(path: Path) -> None:
    other = GOOD.replace("shop", "other").replace(DIGEST, hashlib.sha256(b"another").hexdigest())
    keys = Keys(write(path, GOOD + other))
    assert (keys.authorize("secret", ANALYZE), keys.authorize("another", ANALYZE)) == ("shop", "other")


@pytest.mark.parametrize("shown", ["", "Secret", "secret ", DIGEST, "shop", "sécret"])
def test_wrong_key_is_not_known(shown: str, path: Path) -> None:
    with pytest.raises(UnauthenticatedError):
        Keys(write(path, GOOD)).authorize(shown, ANALYZE)


def test_every_key_is_compared_in_constant_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"key-{number}" for number in range(5)]
    entries = [GOOD.replace("shop", name).replace(DIGEST, hashlib.sha256(name.encode()).hexdigest()) for name in names]
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


def test_key_ends_with_its_expiry(path: Path) -> None:
    expires = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
    now = expires.timestamp() - 1
    keys = Keys(write(path, GOOD + "expires = 2030-01-01T00:00:00Z\n"), lambda: now)
    assert keys.authorize("secret", ANALYZE) == "shop"
    now = expires.timestamp()
    with pytest.raises(UnauthenticatedError):
        keys.authorize("secret", ANALYZE)


def test_removed_key_is_not_known_any_more(path: Path) -> None:
    keys = Keys(write(path, GOOD))
    assert keys.authorize("secret", ANALYZE) == "shop"
    write(path, "keys = []\n")
    with pytest.raises(UnauthenticatedError):
        keys.authorize("secret", ANALYZE)


@pytest.mark.parametrize("text", ["", "[[keys]", GOOD.replace("infer", "everything")])
def test_damaged_new_file_keeps_the_old_rights_and_says_why(
    text: str, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = Keys(write(path, GOOD))
    write(path, text)
    assert keys.authorize("secret", ANALYZE) == "shop"
    assert f"{path}" in caplog.text
    assert "stays in force" in caplog.text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", 'no entry "keys"'),
        ("keys = 3", "is no file of keys"),
        ("keys = [3]", "key 1 must have name, sha256 and rights"),
        ("\xff", "is no file of keys"),
        (GOOD + 'owner = "x"\n', "and nothing else"),
        (GOOD.replace("shop", "a b"), "a name has"),
        (GOOD.replace(DIGEST, "secret"), "key shop: sha256 must be 64"),
        (GOOD.replace("infer", "Infer"), "key shop: 'Infer' is no right; there are infer, info, admin"),
        (GOOD + "expires = 2030-01-01\n", "key shop: expires must be a time with its zone"),
        (GOOD + "expires = 2030-01-01T00:00:00\n", "key shop: expires must be a time with its zone"),
        (GOOD + GOOD, "two keys have the same name"),
        (GOOD + GOOD.replace("shop", "other"), "two keys have the same sha256"),
    ],
)
def test_mistake_in_the_file_is_named(text: str, problem: str, path: Path) -> None:
    path.write_bytes(text.encode("latin-1"))
    path.chmod(0o600)
    with pytest.raises(StartupError) as caught:
        read(path)
    assert problem in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("mode", "fine"), [(0o600, True), (0o644, True), (0o664, False), (0o606, False)])
def test_file_that_others_may_write_to_is_refused(mode: int, fine: bool, path: Path) -> None:
    write(path, GOOD).chmod(mode)
    if fine:
        assert len(read(path)) == 1
    else:
        with pytest.raises(StartupError, match="chmod go-w"):
            read(path)


def test_key_that_was_made_is_known_and_stands_nowhere(path: Path) -> None:
    first = make(path, "shop", ["infer"], None)
    keys = Keys(path)
    second = make(path, "probe", ["info"], datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1))
    assert (keys.authorize(first, ANALYZE), keys.authorize(second, INFO)) == ("shop", "probe")
    assert not any(key in path.read_text() or key in repr(read(path)) for key in (first, second))
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("none", ["", "\n", "keys = []\n", "keys = [ ]"])
def test_first_key_takes_the_place_of_an_empty_list(none: str, path: Path) -> None:
    write(path, none)
    first, second = (make(path, name, ["infer"], None) for name in ("shop", "probe"))
    assert [Keys(path).authorize(key, ANALYZE) for key in (first, second)] == ["shop", "probe"]


def test_empty_file_that_others_may_write_to_is_refused(path: Path) -> None:
    write(path, "").chmod(0o666)
    with pytest.raises(StartupError, match="chmod go-w"):
        make(path, "shop", ["infer"], None)


@pytest.mark.parametrize("name", ["shop", 'a"b', "", "a b"])
def test_key_that_cannot_be_made_changes_nothing(name: str, path: Path) -> None:
    make(path, "shop", ["infer"], None)
    before = path.read_bytes()
    with pytest.raises(StartupError):
        make(path, name, ["infer"], None)
    assert path.read_bytes() == before


def test_command_prints_the_key_alone(path: Path) -> None:
    result = CliRunner().invoke(main, [str(path), "shop", "--right", "infer", "--right", "info", "--days", "90"])
    assert result.exit_code == 0
    (key,) = result.stdout.split()
    assert allowed(Keys(path), key) == {ANALYZE, STREAM_EMBED, INFO}
    (entry,) = tomllib.loads(path.read_text())["keys"]
    assert (entry["expires"] - datetime.datetime.now(datetime.UTC)).days in {89, 90}


def test_command_says_what_is_wrong(path: Path) -> None:
    make(path, "shop", ["infer"], None)
    result = CliRunner().invoke(main, [str(path), "shop", "--right", "infer"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "two keys have the same name" in result.stderr

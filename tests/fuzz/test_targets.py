"""Every target accepts its seeds, changes of them, and the inputs that once showed a fault. Requires no fuzzer.

The target ``tokenizers`` is left to ``make fuzz``: the library that reads such files panics on some and prints it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from polyhead_server.rpc import message_limits

from .json_mutation import each_value_replaced, mutated
from .run import REGRESSIONS
from .targets import TARGETS

TESTED = [name for name in TARGETS if name != "tokenizers"]
_CHANGES_PER_SEED = 20
_MAX_CHANGED_SEEDS = 20
# A manifest has thousands of values.
_MAX_REPLACEMENTS = 100


@pytest.fixture(scope="module")
def checks() -> Iterator[Callable[[str], Callable[[bytes], None]]]:
    made: dict[str, Callable[[bytes], None]] = {}
    with ExitStack() as stack:

        def check(name: str) -> Callable[[bytes], None]:
            if name not in made:
                made[name] = TARGETS[name].create(stack)
            return made[name]

        yield check


def changed(data: bytes, rng: random.Random) -> bytes:
    """Returns the input with some bytes replaced, removed or repeated."""
    content = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(content) + 1)
        piece = content[at : at + rng.randint(1, 8)]
        content[at : at + rng.randint(0, 8)] = rng.choice((b"", rng.randbytes(rng.randint(1, 4)), piece + piece))
    return bytes(content)


@pytest.mark.parametrize("name", TESTED)
def test_target_accepts_seeds_and_changes_of_them(name: str, checks: Callable[[str], Callable[[bytes], None]]) -> None:
    rng = random.Random(0)
    seeds = TARGETS[name].seeds()
    assert seeds
    check = checks(name)
    for seed in seeds:
        check(seed)
    for seed in rng.sample(seeds, min(len(seeds), _MAX_CHANGED_SEEDS)):
        for _ in range(_CHANGES_PER_SEED):
            check(changed(seed, rng))


@pytest.mark.parametrize("name", [name for name in TESTED if TARGETS[name].json_at is not None])
def test_target_accepts_documents_with_a_value_of_another_type(
    name: str, checks: Callable[[str], Callable[[bytes], None]]
) -> None:
    target, check = TARGETS[name], checks(name)
    seeds = [seed for seed in target.seeds() if mutated(seed, 0, target.json_at or 0)]
    assert seeds
    for seed in seeds:
        for document in each_value_replaced(seed, target.json_at or 0, _MAX_REPLACEMENTS):
            check(document)


@pytest.mark.parametrize("path", sorted(REGRESSIONS.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_target_accepts_an_input_that_once_showed_a_fault(
    path: Path, checks: Callable[[str], Callable[[bytes], None]]
) -> None:
    checks(path.parent.name)(path.read_bytes())


def test_decoder_that_raises_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("fault")

    monkeypatch.setattr(message_limits, "check", fail)
    with ExitStack() as stack, pytest.raises(ValueError, match="fault"):
        TARGETS["requests"].create(stack)(TARGETS["requests"].seeds()[0])


def test_row_that_is_neither_row_nor_problem_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyhead_rows.read_rows", lambda *_: iter(["neither"]))
    with ExitStack() as stack, pytest.raises(AssertionError):
        TARGETS["csv"].create(stack)(b"text\na\n")


def test_tokenizer_whose_paths_disagree_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyhead_server.inference.word_cache.WordCache.encode", lambda *_, **__: [1, 2])
    golden, *others = TARGETS["tokenizers"].seeds()
    with ExitStack() as stack:
        check = TARGETS["tokenizers"].create(stack)
        # The words of other tokenizers are not cached.
        for seed in others:
            check(seed)
        with pytest.raises(AssertionError):
            check(golden)


def test_tokenizer_file_that_ends_in_a_fault_of_ours_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise IndexError("fault")

    monkeypatch.setattr("polyhead_server.inference.tokenization.Tokenizer.encode", fail)
    with ExitStack() as stack, pytest.raises(IndexError, match="fault"):
        TARGETS["tokenizers"].create(stack)(TARGETS["tokenizers"].seeds()[0])

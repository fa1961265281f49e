"""Texts that others have published: whether each is answered as it is alone, and counted as transformers counts it.

The reference has its own settings and the same library below: what it can find is a fault of the server's own making.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from polyhead_client import Answer, AsyncClient

from .adversarial_inputs import families
from .external_corpora import naughty_strings, texts_by_language
from .processes import run_server_with_client
from .scenario import Context, Verdict, scenario

_CALLS = 8
_BATCH = 32
_WAYS = f"in calls of one text, in calls of {_BATCH} and in a stream amid ordinary and hostile ones"
_EXPECTED = "the answers of the engine run alone; as many tokens as the tokenizer of transformers counts"


@scenario("naughty strings", fault=f"each string of the big list of naughty strings, {_WAYS}", expected=_EXPECTED)
async def naughty(context: Context) -> Verdict:
    """The control: each answer held against the string after it."""
    texts = naughty_strings()
    return _finding(await _check(context, texts), f"{len(texts)} strings", {"texts": len(texts)})


@scenario("ten languages", fault=f"texts in ten languages, {_WAYS}", expected=_EXPECTED)
async def ten_languages(context: Context) -> Verdict:
    """The control: each answer held against the text after it."""
    by_language = texts_by_language(context.scaled(200, 20))
    texts = list(itertools.chain.from_iterable(by_language.values()))
    check = await _check(context, texts)
    unknown = {language: check.reference.unknown_share(some) for language, some in by_language.items()}
    return _finding(
        check,
        f"{len(texts):,} texts in {len(by_language)} languages",
        {"texts": len(texts), "languages": len(by_language)}
        | {f"unknown_share_{language}": share for language, share in unknown.items() if share},
    )


@dataclass(frozen=True)
class _Reference:
    """Token ids of texts, by the tokenizer of transformers.

    Attributes:
        ids: By text; special tokens inside a text are text.
        unknown: The id of what the vocabulary does not hold; -1 where there is none.
        special: Texts with another number of tokens where special tokens inside a text are special.
    """

    ids: Mapping[str, Sequence[int]]
    unknown: int
    special: int

    def unknown_share(self, texts: Sequence[str]) -> float:
        """Which part of the texts' tokens, special ones included, the vocabulary does not hold."""
        ids = [one for text in texts for one in self.ids[text]]
        return ids.count(self.unknown) / len(ids)


@dataclass(frozen=True)
class _Check:
    """What came of some texts.

    Attributes:
        items: Answers, those to ordinary and hostile texts among them.
        wrong: Answers that are not those of the engine run alone.
        miscounted: Answers that report another number of tokens than the reference.
        pairs: Texts with other tokens than the next one, so that their answers must not be those of the next.
        told_apart: Those of them whose answers are found wrong for the next one.
        tokens: Of the texts.
        reference: Their tokens.
    """

    items: int
    wrong: int
    miscounted: int
    pairs: int
    told_apart: int
    tokens: int
    reference: _Reference


async def _check(context: Context, texts: Sequence[str]) -> _Check:
    neighbours = [*context.texts, *families(50).values()]
    reference = _reference(context.bundle, [*texts, *neighbours])
    async with run_server_with_client(context.bundle, context.work_dir) as (_, client):
        single = await _ask(client, texts, 1)
        mixed = random.Random(0).sample([*texts, *neighbours], len(texts) + len(neighbours))
        answers = [*single, *await _ask(client, mixed, _BATCH), *await _stream(client, mixed)]
    pairs = [
        (following, answer)
        for (text, answer), following in zip(single, [*texts[1:], texts[0]], strict=True)
        if reference.ids[text] != reference.ids[following]
    ]
    return _Check(
        items=len(answers),
        wrong=_wrong(context, answers),
        miscounted=sum(_seen(answer) != len(reference.ids[text]) for text, answer in answers),
        pairs=len(pairs),
        told_apart=_wrong(context, pairs),
        tokens=sum(len(reference.ids[text]) for text in texts),
        reference=reference,
    )


def _reference(bundle: Path, texts: Sequence[str]) -> _Reference:
    # Takes seconds, for which the other programs need not wait.
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(bundle / "tokenizer.json"))
    as_text, as_special = (tokenizer(list(texts), split_special_tokens=split)["input_ids"] for split in (True, False))
    unknown = getattr(tokenizer.backend_tokenizer.model, "unk_token", None)
    return _Reference(
        ids=dict(zip(texts, as_text, strict=True)),
        unknown=-1 if unknown is None else tokenizer.backend_tokenizer.token_to_id(unknown),
        special=sum(len(one) != len(other) for one, other in zip(as_text, as_special, strict=True)),
    )


_Answered = tuple[str, Answer]


async def _ask(client: AsyncClient, texts: Sequence[str], size: int) -> list[_Answered]:
    """Texts with their answers, from calls of so many texts, some calls at a time."""
    slots = asyncio.Semaphore(_CALLS)

    async def call(batch: Sequence[str]) -> list[_Answered]:
        async with slots:
            return list(zip(batch, await client.analyze(batch, deadline_s=60), strict=True))

    calls = [call(texts[begin : begin + size]) for begin in range(0, len(texts), size)]
    return list(itertools.chain.from_iterable(await asyncio.gather(*calls)))


async def _stream(client: AsyncClient, texts: Sequence[str]) -> list[_Answered]:
    return list(zip(texts, [answer async for answer in client.stream(texts)], strict=True))


def _wrong(context: Context, answers: Sequence[_Answered]) -> int:
    return sum(
        answer.result is None or context.reference_answers.judge(text, answer.result) != "correct"
        for text, answer in answers
    )


def _seen(answer: Answer) -> int:
    return answer.result.truncation.tokens_seen if answer.result else -1


def _finding(check: _Check, texts: str, figures: Mapping[str, float]) -> Verdict:
    return Verdict(
        observed=f"{texts} with {check.tokens:,} tokens: of {check.items:,} answers {check.wrong} are not those of the "
        f"engine run alone, and {check.miscounted} report another number of tokens",
        passed=not (check.wrong or check.miscounted),
        control=f"held against the text after it, {check.told_apart:,} of {check.pairs:,} answers are wrong; with "
        f"special tokens inside a text taken for such, the tokenizer counts {check.reference.special} otherwise",
        control_failed=check.told_apart == check.pairs > 0 and check.reference.special > 0,
        figures={
            **figures,
            "tokens": check.tokens,
            "answers": check.items,
            "incorrect": check.wrong,
            "miscounted": check.miscounted,
        },
    )

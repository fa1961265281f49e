"""External corpora: compares answers with the reference answers, and token counts with those of transformers.

The tokenizer of transformers has its own settings but uses the same library underneath, so a different count points to
an error of the server, not of the library.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from polyhead_client import Answer, AsyncClient

from tests.reliability.external_corpora import naughty_strings, texts_by_language
from tests.reliability.processes import run_server_with_client
from tests.reliability.scenario import Context, Verdict, scenario

from .adversarial_inputs import families

_CALLS = 8
_BATCH = 32
_REQUESTS = (
    f"in calls of one text, in calls of {_BATCH} texts and in a stream, mixed with ordinary and adversarial texts"
)
_EXPECTED = "Every answer equals the reference answer, and its token count equals that of the transformers tokenizer"


@scenario("naughty strings", fault=f"Each string of the Big List of Naughty Strings, {_REQUESTS}", expected=_EXPECTED)
async def naughty_strings_scenario(context: Context) -> Verdict:
    """The control judges each answer as an answer to the next string."""
    texts = naughty_strings()
    return _verdict(await _check(context, texts), f"{len(texts)} strings", {"texts": len(texts)})


@scenario("multilingual texts", fault=f"Texts in ten languages, {_REQUESTS}", expected=_EXPECTED)
async def multilingual_texts(context: Context) -> Verdict:
    """The control judges each answer as an answer to the next text."""
    by_language = texts_by_language(context.scaled(200, 20))
    texts = list(itertools.chain.from_iterable(by_language.values()))
    check = await _check(context, texts)
    unknown = {language: check.reference.unknown_share(some) for language, some in by_language.items()}
    return _verdict(
        check,
        f"{len(texts):,} texts in {len(by_language)} languages",
        {"texts": len(texts), "languages": len(by_language)}
        | {f"unknown_share_{language}": share for language, share in unknown.items() if share},
    )


@dataclass(frozen=True)
class _Reference:
    """Token ids of texts from the transformers tokenizer.

    Attributes:
        ids: Token ids by text; special tokens inside a text count as text.
        unknown: Id of the unknown token; -1 if there is none.
        special: Number of texts whose token count differs if special tokens inside a text are parsed as such.
    """

    ids: Mapping[str, Sequence[int]]
    unknown: int
    special: int

    def unknown_share(self, texts: Sequence[str]) -> float:
        """Share of unknown tokens among the tokens of the texts, including special tokens."""
        ids = [one for text in texts for one in self.ids[text]]
        return ids.count(self.unknown) / len(ids)


@dataclass(frozen=True)
class _Check:
    """Result of comparing the answers to some texts.

    Attributes:
        items: Number of answers, including those to ordinary and adversarial texts.
        incorrect: Answers that differ from the reference answers.
        miscounted: Answers whose token count differs from the reference.
        pairs: Texts whose tokens differ from those of the next text, so that the answers must differ, too.
        distinguished: Pairs in which the answer is judged incorrect for the next text.
        tokens: Number of tokens of the texts.
        reference: Token ids of the texts.
    """

    items: int
    incorrect: int
    miscounted: int
    pairs: int
    distinguished: int
    tokens: int
    reference: _Reference


async def _check(context: Context, texts: Sequence[str]) -> _Check:
    other_texts = [*context.texts, *families(50).values()]
    reference = _reference(context.bundle, [*texts, *other_texts])
    async with run_server_with_client(context.bundle, context.work_dir) as (_, client):
        single = await _call(client, texts, 1)
        mixed = random.Random(0).sample([*texts, *other_texts], len(texts) + len(other_texts))
        answers = [*single, *await _call(client, mixed, _BATCH), *await _stream(client, mixed)]
    pairs = [
        (following, answer)
        for (text, answer), following in zip(single, [*texts[1:], texts[0]], strict=True)
        if reference.ids[text] != reference.ids[following]
    ]
    return _Check(
        items=len(answers),
        incorrect=_incorrect(context, answers),
        miscounted=sum(_token_count(answer) != len(reference.ids[text]) for text, answer in answers),
        pairs=len(pairs),
        distinguished=_incorrect(context, pairs),
        tokens=sum(len(reference.ids[text]) for text in texts),
        reference=reference,
    )


def _reference(bundle: Path, texts: Sequence[str]) -> _Reference:
    # Imported here because the import takes seconds that the other scenarios do not need.
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


async def _call(client: AsyncClient, texts: Sequence[str], size: int) -> list[_Answered]:
    """Returns texts with their answers from concurrent calls of ``size`` texts each."""
    slots = asyncio.Semaphore(_CALLS)

    async def call(batch: Sequence[str]) -> list[_Answered]:
        async with slots:
            return list(zip(batch, await client.analyze(batch, deadline_s=60), strict=True))

    calls = [call(texts[begin : begin + size]) for begin in range(0, len(texts), size)]
    return list(itertools.chain.from_iterable(await asyncio.gather(*calls)))


async def _stream(client: AsyncClient, texts: Sequence[str]) -> list[_Answered]:
    return list(zip(texts, [answer async for answer in client.stream(texts)], strict=True))


def _incorrect(context: Context, answers: Sequence[_Answered]) -> int:
    return sum(
        answer.result is None or context.reference_answers.judge(text, answer.result) != "correct"
        for text, answer in answers
    )


def _token_count(answer: Answer) -> int:
    return answer.result.truncation.tokens_seen if answer.result else -1


def _verdict(check: _Check, texts: str, figures: Mapping[str, float]) -> Verdict:
    return Verdict(
        observed=f"{texts} with {check.tokens:,} tokens: of {check.items:,} answers, {check.incorrect} differ from the "
        f"reference answer and {check.miscounted} report another token count",
        passed=not (check.incorrect or check.miscounted),
        control=f"judged as answers to the next text, {check.distinguished:,} of {check.pairs:,} answers are "
        f"incorrect; texts whose token count changes if special tokens inside a text are parsed as such: "
        f"{check.reference.special}",
        control_failed=check.distinguished == check.pairs > 0 and check.reference.special > 0,
        figures={
            **figures,
            "tokens": check.tokens,
            "answers": check.items,
            "incorrect": check.incorrect,
            "miscounted": check.miscounted,
        },
    )

"""Whether an answer may depend on anything but its text, or reach another item."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence

from polyhead_client import Answer, AsyncClient
from polyhead_export.golden import GOLDEN_TEXTS

from .adversarial_inputs import families
from .external_corpora import CorpusNotAvailableError, naughty_strings
from .processes import run_server, run_server_with_client
from .reference_answers import TOLERANCE, ReferenceAnswers
from .scenario import Context, Verdict, scenario

_STREAMS = 64
# A language each, and the scripts that tokenizers stumble over.
_LANGUAGES = (
    "Where is my parcel? It should have come on Monday.",
    "Wo ist mein Paket? Es sollte am Montag kommen.",
    "Où est mon colis ? Il aurait dû arriver lundi.",
    "¿Dónde está mi paquete? Tenía que llegar el lunes.",
    "Onde está a minha encomenda? Devia ter chegado na segunda-feira.",
    "Где моя посылка? Она должна была прийти в понедельник.",
    "我的包裹在哪里?它应该在星期一到。",
    "荷物はどこですか。月曜日に届くはずでした。",
    "소포가 어디에 있나요? 월요일에 왔어야 했는데요.",
    "أين طردي؟ كان يجب أن يصل يوم الاثنين.",
    "मेरा पार्सल कहाँ है? इसे सोमवार को आना था।",
    "Kargom nerede? Pazartesi günü gelmesi gerekiyordu.",
)


@scenario(
    "company",
    fault="the same text alone, in random batches, beside long and hostile texts, from two workers, after a restart",
    expected=f"numbers at most {TOLERANCE:g} from those of the engine run alone; from PyTorch at most 1e-4",
)
async def company(context: Context) -> Verdict:
    """Ten languages, hostile texts and ordinary ones, and the list of naughty strings where it lies."""
    hostile, naughty = [*families(50).values(), *families(2_000).values()], _naughty_strings()
    texts = list(dict.fromkeys([*_LANGUAGES, *GOLDEN_TEXTS, *hostile, *naughty, *context.texts[:50]]))
    texts = texts[:: context.scaled(1, 3)]
    batches = context.scaled(50, 3)
    rng = random.Random(0)
    worst: dict[str, float] = {}
    async with run_server_with_client(context.bundle, context.work_dir) as (server, client):
        worst["alone"] = await _worst(context.reference_answers, client, [[text] for text in texts])
        mixed = [rng.choices(texts, k=rng.randint(2, 64)) for _ in range(batches)]
        worst["in random batches"] = await _worst(context.reference_answers, client, mixed)
    # A server hardly pads at all.
    worst["padded to 128 tokens"] = max(context.reference_answers.padding_difference(text, 128) for text in texts)
    async with run_server(context.bundle, context.work_dir, "--workers", "2") as server:
        for _ in range(4):
            # A connection reaches one worker; of four, both have some, or nearly always.
            async with AsyncClient(server.target) as client:
                found = await _worst(context.reference_answers, client, [texts])
                worst["two workers, another process"] = max(found, worst.get("two workers, another process", 0.0))
    fp32 = ReferenceAnswers([context.bundle], "fp32")
    async with run_server_with_client(context.bundle, context.work_dir, "--engine", "torch") as (server, client):
        worst["PyTorch"] = await _worst(fp32, client, [texts])
    by_text = ReferenceAnswers([context.bundle], "auto")
    control = min(_apart(by_text, one, other) for one, other in itertools.pairwise(context.texts[:11]))
    limits = {name: 1e-4 if name == "PyTorch" else TOLERANCE for name in worst}
    return Verdict(
        observed=f"{len(texts)} texts, {len(naughty)} of them from the list of naughty strings: off by at most "
        f"{', '.join(f'{one:.1g} {name}' for name, one in worst.items())}",
        passed=all(worst[name] <= limits[name] for name in worst),
        control=f"answers to different texts are at least {control:.1g} apart",
        control_failed=control > TOLERANCE,
        figures={"texts": len(texts), "batches": batches, **{f"off_{name}": one for name, one in worst.items()}},
    )


def _naughty_strings() -> list[str]:
    try:
        return naughty_strings()
    except CorpusNotAvailableError:
        return []


async def _worst(reference_answers: ReferenceAnswers, client: AsyncClient, batches: Sequence[Sequence[str]]) -> float:
    """The largest difference of any number of any answer."""
    worst = 0.0
    for batch in batches:
        for text, answer in zip(batch, await client.analyze(batch, deadline_s=60), strict=True):
            worst = max(worst, reference_answers.difference(text, answer.unwrap()))
    return worst


def _apart(reference_answers: ReferenceAnswers, one: str, other: str) -> float:
    (version,) = reference_answers.versions
    rows = [reference_answers.answer(version, text)[0] for text in (one, other)]
    return float(abs(rows[0] - rows[1]).max())


@scenario(
    "random cancels",
    fault=f"{_STREAMS} streams at once, cancelled at random moments and opened again",
    expected="every answer belongs to its item: its id, its text's numbers",
)
async def random_cancels(context: Context) -> Verdict:
    """Short texts, in the order in which they are finished, so that there is much to be mixed up."""
    items = context.scaled(100_000, 5_000)
    texts = list(dict.fromkeys(" ".join(text.split()[:4]) for text in context.texts))
    context.reference_answers.precompute(texts)
    counts: Counter[str] = Counter()
    async with run_server(context.bundle, context.work_dir) as server, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(AsyncClient(server.target)) for _ in range(4)]
        await asyncio.gather(
            *(
                _stream(context, clients[number % 4], texts, items=items, counts=counts, seed=number)
                for number in range(_STREAMS)
            )
        )
        (answer,) = await clients[0].analyze(texts[:1], deadline_s=20)
    swapped = context.reference_answers.judge(texts[1], answer.unwrap())
    return Verdict(
        observed=f"{counts['sent']:,} items over {_STREAMS} streams, {counts['cancels']:,} cancels: {counts['correct']:,} "
        f"answered, {counts['mixed up']} mixed up, {counts['failed']} failed",
        passed=counts["correct"] > items / 4 and not counts["mixed up"] and not counts["failed"],
        control=f"an answer under another item's text is found {swapped}",
        control_failed=swapped == "incorrect",
        figures=dict(counts),
    )


async def _stream(
    context: Context, client: AsyncClient, texts: Sequence[str], *, items: int, counts: Counter[str], seed: int
) -> None:
    """One stream after the other, until all streams together have sent enough."""
    rng = random.Random(seed)
    while counts["sent"] < items:
        on_their_way: dict[str, str] = {}
        length = rng.randint(1, 200)

        async def feed(
            on_their_way: dict[str, str] = on_their_way, length: int = length
        ) -> AsyncIterator[tuple[str, str]]:
            for number in range(length):
                counts["sent"] += 1
                item_id = f"{seed}-{number}"
                on_their_way[item_id] = rng.choice(texts)
                yield item_id, on_their_way[item_id]

        stop_after = rng.randint(1, length) if rng.random() < 0.5 else length
        async with contextlib.aclosing(client.stream(feed(), order="completion")) as answers:
            seen = 0
            async for answer in answers:
                counts[_belongs(context, answer, on_their_way.pop(answer.item_id, None))] += 1
                seen += 1
                if seen == stop_after:
                    counts["cancels"] += stop_after < length
                    break


def _belongs(context: Context, answer: Answer, text: str | None) -> str:
    if answer.result is None:
        return "failed"
    if text is None or context.reference_answers.judge(text, answer.result) != "correct":
        return "mixed up"
    return "correct"

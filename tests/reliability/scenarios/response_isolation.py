"""Whether an answer depends on anything but its text, or reaches another item."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence

from polyhead_client import Answer, AsyncClient
from polyhead_export.golden import GOLDEN_TEXTS

from tests.reliability.external_corpora import CorpusNotAvailableError, naughty_strings
from tests.reliability.processes import run_server, run_server_with_client
from tests.reliability.reference_answers import TOLERANCE, ReferenceAnswers
from tests.reliability.scenario import Context, Verdict, scenario

from .adversarial_inputs import families

_STREAMS = 64
# PyTorch uses other kernels than the reference.
_TORCH_TOLERANCE = 1e-4
# One text per language, including scripts that tokenizers often handle incorrectly.
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
    "batch invariance",
    fault="The same text is sent alone, in random batches, with long and adversarial texts, to two workers and after a "
    "restart",
    expected=f"No number differs by more than {TOLERANCE:g} from the reference answer, or by more than "
    f"{_TORCH_TOLERANCE:g} with PyTorch",
)
async def batch_invariance(context: Context) -> Verdict:
    """Uses ordinary, multilingual and adversarial texts, and the Big List of Naughty Strings if it is available.

    The control is the difference between answers to different texts.
    """
    adversarial, naughty = [*families(50).values(), *families(2_000).values()], _naughty_strings()
    texts = list(dict.fromkeys([*_LANGUAGES, *GOLDEN_TEXTS, *adversarial, *naughty, *context.texts[:50]]))
    texts = texts[:: context.scaled(1, 3)]
    batches = context.scaled(50, 3)
    rng = random.Random(0)
    differences: dict[str, float] = {}
    async with run_server_with_client(context.bundle, context.work_dir) as (server, client):
        differences["alone"] = await _max_difference(context.reference_answers, client, [[text] for text in texts])
        mixed = [rng.choices(texts, k=rng.randint(2, 64)) for _ in range(batches)]
        differences["in random batches"] = await _max_difference(context.reference_answers, client, mixed)
    # Computed without a server, because a server pads very little.
    differences["padded to 128 tokens"] = max(context.reference_answers.padding_difference(text, 128) for text in texts)
    by_connection: list[float] = []
    async with run_server(context.bundle, context.work_dir, "--workers", "2") as server:
        for _ in range(4):
            # Each connection reaches one worker; four almost always reach both.
            async with AsyncClient(server.target) as client:
                by_connection.append(await _max_difference(context.reference_answers, client, [texts]))
    differences["with two workers"] = max(by_connection)
    fp32 = ReferenceAnswers([context.bundle], "fp32")
    async with run_server_with_client(context.bundle, context.work_dir, "--engine", "torch") as (server, client):
        differences["with PyTorch"] = await _max_difference(fp32, client, [texts])
    reference_answers = ReferenceAnswers([context.bundle], "auto")
    control = min(
        _text_difference(reference_answers, one, other) for one, other in itertools.pairwise(context.texts[:11])
    )
    limits = {name: _TORCH_TOLERANCE if name == "with PyTorch" else TOLERANCE for name in differences}
    return Verdict(
        observed=f"{len(texts)} texts, {len(naughty)} of them from the Big List of Naughty Strings: the largest "
        f"difference is {', '.join(f'{one:.1g} {name}' for name, one in differences.items())}",
        passed=all(differences[name] <= limits[name] for name in differences),
        control=f"answers to different texts differ by at least {control:.1g}",
        control_failed=control > TOLERANCE,
        figures={
            "texts": len(texts),
            "batches": batches,
            **{f"max_difference_{name.replace(' ', '_')}": one for name, one in differences.items()},
        },
    )


def _naughty_strings() -> list[str]:
    try:
        return naughty_strings()
    except CorpusNotAvailableError:
        return []


async def _max_difference(
    reference_answers: ReferenceAnswers, client: AsyncClient, batches: Sequence[Sequence[str]]
) -> float:
    """Returns the largest difference of any number of any answer."""
    worst = 0.0
    for batch in batches:
        for text, answer in zip(batch, await client.analyze(batch, deadline_s=60), strict=True):
            worst = max(worst, reference_answers.difference(text, answer.unwrap()))
    return worst


def _text_difference(reference_answers: ReferenceAnswers, one: str, other: str) -> float:
    (version,) = reference_answers.versions
    rows = [reference_answers.answer(version, text)[0] for text in (one, other)]
    return float(abs(rows[0] - rows[1]).max())


@scenario(
    "response isolation",
    fault=f"{_STREAMS} concurrent streams that are cancelled at random moments and reopened",
    expected="Every answer carries the id of its item and the numbers of its text",
)
async def response_isolation(context: Context) -> Verdict:
    """Uses short texts and completion order, so that many answers could be swapped.

    The control judges an answer under the text of another item.
    """
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
        observed=f"{counts['sent']:,} items over {_STREAMS} streams, {counts['cancels']:,} cancels: "
        f"{counts['correct']:,} answered, {counts['swapped']} swapped, {counts['failed']} failed",
        passed=counts["correct"] > items / 4 and not counts["swapped"] and not counts["failed"],
        control=f"an answer under the text of another item is judged {swapped}",
        control_failed=swapped == "incorrect",
        figures=dict(counts),
    )


async def _stream(
    context: Context, client: AsyncClient, texts: Sequence[str], *, items: int, counts: Counter[str], seed: int
) -> None:
    """Opens one stream after another until all streams together have sent ``items``."""
    rng = random.Random(seed)
    while counts["sent"] < items:
        in_flight: dict[str, str] = {}
        length = rng.randint(1, 200)

        async def feed(in_flight: dict[str, str] = in_flight, length: int = length) -> AsyncIterator[tuple[str, str]]:
            for number in range(length):
                counts["sent"] += 1
                item_id = f"{seed}-{number}"
                in_flight[item_id] = rng.choice(texts)
                yield item_id, in_flight[item_id]

        stop_after = rng.randint(1, length) if rng.random() < 0.5 else length
        async with contextlib.aclosing(client.stream(feed(), order="completion")) as answers:
            seen = 0
            async for answer in answers:
                counts[_outcome(context, answer, in_flight.pop(answer.item_id, None))] += 1
                seen += 1
                if seen == stop_after:
                    counts["cancels"] += stop_after < length
                    break


def _outcome(context: Context, answer: Answer, text: str | None) -> str:
    if answer.result is None:
        return "failed"
    if text is None or context.reference_answers.judge(text, answer.result) != "correct":
        return "swapped"
    return "correct"

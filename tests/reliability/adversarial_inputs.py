"""Texts that are meant to do harm."""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import Mapping

from .processes import run_server_with_client
from .resource_abuse import probing
from .scenario import Context, Verdict, scenario
from .traffic import Traffic

_STALL_MS = 20.0
# What a text does to the server it does each time; what the machine does beside it, it does not: the least counts.
_TRIES = 3


def families(characters: int) -> Mapping[str, str]:
    """Hostile texts by name, each of about so many code points."""
    rng = random.Random(0)

    def flood(unit: str) -> str:
        return (unit * (characters // len(unit) + 1))[:characters]

    return {
        "one word": flood("a"),
        "zero-width joiners": flood("a\u200d"),
        "combining marks": flood("e" + "\u0301\u0323\u0336" * 10),
        "right to left": flood("\u202e\u05e9\u05dc\u05d5\u05dd \u202b\u0639\u0644\u064a\u0643\u0645 "),
        "emoji families": flood("\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466"),
        "control characters": "".join(map(chr, rng.choices([*range(32), *range(127, 160)], k=characters))),
        "NULs": flood("\x00"),
        "ideographs without spaces": "".join(map(chr, rng.choices(range(0x4E00, 0x9FA5), k=characters))),
        "white space": flood(" \t\n\u00a0\u2003\u3000"),
        "punctuation": flood("!?.,;:-"),
        "special tokens": flood("[SEP][CLS][MASK][PAD] "),
        "base64": base64.b64encode(rng.randbytes(characters)).decode()[:characters],
        "addresses": flood("https://example.com/a/b?c=d&e=f#g"),
        "nested brackets": flood("(" * 50 + ")" * 50),
        "private and unassigned": "".join(map(chr, rng.choices(range(0xE000, 0xF8FF), k=characters))),
        "ligatures that unfold": flood("\ufdfa"),
    }


@scenario(
    "hostile texts",
    fault="texts of 10 MB, and 16 families of hostile texts of 100 to 1,000,000 characters",
    expected=f"the same answers as offline; the event loop stalls for at most {_STALL_MS:g} ms",
    timed=True,
)
async def hostile_texts(context: Context) -> Verdict:
    """Stalls are seen from outside, by the health service's answers: an upper bound."""
    sizes = (100, 32_000, 1_000_000) if not context.quick else (100, 32_000)
    texts = {f"{name}, {size:,}": text for size in sizes for name, text in families(size).items()}
    texts |= {f"{name}, 10 MB": _ten_mb(text) for name, text in families(10_000_000).items() if name in _TEN_MB}
    stalls: dict[str, float] = {}
    wrong: list[str] = []
    async with run_server_with_client(context.bundle, context.work_dir) as (server, client):
        async with probing(server, "--health") as ask:
            await asyncio.sleep(5.0)
            rest = await ask()
            for name, text in texts.items():
                stalls[name] = float("inf")
                for _ in range(_TRIES):
                    (answer,) = await client.analyze([text], deadline_s=60)
                    await asyncio.sleep(0.02)
                    stalls[name] = min(stalls[name], (await ask())["max_ms"])
                    if answer.result is None or context.reference_answers.judge(text, answer.result) != "correct":
                        wrong.append(name)
        traffic = Traffic(context.reference_answers, context.texts)
        async with traffic.flowing([client]):
            await traffic.flow_until(100)
    worst = max(stalls, key=lambda name: stalls[name])
    ten = max(value for name, value in stalls.items() if name.endswith("MB"))
    forged = context.reference_answers.judge("another text", answer.unwrap())
    return Verdict(
        observed=f"{len(texts)} texts: {len(wrong)} answered wrongly{': ' if wrong else ''}{', '.join(wrong)}; the longest "
        f"wait for the health service {stalls[worst]:.1f} ms ({worst}), {ten:.1f} ms beside 10 MB; at rest "
        f"{rest['most_ms']:.1f} ms",
        passed=not wrong and stalls[worst] <= _STALL_MS and not traffic.failures() and len(traffic.requests) >= 100,
        control=f"an answer to another text is found {forged}",
        control_failed=forged == "incorrect",
        figures={
            "texts": len(texts),
            "incorrect": len(wrong),
            "longest_ms": stalls[worst],
            "longest_10_mb_ms": ten,
            "longest_at_rest_ms": rest["max_ms"],
            **{f"ms_beside_{name}": value for name, value in stalls.items() if value > _STALL_MS},
        },
    )


def _ten_mb(text: str) -> str:
    return text.encode()[:10_000_000].decode(errors="ignore")


_TEN_MB = ("one word", "white space", "special tokens", "emoji families", "ideographs without spaces")

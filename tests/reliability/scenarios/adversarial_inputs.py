"""Texts that are designed to cause errors or stalls."""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import Mapping

from tests.reliability.processes import run_server_with_client
from tests.reliability.scenario import Context, Verdict, scenario
from tests.reliability.traffic import Traffic

from .resource_abuse import probing

_MAX_STALL_MS = 20.0
# A stall that a text causes occurs each time, a stall that other processes cause does not: the minimum counts.
_TRIES = 3
_MAX_BYTES = 10_000_000
# Families that are also tried with texts of the maximum size.
_MAX_SIZE_FAMILIES = ("one word", "white space", "special tokens", "emoji families", "ideographs without spaces")


def families(characters: int) -> Mapping[str, str]:
    """Returns adversarial texts by family name, each with about ``characters`` code points."""
    rng = random.Random(0)

    def repeat(unit: str) -> str:
        return (unit * (characters // len(unit) + 1))[:characters]

    return {
        "one word": repeat("a"),
        "zero-width joiners": repeat("a\u200d"),
        "combining marks": repeat("e" + "\u0301\u0323\u0336" * 10),
        "right to left": repeat("\u202e\u05e9\u05dc\u05d5\u05dd \u202b\u0639\u0644\u064a\u0643\u0645 "),
        "emoji families": repeat("\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466"),
        "control characters": "".join(map(chr, rng.choices([*range(32), *range(127, 160)], k=characters))),
        "NULs": repeat("\x00"),
        "ideographs without spaces": "".join(map(chr, rng.choices(range(0x4E00, 0x9FA5), k=characters))),
        "white space": repeat(" \t\n\u00a0\u2003\u3000"),
        "punctuation": repeat("!?.,;:-"),
        "special tokens": repeat("[SEP][CLS][MASK][PAD] "),
        "base64": base64.b64encode(rng.randbytes(characters)).decode()[:characters],
        "URLs": repeat("https://example.com/a/b?c=d&e=f#g"),
        "nested brackets": repeat("(" * 50 + ")" * 50),
        "private-use characters": "".join(map(chr, rng.choices(range(0xE000, 0xF8FF), k=characters))),
        "ligatures that expand under normalization": repeat("\ufdfa"),
    }


@scenario(
    "adversarial texts",
    fault="Texts of 10 MB, and 16 families of adversarial texts of 100 to 1,000,000 characters",
    expected=f"Every answer equals the reference answer; the event loop stalls for at most {_MAX_STALL_MS:g} ms",
    timed=True,
)
async def adversarial_texts(context: Context) -> Verdict:
    """Measures stalls by the latency of the health service, which is an upper bound.

    The control judges an answer to another text.
    """
    sizes = (100, 32_000, 1_000_000) if not context.quick else (100, 32_000)
    texts = {f"{name}, {size:,}": text for size in sizes for name, text in families(size).items()}
    texts |= {
        f"{name}, 10 MB": _truncate(text) for name, text in families(_MAX_BYTES).items() if name in _MAX_SIZE_FAMILIES
    }
    stalls: dict[str, float] = {}
    incorrect: list[str] = []
    async with run_server_with_client(context.bundle, context.work_dir) as (server, client):
        async with probing(server, "--health") as read_probe:
            await asyncio.sleep(5.0)
            idle = await read_probe()
            for name, text in texts.items():
                stalls[name] = float("inf")
                for _ in range(_TRIES):
                    (answer,) = await client.analyze([text], deadline_s=60)
                    await asyncio.sleep(0.02)
                    stalls[name] = min(stalls[name], (await read_probe())["max_ms"])
                    if answer.result is None or context.reference_answers.judge(text, answer.result) != "correct":
                        incorrect.append(name)
        traffic = Traffic(context.reference_answers, context.texts)
        async with traffic.flowing([client]):
            await traffic.flow_until(100)
    worst = max(stalls, key=lambda name: stalls[name])
    largest = max(value for name, value in stalls.items() if name.endswith("MB"))
    forged = context.reference_answers.judge("another text", answer.unwrap())
    return Verdict(
        observed=f"{len(texts)} texts: {len(incorrect)} answered incorrectly{': ' if incorrect else ''}"
        f"{', '.join(incorrect)}; the slowest answer of the health service took {stalls[worst]:.1f} ms ({worst}), "
        f"{largest:.1f} ms during texts of 10 MB and {idle['max_ms']:.1f} ms on an idle server",
        passed=not incorrect
        and stalls[worst] <= _MAX_STALL_MS
        and not traffic.failures()
        and len(traffic.requests) >= 100,
        control=f"an answer to another text is judged {forged}",
        control_failed=forged == "incorrect",
        figures={
            "texts": len(texts),
            "incorrect": len(incorrect),
            "max_ms": stalls[worst],
            "max_ms_10_mb": largest,
            "max_ms_idle": idle["max_ms"],
            **{f"max_ms_{name}": value for name, value in stalls.items() if value > _MAX_STALL_MS},
        },
    )


def _truncate(text: str) -> str:
    return text.encode()[:_MAX_BYTES].decode(errors="ignore")

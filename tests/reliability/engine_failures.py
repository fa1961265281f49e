"""An engine that fails in every way: in this process, as no bundle and no flag makes a real one do that."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping

import numpy as np
from grpc import aio
from numpy.typing import NDArray
from polyhead_client import AsyncClient
from polyhead_server.inference.model import Model, load_model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.observability.metrics import Metrics
from polyhead_server.rpc.inference_service import NAME, InferenceService, handler
from polyhead_server.rpc.interceptors.errors import ErrorInterceptor
from polyhead_server.settings import Settings

from .scenario import Context, Verdict, scenario

_SECRET = "the secret of the engine"  # noqa: S105 - what must not reach a client
_HANG_S = 2.0
Outputs = list[NDArray[np.float32]]


class PanicError(BaseException):
    """As a panic in Rust comes to Python: no Exception."""


class FaultyEngine:
    """A real engine that, where it is told to, does something else with what the real one answered.

    Attributes:
        fault: Takes the true outputs; None for what they are.
        met: Passes that the fault has met.
    """

    def __init__(self, engine: Model) -> None:
        self._engine = engine.engine
        self.runtime = self._engine.runtime
        self.fault: Callable[[Outputs], Outputs] | None = None
        self.met = 0

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> Outputs:
        """A pass."""
        outputs = self._engine.run(input_ids, attention_mask)
        if self.fault is None:
            return outputs
        self.met += 1
        return self.fault(outputs)

    def close(self) -> None:
        """Frees the real one."""
        self._engine.close()


def _raise(_: Outputs) -> Outputs:
    raise RuntimeError(_SECRET)


def _panic(_: Outputs) -> Outputs:
    raise PanicError(_SECRET)


def _exit(_: Outputs) -> Outputs:
    raise SystemExit(_SECRET)


def _nan(outputs: Outputs) -> Outputs:
    return [np.full_like(outputs[0], np.nan), *outputs[1:]]


def _infinite_logits(outputs: Outputs) -> Outputs:
    return [outputs[0], *(np.full_like(values, np.inf) for values in outputs[1:])]


def _lose_a_row(outputs: Outputs) -> Outputs:
    return [values[:-1] for values in outputs]


def _hang(outputs: Outputs) -> Outputs:
    time.sleep(_HANG_S)
    return outputs


# And what becomes of the items of the passes that it meets.
_FAULTS: Mapping[str, tuple[Callable[[Outputs], Outputs], str]] = {
    "raises": (_raise, "INTERNAL"),
    "panics": (_panic, "INTERNAL"),
    "exits": (_exit, "INTERNAL"),
    "answers NaN": (_nan, "INTERNAL"),
    "answers infinite logits": (_infinite_logits, "INTERNAL"),
    "loses a row": (_lose_a_row, "INTERNAL"),
    f"hangs for {_HANG_S:g} s": (_hang, "correct"),
}


@scenario(
    "broken engine",
    fault=f"an engine that {', '.join(_FAULTS)}",
    expected="items of such a pass are answered with INTERNAL and no word of why; those before and after it rightly",
)
async def broken_engine(context: Context) -> Verdict:
    """In this process; everything but the fault is real: model, service, gRPC, client."""
    counts: dict[str, Counter[str]] = {}
    told = False
    async with _serving(context) as (engine, client):
        for name, (fault, _) in _FAULTS.items():
            for stage, present in (("before", None), ("during", fault), ("after", None)):
                engine.fault = present
                counts[f"{name}, {stage}"], secret = await _ask(context, client)
                told = told or secret
        met = engine.met
    wanted = {f"{name}, during": outcome for name, (_, outcome) in _FAULTS.items()}
    wrong = [name for name, found in counts.items() if set(found) != {wanted.get(name, "correct")}]
    items = sum(found.total() for found in counts.values())
    raised = counts["raises, during"]
    return Verdict(
        observed=f"{len(_FAULTS)} faults in {met} passes, {items:,} items: "
        + (f"not as expected when it {'; when it '.join(wrong)}" if wrong else "each answered as expected")
        + f"; the engine's own words reached the client: {'yes' if told else 'no'}",
        passed=not wrong and not told and met >= len(_FAULTS),
        control=f"of the items of an engine that raises, {raised['correct']} of {raised.total()} are right",
        control_failed=not raised["correct"],
        figures={"faults": len(_FAULTS), "passes": met, "items": items},
    )


async def _ask(context: Context, client: AsyncClient) -> tuple[Counter[str], bool]:
    """How items of calls and of a stream end, and whether anything told the secret."""
    texts = context.texts[: context.scaled(20, 5)]
    answers = [*zip(texts, await client.analyze(texts, deadline_s=60), strict=True)]
    answers += [*zip(texts, [one async for one in client.stream(texts)], strict=True)]
    counts = Counter(
        context.reference_answers.judge(text, one.result) if one.result else one.error.code if one.error else "UNKNOWN"
        for text, one in answers
    )
    return counts, any(_SECRET in str(one.error) for _, one in answers)


@contextlib.asynccontextmanager
async def _serving(context: Context) -> AsyncIterator[tuple[FaultyEngine, AsyncClient]]:
    """A server in this process, and a client to it."""
    # It tells of each fault with a traceback: they are meant.
    logging.getLogger("polyhead_server").setLevel(logging.CRITICAL)
    settings = Settings(bundle=context.bundle, device="cpu", max_batch_tokens=256)
    model = await asyncio.to_thread(load_model, settings)
    engine, metrics = FaultyEngine(model), Metrics()
    pipeline = Pipeline(dataclasses.replace(model, engine=engine), settings, metrics.observe)
    service = InferenceService(settings, metrics)
    server = aio.server(interceptors=[ErrorInterceptor(NAME)])
    server.add_generic_rpc_handlers((handler(service),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    pipeline.start()
    service.serve(pipeline)
    try:
        async with AsyncClient(f"127.0.0.1:{port}") as client:
            yield engine, client
    finally:
        engine.fault = None
        await server.stop(1)
        await pipeline.close()

"""Scaling of throughput and memory with streams, text length, heads and batch shapes.

    python -m bench.server.scaling --bundle build/demo/bundle --output bench/results/scaling.json
    python -m bench.server.scaling --bundle build/demo/bundle --only lengths heads --rounds 1 --seconds 2  # quick

Every point starts its own server; resident memory is read once it serves and after the load. The onnxruntime upper
bound (see bench.server.throughput) is measured on the same texts before and after each load. Rounds are interleaved.

Sweeps
  streams  concurrent bidirectional streams with one text in flight each; the fewest and the most answers of any
           stream over the mean. Many streams are measured for longer, so that each gets some tens of answers.
  lengths  texts of an exact number of tokens, 32 per message, up to 256 in flight; lengths that the model would
           truncate are skipped. Long texts are measured for longer.
  heads    untrained heads on all-MiniLM-L6-v2, with all heads requested and with the embedding only. The bundles are
           exported first, which takes about a minute each.
  shapes   messages of 1 to 64 texts of 3 to 256 tokens at random, sequentially, in a single round; memory over time.
"""

from __future__ import annotations

import argparse
import functools
import math
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import polyhead_bundle as bundle
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2
from tqdm import tqdm

from bench.harness import results
from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.inputs import ExactLengthTexts, bundle_with_heads
from bench.harness.memory import memory
from bench.harness.results import Figures
from bench.harness.servers import serving
from bench.harness.texts import DEMO_TEXTS, FORMAT_HELP, MARK_TOKENS, first_turn, read_texts, write_texts
from bench.harness.upper_bound import UpperBound, with_efficiency
from bench.loadgen.launch import run_load

STREAMS = (1, 4, 16, 64, 256, 1000)
LENGTHS = (8, 16, 32, 64, 128, 256, 512)
HEADS = (1, 2, 4, 8, 16)
SWEEPS = ("streams", "lengths", "heads", "shapes")
# Flags of a stream of 32 texts per message, without the number in flight.
_STREAM = ("--mode", "stream", "--items", "32", "--in-flight")
# More tokens in flight would only wait: this is some seconds of work.
_MAX_TOKENS_IN_FLIGHT = 32768
_TEXTS_PER_LENGTH = 512
_MIN_LENGTH, _MAX_LENGTH, _MAX_ITEMS = 3, 256, 64
_MEMORY_READINGS = 4


@dataclass(frozen=True)
class Point:
    """One point of a sweep: the bundle to serve, the load, and the upper bound to compare with."""

    sweep: str
    series: str
    value: int
    bundle: Path
    texts: Path
    generator: str
    flags: tuple[str, ...]
    seconds: float
    upper_bound: Callable[[float], float]


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle to serve")
    parser.add_argument("--variant", choices=("int8", "fp32"), default="int8", help="variant to serve (default: int8)")
    parser.add_argument("--texts", type=Path, default=DEMO_TEXTS, help=f"{FORMAT_HELP} (default: the demo's)")
    parser.add_argument("--only", nargs="+", choices=SWEEPS, default=SWEEPS, help="sweeps to run (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all points except shapes (default: 3)")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured seconds per load (default: 5)")
    parser.add_argument("--messages", type=int, default=2000, help="messages of random shapes (default: 2000)")
    parser.add_argument("--work", type=Path, help="folder that keeps exported bundles (default: a temporary one)")
    add_output_flag(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        sweeps = measure(arguments, work)
    print(table(sweeps))
    settings = {"variant": arguments.variant, "rounds": arguments.rounds}
    results.write(arguments.output, {**results.provenance(), **settings, "sweeps": sweeps})


def measure(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Runs the sweeps; returns sweep, series, value, figure, [median, lowest, highest]."""
    exact_texts = ExactLengthTexts(bundle.load(arguments.bundle), read_texts(arguments.texts))
    makers: dict[str, Callable[[argparse.Namespace, Path], Iterator[Point]]] = {
        "streams": stream_points,
        "lengths": functools.partial(length_points, exact_texts),
        "heads": head_points,
    }
    points = [point for sweep, make in makers.items() if sweep in arguments.only for point in make(arguments, work)]
    found: dict[str, Any] = {}
    for _ in range(arguments.rounds):
        for point in tqdm(points, "points"):
            series = found.setdefault(point.sweep, {}).setdefault(point.series, {})
            series.setdefault(str(point.value), []).append(measure_point(point, arguments.variant))
    if "shapes" in arguments.only:
        found["shapes"] = {"random shapes": measure_shapes(arguments, exact_texts)}
    return {
        sweep: {
            name: {value: results.spread_all(rounds) for value, rounds in values.items()}
            for name, values in series.items()
        }
        for sweep, series in found.items()
    }


def stream_points(arguments: argparse.Namespace, _: Path) -> Iterator[Point]:
    """Yields the given texts over an increasing number of streams."""
    texts = first_turn(read_texts(arguments.texts))
    upper_bound = UpperBound(arguments.bundle, arguments.variant, texts).items_per_s
    for count in STREAMS:
        flags = ("--streams", str(count))
        seconds = arguments.seconds * max(1.0, count / 128)
        source, path = arguments.bundle, arguments.texts
        yield Point("streams", "one text each", count, source, path, "streams", flags, seconds, upper_bound)


def length_points(exact_texts: ExactLengthTexts, arguments: argparse.Namespace, work: Path) -> Iterator[Point]:
    """Yields texts of increasing length over one stream."""
    for length in LENGTHS:
        if length > exact_texts.max_tokens:
            tqdm.write(f"skipped texts of {length} tokens: the model reads {exact_texts.max_tokens}")
            continue
        # The load generator adds the rest.
        texts = exact_texts.make([length - MARK_TOKENS] * _TEXTS_PER_LENGTH)
        path = write_texts(work / f"length-{length}.jsonl", texts)
        flags = (*_STREAM, str(min(256, _MAX_TOKENS_IN_FLIGHT // length)))
        seconds = arguments.seconds * max(1.0, length / 128)
        upper_bound = UpperBound(arguments.bundle, arguments.variant, first_turn(texts)).items_per_s
        yield Point("lengths", "stream", length, arguments.bundle, path, "main", flags, seconds, upper_bound)


def head_points(arguments: argparse.Namespace, work: Path) -> Iterator[Point]:
    """Yields the given texts for models with an increasing number of heads."""
    texts = first_turn(read_texts(arguments.texts))
    series = {"all heads": (*_STREAM, "256"), "embedding only": (*_STREAM, "256", "--tasks", "1")}
    for count in tqdm(HEADS, "bundles with heads"):
        path = bundle_with_heads(work, count, arguments.variant)
        upper_bound = UpperBound(path, arguments.variant, texts).items_per_s
        for name, flags in series.items():
            yield Point("heads", name, count, path, arguments.texts, "main", flags, arguments.seconds, upper_bound)


def measure_point(point: Point, variant: str) -> Figures:
    """Starts a server and measures one load, the upper bound before and after it, and the memory."""
    with serving(point.bundle, *_server_flags(variant)) as target:
        before = memory(target)
        upper_bound = point.upper_bound(point.seconds)
        load = run_load(target, point.texts, point.seconds, point.flags, point.generator)
        after = memory(target)
    figures = with_efficiency(load, (upper_bound + point.upper_bound(point.seconds)) / 2)
    if point.sweep == "lengths":
        figures["tokens_per_s"] = figures["items_per_s"] * point.value
    return {**figures, "rss_before_mb": before["rss_mb"], **after}


def measure_shapes(arguments: argparse.Namespace, exact_texts: ExactLengthTexts) -> dict[str, list[Figures]]:
    """Returns the memory of one server by the number of messages of random shapes that it has answered."""
    rng = random.Random(0)
    found: dict[str, list[Figures]] = {}
    with (
        serving(arguments.bundle, *_server_flags(arguments.variant)) as target,
        grpc.insecure_channel(target) as channel,
    ):
        stub: Any = inference_service_pb2_grpc.InferenceServiceStub(channel)
        found["0"] = [memory(target)]
        stops = {math.ceil(arguments.messages * n / _MEMORY_READINGS) for n in range(1, _MEMORY_READINGS + 1)}
        for number in tqdm(range(1, arguments.messages + 1), "shapes"):
            texts = exact_texts.make(_random_lengths(rng, min(_MAX_LENGTH, exact_texts.max_tokens)))
            response = stub.Analyze(pb2.AnalyzeRequest(items=[item_pb2.Item(text=text) for text in texts]))
            if any(answer.WhichOneof("outcome") != "result" for answer in response.answers):
                raise SystemExit(f"an item was refused: {response}")
            if number in stops:
                found[str(number)] = [memory(target)]
    return found


def _random_lengths(rng: random.Random, longest: int) -> list[int]:
    """Draws lengths that are uniform on a logarithmic scale, so that short texts are as frequent as long ones."""
    ratio = longest / _MIN_LENGTH
    return [round(_MIN_LENGTH * ratio ** rng.random()) for _ in range(rng.randint(1, _MAX_ITEMS))]


def _server_flags(variant: str) -> tuple[str, ...]:
    return ("--engine", "onnx", "--device", "cpu", "--variant", variant)


def table(sweeps: dict[str, Any]) -> str:
    """Formats the medians for a terminal."""
    lines = []
    for sweep, series in sweeps.items():
        for name, values in series.items():
            figures = list(next(iter(values.values())))
            widths = [max(9, len(figure) + 2) for figure in figures]
            titles = "".join(f"{figure:>{width}}" for figure, width in zip(figures, widths, strict=True))
            lines += ["", f"{sweep}: {name}", f"{'':>8}{titles}"]
            for value, found in values.items():
                medians = (f"{found[figure][0]:>{width}.4g}" for figure, width in zip(figures, widths, strict=True))
                lines.append(f"{value:>8}{''.join(medians)}")
    return "\n".join(lines[1:])


if __name__ == "__main__":
    main()

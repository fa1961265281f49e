"""How throughput and memory grow with streams, with the length of texts, with heads, and over changing shapes.

    python bench/server/scaling.py --bundle build/demo/bundle --variant int8 --output bench/results/growth.json
    python bench/server/scaling.py --bundle build/demo/bundle --only lengths heads --rounds 1 --seconds 2     # a quick try

Every point has a server process of its own; its resident memory is read once it serves, and after the load. Bare
onnxruntime (see ``bench/server/throughput.py``) is measured on the same texts before and after each load, so that a throughput is
also a share of the limit. Rounds are interleaved.

streams   bidirectional streams at once, each with one text on its way; the fewest and the most texts that any stream
          got, over the mean. Many streams are measured for longer, so that each gets some tens of texts.
lengths   texts of exactly so many tokens, 32 in a message, up to 256 on their way; those that the model would cut are
          left out. Long ones are measured for longer.
heads     so many heads on all-MiniLM-L6-v2; nobody trained them, which times do not mind. The bundles are made first,
          about a minute each. Every head asked for, and the embedding alone.
shapes    messages of 1 to 64 texts of 3 to 256 tokens, all at random, one after the other, once; memory on the way.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import random
import subprocess
import sys
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

from bench.harness.inputs import Lengths, bundle_with_heads
from bench.harness.memory import memory
from bench.harness.servers import serving
from bench.harness.texts import read, write_texts

from .throughput import DEMO, HERE, Figures, Limit, header, spread, with_efficiency

STREAMS = (1, 4, 16, 64, 256, 1000)
LENGTHS = (8, 16, 32, 64, 128, 256, 512)
HEADS = (1, 2, 4, 8, 16)
SWEEPS = ("streams", "lengths", "heads", "shapes")
# What a stream of messages is sent as, but for how many texts are on their way.
_STREAM = ("load.py", "--way", "stream", "--items", "32", "--in-flight")
# More on their way would only wait: some seconds of work.
_MOST_TOKENS_IN_FLIGHT = 32768
_TEXTS_OF_A_LENGTH = 512
_SHORTEST, _LONGEST, _MOST_ITEMS = 3, 256, 64
_STOPS = 4


@dataclass(frozen=True)
class Point:
    """One place in a sweep: what is served, the client's program with its flags, and the limit to compare with."""

    sweep: str
    series: str
    place: int
    bundle: Path
    texts: Path
    client: tuple[str, ...]
    seconds: float
    limit: Callable[[float], float]


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--variant", choices=("int8", "fp32"), default="int8", help="variant to serve (default: int8)")
    parser.add_argument("--texts", type=Path, default=DEMO, help="JSON lines with a field `text`, or a text a line")
    parser.add_argument("--only", nargs="+", choices=SWEEPS, default=SWEEPS, help="sweeps to make (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all points but shapes (default: 3)")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured seconds of a load (default: 5)")
    parser.add_argument("--batches", type=int, default=2000, help="messages of random shapes (default: 2000)")
    parser.add_argument("--work", type=Path, help="folder that keeps bundles between runs (default: a temporary one)")
    parser.add_argument("--output", type=Path, help="file for the figures as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        sweeps = measured(arguments, work)
    report = {**header(arguments), "sweeps": sweeps}
    print(table(sweeps))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


def measured(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Sweep, series, place, figure: the median, the lowest and the highest."""
    texts = [row["text"] for row in read(arguments.texts)]
    lengths = Lengths(bundle.load(arguments.bundle), texts)
    makers: dict[str, Callable[[argparse.Namespace, Path], Iterator[Point]]] = {
        "streams": stream_points,
        "lengths": functools.partial(length_points, lengths),
        "heads": head_points,
    }
    points = [point for sweep, make in makers.items() if sweep in arguments.only for point in make(arguments, work)]
    found: dict[str, Any] = {}
    for _ in range(arguments.rounds):
        for point in tqdm(points, "points"):
            series = found.setdefault(point.sweep, {}).setdefault(point.series, {})
            series.setdefault(str(point.place), []).append(measure(point, arguments.variant))
    if "shapes" in arguments.only:
        found["shapes"] = {"random shapes": shapes(arguments, lengths)}
    return {
        sweep: {
            name: {
                place: {key: spread([one[key] for one in rounds]) for key in rounds[0]} for place, rounds in one.items()
            }
            for name, one in series.items()
        }
        for sweep, series in found.items()
    }


def stream_points(arguments: argparse.Namespace, _: Path) -> Iterator[Point]:
    """The given texts over more and more streams."""
    limit = Limit(arguments.bundle, arguments.variant, [row["text"] for row in read(arguments.texts)]).items_per_s
    for count in STREAMS:
        client = ("streams.py", "--streams", str(count))
        seconds = arguments.seconds * max(1.0, count / 128)
        yield Point("streams", "one text each", count, arguments.bundle, arguments.texts, client, seconds, limit)


def length_points(lengths: Lengths, arguments: argparse.Namespace, work: Path) -> Iterator[Point]:
    """Longer and longer texts over one stream."""
    for length in LENGTHS:
        if length > lengths.longest:
            tqdm.write(f"texts of {length} tokens are left out: the model reads {lengths.longest}")
            continue
        texts = lengths.texts([length] * _TEXTS_OF_A_LENGTH)
        path = write_texts(work / f"length-{length}.jsonl", texts)
        client = (*_STREAM, str(min(256, _MOST_TOKENS_IN_FLIGHT // length)))
        seconds = arguments.seconds * max(1.0, length / 128)
        limit = Limit(arguments.bundle, arguments.variant, texts).items_per_s
        yield Point("lengths", "stream", length, arguments.bundle, path, client, seconds, limit)


def head_points(arguments: argparse.Namespace, work: Path) -> Iterator[Point]:
    """The given texts to models with more and more heads."""
    texts = [row["text"] for row in read(arguments.texts)]
    series = {"every head": (*_STREAM, "256"), "embedding alone": (*_STREAM, "256", "--tasks", "1")}
    for count in tqdm(HEADS, "bundles with heads"):
        path = bundle_with_heads(work, count, arguments.variant)
        limit = Limit(path, arguments.variant, texts).items_per_s
        for name, client in series.items():
            yield Point("heads", name, count, path, arguments.texts, client, arguments.seconds, limit)


def measure(point: Point, variant: str) -> Figures:
    """Starts a server, puts the load on it between two measurements of the limit, and looks at its memory."""
    with serving(point.bundle, *_flags(variant)) as target:
        before = memory(target)
        limit = point.limit(point.seconds)
        program, *flags = point.client
        command = [sys.executable, str(HERE / program), target, str(point.texts), *flags, "--seconds"]
        answered = subprocess.run([*command, str(point.seconds)], check=True, capture_output=True, text=True)
        after = memory(target)
    figures = with_efficiency(json.loads(answered.stdout), (limit + point.limit(point.seconds)) / 2)
    if point.sweep == "lengths":
        figures["tokens_per_s"] = figures["items_per_s"] * point.place
    return {**figures, "rss_before_mb": before["rss_mb"], **after}


def shapes(arguments: argparse.Namespace, lengths: Lengths) -> dict[str, list[Figures]]:
    """Memory of one server, by the number of messages of random shapes that it has answered."""
    chooser = random.Random(0)
    found: dict[str, list[Figures]] = {}
    with serving(arguments.bundle, *_flags(arguments.variant)) as target, grpc.insecure_channel(target) as channel:
        stub: Any = inference_service_pb2_grpc.InferenceServiceStub(channel)
        found["0"] = [memory(target)]
        stops = {math.ceil(arguments.batches * number / _STOPS) for number in range(1, _STOPS + 1)}
        for number in tqdm(range(1, arguments.batches + 1), "shapes"):
            texts = lengths.texts(_random_lengths(chooser, min(_LONGEST, lengths.longest)))
            response = stub.Analyze(pb2.AnalyzeRequest(items=[item_pb2.Item(text=text) for text in texts]))
            if any(answer.WhichOneof("outcome") != "result" for answer in response.answers):
                raise SystemExit(f"an item was refused: {response}")
            if number in stops:
                found[str(number)] = [memory(target)]
    return found


def _random_lengths(chooser: random.Random, longest: int) -> list[int]:
    """Short texts as often as long ones: every doubling of the length is as likely as any other."""
    ratio = longest / _SHORTEST
    return [round(_SHORTEST * ratio ** chooser.random()) for _ in range(chooser.randint(1, _MOST_ITEMS))]


def _flags(variant: str) -> tuple[str, ...]:
    return ("--engine", "onnx", "--device", "cpu", "--variant", variant)


def table(sweeps: dict[str, Any]) -> str:
    """The medians for a terminal."""
    lines = []
    for sweep, series in sweeps.items():
        for name, places in series.items():
            figures = list(next(iter(places.values())))
            widths = [max(9, len(figure) + 2) for figure in figures]
            titles = "".join(f"{figure:>{width}}" for figure, width in zip(figures, widths, strict=True))
            lines += ["", f"{sweep}: {name}", f"{'':>8}{titles}"]
            for place, found in places.items():
                medians = (f"{found[figure][0]:>{width}.4g}" for figure, width in zip(figures, widths, strict=True))
                lines.append(f"{place:>8}{''.join(medians)}")
    return "\n".join(lines[1:])


if __name__ == "__main__":
    main()

"""What the queue makes of a load: a server whose front takes no time, event by event, with the server's own queue.

Passes take as long as their start and their tokens with padding, which are flags; the limit is the same texts sorted
beforehand, in passes of as many tokens. So what is missing is what the choice of the batches costs, whatever the
machine does meanwhile: texts in flight that have no neighbours of their length, padding, and more starts.

    python bench/batches.py --bundle build/demo/bundle                                   # int8 on 2 cores
    python bench/batches.py --bundle build/demo/bundle --start-us 2200 --token-us 218    # fp32
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from polyhead_export import bundle
from polyhead_server.batching import BatchLimits, BatchQueue, Call, Entry
from polyhead_server.items import Outcome, Tokens
from polyhead_server.tokenization import Tokenizer
from serving import DEMO, with_long
from texts import read

# Name: texts of a message, texts in flight, whether all are of one stream.
LOADS = {
    "unary, 1 item, 8 in flight": (1, 8, False),
    "unary, 1 item, 64 in flight": (1, 64, False),
    "unary, 8 items, 64 in flight": (8, 64, False),
    "unary, 32 items, 256 in flight": (32, 256, False),
    "stream, 8 items, 64 in flight": (8, 64, True),
    "stream, 32 items, 256 in flight": (32, 256, True),
}
# From a message's last answer to the next message.
_AGAIN_S = 0.002
_WARM_S = 10.0


@dataclass(frozen=True)
class Machine:
    """Threads that compute, and microseconds of a pass: for its start, and for each token with padding."""

    threads: int
    start_us: float
    token_us: float

    def seconds(self, tokens: int) -> float:
        """Of a pass."""
        return (self.start_us + self.token_us * tokens) / 1e6


@dataclass(eq=False)
class _Message:
    left: int


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="whose tokenizer counts the tokens")
    parser.add_argument("--texts", type=Path, default=DEMO, help="JSON lines with a field `text`, or a text a line")
    parser.add_argument("--long", action="store_true", help="make one text in ten of four, up to what the model reads")
    parser.add_argument("--threads", type=int, default=2, help="that compute (default: 2)")
    parser.add_argument("--start-us", type=float, default=1800.0, help="of a pass (default: 1800)")
    parser.add_argument("--token-us", type=float, default=85.0, help="of a token (default: 85)")
    parser.add_argument("--max-batch-tokens", type=int, default=512, help="tokens of a pass (default: 512)")
    parser.add_argument("--max-padding", type=float, default=0.12, help="as the server's (default: 0.12)")
    parser.add_argument("--seconds", type=float, default=120.0, help="simulated seconds of a load (default: 120)")
    arguments = parser.parse_args()
    source = bundle.load(arguments.bundle)
    manifest = source.manifest
    tokenizer = Tokenizer(source.file("tokenizer.json"), manifest.max_tokens, 250 * manifest.max_tokens)
    texts = [row["text"] for row in read(arguments.texts)]
    lengths = [one.used for one in tokenizer.encode(with_long(texts) if arguments.long else texts)]
    tokenizer.close()
    machine = Machine(arguments.threads, arguments.start_us, arguments.token_us)
    limits = BatchLimits(arguments.max_batch_tokens, arguments.max_padding, machine.start_us / machine.token_us)
    most = limit(machine, lengths, limits.max_tokens)
    print(f"{'load':<34}{'share of the limit':>20}{'padding':>10}{'tokens of a pass':>18}")
    for name, (items, in_flight, one_stream) in LOADS.items():
        load = Load(machine, limits, lengths, items, in_flight, one_stream=one_stream)
        rate, padding, tokens = asyncio.run(load.run(arguments.seconds))
        print(f"{name:<34}{rate / most:>20.3f}{padding:>10.3f}{tokens:>18.0f}")


def limit(machine: Machine, lengths: Sequence[int], max_tokens: int) -> float:
    """Texts a second of sorted texts."""
    passes: list[list[int]] = [[]]
    for length in sorted(lengths):
        if passes[-1] and (len(passes[-1]) + 1) * length > max_tokens:
            passes.append([])
        passes[-1].append(length)
    return machine.threads * len(lengths) / sum(machine.seconds(len(one) * one[-1]) for one in passes)


class Load:
    """A closed loop."""

    def __init__(
        self,
        machine: Machine,
        limits: BatchLimits,
        lengths: Sequence[int],
        items: int,
        in_flight: int,
        *,
        one_stream: bool,
    ) -> None:
        self._machine = machine
        self._queue = BatchQueue(limits)
        self._lengths = itertools.cycle(random.Random(0).sample(lengths, len(lengths)))
        self._items = items
        self._messages = max(1, in_flight // items)
        self._stream = Call() if one_stream else None
        self._of: dict[int, _Message] = {}

    async def run(self, seconds: float) -> tuple[float, float, float]:
        """Texts a second, padding as a share of the real tokens, and the tokens of a pass in the mean."""
        numbers = itertools.count()
        # When, and the pass that ends then; None for a message that is sent.
        events: list[tuple[float, int, list[Entry] | None]] = [
            (0.0, next(numbers), None) for _ in range(self._messages)
        ]
        idle, answered, real, padded, passes = self._machine.threads, 0, 0, 0, 0
        while events and (now := events[0][0]) < seconds:
            _, _, ended = heapq.heappop(events)
            if ended is None:
                self._send()
            else:
                idle += 1
                finished = self._finish(ended)
                answered += self._items * finished * (now > _WARM_S)
                for _ in range(finished):
                    heapq.heappush(events, (now + _AGAIN_S, next(numbers), None))
            # What is sent at the same moment comes first.
            while idle and self._queue.waiting and not (events and events[0][0] == now and events[0][2] is None):
                entries = self._take(idle)
                idle -= 1
                tokens = len(entries) * max(entry.length for entry in entries)
                if now > _WARM_S:
                    real, padded, passes = real + sum(one.length for one in entries), padded + tokens, passes + 1
                heapq.heappush(events, (now + self._machine.seconds(tokens), next(numbers), entries))
        return answered / (seconds - _WARM_S), padded / real - 1, padded / passes

    def _send(self) -> None:
        message, call, loop = _Message(self._items), self._stream or Call(whole=True), asyncio.get_running_loop()
        entries = []
        for _ in range(self._items):
            ids = [0] * next(self._lengths)
            future: asyncio.Future[Outcome] = loop.create_future()
            entries.append(Entry(call, Tokens((ids,), len(ids)), ids, future, None, 0, 0, 0))
            self._of[id(entries[-1])] = message
        self._queue.put(entries)

    def _take(self, idle: int) -> list[Entry]:
        # The other idle threads wait in the queue as well.
        self._queue._idle_workers = idle - 1
        batch = self._queue.take()
        return batch.entries if batch else []

    def _finish(self, entries: Sequence[Entry]) -> int:
        """Messages whose last answer this is."""
        messages = [self._of.pop(id(entry)) for entry in entries]
        for message in messages:
            message.left -= 1
        return sum(not message.left for message in set(messages))


if __name__ == "__main__":
    main()

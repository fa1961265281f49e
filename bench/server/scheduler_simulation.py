"""What the queue makes of a load: a server whose front takes no time, event by event, with the server's own queue.

Passes take as long as their start and their tokens with padding, which are flags; the limit is the same texts sorted
beforehand, in passes of as many tokens. So what is missing is what the choice of the batches costs, whatever the
machine does meanwhile: texts in flight that have no neighbours of their length, padding, and more starts.

    python -m bench.server.scheduler_simulation --bundle build/demo/bundle                                  # int8
    python -m bench.server.scheduler_simulation --bundle build/demo/bundle --start-us 2200 --token-us 218    # fp32
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import polyhead_bundle as bundle
from polyhead_server.inference.scheduler import BatchLimits
from polyhead_server.inference.tokenization import Tokenizer

from bench.harness.cli import make_parser
from bench.harness.texts import DEMO_TEXTS, read_texts, with_long_texts

from .simulation import Load, Machine, limit

# Name: texts of a message, texts in flight, whether all are of one stream.
LOADS = {
    "unary, 1 item, 8 in flight": (1, 8, False),
    "unary, 1 item, 64 in flight": (1, 64, False),
    "unary, 8 items, 64 in flight": (8, 64, False),
    "unary, 32 items, 256 in flight": (32, 256, False),
    "stream, 8 items, 64 in flight": (8, 64, True),
    "stream, 32 items, 256 in flight": (32, 256, True),
}


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="whose tokenizer counts the tokens")
    parser.add_argument(
        "--texts", type=Path, default=DEMO_TEXTS, help="JSON lines with a field `text`, or a text a line"
    )
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
    texts = read_texts(arguments.texts)
    lengths = [one.used for one in tokenizer.encode(with_long_texts(texts) if arguments.long else texts)]
    tokenizer.close()
    machine = Machine(arguments.threads, arguments.start_us, arguments.token_us)
    limits = BatchLimits(arguments.max_batch_tokens, arguments.max_padding, machine.start_us / machine.token_us)
    most = limit(machine, lengths, limits.max_tokens)
    print(f"{'load':<34}{'share of the limit':>20}{'padding':>10}{'tokens of a pass':>18}")
    for name, (items, in_flight, one_stream) in LOADS.items():
        load = Load(machine, limits, lengths, items, in_flight, one_stream=one_stream)
        rate, padding, tokens = asyncio.run(load.run(arguments.seconds))
        print(f"{name:<34}{rate / most:>20.3f}{padding:>10.3f}{tokens:>18.0f}")


if __name__ == "__main__":
    main()

"""Measures what the scheduler makes of a load, in a simulation with the real scheduler and batches of configured cost.

A batch takes a fixed time plus a time per token, padding included; both are flags. The upper bound is the throughput of
the same texts sorted by length beforehand, in batches of as many tokens. So the efficiency shows the cost of choosing
batches from what is in flight, independently of the machine: texts without others of similar length, padding, and more
batches.

    python -m bench.server.scheduler_simulation --bundle build/demo/bundle                                      # int8
    python -m bench.server.scheduler_simulation --bundle build/demo/bundle --overhead-us 2200 --token-us 218    # fp32
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import polyhead_bundle as bundle
from polyhead_server.inference.scheduler import BatchLimits

from bench.harness.arguments import make_parser
from bench.harness.texts import DEMO_TEXTS, FORMAT_HELP, first_turn, read_texts, with_long_texts
from bench.harness.upper_bound import open_tokenizer

from .simulated_server import Machine, Simulation, upper_bound

# Name: texts per message, texts in flight, whether all belong to one stream.
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
    parser.add_argument("--bundle", type=Path, required=True, help="bundle whose tokenizer counts the tokens")
    parser.add_argument("--texts", type=Path, default=DEMO_TEXTS, help=FORMAT_HELP)
    parser.add_argument("--long", action="store_true", help="append three other texts to one text in ten")
    parser.add_argument("--threads", type=int, default=2, help="compute threads (default: 2)")
    parser.add_argument("--overhead-us", type=float, default=1800.0, help="fixed cost of a batch (default: 1800)")
    parser.add_argument("--token-us", type=float, default=85.0, help="cost of a token (default: 85)")
    parser.add_argument("--max-batch-tokens", type=int, default=512, help="batch size limit in tokens (default: 512)")
    parser.add_argument("--max-padding", type=float, default=0.12, help="padding limit of the server (default: 0.12)")
    parser.add_argument("--seconds", type=float, default=120.0, help="simulated seconds per load (default: 120)")
    arguments = parser.parse_args()
    tokenizer = open_tokenizer(bundle.load(arguments.bundle))
    texts = read_texts(arguments.texts)
    sent = first_turn(with_long_texts(texts) if arguments.long else texts)
    lengths = [text.used for text in tokenizer.encode(sent)]
    tokenizer.close()
    machine = Machine(arguments.threads, arguments.overhead_us, arguments.token_us)
    limits = BatchLimits(arguments.max_batch_tokens, arguments.max_padding, machine.overhead_us / machine.token_us)
    bound = upper_bound(machine, lengths, limits.max_tokens)
    print(f"{'load':<34}{'efficiency':>12}{'padding':>10}{'batch tokens':>14}")
    for name, (items, in_flight, one_stream) in LOADS.items():
        simulation = Simulation(machine, limits, lengths, items, in_flight, one_stream=one_stream)
        found = asyncio.run(simulation.run(arguments.seconds))
        print(f"{name:<34}{found.texts_per_s / bound:>12.3f}{found.padding:>10.3f}{found.batch_tokens:>14.0f}")


if __name__ == "__main__":
    main()

"""Effect of staged unfreezing: heads only, everything at once and gradual unfreezing with the same number of epochs.

    python -m bench.training.unfreezing training/configs/unfreezing.toml --output bench/results/unfreezing.json
    python -m bench.training.unfreezing training/configs/unfreezing.toml --seeds 1                  # a quick look

Accuracy and macro-F1 are those of the validation rows; similarity is Spearman's correlation before and after training.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.harness import results
from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.servers import BIN

# Strategy, and the override that spends the three epochs of the configuration differently.
STRATEGIES = {
    "heads only": "training.stages=[{name='heads', train=['heads', 'pooling'], epochs=3, learning_rate=1e-3}]",
    "all at once": "training.stages=[{name='all', train=['all'], epochs=3, learning_rate=1e-4}]",
    "staged": "training.seed={seed}",
}


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("config", type=Path, help="training configuration with a head `topic` and three epochs")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 (default: 3)")
    add_output_flag(parser, Path("bench/results/unfreezing.json"))
    arguments = parser.parse_args()
    runs = []
    with TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            for strategy, override in STRATEGIES.items():
                figures = train(arguments.config, override, seed, Path(folder) / strategy)
                runs.append({"strategy": strategy, "seed": seed, **figures})
                print(json.dumps(runs[-1]), flush=True)
    provenance = results.provenance(("polyhead", "torch", "transformers"))
    results.write(arguments.output, {**provenance, "seeds": arguments.seeds, "runs": runs})


def train(config: Path, override: str, seed: int, destination: Path) -> dict[str, Any]:
    """Trains one run and returns its scores on the validation rows."""
    overrides = ["--set", override.replace("{seed}", str(seed)), "--set", f"training.seed={seed}"]
    subprocess.run([BIN / "polyhead-train", config, "--restart", "--output-dir", destination, *overrides], check=True)
    evaluation = json.loads((destination / "evaluation.json").read_text())
    topic, similarity = evaluation["validation"]["topic"], evaluation["similarity"]
    return {
        "rows": topic["rows"],
        "accuracy": topic["accuracy"],
        "macro_f1": topic["macro_f1"],
        "similarity_spearman_before": similarity["spearman_before"],
        "similarity_spearman_after": similarity["spearman_after"],
    }


if __name__ == "__main__":
    main()

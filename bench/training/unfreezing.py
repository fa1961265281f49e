"""What staged unfreezing buys, against the heads alone and against everything at once, on the same budget of epochs.

python bench/training/unfreezing.py training/configs/unfreezing.toml [--output bench/results/unfreezing.json]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.harness.servers import BIN

# The configuration as it is, and its three epochs spent otherwise.
WAYS = {
    "heads only": "training.stages=[{name='heads', train=['heads', 'pooling'], epochs=3, learning_rate=1e-3}]",
    "all at once": "training.stages=[{name='all', train=['all'], epochs=3, learning_rate=1e-4}]",
    "staged": "training.seed={seed}",
}


def main() -> None:
    """Trains each way, prints and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, default=3, help="seeds, 0 and on (default: 3)")
    parser.add_argument("--output", type=Path, default=Path("bench/results/unfreezing.json"), help="JSON to write")
    arguments = parser.parse_args()
    runs = []
    with TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            for way, override in WAYS.items():
                runs.append({"way": way, "seed": seed, **_train(arguments.config, override, seed, Path(folder) / way)})
                print(json.dumps(runs[-1]), flush=True)
    figures = {"command": " ".join(["python", *sys.argv]), "runs": runs}
    arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _train(config: Path, override: str, seed: int, destination: Path) -> dict[str, Any]:
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

"""Other libraries that embed files of texts, beside `polyhead bulk` on the same texts and cores.

    python -m bench.bulk.install
    polyhead-export build/demo/run build/demo/twin --format sentence-transformers
    python -m bench.bulk.library_comparison --bundle build/demo/bundle --model build/demo/twin-sentence-transformers

Each library runs in an environment of its own and embeds the same file with the same weights, those of --model. A
library without its environment is left out. Each first embeds one text, in a copy of the model's folder, where it may
leave a graph of its own. A bulk job of the same file precedes each of them; it computes every head as well. CPU time
and peak memory are those of the whole process, loading of the model included.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.harness import results
from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.texts import DEMO_TEXTS, FORMAT_HELP, read_texts

from .inputs import varied, write_parquet
from .libraries import LIBRARIES, Library
from .timing import run_measured


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle to compute with")
    parser.add_argument("--variant", default="int8", help="variant to compute with (default: int8)")
    parser.add_argument("--model", type=Path, required=True, help="sentence-transformers folder for the libraries")
    parser.add_argument("--texts", type=Path, default=DEMO_TEXTS, help=f"{FORMAT_HELP} (default: the demo's)")
    parser.add_argument("--count", type=int, default=5000, help="texts to embed (default: 5000)")
    parser.add_argument("--libraries", nargs="+", default=list(LIBRARIES), help="libraries to compare (default: all)")
    add_output_flag(parser)
    arguments = parser.parse_args()
    texts = list(varied(read_texts(arguments.texts), arguments.count))
    with tempfile.TemporaryDirectory() as work:
        found = measure_libraries(arguments, texts, Path(work))
    print(table(found))
    settings = {name: getattr(arguments, name) for name in ("variant", "count")}
    results.write(arguments.output, {**results.provenance(("polyhead",)), **settings, "libraries": found})


def measure_libraries(arguments: argparse.Namespace, texts: Sequence[str], work: Path) -> dict[str, Any]:
    """Measures each installed library, and before it the command with as many texts, each in a process of its own."""
    path = write_parquet(work / "libraries.parquet", texts)
    one_text = write_parquet(work / "one-text.parquet", texts[:1])
    found: dict[str, Any] = {}
    for name in tqdm(arguments.libraries, unit="library"):
        library = LIBRARIES[name]
        if not library.python.exists():
            print(f"{name}: not installed; see python -m bench.bulk.install")
            continue
        original = work / f"model-{library.graph_of}" if library.graph_of else arguments.model
        folder = shutil.copytree(original, work / f"model-{name}")
        run_measured(_library_command(library, folder, one_text, work / f"{name}-one-text.parquet"))
        job = run_measured(_command(arguments, path, work / f"command-{name}"))
        other = run_measured(_library_command(library, folder, path, work / f"{name}.parquet"))
        if other is None or job is None:
            print(f"{name}: failed; its output is above")
            continue
        found[name] = {
            "texts_per_s": len(texts) / other["work_s"],
            "texts_per_cpu_s": len(texts) / other["cpu_s"],
            "peak_mb": other["peak_mb"],
            "polyhead_texts_per_cpu_s": len(texts) / job["cpu_s"],
            "polyhead_peak_mb": job["peak_mb"],
            "cpu_speedup": other["cpu_s"] / job["cpu_s"],
            "speedup": other["wall_s"] / job["wall_s"],
        }
    return found


def _command(arguments: argparse.Namespace, path: Path, output: Path) -> list[str]:
    flags = ("--bundle", str(arguments.bundle), "--variant", arguments.variant, "--id-column", "id")
    return ["polyhead", "bulk", str(path), str(output), *flags]


def _library_command(library: Library, folder: Path, path: Path, output: Path) -> list[str]:
    return [str(library.python), str(library.script), str(path), str(output), *library.arguments, str(folder)]


def table(libraries: dict[str, Any]) -> str:
    """Formats the figures for a terminal."""
    lines = [f"{'library':<34}{'texts/CPU s':>12}{'peak MB':>9}{'polyhead is':>14}"]
    for name, one in libraries.items():
        lines.append(f"{name:<34}{one['texts_per_cpu_s']:>12.0f}{one['peak_mb']:>9.0f}{one['cpu_speedup']:>13.2f}x")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""The command as a user runs it, on a real model of a few thousand weights."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from polyhead.commands import SUBCOMMANDS
from polyhead_bulk import Annotator
from polyhead_client.cli.main import main

from tests.support.extras import hide_all_but
from tests.support.tiny_model import SENTENCES

from .conftest import Command, wait_for

Start = Callable[..., Command]
pytestmark = pytest.mark.model


def texts_of(count: int) -> list[str]:
    chosen = random.Random(0)
    vocabulary = " ".join(SENTENCES).split()
    return [" ".join(chosen.choices(vocabulary, k=chosen.randrange(1, 30))) for _ in range(count)]


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 60,000 rows, for which a core takes some seconds."""
    path = tmp_path_factory.mktemp("in") / "reviews.parquet"
    texts = texts_of(2000) * 30
    pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), path, row_group_size=10_000)
    return path


@pytest.fixture(scope="module")
def expected(reviews: Path, bundle_dir: Path) -> pa.Table:
    """The answers of the library for the rows of ``reviews``."""
    return Annotator(bundle_dir)(pq.read_table(reviews)).drop_columns(["text"])


def output_of(folder: Path) -> pa.Table:
    return pa.dataset.dataset(folder, format="parquet").to_table()


def require_equal(found: pa.Table, expected: pa.Table) -> None:
    """Requires the same rows in the same order, numbers to 1e-6."""
    assert found["id"].to_pylist() == expected["id"].to_pylist()
    for name in ("topic_label", "sentiment_label", "tokens", "truncated", "error"):
        assert found[name].equals(expected[name]), name
    for name in ("embedding", "topic_probabilities", "sentiment_probabilities"):
        left, right = (np.asarray(one[name].combine_chunks().flatten()) for one in (found, expected))
        np.testing.assert_allclose(left, right, atol=1e-6)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if ".tmp-" in path.name]


def test_a_job_that_is_killed_again_and_again_ends_with_the_uninterrupted_output(
    start: Start, reviews: Path, bundle_dir: Path, expected: pa.Table, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = (reviews, out, "--bundle", bundle_dir, "--id-column", "id", "--part-rows", "4000")
    chosen = random.Random(3)
    interrupted = 0
    for _ in range(4):
        done = len(list(out.glob("part-*")))
        command = start(*arguments)
        # Not before the run has made progress; then at any moment.
        wait_for(lambda done=done, command=command: len(list(out.glob("part-*"))) > done or not command.is_running)  # type: ignore[misc]
        time.sleep(chosen.uniform(0, 0.1))
        interrupted += command.is_running
        command.kill()
        records = [json.loads(path.read_bytes()) for path in (out / "_parts").glob("*.json")]
        for record in records:
            assert pq.read_metadata(out / record["name"]).num_rows == record["rows"]
    assert interrupted >= 2, "the job was too fast for this test"
    code, _, errors = start(*arguments).result()
    assert (code, leftovers(out)) == (0, [])
    assert " kept from before" in errors
    require_equal(output_of(out), expected)
    assert json.loads((out / "_manifest.json").read_bytes())["rows"] == 60_000


def test_the_first_interrupt_completes_a_part_and_tells_how_to_continue(
    start: Start, reviews: Path, bundle_dir: Path, expected: pa.Table, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = (reviews, out, "--bundle", bundle_dir, "--id-column", "id", "--part-rows", "5000")
    command = start(*arguments)
    wait_for(lambda: bool(list(out.glob(".part-*"))))
    command.send(signal.SIGINT)
    code, _, errors = command.result()
    assert code == 130
    assert "completing the part that is being written" in errors
    continued = errors.split("Continue with: ")[1].strip()
    assert continued.endswith(f"bulk {reviews} {out} --bundle {bundle_dir} --id-column id --part-rows 5000")
    made = len(list(out.glob("part-*")))
    assert 1 <= made < 12
    assert leftovers(out) == []
    code, _, errors = start(*arguments).result()
    assert code == 0
    assert f"{made} part{'' if made == 1 else 's'} kept from before" in errors
    require_equal(output_of(out), expected)


def test_the_second_interrupt_drops_the_part(start: Start, reviews: Path, bundle_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = start(reviews, out, "--bundle", bundle_dir, "--id-column", "id")
    wait_for(lambda: bool(list(out.glob(".part-*"))))
    command.send(signal.SIGTERM)
    command.wait_for_message("press Ctrl-C again to drop it")
    command.send(signal.SIGINT)
    code, _, errors = command.result(30)
    assert code == 130
    assert "no incomplete part is left" in errors
    assert (leftovers(out), list(out.glob("part-*"))) == ([], [])


def test_shards_at_the_same_time_make_one_output(
    start: Start, reviews: Path, bundle_dir: Path, expected: pa.Table, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = (reviews, out, "--bundle", bundle_dir, "--id-column", "id", "--part-rows", "5000", "--threads", "1")
    commands = [start(*arguments, "--shard", f"{number}/2") for number in range(2)]
    assert [command.result()[0] for command in commands] == [0, 0]
    require_equal(output_of(out), expected)
    assert json.loads((out / "_manifest.json").read_bytes())["complete"]


def test_a_dry_run_writes_nothing_and_prints_the_plan(reviews: Path, bundle_dir: Path, tmp_path: Path) -> None:
    arguments = (reviews, tmp_path / "out", "--bundle", bundle_dir, "--id-column", "id", "--dry-run")
    result = CliRunner().invoke(main, ["bulk", *map(str, arguments)])
    assert (result.exit_code, result.stderr) == (0, "")
    assert "60,000 rows, 1 part\n" in result.stdout
    assert "column: embedding: fixed_size_list<item: float>[32]" in result.stdout
    assert "estimate: 60,000 rows at " in result.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("{in}", "{out}"), 2, "give either --bundle DIR or --target HOST:PORT"),
        (("{in}", "{out}", "--bundle", "{bundle}", "--target", "h:1"), 2, "give either --bundle DIR or --target"),
        (
            ("{in}", "{out}", "--bundle", "{bundle}", "--text-column", "body"),
            2,
            "no column 'body'; the columns are: id",
        ),
        (("{in}", "{out}", "--bundle", "{out}"), 1, "is not a bundle"),
        (("{in}", "{out}", "--bundle", "{bundle}", "--tasks", "sentiments"), 2, "'sentiments' is not one of"),
        (("{in}", "{out}", "--bundle", "{bundle}", "--shard", "2/2"), 2, "expected I/N"),
        (("{in}", "{out}", "--bundle", "{bundle}", "--column-type", "id=number"), 2, "--column-type"),
        (("{in}", "{out}", "--target", "127.0.0.1:1"), 1, "127.0.0.1:1"),
        (("missing.csv", "{out}", "--bundle", "{bundle}"), 2, "missing.csv: no such file or folder"),
    ],
)
def test_mistakes_end_with_one_line(
    tmp_path: Path, bundle_dir: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    pq.write_table(pa.table({"id": [1], "text": ["w"]}), tmp_path / "in.parquet")
    names = {"in": tmp_path / "in.parquet", "out": tmp_path / "out", "bundle": bundle_dir}
    result = CliRunner().invoke(main, ["bulk", *(one.format(**names) for one in arguments)])
    assert isinstance(result.exception, SystemExit)
    assert (result.exit_code, message in result.stderr) == (code, True), result.stderr
    assert not (tmp_path / "out").exists()


def test_a_job_with_a_bundle_needs_neither_grpc_nor_other_extras(bundle_dir: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": SENTENCES}), tmp_path / "in.parquet")
    arguments = ["bulk", str(tmp_path / "in.parquet"), str(tmp_path / "out"), "--bundle", str(bundle_dir)]
    script = (
        "import sys; sys.modules['grpc'] = None; sys.modules['google.protobuf'] = None\n"
        f"from polyhead_client.cli.main import main; main({arguments!r})\n"
    )
    hidden = hide_all_but(tmp_path / "modules", "bulk")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([hidden["PYTHONPATH"], os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert output_of(tmp_path / "out").num_rows == len(SENTENCES)


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from polyhead_client.cli.main import main\n"
        "main(['bulk', 'in.parquet', 'out', '--bundle', 'bundle'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "needs pip install 'polyhead[bulk]': the package pyarrow is not installed" in done.stderr


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from polyhead_client.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('pyarrow', 'numpy', 'grpc', 'rich', 'onnxruntime') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "\n  bulk " in done.stdout
    assert done.stdout.rstrip().endswith("[]")
    assert SUBCOMMANDS == {"bulk": "polyhead_bulk.cli"}


@pytest.mark.parametrize("control", [False, True])
def test_memory_does_not_grow_with_the_input(bundle_dir: Path, tmp_path: Path, control: bool) -> None:
    texts = texts_of(500)
    peaks = []
    # The control keeps more of each of fewer rows: 305 MiB of the further ones. The allocator varies by 50 MiB.
    counts, kept = ((5_000, 25_000), 16_000) if control else ((20_000, 80_000), 0)
    for rows in counts:
        path = tmp_path / f"{rows}.parquet"
        pq.write_table(pa.table({"text": [f"{number} {texts[number % 500]}" for number in range(rows)]}), path)
        arguments = [str(path), str(tmp_path / f"out-{rows}"), "--bundle", str(bundle_dir), "--part-rows", "5000"]
        peaks.append(_peak_bytes(arguments, kept_bytes_per_row=kept))
    growth = peaks[1] - peaks[0]
    assert (growth > 150 * 2**20) == control, f"{growth / 2**20:.0f} MiB more"


def _peak_bytes(arguments: list[str], *, kept_bytes_per_row: int) -> int:
    """Runs the command in a process; returns the peak of its resident memory."""
    script = f"""
from pathlib import Path
from polyhead_bulk.parts import PartWriter
from polyhead_client.cli.main import main
kept = []
write = PartWriter.write
def keeping(writer, columns, errors):
    kept.append(b"x" * {kept_bytes_per_row} * len(columns["tokens"]))
    write(writer, columns, errors)
PartWriter.write = keeping
try:
    main(["bulk", *{arguments!r}])
except SystemExit as end:
    assert not end.code
(peak,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(int(peak.split()[1]) * 1024)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])

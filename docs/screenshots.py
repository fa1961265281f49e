"""Takes the screenshots of the pages: PNG files in docs/assets/screenshots, made with the demo model.

    python -m docs.screenshots --bundle build/demo/bundle --run build/demo/run --candidate build/screenshots/candidate
    python -m docs.screenshots ... --output-dir /tmp/phone --width 390 --dark playground     # to look at only

::

    texts --> server with the demo model --> playground, polyhead drift, admin compare, top
                                                    |
    PNG with a palette <-- headless Chromium <-- HTML pages <-- training report

Each page is shown from its top to a chosen element. Look at the images before you commit them, and adapt their
descriptions on the pages.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from polyhead_client import Client

from bench.harness import texts
from bench.harness.servers import BIN, free_port, serving
from bench.harness.texts import ROOT
from bench.loadgen.launch import command as load_command

from . import terminal_screen
from .browser import open_page

FOLDER = Path(__file__).parent / "assets/screenshots"
WIDTH = 1100
MAX_BYTES = 150_000
_DEMO = ROOT / "training/demo"
_PLAYGROUND_TEXTS = (
    "Where is my refund? I sent the shoes back three weeks ago.",
    "Still waiting for the money for the shoes that I returned.",
    "Since the update the app closes as soon as I open it.",
)
_CALL_SIZE = 48
# Sends this often texts of which more are complaints about bills than in validation.
_DRIFT_ROUNDS = 8
# Size of the terminal for polyhead top: all columns, and room for the workers.
_COLUMNS, _LINES = 124, 12
# Screens of polyhead top until its rates are those of steady load.
_DRAWS = 6
_COMPARISON_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Demo:
    """The demo model, served by two workers with all that the screenshots show.

    Attributes:
        target: Address for texts.
        http: Address of the playground.
        admin: Address of the admin service.
        run: Run directory of the demo model.
        candidate: Bundle to compare with the served one.
        folder: Folder for the pages that commands write.
    """

    target: str
    http: str
    admin: str
    run: Path
    candidate: Path
    folder: Path

    def analyze(self, sent: Sequence[str]) -> None:
        """Sends texts over several connections, so that each worker gets some, and few enough at a time for it."""
        for begin in range(0, len(sent), _CALL_SIZE):
            with Client(self.target) as client:
                for answer in client.analyze(sent[begin : begin + _CALL_SIZE]):
                    answer.unwrap()

    def polyhead(self, *arguments: str, code: int = 0) -> str:
        """Runs ``polyhead`` with the admin service as target, and returns its output.

        Raises:
            RuntimeError: The exit code is another one than ``code``.
        """
        command = [str(BIN / "polyhead"), *arguments, "--target", self.admin]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != code:
            raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(SHOTS)} (default: all)")
    parser.add_argument("--bundle", type=Path, required=True, help="bundle of the demo model")
    parser.add_argument("--run", type=Path, required=True, help="run directory of the demo model")
    parser.add_argument("--candidate", type=Path, required=True, help="bundle to compare with it")
    parser.add_argument("--output-dir", type=Path, default=FOLDER, help="(default: docs/assets/screenshots)")
    parser.add_argument("--width", type=int, default=WIDTH, help="CSS pixels (default: %(default)s)")
    parser.add_argument("--dark", action="store_true", help="dark pages, where they have dark colors")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(SHOTS):
        parser.error(f"no such screenshot: {', '.join(sorted(unknown))}")
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    with serving_demo(arguments.bundle, arguments.run, arguments.candidate) as demo:
        for name in arguments.names or SHOTS:
            image = compress(SHOTS[name].take(demo, width=arguments.width, dark=arguments.dark))
            if len(image) > MAX_BYTES:
                sys.exit(f"{name}: {len(image):,} bytes, more than {MAX_BYTES:,}; show less of the page")
            path = arguments.output_dir / f"{name}.png"
            path.write_bytes(image)
            sys.stdout.write(f"{path}: {len(image):,} bytes\n")


@contextlib.contextmanager
def serving_demo(bundle: Path, run: Path, candidate: Path) -> Iterator[Demo]:
    """Serves the demo model."""
    http, admin = (f"127.0.0.1:{free_port()}" for _ in range(2))
    flags = ("--workers", "2", "--http-listen", http, "--admin-listen", admin)
    # Buckets of a second, so that a comparison soon has some.
    drift = ("--drift-window-s", "600", "--drift-bucket-s", "1")
    with tempfile.TemporaryDirectory(prefix="bundles-") as name, serving(bundle, *flags, *drift) as target:
        # The page of the comparison shows the path of the candidate, not that of a link to it.
        shown = shutil.copytree(candidate, Path(name, "demo-next"))
        yield Demo(target, http, admin, run.resolve(), shown, Path(name))


def compress(png: bytes) -> bytes:
    """Reduces the colors of a PNG to a palette, which pages of few colors do not show."""
    original = Image.open(io.BytesIO(png)).convert("RGB")
    # Other methods change the colors of thin lines, and without k-means those of backgrounds.
    image = original.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    compressed = io.BytesIO()
    image.save(compressed, "PNG", optimize=True)
    return compressed.getvalue()


def training_report(demo: Demo) -> str:
    """Returns the address of the report of the demo model."""
    return (demo.run / "report.html").as_uri()


def drift_page(demo: Demo) -> str:
    """Sends texts that differ from validation; returns the page of ``polyhead drift``."""
    usual = texts.read_texts(_DEMO / "test.jsonl")
    rows = texts.read(_DEMO / "train.jsonl")
    complaints = [row["text"] for row in rows if (row["label"], row["sentiment"]) == ("billing", 0)]
    mixed = [text for pair in zip(usual, complaints, strict=False) for text in pair]
    for _ in range(_DRIFT_ROUNDS):
        demo.analyze(mixed)
    page = demo.folder / "drift.html"
    # 1 means that there is drift.
    demo.polyhead("drift", "--html", str(page), code=1)
    return page.as_uri()


def comparison_page(demo: Demo) -> str:
    """Compares the candidate on the texts of validation and test; returns the page of ``polyhead admin compare``."""
    demo.polyhead(
        *("admin", "shadow", str(demo.candidate), "--share", "100%", "--priority", "normal", "--keep-texts", "3")
    )
    sent = [text for split in ("validation", "test") for text in texts.read_texts(_DEMO / f"{split}.jsonl")]
    demo.analyze(sent)
    page = demo.folder / "comparison.html"
    ends = time.monotonic() + _COMPARISON_TIMEOUT_S
    while True:
        output = demo.polyhead("admin", "compare", "--json", "--html", str(page), "--show-texts", "3")
        shadow: dict[str, Any] = json.loads(output)["shadow"]
        if shadow["answered"] >= len(sent) and shadow["compared"] + shadow["dropped"] == shadow["selected"]:
            break
        if time.monotonic() > ends:
            raise TimeoutError(f"the candidate has answered {shadow['compared']} of {len(sent)} texts")
        time.sleep(0.5)
    demo.polyhead("admin", "discard")
    return page.as_uri()


def playground(demo: Demo) -> str:
    """Returns the address of the playground."""
    # The first texts after the start take longer than usual.
    demo.analyze(_PLAYGROUND_TEXTS)
    return f"http://{demo.http}/"


def top_page(demo: Demo) -> str:
    """Puts load on the server; returns a page with the screen of ``polyhead top``."""
    flags = ("--connections", "4", "--in-flight", "32")
    load = subprocess.Popen(
        load_command("main", demo.target, texts.DEMO_TEXTS, 600, flags), cwd=ROOT, stdout=subprocess.DEVNULL
    )
    try:
        command = [str(BIN / "polyhead"), "top", "--target", demo.admin]
        screen = terminal_screen.capture(command, columns=_COLUMNS, lines=_LINES, last="q to quit", draws=_DRAWS)
    finally:
        load.terminate()
        load.wait()
    page = demo.folder / "top.html"
    page.write_text(terminal_screen.as_html(screen, "polyhead top"), encoding="utf-8")
    return page.as_uri()


@dataclass(frozen=True)
class Shot:
    """A screenshot.

    Attributes:
        address: Prepares a page and returns its address.
        last: CSS selector of the last element to show.
        script: JavaScript to run when the page is loaded and ``before`` is true.
        before: Condition in JavaScript for the script.
        ready: Condition in JavaScript for the screenshot.
    """

    address: Callable[[Demo], str]
    last: str
    script: str = ""
    before: str = "true"
    ready: str = "true"

    def take(self, demo: Demo, *, width: int, dark: bool) -> bytes:
        """Returns a PNG."""
        with open_page(self.address(demo), width=width, dark=dark) as page:
            page.wait_for(self.before)
            page.evaluate(self.script)
            page.wait_for(self.ready)
            return page.screenshot(self.last)


_FIND = "document.getElementById"
# The order matters: drift compares only the texts that come before it.
SHOTS = {
    "training-report": Shot(training_report, ".charts + .note"),
    "drift": Shot(drift_page, ".bins"),
    "comparison": Shot(comparison_page, ".wrap:nth-of-type(2)"),
    "playground": Shot(
        playground,
        last="#similarity",
        before="document.querySelector('#card dd')",
        script=f"{_FIND}('texts').value = {json.dumps(chr(10).join(_PLAYGROUND_TEXTS))}; {_FIND}('analyze').click()",
        ready=f"!{_FIND}('results').hidden",
    ),
    "top": Shot(top_page, "main"),
}


if __name__ == "__main__":
    main()

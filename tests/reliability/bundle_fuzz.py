"""Loads bundles whose manifest or tokenizer Hypothesis has changed; prints one line of JSON. Runs as its own process.

    python -m tests.reliability.bundle_fuzz BUNDLE DIRECTORY --examples 200

Hashes are corrected after each change, as by someone who knows the format; otherwise only the hash check would be
tested. The bundle is loaded by the server's own code. Two outcomes are correct: the one-line error with which
``polyhead-serve`` exits, and a model that passes the self-test on the golden texts. Any other outcome, such as another
exception, is a fault.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polyhead_bundle as bundle
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from polyhead_server.errors import StartupError
from polyhead_server.inference.model import load_model
from polyhead_server.settings import Settings

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
_MAX_DEPTH = 8


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("directory", type=Path, help="path for a copy of the bundle; must not exist")
    parser.add_argument("--examples", type=int, default=200, help="changes per file (default: 200)")
    arguments = parser.parse_args()
    logging.disable()
    root = Path(shutil.copytree(arguments.bundle, arguments.directory))
    report: dict[str, Any] = {"unchanged": _load(root)}
    before = _peak_mb()
    for name, write in (("manifest", _write_manifest), ("tokenizer", _write_tokenizer)):
        report[name] = _fuzz(root, write, arguments.bundle, arguments.examples)
    print(json.dumps({**report, "growth_mb": _peak_mb() - before}))


def _fuzz(root: Path, write: Callable[[Path, Path, Any], None], original: Path, examples: int) -> dict[str, Any]:
    outcomes: Counter[str] = Counter()
    slowest_s = 0.0

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def load_changed(data: st.DataObject) -> None:
        nonlocal slowest_s
        write(root, original, data)
        started = time.monotonic()
        outcomes[_load(root)] += 1
        slowest_s = max(slowest_s, time.monotonic() - started)

    load_changed()
    for name in (bundle.MANIFEST_NAME, bundle.TOKENIZER):
        shutil.copy(original / name, root / name)
    return {"outcomes": outcomes, "slowest_s": slowest_s}


def _load(root: Path) -> str:
    """Outcome of loading: ``loaded``, ``refused``, or the class name of an unexpected exception."""
    try:
        load_model(Settings(bundle=root, device="cpu", engine="onnx", threads=1, max_batch_tokens=1))
    except StartupError as error:
        return "refused" if str(error) else "refused without a reason"
    except BaseException as error:  # noqa: BLE001 - unexpected exceptions, Rust panics included, are what fuzzing looks for
        return type(error).__name__
    return "loaded"


def _write_manifest(root: Path, original: Path, data: Any) -> None:
    document = json.loads((original / bundle.MANIFEST_NAME).read_bytes())
    document.pop("digest")
    _change(document, data)
    _write_with_digest(root, document)


def _write_tokenizer(root: Path, original: Path, data: Any) -> None:
    tokenizer = json.loads((original / bundle.TOKENIZER).read_bytes())
    _change(tokenizer, data)
    content = json.dumps(tokenizer).encode()
    (root / bundle.TOKENIZER).write_bytes(content)
    document = json.loads((original / bundle.MANIFEST_NAME).read_bytes())
    document.pop("digest")
    document["files"][bundle.TOKENIZER] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    _write_with_digest(root, document)


def _change(document: Any, data: Any) -> None:
    """Descends to a random part of a document, and deletes it or replaces it with a random value."""
    for depth in range(_MAX_DEPTH):
        keys = sorted(document) if isinstance(document, dict) else range(len(document))
        key = data.draw(st.sampled_from(keys))
        inner = document[key]
        if (
            depth == _MAX_DEPTH - 1
            or not (isinstance(inner, dict | list) and inner)
            or data.draw(st.integers(0, 3)) == 0
        ):
            if data.draw(st.booleans()):
                document[key] = data.draw(_VALUES)
            else:
                del document[key]
            return
        document = inner


def _write_with_digest(root: Path, document: dict[str, Any]) -> None:
    def encoded(value: object) -> bytes:
        return (json.dumps(value, sort_keys=True, indent=2) + "\n").encode()

    content = encoded({**document, "digest": hashlib.sha256(encoded(document)).hexdigest()})
    (root / bundle.MANIFEST_NAME).write_bytes(content)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()

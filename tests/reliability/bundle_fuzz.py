"""Loads bundles whose manifest or tokenizer Hypothesis has changed, in a process of its own; then one line of JSON.

    cd bench && python -m faults.bundle_fuzz BUNDLE FOLDER --examples 200

Hashes are made right after each change, as somebody does who knows the format, or nothing but a hash would be tested.
What counts is how the server's own way of loading ends: with the one line that ``polyhead-serve`` ends with, or with a
model that answers the golden texts. Anything else, such as an exception of another kind, is a fault.
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
_DEEPEST = 8


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("folder", type=Path, help="for a copy of the bundle; must not be there")
    parser.add_argument("--examples", type=int, default=200, help="of each file (default: 200)")
    arguments = parser.parse_args()
    logging.disable()
    root = Path(shutil.copytree(arguments.bundle, arguments.folder))
    found: dict[str, Any] = {"unchanged": _load(root)}
    before = _peak_mb()
    for name, write in (("manifest", _write_manifest), ("tokenizer", _write_tokenizer)):
        found[name] = _fuzz(root, write, arguments.bundle, arguments.examples)
    print(json.dumps({**found, "grown_mb": _peak_mb() - before}))


def _fuzz(root: Path, write: Callable[[Path, Path, Any], None], original: Path, examples: int) -> dict[str, Any]:
    endings: Counter[str] = Counter()
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
    def one(data: st.DataObject) -> None:
        nonlocal slowest_s
        write(root, original, data)
        began = time.monotonic()
        endings[_load(root)] += 1
        slowest_s = max(slowest_s, time.monotonic() - began)

    one()
    for name in (bundle.MANIFEST_NAME, bundle.TOKENIZER):
        shutil.copy(original / name, root / name)
    return {"endings": endings, "slowest_s": slowest_s}


def _load(root: Path) -> str:
    """How loading ends: ``loaded``, ``refused``, or the name of the exception that got out."""
    try:
        load_model(Settings(bundle=root, device="cpu", engine="onnx", threads=1, max_batch_tokens=1))
    except StartupError as error:
        return "refused" if str(error) else "refused without a word"
    except BaseException as error:  # noqa: BLE001 - what else there is, a Rust panic as well, is what is looked for
        return type(error).__name__
    return "loaded"


def _write_manifest(root: Path, original: Path, data: Any) -> None:
    document = json.loads((original / bundle.MANIFEST_NAME).read_bytes())
    document.pop("digest")
    _change(document, data)
    _spell(root, document)


def _write_tokenizer(root: Path, original: Path, data: Any) -> None:
    tokenizer = json.loads((original / bundle.TOKENIZER).read_bytes())
    _change(tokenizer, data)
    content = json.dumps(tokenizer).encode()
    (root / bundle.TOKENIZER).write_bytes(content)
    document = json.loads((original / bundle.MANIFEST_NAME).read_bytes())
    document.pop("digest")
    document["files"][bundle.TOKENIZER] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    _spell(root, document)


def _change(document: Any, data: Any) -> None:
    """Walks down to some part of a document, and takes it away, or puts anything in its place."""
    for depth in range(_DEEPEST):
        keys = sorted(document) if isinstance(document, dict) else range(len(document))
        key = data.draw(st.sampled_from(keys))
        inner = document[key]
        if depth == _DEEPEST - 1 or not (isinstance(inner, dict | list) and inner) or data.draw(st.integers(0, 3)) == 0:
            if data.draw(st.booleans()):
                document[key] = data.draw(_VALUES)
            else:
                del document[key]
            return
        document = inner


def _spell(root: Path, document: dict[str, Any]) -> None:
    def spelled(value: object) -> bytes:
        return (json.dumps(value, sort_keys=True, indent=2) + "\n").encode()

    content = spelled({**document, "digest": hashlib.sha256(spelled(document)).hexdigest()})
    (root / bundle.MANIFEST_NAME).write_bytes(content)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()

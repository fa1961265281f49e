"""Whatever happens to a bundle on its way, it is refused by name before any parser sees a byte of it.

What a forger can do who recomputes every hash stands at the end: there ``verify`` has to find it in the content.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import re
import shutil
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import polyhead_bundle as bundle
import pytest
import safetensors
import tokenizers
import transformers.modeling_utils
from polyhead_bundle import FORMAT_VERSION, BundleError, FormatError
from polyhead_export.errors import ContentError
from polyhead_export.verify import verify
from polyhead_server.errors import StartupError
from polyhead_server.inference.model import Model, load_model
from polyhead_server.settings import Settings
from polyhead_training.model import PolyheadModel
from safetensors.torch import load_file

from tests.support.small_bundle import rewrite_manifest

FLIPS = 300
PARSERS: dict[str, tuple[Any, str]] = {
    "onnxruntime": (onnxruntime, "InferenceSession"),
    "onnx": (onnx, "load"),
    "tokenizers": (tokenizers.Tokenizer, "from_file"),
    "transformers": (PolyheadModel, "from_pretrained"),
    "safetensors": (transformers.modeling_utils, "safe_open"),
    "safetensors itself": (safetensors, "safe_open"),
}


def _verify(root: Path) -> None:
    verify(root, lambda _: None)


def _serve(root: Path, engine: str = "onnx") -> Model:
    return load_model(Settings(bundle=root, threads=1, engine=engine, device="cpu"))


@pytest.fixture
def root(bundle_dir: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(bundle_dir, tmp_path / "copy"))


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parsers that were called, in order; they still work."""
    calls: list[str] = []

    def record(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            return real(*arguments, **options)

        return call

    for name, (owner, function) in PARSERS.items():
        monkeypatch.setattr(owner, function, record(name, getattr(owner, function)))
    return calls


def _assert_refused(root: Path, fault: str, parsed: list[str]) -> None:
    """Every way in says the same, names the file at fault, and has parsed nothing."""
    with pytest.raises(BundleError) as refusal:
        bundle.load(root)
    assert str(root / fault) in str(refusal.value)
    with pytest.raises(BundleError) as same:
        _verify(root)
    with pytest.raises(StartupError) as served:
        _serve(root)
    assert str(same.value) == str(served.value) == str(refusal.value)
    assert parsed == []


def test_whole_bundle_is_parsed_by_what_these_tests_watch(root: Path, parsed: list[str]) -> None:
    _verify(root)
    assert set(parsed) >= {"onnx", "onnxruntime", "tokenizers", "transformers", "safetensors"}
    parsed.clear()
    _serve(root)
    assert set(parsed) == {"tokenizers", "onnxruntime"}
    parsed.clear()
    _serve(root, "torch")
    assert set(parsed) == {"tokenizers", "transformers", "safetensors"}


def test_every_one_of_300_flipped_bits_is_refused(root: Path, parsed: list[str]) -> None:
    chance = random.Random(0)
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    sizes = [(root / name).stat().st_size for name in names]
    refused = 0
    for number in range(FLIPS):
        # By turns: each file as likely as the other, and each byte as likely as the other.
        name = chance.choices(names, sizes if number % 2 else None)[0]
        content = (root / name).read_bytes()
        bit = chance.randrange(len(content) * 8)
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        (root / name).write_bytes(damaged)
        _assert_refused(root, name, parsed)
        refused += 1
        (root / name).write_bytes(content)
    assert refused == FLIPS
    bundle.load(root)


def _remove(root: Path) -> str:
    (root / "tokenizer.json").unlink()
    return "tokenizer.json"


def _remove_folder(root: Path) -> str:
    shutil.rmtree(root / "torch")
    return "torch/config.json"


def _remove_manifest(root: Path) -> str:
    (root / "bundle.json").unlink()
    return "bundle.json"


def _add(root: Path) -> str:
    (root / "torch" / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    return "torch/pytorch_model.bin"


def _add_hidden(root: Path) -> str:
    (root / ".DS_Store").write_bytes(b"")
    return ".DS_Store"


def _add_empty_folder(root: Path) -> str:
    (root / "torch" / "more").mkdir()
    return "torch/more"


def _rename(root: Path) -> str:
    (root / "model.onnx").rename(root / "Model.onnx")
    return "Model.onnx"


def _move_up(root: Path) -> str:
    (root / "torch" / "config.json").rename(root / "config.json")
    return "config.json"


def _link_to_the_same_content(root: Path) -> str:
    (root / "model.onnx").rename(root.parent / "elsewhere.onnx")
    (root / "model.onnx").symlink_to(root.parent / "elsewhere.onnx")
    return "model.onnx"


def _link_inside(root: Path) -> str:
    (root / "README.md").unlink()
    (root / "README.md").symlink_to("tokenizer.json")
    return "README.md"


def _link_to_nothing(root: Path) -> str:
    (root / "model.onnx").unlink()
    (root / "model.onnx").symlink_to("nothing")
    return "model.onnx"


def _link_manifest(root: Path) -> str:
    (root / "bundle.json").rename(root.parent / "elsewhere.json")
    (root / "bundle.json").symlink_to(root.parent / "elsewhere.json")
    return "bundle.json"


def _link_folder(root: Path) -> str:
    (root / "torch").rename(root.parent / "elsewhere")
    (root / "torch").symlink_to(root.parent / "elsewhere")
    return "torch"


def _link_hard(root: Path) -> str:
    os.link(root / "model.onnx", root.parent / "second-name")
    return "model.onnx"


def _link_manifest_hard(root: Path) -> str:
    os.link(root / "bundle.json", root.parent / "second-name")
    return "bundle.json"


def _pipe(root: Path) -> str:
    (root / "model.onnx").unlink()
    os.mkfifo(root / "model.onnx")
    return "model.onnx"


def _pipe_manifest(root: Path) -> str:
    (root / "bundle.json").unlink()
    os.mkfifo(root / "bundle.json")
    return "bundle.json"


def _extra_pipe(root: Path) -> str:
    os.mkfifo(root / "pipe")
    return "pipe"


def _socket(root: Path) -> str:
    (root / "model.onnx").unlink()
    # A path of a socket has at most 107 bytes; one through a descriptor is always short enough.
    folder = os.open(root, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{folder}/model.onnx")
    os.close(folder)
    return "model.onnx"


def _folder_for_a_file(root: Path) -> str:
    (root / "model.onnx").unlink()
    (root / "model.onnx").mkdir()
    return "model.onnx"


def _file_for_a_folder(root: Path) -> str:
    shutil.rmtree(root / "torch")
    (root / "torch").write_bytes(b"")
    return "torch/config.json"


def _truncate(root: Path) -> str:
    os.truncate(root / "model.onnx", (root / "model.onnx").stat().st_size - 1)
    return "model.onnx"


def _empty(root: Path) -> str:
    os.truncate(root / "torch" / "model.safetensors", 0)
    return "torch/model.safetensors"


def _append(root: Path) -> str:
    with (root / "tokenizer.json").open("ab") as stream:
        stream.write(b"\n")
    return "tokenizer.json"


def _append_to_the_manifest(root: Path) -> str:
    with (root / "bundle.json").open("ab") as stream:
        stream.write(b"\n")
    return "bundle.json"


def _swap(root: Path) -> str:
    (root / "README.md").rename(root / "other")
    (root / "torch" / "config.json").rename(root / "README.md")
    (root / "other").rename(root / "torch" / "config.json")
    return "README.md"


DAMAGES: list[Callable[[Path], str]] = [
    _remove,
    _remove_folder,
    _remove_manifest,
    _add,
    _add_hidden,
    _add_empty_folder,
    _rename,
    _move_up,
    _link_to_the_same_content,
    _link_inside,
    _link_to_nothing,
    _link_manifest,
    _link_folder,
    _link_hard,
    _link_manifest_hard,
    _pipe,
    _pipe_manifest,
    _extra_pipe,
    _socket,
    _folder_for_a_file,
    _file_for_a_folder,
    _truncate,
    _empty,
    _append,
    _append_to_the_manifest,
    _swap,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
def test_damage_is_refused(root: Path, parsed: list[str], damage: Callable[[Path], str]) -> None:
    _assert_refused(root, damage(root), parsed)


def test_two_files_of_one_size_that_were_swapped_are_refused(root: Path, parsed: list[str]) -> None:
    first, second = "model.onnx.data", "tokenizer.json"
    content = (root / second).read_bytes()
    _forge(root, {first: bytes(len(content))})
    bundle.load(root)
    (root / first).write_bytes(content)
    (root / second).write_bytes(bytes(len(content)))
    _assert_refused(root, first, parsed)


def _keep(document: dict[str, Any]) -> None:
    pass


def _forge(
    root: Path, files: Mapping[str, bytes] | None = None, change: Callable[[dict[str, Any]], Any] = _keep
) -> None:
    """Writes files and changes the manifest, and makes every hash right."""

    def describe(document: dict[str, Any]) -> None:
        for name, content in (files or {}).items():
            (root / name).write_bytes(content)
            document["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        change(document)

    rewrite_manifest(root / "bundle.json", describe)


def _named(name: str) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        document["files"][name] = document["files"]["tokenizer.json"]

    return change


def _versioned(version: object) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.update(format_version=version)


VERSIONS: list[object] = [0, FORMAT_VERSION + 1, -1, str(FORMAT_VERSION), float(FORMAT_VERSION), True, None, []]
FORGED_MANIFESTS: dict[str, Callable[[dict[str, Any]], None]] = {
    **{f"file {name}": _named(name) for name in ("../tokenizer.json", "torch/../x", "a/b/c", "..", ".", "", "torch/")},
    **{f"file {name}": _named(name) for name in ("/etc/hostname", "C:\\x", "a\\b", ".hidden", "torch/.hidden", "a\0b")},
    **{f"file {name!r}": _named(name) for name in ("bundle.json", "x\n", "tokenizer.json ", "\uff54okenizer.json")},
    **{f"version {version!r}": _versioned(version) for version in VERSIONS},
    "no version": lambda document: document.pop("format_version"),
    "graph outside": lambda document: document["variants"]["fp32"].update(file="../model.onnx"),
    "width of a head": lambda document: document["outputs"][1].update(dims=["batch", 4]),
    "size of the embedding": lambda document: document["embedding"].update(dimensions=31),
}


@pytest.mark.parametrize("forgery", FORGED_MANIFESTS)
def test_forged_manifest_is_refused(root: Path, parsed: list[str], forgery: str) -> None:
    (root.parent / "tokenizer.json").write_bytes((root / "tokenizer.json").read_bytes())
    _forge(root, change=FORGED_MANIFESTS[forgery])
    _assert_refused(root, "bundle.json", parsed)


def test_hidden_file_that_is_there_and_listed_is_refused(root: Path, parsed: list[str]) -> None:
    _forge(root, {".hidden": b"x"})
    _assert_refused(root, "bundle.json", parsed)


def _name_twice(text: bytes) -> bytes:
    return text.replace(b'"max_tokens": 48', b'"max_tokens": 48,\n  "max_tokens": 48')


SPELLINGS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "key twice": (_name_twice, "stands twice"),
    "NaN": (lambda text: text.replace(b'"max_tokens": 48', b'"max_tokens": NaN'), "NaN is not a JSON number"),
    "Infinity": (lambda text: text.replace(b'"max_tokens": 48', b'"max_tokens": Infinity'), "Infinity is not"),
    "too large for a float": (lambda text: text.replace(b'"max_tokens": 48', b'"max_tokens": 1e999'), "too large"),
    "17 MiB": (lambda text: text + b" " * (17 * 2**20), "is larger than 16777216 bytes"),
    "deep lists": (lambda _: b"[" * 2**20, "is not valid JSON"),
    "deep objects": (lambda _: b'{"a":' * 2**20, "is not valid JSON"),
    "deep inside a manifest": (
        lambda t: t.replace(b'"max_tokens": 48', b'"max_tokens": ' + b"[" * 99999),
        "valid JSON",
    ),
    "many digits": (lambda t: t.replace(b'"max_tokens": 48', b'"max_tokens": ' + b"9" * 99999), "is not valid JSON"),
    "Windows lines": (lambda text: text.replace(b"\n", b"\r\n"), "digest does not match"),
    "byte order mark": (lambda text: b"\xef\xbb\xbf" + text, "digest does not match"),
    "nothing": (lambda _: b"", "is not valid JSON"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_other_spelling_of_the_manifest_is_refused(root: Path, parsed: list[str], spelling: str) -> None:
    change, reason = SPELLINGS[spelling]
    before = (root / "bundle.json").read_bytes()
    (root / "bundle.json").write_bytes(change(before))
    assert change(before) != before
    with pytest.raises(FormatError, match=reason):
        bundle.load(root)
    _assert_refused(root, "bundle.json", parsed)


def test_forger_of_these_tests_can_write_a_bundle_that_passes(root: Path) -> None:
    _forge(root, {"README.md": b"# Forged\n"})
    _verify(root)
    _serve(root)


def _with_weights_in(root: Path, location: str) -> bytes:
    """The graph with its largest weights in a file elsewhere, which is written there and right."""
    proto = onnx.load(root / "model.onnx")
    tensor = max(proto.graph.initializer, key=lambda one: len(one.raw_data))
    target = root / location
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    content: bytes = proto.SerializeToString()
    return content


@pytest.mark.parametrize("place", ["relative", "absolute", "hidden in the path"])
def test_weights_outside_of_the_bundle_are_not_read(root: Path, place: str) -> None:
    location = {
        "relative": "../weights.bin",
        "absolute": str(root.parent / "weights.bin"),
        "hidden in the path": "torch/../../weights.bin",
    }[place]
    _forge(root, {"model.onnx": _with_weights_in(root, location)})
    with pytest.raises(ContentError, match=r"model\.onnx: (is no graph that can be used|keeps weights in)"):
        _verify(root)
    with pytest.raises(StartupError, match=r"onnxruntime cannot load model\.onnx"):
        _serve(root)


def test_weights_that_the_manifest_lists_may_lie_beside_the_graph(root: Path) -> None:
    content = _with_weights_in(root, "model.onnx.data")
    _forge(root, {"model.onnx": content, "model.onnx.data": (root / "model.onnx.data").read_bytes()})
    _verify(root)


@pytest.mark.parametrize("name", ["setup.py", "torch/adapter.safetensors", "weights.bin", "torch/model.onnx.data"])
def test_file_that_no_bundle_has_is_refused_though_it_is_listed(root: Path, parsed: list[str], name: str) -> None:
    _forge(root, {name: b"x"})
    with pytest.raises(BundleError, match=rf"'{re.escape(name)}' is not a file that a bundle has"):
        bundle.load(root)
    _assert_refused(root, "bundle.json", parsed)


FORGED_MODELS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "code of its own": ({"auto_map": {"AutoModel": "evil/repo--model.Evil"}}, {}, "auto_map"),
    "backbone with code of its own": ({}, {"auto_map": {"AutoModel": "evil/repo--model.Evil"}}, "auto_map"),
    "other family": ({}, {"model_type": "align_text_model"}, "'align_text_model' is not supported"),
    "kernel from the hub": ({}, {"attn_implementation": "evil/kernel"}, "attn_implementation"),
    "not a polyhead": ({"model_type": "bert"}, {}, "not of polyhead"),
}


@pytest.mark.parametrize("forgery", FORGED_MODELS)
def test_model_that_asks_for_somebodys_code_is_refused(root: Path, forgery: str) -> None:
    outer, inner, reason = FORGED_MODELS[forgery]
    config = json.loads((root / "torch/config.json").read_bytes())
    config |= outer
    config["backbone"] |= inner
    _forge(root, {"torch/config.json": json.dumps(config).encode()})
    with pytest.raises(ContentError, match=reason):
        _verify(root)
    with pytest.raises(StartupError, match=reason):
        _serve(root, "torch")


def test_text_that_is_no_unicode_is_refused(root: Path, parsed: list[str]) -> None:
    _forge(root, change=lambda document: document["variants"]["fp32"]["golden"][0].update(text="\ud800"))
    with pytest.raises(FormatError, match="is no Unicode text"):
        bundle.load(root)
    _assert_refused(root, "bundle.json", parsed)


def test_tokenizer_that_makes_the_library_panic_does_not_start_the_server(root: Path) -> None:
    content = json.loads((root / "tokenizer.json").read_bytes())
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    _forge(root, {"tokenizer.json": json.dumps(content).encode()})
    with pytest.raises(StartupError, match=r"tokenizer\.json: is not a valid tokenizer"):
        _serve(root)
    with pytest.raises(ContentError, match="is no tokenizer"):
        _verify(root)


def test_token_that_the_model_does_not_have_is_said(root: Path) -> None:
    content = json.loads((root / "tokenizer.json").read_bytes())
    content["model"]["vocab"] |= {word: number + 1000 for word, number in content["model"]["vocab"].items()}
    _forge(root, {"tokenizer.json": json.dumps(content).encode()})
    with pytest.raises(ContentError, match=r"model\.onnx: onnxruntime cannot run model\.onnx"):
        _verify(root)


LIES_ABOUT_VARIANTS: dict[str, tuple[dict[str, Any], str]] = {
    "operators": ({"operators": {"Add": 1}}, "has other operators than the manifest says"),
    "batch_invariant": ({"batch_invariant": False}, "batch_invariant: is not what fp32 is"),
}


@pytest.mark.parametrize("lie", LIES_ABOUT_VARIANTS)
def test_variant_that_is_described_wrongly_is_found(root: Path, lie: str) -> None:
    change, reason = LIES_ABOUT_VARIANTS[lie]
    _forge(root, change=lambda document: document["variants"]["fp32"].update(change))
    with pytest.raises(ContentError, match=reason):
        _verify(root)


def test_variant_that_may_not_be_chosen_is_said(root: Path) -> None:
    _forge(root, change=lambda document: document["variants"]["fp32"].update(batch_invariant=False))
    with pytest.raises(StartupError, match="select one with --variant"):
        _serve(root)


def test_index_that_leads_to_weights_outside_of_the_bundle_is_found(root: Path) -> None:
    weights = root / "torch" / "model.safetensors"
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(weights), "../../weights.safetensors")}
    weights.rename(root.parent / "weights.safetensors")
    _forge(
        root,
        {"torch/model.safetensors.index.json": json.dumps(index).encode()},
        lambda document: document["files"].pop("torch/model.safetensors"),
    )
    with pytest.raises((ContentError, BundleError)):
        _verify(root)


def test_tokenizer_that_is_none_does_not_start_the_server(root: Path) -> None:
    _forge(root, {"tokenizer.json": b"something else"})
    with pytest.raises(StartupError, match=r"tokenizer\.json"):
        _serve(root)


def test_embedding_of_another_size_does_not_start_the_server(root: Path) -> None:
    def shrink(document: dict[str, Any]) -> None:
        document["embedding"]["dimensions"] = 31
        document["outputs"][0]["dims"] = ["batch", 31]
        for golden in document["variants"]["fp32"].get("golden") or document["golden"]:
            golden["embedding"].pop()

    _forge(root, change=shrink)
    with pytest.raises(StartupError):
        _serve(root)


class _Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


PICKLES = [
    "torch/pytorch_model.bin",
    "torch/model.pt",
    "torch/training_args.bin",
    "model.pkl",
    "torch/adapter_model.bin",
]


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize("replaces", [False, True], ids=["beside the weights", "in place of the weights"])
def test_pickle_that_is_listed_is_never_unpickled(root: Path, tmp_path: Path, name: str, replaces: bool) -> None:
    bomb = pickle.dumps(_Bomb(tmp_path / "exploded"))
    _forge(root, {name: bomb})
    if replaces:
        (root / "torch/model.safetensors").unlink()
        _forge(root, change=lambda document: document["files"].pop("torch/model.safetensors"))
    for enter in (_verify, _serve, lambda path: _serve(path, "torch")):
        with pytest.raises((BundleError, StartupError), match=re.escape(name)):
            enter(root)
        assert not (tmp_path / "exploded").exists()
    pickle.loads(bomb)  # noqa: S301 - the bomb works
    assert (tmp_path / "exploded").exists()


def test_other_dims_than_the_graph_has_are_found(root: Path) -> None:
    _forge(root, change=lambda document: document["inputs"][0].update(dims=["batch", "tokens"]))
    with pytest.raises(ContentError, match=r"model\.onnx: has other inputs or outputs"):
        _verify(root)


def _swap_labels(document: dict[str, Any]) -> None:
    document["heads"][0]["labels"].reverse()


def test_labels_in_another_order_are_found(root: Path) -> None:
    _forge(root, change=_swap_labels)
    with pytest.raises(ContentError, match=r"bundle\.json: heads: is .* but torch/config\.json says"):
        _verify(root)


def test_labels_in_another_order_everywhere_are_found_by_the_fingerprint(root: Path) -> None:
    config = json.loads((root / "torch/config.json").read_bytes())
    _swap_labels(config)
    _forge(root, {"torch/config.json": json.dumps(config).encode()}, _swap_labels)
    with pytest.raises(ContentError, match=r"bundle\.json: variants\.fp32\.fingerprints"):
        _verify(root)


@pytest.mark.parametrize("switch", ["enable_padding", "enable_truncation"])
def test_tokenizer_that_pads_or_truncates_is_found_and_disarmed(root: Path, switch: str) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(root / "tokenizer.json"))
    getattr(tokenizer, switch)(**({"max_length": 4} if switch == "enable_truncation" else {"length": 40}))
    whole = _serve(root).tokenizer.encode(["where is my refund and why was it taken"])
    _forge(root, {"tokenizer.json": tokenizer.to_str().encode()})
    with pytest.raises(ContentError, match=r"tokenizer\.json: has padding or truncation switched on"):
        _verify(root)
    assert _serve(root).tokenizer.encode(["where is my refund and why was it taken"]) == whole

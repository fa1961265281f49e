"""A bundle with a damaged, missing, unexpected or linked file is rejected by name before any parser reads it."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import polyhead_bundle as bundle
import pytest

from tests.support.bundle_rejection import assert_rejected, forge, serve, verify_quietly

FLIPS = 40


def test_intact_bundle_calls_the_recorded_parsers(bundle_copy: Path, parser_calls: list[str]) -> None:
    verify_quietly(bundle_copy)
    assert set(parser_calls) >= {"onnx", "onnxruntime", "tokenizers", "transformers", "safetensors"}
    parser_calls.clear()
    serve(bundle_copy)
    assert set(parser_calls) == {"tokenizers", "onnxruntime"}
    parser_calls.clear()
    serve(bundle_copy, "torch")
    assert set(parser_calls) == {"tokenizers", "transformers", "safetensors"}


def test_flipped_bit_is_rejected_before_a_parser_reads_it(bundle_copy: Path, parser_calls: list[str]) -> None:
    """Bits of every file at random; test_store flips each of a small bundle."""
    rng = random.Random(0)
    names = sorted(path.relative_to(bundle_copy).as_posix() for path in bundle_copy.rglob("*") if path.is_file())
    sizes = [(bundle_copy / name).stat().st_size for name in names]
    rejected = 0
    for number in range(FLIPS):
        # Alternate between choosing every file and every byte with equal probability.
        name = rng.choices(names, sizes if number % 2 else None)[0]
        content = (bundle_copy / name).read_bytes()
        bit = rng.randrange(len(content) * 8)
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        (bundle_copy / name).write_bytes(damaged)
        assert_rejected(bundle_copy, name, parser_calls)
        rejected += 1
        (bundle_copy / name).write_bytes(content)
    assert rejected == FLIPS
    bundle.load(bundle_copy)


# Each function damages a bundle and returns the file that the error must name.


def _remove_file(bundle_copy: Path) -> str:
    (bundle_copy / "tokenizer.json").unlink()
    return "tokenizer.json"


def _remove_folder(bundle_copy: Path) -> str:
    shutil.rmtree(bundle_copy / "torch")
    return "torch/config.json"


def _remove_manifest(bundle_copy: Path) -> str:
    (bundle_copy / "bundle.json").unlink()
    return "bundle.json"


def _add_file(bundle_copy: Path) -> str:
    (bundle_copy / "torch" / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    return "torch/pytorch_model.bin"


def _add_hidden(bundle_copy: Path) -> str:
    (bundle_copy / ".DS_Store").write_bytes(b"")
    return ".DS_Store"


def _add_empty_folder(bundle_copy: Path) -> str:
    (bundle_copy / "torch" / "more").mkdir()
    return "torch/more"


def _change_case_of_name(bundle_copy: Path) -> str:
    (bundle_copy / "model.onnx").rename(bundle_copy / "Model.onnx")
    return "Model.onnx"


def _move_out_of_folder(bundle_copy: Path) -> str:
    (bundle_copy / "torch" / "config.json").rename(bundle_copy / "config.json")
    return "config.json"


def _symlink_to_same_content(bundle_copy: Path) -> str:
    (bundle_copy / "model.onnx").rename(bundle_copy.parent / "elsewhere.onnx")
    (bundle_copy / "model.onnx").symlink_to(bundle_copy.parent / "elsewhere.onnx")
    return "model.onnx"


def _symlink_inside_the_bundle(bundle_copy: Path) -> str:
    (bundle_copy / "README.md").unlink()
    (bundle_copy / "README.md").symlink_to("tokenizer.json")
    return "README.md"


def _dangling_symlink(bundle_copy: Path) -> str:
    (bundle_copy / "model.onnx").unlink()
    (bundle_copy / "model.onnx").symlink_to("nothing")
    return "model.onnx"


def _symlink_manifest(bundle_copy: Path) -> str:
    (bundle_copy / "bundle.json").rename(bundle_copy.parent / "elsewhere.json")
    (bundle_copy / "bundle.json").symlink_to(bundle_copy.parent / "elsewhere.json")
    return "bundle.json"


def _symlink_folder(bundle_copy: Path) -> str:
    (bundle_copy / "torch").rename(bundle_copy.parent / "elsewhere")
    (bundle_copy / "torch").symlink_to(bundle_copy.parent / "elsewhere")
    return "torch"


def _hard_link(bundle_copy: Path) -> str:
    os.link(bundle_copy / "model.onnx", bundle_copy.parent / "second-name")
    return "model.onnx"


def _hard_link_manifest(bundle_copy: Path) -> str:
    os.link(bundle_copy / "bundle.json", bundle_copy.parent / "second-name")
    return "bundle.json"


def _replace_file_by_pipe(bundle_copy: Path) -> str:
    (bundle_copy / "model.onnx").unlink()
    os.mkfifo(bundle_copy / "model.onnx")
    return "model.onnx"


def _replace_manifest_by_pipe(bundle_copy: Path) -> str:
    (bundle_copy / "bundle.json").unlink()
    os.mkfifo(bundle_copy / "bundle.json")
    return "bundle.json"


def _add_pipe(bundle_copy: Path) -> str:
    os.mkfifo(bundle_copy / "pipe")
    return "pipe"


def _replace_file_by_socket(bundle_copy: Path) -> str:
    (bundle_copy / "model.onnx").unlink()
    # The path of a socket is limited to 107 bytes; a path through a descriptor is always short enough.
    folder = os.open(bundle_copy, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{folder}/model.onnx")
    os.close(folder)
    return "model.onnx"


def _replace_file_by_folder(bundle_copy: Path) -> str:
    (bundle_copy / "model.onnx").unlink()
    (bundle_copy / "model.onnx").mkdir()
    return "model.onnx"


def _replace_folder_by_file(bundle_copy: Path) -> str:
    shutil.rmtree(bundle_copy / "torch")
    (bundle_copy / "torch").write_bytes(b"")
    return "torch/config.json"


def _truncate_by_one_byte(bundle_copy: Path) -> str:
    os.truncate(bundle_copy / "model.onnx", (bundle_copy / "model.onnx").stat().st_size - 1)
    return "model.onnx"


def _truncate_to_zero(bundle_copy: Path) -> str:
    os.truncate(bundle_copy / "torch" / "model.safetensors", 0)
    return "torch/model.safetensors"


def _append_to_file(bundle_copy: Path) -> str:
    with (bundle_copy / "tokenizer.json").open("ab") as stream:
        stream.write(b"\n")
    return "tokenizer.json"


def _append_to_manifest(bundle_copy: Path) -> str:
    with (bundle_copy / "bundle.json").open("ab") as stream:
        stream.write(b"\n")
    return "bundle.json"


def _swap_files(bundle_copy: Path) -> str:
    (bundle_copy / "README.md").rename(bundle_copy / "other")
    (bundle_copy / "torch" / "config.json").rename(bundle_copy / "README.md")
    (bundle_copy / "other").rename(bundle_copy / "torch" / "config.json")
    return "README.md"


DAMAGES: list[Callable[[Path], str]] = [
    _remove_file,
    _remove_folder,
    _remove_manifest,
    _add_file,
    _add_hidden,
    _add_empty_folder,
    _change_case_of_name,
    _move_out_of_folder,
    _symlink_to_same_content,
    _symlink_inside_the_bundle,
    _dangling_symlink,
    _symlink_manifest,
    _symlink_folder,
    _hard_link,
    _hard_link_manifest,
    _replace_file_by_pipe,
    _replace_manifest_by_pipe,
    _add_pipe,
    _replace_file_by_socket,
    _replace_file_by_folder,
    _replace_folder_by_file,
    _truncate_by_one_byte,
    _truncate_to_zero,
    _append_to_file,
    _append_to_manifest,
    _swap_files,
]


NOT_LISTED = "is not listed in bundle.json; a bundle holds no other files"
NOT_REGULAR = "is not a regular file; links and devices are not allowed in a bundle"
# What the error says of the file, one damage of each kind.
REASONS: dict[Callable[[Path], str], str] = {
    _remove_file: "is missing",
    _remove_manifest: "is missing: this directory is not a bundle",
    _add_file: NOT_LISTED,
    _add_empty_folder: NOT_LISTED,
    _change_case_of_name: NOT_LISTED,
    _truncate_to_zero: "has 0 bytes; bundle.json lists ",
    _symlink_to_same_content: NOT_REGULAR,
    _symlink_folder: "is a link; links are not allowed in a bundle",
    _hard_link: "has a second hard link; copy the bundle instead of linking its files",
    _replace_file_by_pipe: NOT_REGULAR,
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
def test_damaged_bundle_is_rejected(bundle_copy: Path, parser_calls: list[str], damage: Callable[[Path], str]) -> None:
    error = assert_rejected(bundle_copy, file := damage(bundle_copy), parser_calls)
    assert error.path == bundle_copy / file
    assert error.reason.startswith(REASONS.get(damage, ""))


def test_swapped_files_of_equal_size_are_rejected(bundle_copy: Path, parser_calls: list[str]) -> None:
    first, second = "model.onnx.data", "tokenizer.json"
    content = (bundle_copy / second).read_bytes()
    forge(bundle_copy, {first: bytes(len(content))})
    bundle.load(bundle_copy)
    (bundle_copy / first).write_bytes(content)
    (bundle_copy / second).write_bytes(bytes(len(content)))
    error = assert_rejected(bundle_copy, first, parser_calls)
    assert error.reason == "was changed: its SHA-256 is not the one in bundle.json"

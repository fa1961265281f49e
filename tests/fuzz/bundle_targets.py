"""Readers of the files of a bundle: the manifest and the tokenizer."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

from tests.compat.recordings import VERSIONS, write_bundle

from .target import Check, Target, event_loop, folder


def _manifests(stack: ExitStack) -> Check:
    """Reads ``bundle.json``. The digest of a JSON object is corrected, or nothing behind it would be tested."""
    import hashlib

    from polyhead_bundle import FormatError, codec

    path = folder(stack) / "bundle.json"

    def canonical(value: object) -> bytes:
        return (json.dumps(value, sort_keys=True, indent=2) + "\n").encode()

    def check(data: bytes) -> None:
        try:
            document = json.loads(data)
            document.pop("digest", None)
            data = canonical({**document, "digest": hashlib.sha256(canonical(document)).hexdigest()})
        except (ValueError, AttributeError, TypeError, RecursionError):
            pass
        path.write_bytes(data)
        try:
            manifest, digest, _ = codec.parse(path)
        except FormatError:
            return
        assert len(digest) == 64
        codec.render(manifest)

    return check


def _golden_manifests() -> list[bytes]:
    found = []
    for version in VERSIONS:
        with tempfile.TemporaryDirectory() as folder:
            document = json.loads((write_bundle(version, Path(folder)) / "bundle.json").read_bytes())
        for variant in document["variants"].values():
            del variant["golden"][1:]
        found.append(json.dumps(document).encode())
    return found


def _tokenizers(stack: ExitStack) -> Check:
    """Opens ``tokenizer.json`` as a server does, and encodes texts: the same ids on every path, or one error.

    The library may refuse a file, or panic; what it raises is an ``Exception`` of no more special class. Such a file is
    refused with the word cache and without.
    """
    from polyhead_server.inference import tokenization
    from polyhead_server.inference.tokenization import Placement, Tokenizer
    from polyhead_server.inference.types import Flow, TokenizedText

    path, loop = folder(stack) / "tokenizer.json", event_loop(stack)
    texts = ["Where is my refund?", "", "🙂 a" * 50, "query: " + "café, [SEP] 中文 " * 40, "a-b " * 300]
    max_tokens, max_windows, prefix = 24, 3, 7
    # A text is divided into parts on one of the paths.
    for name in ("_STEP_CHARACTERS", "_EXPENSIVE_STEP_CHARACTERS"):
        stack.enter_context(mock.patch.object(tokenization, name, 64))

    async def encoded(tokenizer: Tokenizer) -> list[list[TokenizedText]]:
        await tokenizer.describe(texts[3], Flow(), special=True)
        await tokenizer.decode(range(30), Flow(), skip_special=True)
        # Twice: the second time, the words are known.
        found = [tokenizer.encode(texts, max_windows, prefix) for _ in range(2)]
        made = [await tokenizer.encode_async(texts, place, Flow(), max_windows, prefix) for place in Placement]
        return [*found, *(one.texts for one in made)]

    def check(data: bytes) -> None:
        path.write_bytes(data)
        opened: list[Tokenizer] = []
        try:
            opened.extend(Tokenizer(path, max_tokens, 1000, word_cache=cached) for cached in (True, False))
            answers = [answer for one in opened for answer in loop.run_until_complete(encoded(one))]
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            if type(error) not in (Exception, ValueError) and type(error).__name__ != "PanicException":
                raise
            assert len(opened) != 1
            return
        finally:
            for one in opened:
                one.close()
        assert len(answers[0]) == len(texts)
        assert all(answer == answers[0] for answer in answers)

    return check


def _tokenizer_files() -> list[bytes]:
    """Returns the golden tokenizer, which is BERT's, and small ones of other kinds."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    with tempfile.TemporaryDirectory() as folder:
        golden = (write_bundle(VERSIONS[-1], Path(folder)) / "tokenizer.json").read_bytes()
    pieces = ["<s>", "</s>", "<unk>", "▁", "▁a", "b", "e", "r", "f", "-", ",", "▁re"]
    unigram = Tokenizer(models.Unigram([(piece, -1.0 - number) for number, piece in enumerate(pieces)], unk_id=2))
    unigram.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", *alphabet, "re", "Ġa"])}
    bpe = Tokenizer(models.BPE(vocabulary, [("r", "e"), ("Ġ", "a")]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    for one in (unigram, bpe):
        one.add_special_tokens(["<s>", "</s>"])
        one.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    return [golden, unigram.to_str().encode(), bpe.to_str().encode()]


BUNDLE_TARGETS = {
    "manifests": Target(_manifests, _golden_manifests, json_at=0),
    "tokenizers": Target(_tokenizers, _tokenizer_files, json_at=0),
}

"""Inputs of ``bench.server.scaling``: texts of an exact number of tokens, and bundles with a given number of heads."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import polyhead_bundle as bundle
import torch
from polyhead_export.export import export
from polyhead_export.settings import Settings, VariantName
from polyhead_training.backbone import open_backbone
from polyhead_training.config import Config, DataConfig
from polyhead_training.model import PolyheadModel
from polyhead_training.model_config import HeadConfig, ModelConfig
from polyhead_training.runs.run_directory import staged_run, write_run

from .upper_bound import open_tokenizer

# Softmax and sigmoid heads alternate; the labels are those of the demo.
_LABELS = {"softmax": ("account", "app", "billing", "delivery", "product", "support"), "sigmoid": ("no", "yes")}
# Untrained weights put most texts near a threshold, so that int8 changes many labels; this does not affect speed.
_NO_LABEL_LIMIT = {"label_disagreement": 1.0}


class ExactLengthTexts:
    """Makes texts of an exact number of tokens, special tokens included, from the words of other texts."""

    def __init__(self, source: bundle.Bundle, texts: Sequence[str]) -> None:
        self.max_tokens = source.manifest.max_tokens
        self._tokenizer = open_tokenizer(source)
        words = sorted({word for text in texts for word in text.split()})
        self._special = self._count([""])[0]
        self._words = {word: count - self._special for word, count in zip(words, self._count(words), strict=True)}
        self._random = random.Random(0)

    def make(self, lengths: Sequence[int]) -> list[str]:
        """Returns one text for each length."""
        found: dict[int, str] = {}
        # Joined words may become other tokens than the words alone; such a text is drawn again.
        while missing := [index for index in range(len(lengths)) if index not in found]:
            drawn = [" ".join(self._draw(lengths[index])) for index in missing]
            counts = self._count(drawn)
            found |= {
                index: text
                for index, text, count in zip(missing, drawn, counts, strict=True)
                if count == lengths[index]
            }
        return [found[index] for index in range(len(lengths))]

    def _draw(self, length: int) -> Iterator[str]:
        left = length - self._special
        while left:
            word = self._random.choice(list(self._words))
            if 0 < self._words[word] <= left:
                left -= self._words[word]
                yield word

    def _count(self, texts: Sequence[str]) -> list[int]:
        return [tokens.seen for tokens in self._tokenizer.encode(list(texts))]


def bundle_with_heads(work: Path, count: int, variant: VariantName) -> Path:
    """Returns a bundle with untrained heads on the default backbone, exporting it unless ``work`` has it already."""
    path = work / f"heads-{count}"
    if (path / "bundle.json").exists() and variant in bundle.load(path).manifest.variants:
        return path
    run = work / f"heads-{count}-run"
    with staged_run(run) as folder:
        _write_run(folder, path.name, count)
    settings = Settings(variants=(variant,), limits={variant: _NO_LABEL_LIMIT})
    if variant not in export(run, path, lambda _: None, settings).manifest.variants:
        raise SystemExit(f"{variant} of the model with {count} heads did not pass the export gate")
    return path


def _write_run(folder: Path, name: str, count: int) -> None:
    kinds = [("softmax", "sigmoid")[number % 2] for number in range(count)]
    heads = [
        HeadConfig.model_validate({"name": f"{kind}{number}", "kind": kind, "labels": _LABELS[kind]})
        for number, kind in enumerate(kinds)
    ]
    settings = ModelConfig(heads=tuple(heads))
    # The configuration requires a file; none is read.
    config = Config(name=name, model=settings, data=DataConfig(train=("none.jsonl",)))
    backbone = open_backbone(settings.backbone, settings.revision, Path())
    torch.manual_seed(0)
    model = PolyheadModel.from_backbone(
        backbone.folder,
        pooling=settings.pooling,
        embedding_pooling=settings.embedding_pooling,
        heads=[head.layer_settings() for head in heads],
        max_tokens=settings.max_tokens,
        pad_token_id=backbone.pad_token_id,
    )
    write_run(folder, config, heads, model.eval(), backbone.tokenizer)

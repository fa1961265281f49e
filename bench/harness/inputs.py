"""What ``bench/server/scaling.py`` varies: texts of exactly so many tokens, and bundles with so many heads."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import polyhead_bundle as bundle
import torch
from polyhead_export.export import export
from polyhead_export.settings import Settings, VariantName
from polyhead_server.inference.tokenization import Tokenizer
from polyhead_training.backbone import open_backbone
from polyhead_training.config import Config, DataConfig, HeadConfig, ModelConfig
from polyhead_training.model import PolyheadModel
from polyhead_training.runs.run_directory import staged_run, write_run

# A softmax head and a sigmoid head in turns, as in the demo.
_LABELS = {"softmax": ("account", "app", "billing", "delivery", "product", "support"), "sigmoid": ("no", "yes")}
# Weights that nobody trained put most texts near a threshold, so that 8 bits turn many labels; times do not mind.
_ANY_LABEL = {"label_disagreement": 1.0}


class Lengths:
    """Makes texts of exactly so many tokens, special ones included, out of the words of other texts."""

    def __init__(self, source: bundle.Bundle, texts: Sequence[str]) -> None:
        self.longest = source.manifest.max_tokens
        self._tokenizer = Tokenizer(source.file("tokenizer.json"), self.longest, 250 * self.longest)
        words = sorted({word for text in texts for word in text.split()})
        self._special = self._count([""])[0]
        self._words = {word: count - self._special for word, count in zip(words, self._count(words), strict=True)}
        self._chooser = random.Random(0)

    def texts(self, lengths: Sequence[int]) -> list[str]:
        """A text for each length."""
        found: dict[int, str] = {}
        # Joined words may become other tokens than each alone; such a text is made anew.
        while missing := [place for place in range(len(lengths)) if place not in found]:
            made = [" ".join(self._draw(lengths[place])) for place in missing]
            counts = self._count(made)
            found |= {
                place: text for place, text, count in zip(missing, made, counts, strict=True) if count == lengths[place]
            }
        return [found[place] for place in range(len(lengths))]

    def _draw(self, length: int) -> Iterator[str]:
        left = length - self._special
        while left:
            word = self._chooser.choice(list(self._words))
            if 0 < self._words[word] <= left:
                left -= self._words[word]
                yield word

    def _count(self, texts: Sequence[str]) -> list[int]:
        return [tokens.seen for tokens in self._tokenizer.encode(list(texts))]


def bundle_with_heads(work: Path, count: int, variant: VariantName) -> Path:
    """A bundle with so many heads that nobody trained, on the default backbone; made unless it is there already."""
    path = work / f"heads-{count}"
    if (path / "bundle.json").exists() and variant in bundle.load(path).manifest.variants:
        return path
    run = work / f"heads-{count}-run"
    with staged_run(run) as folder:
        _write_run(folder, path.name, count)
    settings = Settings(variants=(variant,), limits={variant: _ANY_LABEL})
    if variant not in export(run, path, lambda _: None, settings).manifest.variants:
        raise SystemExit(f"{variant} of the model with {count} heads did not pass its gate")
    return path


def _write_run(folder: Path, name: str, count: int) -> None:
    kinds = [("softmax", "sigmoid")[number % 2] for number in range(count)]
    heads = [
        HeadConfig.model_validate({"name": f"{kind}{number}", "kind": kind, "labels": _LABELS[kind]})
        for number, kind in enumerate(kinds)
    ]
    settings = ModelConfig(heads=tuple(heads))
    # No row is read.
    config = Config(name=name, model=settings, data=DataConfig(train=("none.jsonl",)))
    backbone = open_backbone(settings.backbone, settings.revision, Path())
    torch.manual_seed(0)
    model = PolyheadModel.from_backbone(
        backbone.folder,
        pooling=settings.pooling,
        embedding_pooling=settings.embedding_pooling,
        heads=[head.model_dump(include={"name", "kind", "labels", "hidden_size", "dropout"}) for head in heads],
        max_tokens=settings.max_tokens,
        pad_token_id=backbone.pad_token_id,
    )
    write_run(folder, config, heads, model.eval(), backbone.tokenizer)

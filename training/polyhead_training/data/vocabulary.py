"""Checks that the backbone's tokenizer knows the words of the rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tokenizers import Tokenizer

from polyhead_training.backbone import Backbone
from polyhead_training.errors import BackboneError
from polyhead_training.tokenization import textless_ids, unread_texts

from .dataset import Row

# Share of the training texts without a known token above which training is pointless.
MAX_UNREAD = 0.9
# Shares above which the data quality report warns: texts without a known token, and unknown tokens.
_WARN_UNREAD = 0.02
_WARN_UNKNOWN = 0.1


def require_known_words(backbone: Backbone, rows: Sequence[Row], ids: Sequence[Sequence[int]]) -> None:
    """Rejects a backbone that reads almost none of the training texts.

    Args:
        backbone: The backbone.
        rows: The training rows.
        ids: Their token ids.

    Raises:
        BackboneError: More than 90 % of the texts consist of special and unknown tokens.
    """
    unread = unread_texts(backbone.tokenizer, [row.text for row in rows], ids)
    if len(unread) > MAX_UNREAD * len(rows):
        reason = (
            f"its tokenizer reads {len(unread):,} of {len(rows):,} training texts as special and unknown tokens alone"
        )
        hint = "choose a backbone whose vocabulary has the language of the texts"
        raise BackboneError(backbone.reference, f"{reason}, for example {rows[unread[0]].excerpt}; {hint}")


def vocabulary_warnings(
    backbone: Backbone, splits: Mapping[str, tuple[Sequence[Row], Sequence[Sequence[int]]]]
) -> Iterator[str]:
    """Yields a warning for each split with many unknown tokens.

    Args:
        backbone: The backbone.
        splits: Rows and their token ids by split.
    """
    tokenizer = backbone.tokenizer
    for split, (rows, ids) in splits.items():
        if not rows:
            continue
        unread = unread_texts(tokenizer, [row.text for row in rows], ids)
        if len(unread) > _WARN_UNREAD * len(rows):
            counts = f"{len(unread):,} of {len(rows):,}"
            yield f"{split}: texts of unknown tokens alone: {counts}, for example {rows[unread[0]].excerpt}"
        share = unknown_share(tokenizer, ids)
        if share > _WARN_UNKNOWN:
            yield f"{split}: {share:.0%} of the tokens are unknown to the backbone; consider another model.backbone"


def unknown_share(tokenizer: Tokenizer, ids: Sequence[Sequence[int]]) -> float:
    """Returns the share of the tokens of some texts that the tokenizer does not know, special tokens not counted."""
    unknown_token = getattr(tokenizer.model, "unk_token", None) or "<unk>"
    unknown, textless = tokenizer.token_to_id(unknown_token), textless_ids(tokenizer)
    read = sum(1 for found in ids for number in found if number not in textless)
    missed = sum(1 for found in ids for number in found if number == unknown)
    return missed / (read + missed) if missed else 0.0

"""Golden texts: every bundle holds them with their expected outputs, so that each reader can test the loaded model.

All of them were written for this purpose. None is taken from user data, which may be private.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

GOLDEN_TEXTS = (
    "",
    "Thanks",
    "where is my refund??",
    "The parcel came two days early and nothing was broken.",
    "Lovely fabric and a perfect fit, but the zip jammed on the first evening, so back it goes.",
    (
        "I have been a customer for six years and have hardly ever had a reason to write. Last week the app logged me "
        "out in the middle of a payment, the amount was taken twice, and the code that should have let me back in "
        "never came. The man on the phone was patient, found the second charge at once and had it sent back before we "
        "hung up. I would still like to know why it could happen at all."
    ),
    "Crème brûlée à l'arrivée, naïve façade, Łódź, smørrebrød 🙂👍🏽 👩‍👩‍👧",
    "配送很快,包装也很好。 Доставка пришла вовремя. التوصيل سريع جدا",
    "[SEP] [CLS] [PAD] [MASK] </s> <s> <pad> <mask> ##ing",
    "Order no. 4711-0815: 3 x 19.99 = 59.97; paid 60.00 (!), 100% sure... #1 @ 24/7 ~ ^_^ \\ | {} <> \"'`",
    "first line\n\n\tindented second line\r\nthird   line \u00a0with odd\u200bspaces ",
)

_PROMPTED_TEXT = "How long does it take until a refund is on my account?"
_MAX_PROMPTED = 4
_LONG_SENTENCE = "The courier rang twice, nobody was at home, and so the box went back to the depot once more. "


def golden_texts(max_tokens: int, prompts: Mapping[str, str] = {}) -> tuple[str, ...]:
    """Returns the golden texts for a model; the last text exceeds the model's token limit.

    Args:
        max_tokens: The model's token limit, special tokens included.
        prompts: The model's prompts by name. The first of them are put before a text, as the server does.

    Returns:
        A dozen texts.
    """
    # No tokenizer of a supported family produces fewer tokens than one per word.
    words = len(_LONG_SENTENCE.split())
    prompted = (prefix + _PROMPTED_TEXT for prefix in islice(prompts.values(), _MAX_PROMPTED))
    return (*GOLDEN_TEXTS, *prompted, (_LONG_SENTENCE * (max_tokens // words + 1)).strip())

"""Options that decide the columns of the answers; the same for a bundle, a server and every framework."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from .errors import UsageError

Task = Literal["embedding", "classification", "sentiment", "labels", "score"]
Truncation = Literal["truncate", "error", "window"]
Encoding = Literal["float32", "float16", "int8", "binary"]
ListType = Literal["fixed", "list"]

TASKS: tuple[str, ...] = get_args(Task)
# Windows of a long text, as the server's default.
MAX_WINDOWS = 32


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """What to compute for each text, and how to store it.

    Attributes:
        tasks: Tasks to compute; empty for all that the model has.
        truncation: For texts over the token limit: read only the beginning, give the row an error, or read overlapping
            windows and pool their outputs.
        prompt: Name of a prompt of the model, whose text is put before every text; None for none.
        embedding_encoding: Type of the embedding's numbers. ``int8`` adds the column ``embedding_scale``; ``binary``
            packs the signs of eight numbers into a byte.
        dimensions: Leading numbers of each embedding to keep, scaled to length 1 again where the model's embeddings
            have length 1; None for all.
        list_type: Arrow type of lists: ``fixed`` for lists of one fixed size, ``list`` for readers that do not support
            these.
        max_windows: Maximum number of windows of a text.
        novelty: Whether to add the column ``novelty``: how new each text is to the model, 0 to 1.
        prediction_sets: Whether to add the column ``HEAD_prediction_set`` of each head that has such sets.
    """

    tasks: tuple[str, ...] = ()
    truncation: Truncation = "truncate"
    prompt: str | None = None
    embedding_encoding: Encoding = "float32"
    dimensions: int | None = None
    list_type: ListType = "fixed"
    max_windows: int = MAX_WINDOWS
    novelty: bool = False
    prediction_sets: bool = False

    def __post_init__(self) -> None:
        """Rejects values that do not exist.

        Raises:
            UsageError: Names the option and its choices.
        """
        for name, value, choices in (
            ("truncation", self.truncation, get_args(Truncation)),
            ("embedding_encoding", self.embedding_encoding, get_args(Encoding)),
            ("list_type", self.list_type, get_args(ListType)),
            *(("tasks", task, TASKS) for task in self.tasks),
        ):
            if value not in choices:
                raise UsageError(f"{name}: {value!r} is not one of {', '.join(choices)}")
        for name, number in (("dimensions", self.dimensions), ("max_windows", self.max_windows)):
            if number is not None and number < 1:
                raise UsageError(f"{name}: {number} is less than 1")

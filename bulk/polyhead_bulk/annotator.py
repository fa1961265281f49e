"""``Annotator``: a model that adds its answers to batches of rows, for any framework that works on Arrow or NumPy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from polyhead_server.errors import StartupError
from polyhead_server.inference.model import Model, load_model
from polyhead_server.settings import Settings

from . import local
from .answers import Answers
from .errors import EngineError, RowError, UsageError
from .layout import Layout
from .options import MAX_WINDOWS, AnswerOptions, Encoding, ListType, Task, Truncation
from .texts import Texts, from_arrow, from_values

BatchT = TypeVar("BatchT", pa.Table, pa.RecordBatch, Mapping[str, NDArray[Any]])
# Rows that are handed to the engine at once.
_PART_ROWS = 1024


class Annotator:
    """Adds the answers of a model as columns to batches of rows.

    ``Annotator(...)(batch)`` takes and returns a ``pyarrow.Table``, a ``pyarrow.RecordBatch`` or a dict of NumPy
    arrays, so that it is a function for ``map_batches`` of Ray Data; ``annotate`` takes an iterator of Arrow batches,
    as ``mapInArrow`` of Spark passes it. The model is loaded, verified and tested by the constructor, as by a server.
    A copy that was pickled loads it again, from the same path.

    Any thread may use an annotator. The model's threads exist only while a call runs.

    Attributes:
        layout: Names and types of the columns that are added.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        text_column: str = "text",
        tasks: Sequence[Task] = (),
        truncation: Truncation = "truncate",
        prompt: str | None = None,
        embedding_encoding: Encoding = "float32",
        dimensions: int | None = None,
        list_type: ListType = "fixed",
        on_error: Literal["null", "fail"] = "null",
        max_windows: int = MAX_WINDOWS,
        novelty: bool = False,
        prediction_sets: bool = False,
        engine: Literal["auto", "onnx", "torch"] = "auto",
        device: Literal["auto", "cpu", "cuda"] = "auto",
        variant: str = "auto",
        threads: int = 0,
        public_key: str | Path = "",
        expected_digest: str = "",
    ) -> None:
        """Loads the model.

        Args:
            bundle: The bundle's directory.
            text_column: Column of the texts.
            tasks: See ``AnswerOptions``; the same for the next six.
            truncation: See ``AnswerOptions``.
            prompt: See ``AnswerOptions``.
            embedding_encoding: See ``AnswerOptions``.
            dimensions: See ``AnswerOptions``.
            list_type: See ``AnswerOptions``.
            on_error: ``null`` leaves the answers of a text that has none null and states the reason in the column
                ``error``; ``fail`` raises ``RowError``.
            max_windows: See ``AnswerOptions``.
            novelty: See ``AnswerOptions``.
            prediction_sets: See ``AnswerOptions``.
            engine: Inference engine; as ``polyhead-serve --engine``.
            device: Device; as ``polyhead-serve --device``.
            variant: Variant of the bundle; as ``polyhead-serve --variant``.
            threads: Compute threads; 0 for one per core, or two on a GPU.
            public_key: PEM file with the public key of the bundle's signer; empty accepts unsigned bundles.
            expected_digest: Digest that the bundle must have; empty for any.

        Raises:
            EngineError: The bundle is damaged or another one, or no engine passes its self-test.
            UsageError: An option does not exist, or the model does not fit it.
        """
        self._options = AnswerOptions(
            tasks=tuple(tasks),
            truncation=truncation,
            prompt=prompt,
            embedding_encoding=embedding_encoding,
            dimensions=dimensions,
            list_type=list_type,
            max_windows=max_windows,
            novelty=novelty,
            prediction_sets=prediction_sets,
        )
        if on_error not in ("null", "fail"):
            raise UsageError(f"on_error: {on_error!r} is not one of null, fail")
        self._text_column = text_column
        self._on_error = on_error
        self._threads = threads
        self._expected_digest = expected_digest
        self._settings: dict[str, Any] = {
            "bundle": Path(bundle),
            "engine": engine,
            "device": device,
            "variant": variant,
            "public_key": str(public_key),
        }
        self._load()

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a pickled copy needs: the arguments, and the digest of the model that it must find."""
        state = {key: value for key, value in self.__dict__.items() if key not in ("_model", "layout")}
        return {**state, "_expected_digest": self._model.source.digest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Loads the model of a pickled annotator."""
        self.__dict__.update(state)
        self._load()

    @property
    def model(self) -> Model:
        """The loaded model."""
        return self._model

    @property
    def fields(self) -> list[pa.Field]:
        """Arrow fields of the columns that are added, in order."""
        return self.layout.fields

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        """Returns the schema of annotated batches.

        Args:
            schema: Schema of the batches.

        Raises:
            UsageError: A column of the batches has the name of a column that is added, or the text column is missing.
        """
        self._check_names(schema.names)
        return pa.schema([*schema, *self.fields])

    def __call__(self, batch: BatchT) -> BatchT:
        """Returns the batch with the answers as further columns.

        Args:
            batch: Rows with the text column. A dict of NumPy arrays gets its embeddings as one array (N, dimensions),
                NaN or 0 for texts without an answer, and lists of labels as arrays of strings, None for such texts.

        Raises:
            UsageError: The text column is missing or holds no strings, or a name is taken.
            RowError: A text has no answer, with ``on_error="fail"``.
        """
        if isinstance(batch, Mapping):
            return cast(BatchT, self._annotate_arrays(batch))
        rows: Any = batch
        self._check_names(rows.schema.names)
        return cast(BatchT, self._extended(rows, self.answer_columns(rows.column(self._text_column))))

    def annotate(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yields each batch with the answers as further columns, in order.

        Batches are read ahead and computed together: faster than one call per batch where batches are small.

        Raises:
            UsageError: See ``__call__``.
            RowError: See ``__call__``.
        """

        def texts() -> Iterator[Texts]:
            for batch in batches:
                self._check_names(batch.schema.names)
                yield from_arrow(batch.column(self._text_column), self._text_column, payload=batch)

        for part, answers in self.stream(texts()):
            yield self._extended(part.payload, answers.columns())

    def answer_columns(self, texts: pa.Array | pa.ChunkedArray | Sequence[object]) -> dict[str, Any]:
        """Returns the answers of some texts as Arrow columns by name.

        Args:
            texts: An Arrow column of strings, or any sequence of strings.

        Raises:
            UsageError: The Arrow column holds no strings.
            RowError: A text has no answer, with ``on_error="fail"``.
        """
        parts = [answers.columns() for _, answers in self.stream(self._parts(texts))]
        return {
            field.name: pa.chunked_array([part[field.name] for part in parts], field.type).combine_chunks()
            for field in self.fields
        }

    def stream(self, texts: Iterable[Texts]) -> Iterator[tuple[Texts, Answers]]:
        """Yields each group of texts with its answers, in order; the way below Arrow and NumPy.

        Raises:
            RowError: A text has no answer, with ``on_error="fail"``.
        """
        row = 0
        for part, answers in local.answer(self._model, self.layout, self._compute_threads(), texts):
            if answers.errors and self._on_error == "fail":
                first = min(answers.errors)
                raise RowError(f"row {row + first}", row + first, answers.errors[first])
            row += len(part)
            yield part, answers

    def close(self) -> None:
        """Frees the model."""
        self._model.close()

    def _load(self) -> None:
        try:
            # One thread: blocks of texts keep every core busy with a batch of its own.
            model = load_model(Settings(threads=1, **self._settings))
        except StartupError as error:
            raise EngineError(str(error)) from error
        if self._expected_digest not in ("", model.source.digest):
            model.close()
            raise EngineError(
                f"{self._settings['bundle']} is another bundle: its digest is {model.source.digest}, expected "
                f"{self._expected_digest}"
            )
        self._model = model
        self.layout = Layout(local.facts(model), self._options)

    def _compute_threads(self) -> int:
        settings = Settings(threads=self._threads, **self._settings)
        return settings.compute_threads(self._model.engine.runtime.device)

    def _extended(self, batch: Any, columns: Mapping[str, pa.Array]) -> Any:
        """Returns a table or record batch with further columns."""
        schema = pa.schema([*batch.schema, *self.fields], batch.schema.metadata)
        return type(batch).from_arrays([*batch.columns, *columns.values()], schema=schema)

    def _check_names(self, names: Sequence[str]) -> None:
        found = names.count(self._text_column)
        if found != 1:
            problem = "more than one column" if found else "no column"
            raise UsageError(f"{problem} {self._text_column!r}; the columns are: {', '.join(names)}")
        if taken := [name for name in self.layout.names if name in names]:
            raise UsageError(f"the batch has a column {taken[0]!r}, which is added: rename or drop it")

    def _parts(self, texts: pa.Array | pa.ChunkedArray | Sequence[object]) -> Iterator[Texts]:
        for begin in range(0, len(texts), _PART_ROWS):
            part = texts[begin : begin + _PART_ROWS]
            arrow = isinstance(part, pa.Array | pa.ChunkedArray)
            yield from_arrow(part, self._text_column) if arrow else from_values(part)

    def _annotate_arrays(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self._check_names(list(batch))
        texts = cast(Sequence[object], batch[self._text_column])
        columns = self.answer_columns(texts)
        return {**batch, **{name: _to_numpy(column) for name, column in columns.items()}}


def _to_numpy(column: pa.Array) -> NDArray[Any]:
    """Converts a column into an array: lists of numbers into the rows of a matrix, lists of labels into objects."""
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)
    # Texts have different numbers of labels.
    if not is_list or pa.types.is_string(kind.value_type):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    width = kind.list_size if pa.types.is_fixed_size_list(kind) else None
    flat = column.flatten().to_numpy(zero_copy_only=False)
    valid = np.asarray(column.is_valid())
    width = width or (len(flat) // max(int(valid.sum()), 1))
    matrix = np.full((len(column), width), np.nan if flat.dtype.kind == "f" else 0, flat.dtype)
    matrix[valid] = flat.reshape(-1, width)
    return matrix

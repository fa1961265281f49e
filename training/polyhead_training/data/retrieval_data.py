"""Retrieval tasks: documents, queries and relevance judgements, in the files of BEIR's layout.

::

    corpus (id, title, text)     --RowReader--> documents --+
    queries (id, text[, split])  --RowReader--> queries ----+--> RetrievalTask
    qrels (query, doc, score)    --RowReader--> relevance --+
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from polyhead_rows import RawRow

from polyhead_training.config import Config
from polyhead_training.embedding_config import RetrievalConfig, task_names
from polyhead_training.suggestions import shown

from .labels import label_name
from .readers import Source
from .row_reader import RowReader, read_number, read_text


@dataclass(frozen=True)
class RetrievalTask:
    """A retrieval task.

    Attributes:
        name: Its name in the evaluation.
        documents: Texts of the documents, each after its title.
        queries: Texts of the queries with a relevant document.
        relevance: For each query, the score, above 0, of each relevant document, by its number.
        unjudged: Number of queries without a relevant document, which are not evaluated.
        prompts: Names of the prompts of the queries and of the documents; empty strings for none.
    """

    name: str
    documents: tuple[str, ...]
    queries: tuple[str, ...]
    relevance: tuple[Mapping[int, float], ...]
    unjudged: int
    prompts: tuple[str, ...]


class _Text(NamedTuple):
    id: str
    text: str
    raw: RawRow


def read_retrieval(config: Config, sources: Mapping[str, Sequence[Source]], reader: RowReader) -> list[RetrievalTask]:
    """Reads the tasks of ``data.retrieval``.

    Args:
        config: The configuration.
        sources: Its files, by field.
        reader: Reads the files, and collects the problems of their rows.

    Raises:
        ConfigError: No query of a task has the configured split, or none has a relevant document.
    """
    tasks = []
    for index, (name, task) in enumerate(zip(task_names(config.data.retrieval), config.data.retrieval, strict=True)):
        section = f"retrieval.{index}"
        files = {field: sources[f"{section}.{field}"] for field in ("corpus", "queries", "qrels")}
        before = reader.found
        found = _read_task(name, task, files, reader)
        if not found.queries and reader.found == before:
            where = f" with split {task.split!r}" if task.split is not None else ""
            raise config.error(f"data.{section}.queries", f"no query{where} has a relevant document in qrels")
        tasks.append(found)
    return tasks


def _read_task(
    name: str, config: RetrievalConfig, files: Mapping[str, Sequence[Source]], reader: RowReader
) -> RetrievalTask:
    documents = _distinct(_read_texts(files["corpus"], reader, title=True), reader)
    # Judgements of queries of other splits are valid.
    every = _distinct(_read_texts(files["queries"], reader, title=False), reader)
    queries = [one for one in every.values() if config.split is None or one.raw.values.get("split") == config.split]
    numbers = {id_: number for number, id_ in enumerate(documents)}
    relevance: dict[str, dict[int, float]] = {}

    def make(raw: RawRow, _: int) -> None:
        query, document = _id(raw, "query"), _id(raw, "doc")
        score = read_number(raw, "score")
        _require_known("query", query, every, "queries")
        _require_known("doc", document, documents, "corpus")
        if score > 0:
            relevance.setdefault(query, {})[numbers[document]] = score

    reader.read(files["qrels"], dict.fromkeys(("query", "doc", "score"), ""), make)
    judged = [query for query in queries if query.id in relevance]
    return RetrievalTask(
        name=name,
        documents=tuple(one.text for one in documents.values()),
        queries=tuple(query.text for query in judged),
        relevance=tuple(relevance[query.id] for query in judged),
        unjudged=len(queries) - len(judged),
        prompts=config.prompts or ("", ""),
    )


def _read_texts(files: Sequence[Source], reader: RowReader, *, title: bool) -> list[_Text]:
    def make(raw: RawRow, _: int) -> _Text:
        heading = raw.values.get("title") if title else None
        if heading and not isinstance(heading, str):
            raise ValueError(f"field 'title': {shown(heading)} is not a valid title; write a string, or leave it out")
        body = raw.values["text"]
        # The title alone is a text, too.
        is_blank = body is None or (isinstance(body, str) and not body.strip())
        text = "" if heading and is_blank else read_text(raw, "text")
        return _Text(_id(raw, "id"), f"{heading} {text}".strip() if heading else text, raw)

    optional = ["title"] if title else ["split"]
    return reader.read(files, dict.fromkeys(("id", "text"), ""), make, optional)


def _id(raw: RawRow, field: str) -> str:
    """Returns an id by the same rule as labels: equal whatever format and type holds it."""
    try:
        return label_name(raw.values[field])
    except ValueError:
        raise ValueError(f"field {field!r}: {shown(raw.values[field])} is not a valid id; write a string") from None


def _distinct(texts: Iterable[_Text], reader: RowReader) -> dict[str, _Text]:
    found: dict[str, _Text] = {}
    for one in texts:
        if one.id in found:
            first = found[one.id].raw
            reader.add(
                one.raw.problem(f"the id {one.id!r} occurs twice, first in {first.path}:{first.line}; rename one")
            )
        else:
            found[one.id] = one
    return found


def _require_known(field: str, id_: str, known: Mapping[str, object], files: str) -> None:
    if id_ not in known:
        raise ValueError(f"field {field!r}: {files} has no id {shown(id_)}; correct it or remove the row")

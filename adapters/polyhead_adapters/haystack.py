"""Haystack: embedders of texts and documents, and routers by the labels of a head.

Install it with ``pip install 'polyhead[haystack]'``.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, Literal, Self, TypeAlias, Unpack

from ._extras import provided_by

with provided_by("haystack"):
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.utils import Secret
    from polyhead_client import Answer, InvalidRequestError, ModelInfo, Tls
    from polyhead_client.choices import DEFAULT_TARGET
    from polyhead_client.types import embedding_matrix

    from ._connection import Connection, ConnectionOptions, tls_to_dict

_logger = logging.getLogger(__name__)

UNMATCHED = "unmatched"


class ComponentOptions(ConnectionOptions, total=False):
    """Options that all components share.

    Attributes:
        target: ``HOST:PORT`` of the server, or another target that ``polyhead_client.Client`` accepts.
        api_key: API key, sent over TLS or to this machine only; by default that in ``POLYHEAD_API_KEY``, if any.
    """

    target: str
    api_key: Secret | None


class _Component:
    """Connection and serialization of a component.

    ``@component`` replaces the class that it decorates, so a component cannot use ``super()``.
    """

    def __init__(self, own: dict[str, Any], options: ComponentOptions) -> None:
        """Stores the configuration; the API key is read and the connection configured by ``warm_up``.

        Args:
            own: Arguments of the component itself, for ``to_dict``.
            options: The other arguments.
        """
        self._own = own
        self._target = options.pop("target", DEFAULT_TARGET)
        self._api_key = options.pop("api_key", Secret.from_env_var("POLYHEAD_API_KEY", strict=False))
        self._options: ConnectionOptions = options
        self._connection: Connection | None = None

    def warm_up(self) -> None:
        """Configures the connection, which is opened by the first call.

        Raises:
            InvalidRequestError: An argument has an invalid value.
            TypeError: An option is unknown.
        """
        self._connected()

    def close(self) -> None:
        """Closes the connections of synchronous calls."""
        if self._connection is not None:
            self._connection.close()

    async def close_async(self) -> None:
        """Closes the connections of the running event loop."""
        if self._connection is not None:
            await self._connection.aclose()

    def to_dict(self) -> dict[str, Any]:
        """Returns the configuration; in place of the API key, the name of its environment variable.

        Raises:
            ValueError: The API key was given as a token, which cannot be serialized.
        """
        options: dict[str, Any] = {**self._options, "target": self._target}
        if "tls" in options:
            options["tls"] = tls_to_dict(options["tls"])
        options["api_key"] = self._api_key.to_dict() if self._api_key else None
        serialized: dict[str, Any] = default_to_dict(self, **self._own, **options)
        return serialized

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Creates a component from the result of ``to_dict``."""
        parameters = dict(data.get("init_parameters", {}))
        if isinstance(parameters.get("api_key"), dict):
            parameters["api_key"] = Secret.from_dict(parameters["api_key"])
        if parameters.get("tls") is not None:
            parameters["tls"] = Tls(**parameters["tls"])
        created: Self = default_from_dict(cls, {**data, "init_parameters": parameters})
        return created

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = Connection(
                self._target,
                api_key=self._api_key.resolve_value() if self._api_key else None,
                dimensions=self._own.get("dimensions"),
                **self._options,
            )
        return self._connection


@component
class PolyheadTextEmbedder(_Component):
    """Embeds a text, such as the query of a retriever.

    ::

        embedder = PolyheadTextEmbedder(target="127.0.0.1:50051")
        embedder.run("Where is my refund?")["embedding"]
    """

    def __init__(
        self,
        *,
        dimensions: int | None = None,
        prefix: str = "",
        suffix: str = "",
        **options: Unpack[ComponentOptions],
    ) -> None:
        """Stores the configuration.

        Args:
            dimensions: Number of leading values of each embedding to return; None for all.
            prefix: Text before each text.
            suffix: Text after each text.
            **options: See ``ComponentOptions`` and ``ConnectionOptions``.
        """
        _Component.__init__(self, {"dimensions": dimensions, "prefix": prefix, "suffix": suffix}, options)
        self._prefix, self._suffix = prefix, suffix

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    def run(self, text: str) -> dict[str, Any]:
        """Embeds a text.

        Args:
            text: The text.

        Returns:
            ``embedding``, and ``meta`` with ``embedding_space``, the fingerprint of the model, and ``truncated``.

        Raises:
            TypeError: The input is not a ``str``.
            ItemFailedError: The text has an error.
            PolyheadError: The call failed; the subclass tells how to react.
        """
        (answer,) = self._connected().answers([self._text(text)], "embedding")
        return _embedding_and_meta(answer)

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    async def run_async(self, text: str) -> dict[str, Any]:
        """``run`` for asyncio."""
        (answer,) = await self._connected().aanswers([self._text(text)], "embedding")
        return _embedding_and_meta(answer)

    def _text(self, text: str) -> str:
        given: object = text
        if not isinstance(given, str):
            problem = f"text: expected a str, not {type(given).__name__}; PolyheadDocumentEmbedder embeds documents"
            raise TypeError(problem)
        return f"{self._prefix}{text}{self._suffix}"


@component
class PolyheadDocumentEmbedder(_Component):
    """Embeds documents, all in one call.

    ::

        embedder = PolyheadDocumentEmbedder(target="127.0.0.1:50051")
        embedder.run(documents)["documents"]
    """

    def __init__(
        self,
        *,
        dimensions: int | None = None,
        prefix: str = "",
        suffix: str = "",
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        progress_bar: bool = False,
        raise_on_failure: bool = True,
        **options: Unpack[ComponentOptions],
    ) -> None:
        """Stores the configuration.

        Args:
            dimensions: Number of leading values of each embedding to return; None for all.
            prefix: Text before the text of each document.
            suffix: Text after it.
            meta_fields_to_embed: Metadata that are put before the content.
            embedding_separator: Text between the metadata and the content.
            progress_bar: Show a progress bar; ``run_async`` shows none.
            raise_on_failure: Raise the error of a document; False returns the document without an embedding and logs
                a warning. A call that fails as a whole always raises.
            **options: See ``ComponentOptions`` and ``ConnectionOptions``.
        """
        own: dict[str, Any] = {"dimensions": dimensions, "prefix": prefix, "suffix": suffix}
        own |= {"meta_fields_to_embed": meta_fields_to_embed, "embedding_separator": embedding_separator}
        _Component.__init__(self, {**own, "progress_bar": progress_bar, "raise_on_failure": raise_on_failure}, options)
        self._prefix, self._suffix = prefix, suffix
        self._meta_fields, self._separator = meta_fields_to_embed or [], embedding_separator
        self._progress_bar = progress_bar
        self._raise_on_failure = raise_on_failure

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Embeds documents.

        Args:
            documents: The documents; they are not changed.

        Returns:
            ``documents``, copies with embeddings in the same order, and ``meta`` with ``embedding_space``, the
            fingerprint of the model, and the numbers of documents ``truncated`` and ``failed``.

        Raises:
            TypeError: The input is not a list of documents.
            ItemFailedError: A document has an error, the first of them; its id is the position of the document.
            PolyheadError: The call as a whole failed; the subclass tells how to react.
        """
        texts = self._texts(documents)
        return self._outputs(documents, self._connected().answers(texts, "embedding", show_progress=self._progress_bar))

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """``run`` for asyncio."""
        return self._outputs(documents, await self._connected().aanswers(self._texts(documents), "embedding"))

    def _texts(self, documents: list[Document]) -> list[str]:
        texts = []
        for document, content in zip(documents, _contents(documents), strict=True):
            meta = [document.meta.get(field) for field in self._meta_fields]
            parts = [str(value) for value in meta if value is not None]
            texts.append(f"{self._prefix}{self._separator.join([*parts, content])}{self._suffix}")
        return texts

    def _outputs(self, documents: list[Document], answers: list[Answer]) -> dict[str, Any]:
        embedded, succeeded = [], []
        for document, answer in zip(documents, answers, strict=True):
            if self._raise_on_failure or not _log_failure(document, answer):
                succeeded.append(answer)
                document = dataclasses.replace(document, embedding=answer.embedding.tolist())  # noqa: PLW2901
            embedded.append(document)
        meta: dict[str, Any] = {"failed": len(answers) - len(succeeded)}
        if succeeded:
            embedding_matrix(succeeded)  # raises if different models answered
            results = [answer.unwrap() for answer in succeeded]
            meta["embedding_space"] = results[0].fingerprints.embedding_space
            meta["truncated"] = sum(result.truncation.truncated for result in results)
        return {"documents": embedded, "meta": meta}


RouterTask: TypeAlias = Literal["classification", "sentiment", "labels", "score"]
# The kind of head whose labels each task routes by.
_KINDS = {"classification": "softmax", "sentiment": "sigmoid", "labels": "multilabel", "score": "ordinal"}


class _Router(_Component):
    """Finds the outputs of each text."""

    def __init__(self, own: dict[str, Any], options: ComponentOptions) -> None:
        super().__init__(own, options)
        self._labels: list[str] = own["labels"]
        self._task: RouterTask = own["task"]
        self._head: str | None = own["head"]
        self._labels_checked = False
        if UNMATCHED in self._labels:
            raise ValueError(f"labels: {UNMATCHED!r} is the output for all other labels; leave it out")

    def _outputs_of(self, answer: Answer) -> list[str]:
        """Returns the outputs that a text goes to: one, or several by a multilabel head."""
        head = self._head_output(answer)
        labels = head.labels if self._task == "labels" else (head.label,)
        return [label for label in labels if label in self._labels] or [UNMATCHED]

    def _head_output(self, answer: Answer) -> Any:
        if self._head is not None:
            return answer.head(self._head)
        match self._task:
            case "classification":
                return answer.classification
            case "sentiment":
                return answer.sentiment
            case "labels":
                return answer.label_sets[0]
            case "score":
                # The output of a regression head has no label.
                return next(score for score in answer.scores if score.label is not None)

    def _answers(self, texts: list[str]) -> list[Answer]:
        connection = self._connected()
        if not self._labels_checked:
            self._check_labels(connection.info())
        return connection.answers(texts, self._task)

    async def _aanswers(self, texts: list[str]) -> list[Answer]:
        connection = self._connected()
        if not self._labels_checked:
            self._check_labels(await connection.ainfo())
        return await connection.aanswers(texts, self._task)

    def _check_labels(self, model: ModelInfo) -> None:
        """Rejects labels that the head never returns, which would otherwise be outputs that receive nothing."""
        kind = _KINDS[self._task]
        heads = [head for head in model.heads if head.kind == kind and self._head in (None, head.name)]
        if not heads:
            names = ", ".join(head.name for head in model.heads if head.kind == kind) or "none"
            wanted = f"{self._task} head" + (f" {self._head!r}" if self._head else "")
            raise InvalidRequestError("NOT_FOUND", f"the model has no {wanted}; it has {names}", "UNKNOWN_HEAD")
        if unknown := [label for label in self._labels if label not in heads[0].labels]:
            problem = f"labels: head {heads[0].name!r} has no label {unknown[0]!r}; it has {', '.join(heads[0].labels)}"
            raise InvalidRequestError("INVALID_ARGUMENT", problem)
        self._labels_checked = True


@component
class PolyheadTextRouter(_Router):
    """Sends a text to the output that is named like its label: its class, its sentiment, or its number of stars.

    ::

        router = PolyheadTextRouter(labels=["billing", "technical"])
        pipeline.connect("router.billing", "billing_prompt.text")

    A text with any other label goes to the output ``unmatched``. By a multilabel head a text goes to the output of each
    label that applies.
    """

    def __init__(
        self,
        labels: list[str],
        *,
        task: RouterTask = "classification",
        head: str | None = None,
        **options: Unpack[ComponentOptions],
    ) -> None:
        """Stores the configuration and creates the outputs.

        Args:
            labels: Labels of the head, each the name of an output.
            task: Route by class, by sentiment, by the labels of a multilabel head, or by the score of an ordinal head.
            head: Name of the head, which must be one of this task; None for the model's first.
            **options: See ``ComponentOptions`` and ``ConnectionOptions``.

        Raises:
            ValueError: A label is ``"unmatched"``.
        """
        _Router.__init__(self, {"labels": labels, "task": task, "head": head}, options)
        component.set_output_types(self, **dict.fromkeys([*labels, UNMATCHED], str))

    def run(self, text: str) -> dict[str, str]:
        """Routes a text.

        Args:
            text: The text.

        Returns:
            The text, by the name of each of its outputs.

        Raises:
            InvalidRequestError: The model has no such head, or its head has no such label.
            ItemFailedError: The text has an error.
            PolyheadError: The call failed; the subclass tells how to react.
        """
        return dict.fromkeys(self._outputs_of(self._answers([text])[0]), text)

    async def run_async(self, text: str) -> dict[str, str]:
        """``run`` for asyncio."""
        return dict.fromkeys(self._outputs_of((await self._aanswers([text]))[0]), text)


@component
class PolyheadDocumentRouter(_Router):
    """Sends each document to the output that is named like its label, all documents in one call.

    ::

        router = PolyheadDocumentRouter(labels=["negative"], task="sentiment")
        pipeline.connect("router.negative", "complaints.documents")

    Documents with any other label go to the output ``unmatched``. By a multilabel head a document goes to the output of
    each label that applies.
    """

    def __init__(
        self,
        labels: list[str],
        *,
        task: RouterTask = "classification",
        head: str | None = None,
        raise_on_failure: bool = True,
        **options: Unpack[ComponentOptions],
    ) -> None:
        """Stores the configuration and creates the outputs.

        Args:
            labels: Labels of the head, each the name of an output.
            task: Route by class, by sentiment, by the labels of a multilabel head, or by the score of an ordinal head.
            head: Name of the head, which must be one of this task; None for the model's first.
            raise_on_failure: Raise the error of a document; False sends it to ``unmatched`` and logs a warning. A call
                that fails as a whole always raises.
            **options: See ``ComponentOptions`` and ``ConnectionOptions``.

        Raises:
            ValueError: A label is ``"unmatched"``.
        """
        own = {"labels": labels, "task": task, "head": head, "raise_on_failure": raise_on_failure}
        _Router.__init__(self, own, options)
        self._raise_on_failure = raise_on_failure
        component.set_output_types(self, **dict.fromkeys([*labels, UNMATCHED], list[Document]))

    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """Routes documents.

        Args:
            documents: The documents; they are not changed.

        Returns:
            The documents of every output, in the order of the input.

        Raises:
            TypeError: The input is not a list of documents.
            InvalidRequestError: The model has no such head, or its head has no such label.
            ItemFailedError: A document has an error, the first of them; its id is the position of the document.
            PolyheadError: The call as a whole failed; the subclass tells how to react.
        """
        return self._outputs(documents, self._answers(_contents(documents)))

    async def run_async(self, documents: list[Document]) -> dict[str, list[Document]]:
        """``run`` for asyncio."""
        return self._outputs(documents, await self._aanswers(_contents(documents)))

    def _outputs(self, documents: list[Document], answers: list[Answer]) -> dict[str, list[Document]]:
        outputs: dict[str, list[Document]] = {name: [] for name in (*self._labels, UNMATCHED)}
        for document, answer in zip(documents, answers, strict=True):
            failed = not self._raise_on_failure and _log_failure(document, answer)
            for name in [UNMATCHED] if failed else self._outputs_of(answer):
                outputs[name].append(document)
        return outputs


def _contents(documents: list[Document]) -> list[str]:
    if not isinstance(documents, list) or not all(isinstance(document, Document) for document in documents):
        raise TypeError("documents: expected a list of haystack Documents; the text components accept a str")
    return [document.content or "" for document in documents]


def _log_failure(document: Document, answer: Answer) -> bool:
    """Logs the error of a document, if it has one, and returns whether it has."""
    if answer.error is None:
        return False
    _logger.warning("document %s has no result: %s: %s", document.id, answer.error.code, answer.error.message)
    return True


def _embedding_and_meta(answer: Answer) -> dict[str, Any]:
    result = answer.unwrap()
    meta = {"embedding_space": result.fingerprints.embedding_space, "truncated": result.truncation.truncated}
    return {"embedding": answer.embedding.tolist(), "meta": meta}

"""LangChain: embeddings, and a runnable for the answers of heads.

Install it with ``pip install 'polyhead[langchain]'``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from ._extras import provided_by

with provided_by("langchain"):
    from typing import NotRequired  # pydantic requires this TypedDict before Python 3.12

    from langchain_core.embeddings import Embeddings
    from langchain_core.runnables import RunnableConfig, RunnableSerializable
    from polyhead_client import Answer, Classification, LabelScore, LabelSet, PolyheadError, Score, Sentiment
    from typing_extensions import TypedDict

    from ._fields import ConnectionFields


class PolyheadEmbeddings(ConnectionFields, Embeddings):
    """Embeddings of a polyhead server.

    All texts of a call share one request or stream, and failed connections are retried::

        embeddings = PolyheadEmbeddings(target="127.0.0.1:50051")
        vectors = embeddings.embed_documents(["Where is my refund?", "Love it!"])

    The fields of ``ConnectionFields`` configure it, and these:

    Attributes:
        dimensions: Number of leading values of each embedding to return; None for all.
        query_prompt: Name of the model's prompt for ``embed_query``, such as ``"query"``; None for none.
        document_prompt: Name of the model's prompt for ``embed_documents``, such as ``"passage"``; None for none.
    """

    dimensions: int | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embeds texts.

        Args:
            texts: The texts.

        Returns:
            One embedding for each text, in order.

        Raises:
            ItemFailedError: A text has an error, the first of them; its id is the position of the text.
            PolyheadError: The call as a whole failed; the subclass tells how to react.
        """
        return self._connection.vectors(texts, self.document_prompt)

    def embed_query(self, text: str) -> list[float]:
        """Embeds one text, like ``embed_documents``, with the prompt for queries."""
        return self._connection.vectors([text], self.query_prompt)[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """``embed_documents`` for asyncio."""
        return await self._connection.avectors(texts, self.document_prompt)

    async def aembed_query(self, text: str) -> list[float]:
        """``embed_query`` for asyncio."""
        return (await self._connection.avectors([text], self.query_prompt))[0]


class HeadOutput(TypedDict):
    """The output of one softmax or sigmoid head.

    Attributes:
        head: Name of the head.
        label: The label that the head decides for.
        probability: Probability of the most probable label of a softmax head, of the positive label of a sigmoid head.
        scores: Probability of every label of a softmax head, most probable first.
    """

    head: str
    label: str
    probability: float
    scores: NotRequired[dict[str, float]]


class LabelSetOutput(TypedDict):
    """The output of one multilabel head.

    Attributes:
        head: Name of the head.
        labels: The labels that apply, most probable first.
        scores: Probability of every label, most probable first.
    """

    head: str
    labels: list[str]
    scores: dict[str, float]


class ScoreOutput(TypedDict):
    """The output of one ordinal or regression head.

    Attributes:
        head: Name of the head.
        value: The value.
        label: Median label of an ordinal head.
        scores: Probability of every label of an ordinal head, in the model's order.
    """

    head: str
    value: float
    label: NotRequired[str]
    scores: NotRequired[dict[str, float]]


class Analysis(TypedDict):
    """The outputs of all heads for one text.

    Attributes:
        classification: Output of the first softmax head, if the model has one.
        sentiment: Output of the first sigmoid head, if the model has one.
        heads: Output of each softmax and sigmoid head, by its name.
        truncated: Whether the model did not read the whole text.
        label_sets: Output of each multilabel head, by its name, if there is one.
        scores: Output of each ordinal and regression head, by its name, if there is one.
    """

    classification: NotRequired[HeadOutput]
    sentiment: NotRequired[HeadOutput]
    heads: dict[str, HeadOutput]
    truncated: bool
    label_sets: NotRequired[dict[str, LabelSetOutput]]
    scores: NotRequired[dict[str, ScoreOutput]]


class PolyheadAnalyzer(ConnectionFields, RunnableSerializable[str, Analysis]):
    """A runnable that reads a text and returns its class and its sentiment, or the answers of other heads.

    ``batch`` and ``abatch`` send all texts in one request or stream. A text that cannot be answered raises
    ItemFailedError or, with ``return_exceptions=True``, is answered with it::

        analyzer = PolyheadAnalyzer(target="127.0.0.1:50051")
        route = analyzer | (lambda analysis: analysis["classification"]["label"])
        route.batch(["Where is my refund?", "Love it!"])

    The fields of ``ConnectionFields`` configure it, and these:

    Attributes:
        tasks: The model must have a head for each. ``labels`` requests multilabel heads, ``score`` ordinal and
            regression heads.
        prompt: Name of the prompt that the heads were trained with; None for none.
    """

    tasks: tuple[Literal["classification", "sentiment", "labels", "score"], ...] = ("classification", "sentiment")
    prompt: str | None = None

    def invoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> Analysis:  # noqa: A002
        """Analyzes one text.

        Raises:
            ItemFailedError: The text has an error.
            PolyheadError: The call failed; the subclass tells how to react.
        """
        return self._call_with_config(lambda text: _analysis(self._answers([text])[0]), input, config, **kwargs)

    async def ainvoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> Analysis:  # noqa: A002
        """``invoke`` for asyncio."""

        async def analyze(text: str) -> Analysis:
            return _analysis((await self._aanswers([text]))[0])

        return await self._acall_with_config(analyze, input, config, **kwargs)

    def batch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Analysis]:
        """Analyzes texts in one call.

        Args:
            inputs: The texts.
            config: Configuration of all runs, or one for each text; ``max_concurrency`` has no effect.
            return_exceptions: Return errors in place of analyses instead of raising the first one.
            **kwargs: Arguments of the callbacks.

        Raises:
            ItemFailedError: A text has an error, the first of them; its id is the position of the text.
            PolyheadError: The call as a whole failed; the subclass tells how to react.
        """
        return self._batch_with_config(
            lambda texts: [_outcome(answer) for answer in self._answers(texts)],
            inputs,
            config,
            return_exceptions=return_exceptions,
            **kwargs,
        )

    async def abatch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Analysis]:
        """``batch`` for asyncio."""

        async def analyze(texts: list[str]) -> list[Analysis | Exception]:
            return [_outcome(answer) for answer in await self._aanswers(texts)]

        return await self._abatch_with_config(analyze, inputs, config, return_exceptions=return_exceptions, **kwargs)

    def _answers(self, texts: list[str]) -> list[Answer]:
        return self._connection.answers(texts, *self.tasks)

    async def _aanswers(self, texts: list[str]) -> list[Answer]:
        return await self._connection.aanswers(texts, *self.tasks)


def _outcome(answer: Answer) -> Analysis | Exception:
    try:
        return _analysis(answer)
    except PolyheadError as error:
        return error


def _analysis(answer: Answer) -> Analysis:
    result = answer.unwrap()
    first = [one for one in (result.classification, result.sentiment) if one is not None]
    decided = [*first, *result.additional_classifications, *result.additional_sentiments]
    heads = {output.head: _head_output(output) for output in decided}
    analysis = Analysis(heads=heads, truncated=result.truncation.truncated)
    if result.classification is not None:
        analysis["classification"] = heads[result.classification.head]
    if result.sentiment is not None:
        analysis["sentiment"] = heads[result.sentiment.head]
    if result.label_sets:
        analysis["label_sets"] = {output.head: _label_set_output(output) for output in result.label_sets}
    if result.scores:
        analysis["scores"] = {output.head: _score_output(output) for output in result.scores}
    return analysis


def _head_output(output: Classification | Sentiment) -> HeadOutput:
    if isinstance(output, Sentiment):
        return HeadOutput(head=output.head, label=output.label, probability=output.probability)
    scores = _by_label(output.scores)
    return HeadOutput(head=output.head, label=output.label, probability=output.best.probability, scores=scores)


def _label_set_output(output: LabelSet) -> LabelSetOutput:
    return LabelSetOutput(head=output.head, labels=list(output.labels), scores=_by_label(output.scores))


def _score_output(output: Score) -> ScoreOutput:
    if output.label is None:
        return ScoreOutput(head=output.head, value=output.value)
    scores = _by_label(output.probabilities)
    return ScoreOutput(head=output.head, value=output.value, label=output.label, scores=scores)


def _by_label(scores: Iterable[LabelScore]) -> dict[str, float]:
    return {score.label: score.probability for score in scores}

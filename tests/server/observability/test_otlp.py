"""The encoder of spans, compared with that of the SDK."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState
from polyhead_server.observability.otlp import SpanExporter

RESOURCE, SCOPE = Resource.create({"service.name": "polyhead"}), InstrumentationScope("polyhead", "1")


def context(number: int, *, remote: bool = False, state: TraceState | None = None) -> SpanContext:
    return SpanContext((number << 96) + 1, (number << 32) + 2, remote, TraceFlags(TraceFlags.SAMPLED), state)


def span(attributes: dict[str, Any], **values: Any) -> ReadableSpan:
    times = {"start_time": 1_700_000_000_000_000_001, "end_time": 1_700_000_000_500_000_002}
    given = {"name": "batch", "context": context(7), "resource": RESOURCE, "instrumentation_scope": SCOPE, **times}
    return ReadableSpan(**{**given, "attributes": attributes, **values})


SPANS = [
    span({}),
    span({"a": "text", "b": 3, "c": -3, "d": True, "e": 1, "f": 2.5, "é": "ü" * 300}, parent=context(9)),
    span({"a": "1", "b": True, "c": 0}, parent=context(9, remote=True), kind=SpanKind.SERVER),
    span({"error.type": "INTERNAL"}, status=Status(StatusCode.ERROR), name="n" * 200),
    span(
        {str(number): "v" * 200 for number in range(200)},
        context=context(2**31, state=TraceState([("k", "v"), ("l", "w")])),
    ),
]


@pytest.fixture
def exporter() -> SpanExporter:
    made = SpanExporter(endpoint="http://127.0.0.1:1")
    made.shutdown()
    return made


def test_spans_are_encoded_as_by_the_sdk(exporter: SpanExporter) -> None:
    # Several spans, then others: the parts that all share are kept.
    for spans in (SPANS, SPANS[1:2], SPANS[::-1]):
        assert exporter._translate_data(spans) == encode_spans(spans)


def test_attribute_of_another_type_is_a_string(exporter: SpanExporter) -> None:
    request = exporter._translate_data([span({"a": ("x", "y")})])
    (attribute,) = request.resource_spans[0].scope_spans[0].spans[0].attributes
    assert attribute.value.string_value == "('x', 'y')"

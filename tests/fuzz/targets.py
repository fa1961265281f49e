"""What is fuzzed: for each target, a function of bytes that raises for a fault, and inputs to start from.

A reader may reject an input only in its own words: with the errors that its docstring names, or in its answer. Any
other exception is a fault, and so is an answer that contradicts the input. The server's model is a golden bundle of
``tests/compat``, with heads of every kind.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from tests.compat.recordings import VERSIONS, load, write_bundle

Check = Callable[[bytes], None]
_TIMEOUT_S = 30.0
_MAX_ROW_CHARACTERS = 16_000
# Limits of the readers of rows, lowered for the files of the fuzzer, which are small.
_ROW_LIMITS = {
    "csv.MAX_ROW_CHARACTERS": _MAX_ROW_CHARACTERS,
    "lines.Lines.read.__defaults__": (_MAX_ROW_CHARACTERS,),
    "values.MAX_VALUE_CHARACTERS": 200,
    "parquet._MAX_VALUE_BYTES": 200,
    "files.EXPANSION_ALLOWANCE": 2000,
    "parquet.EXPANSION_ALLOWANCE": 2000,
}
# Paths and content types of the HTTP target; the first byte of an input selects one.
_HTTP = (
    ("/v1/analyze", "application/json"),
    ("/v1/analyze", "application/x-ndjson"),
    ("/v1/embeddings", "application/json"),
    ("/embed", "application/json"),
    ("/predict", "application/json"),
    ("/tokenize", "application/json"),
    ("/decode", "application/json"),
    ("/", "application/json"),
    ("/v2/models/golden/infer", "application/json"),
    ("/v2/models/golden/infer", "application/octet-stream"),
)
_DOCUMENTS: tuple[object, ...] = (
    {"texts": ["Where is my refund?"], "tasks": ["embedding", "labels"], "embedding": {"dimensions": 2}},
    {
        "items": [{"id": "1", "text": "a"}],
        "novelty": True,
        "prediction_sets": True,
        "truncation": "window",
        "prompt": "query",
    },
    {"input": ["a", "b"], "model": "golden", "encoding_format": "base64", "dimensions": 3},
    {"inputs": [["a"], ["b"]], "truncate": True, "raw_scores": True, "top_n": 1},
    {"ids": [[1, 2, 3]], "skip_special_tokens": False},
    {
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}],
        "outputs": [{"name": "topic", "parameters": {"binary_data": True}}],
        "parameters": {"timeout": 1},
    },
)


@dataclass(frozen=True)
class Target:
    """A reader of bytes.

    Attributes:
        create: Prepares it, and returns the function to fuzz. What ends its threads and removes its files is pushed on
            the stack.
        seeds: Valid inputs.
        json_at: Offset at which inputs are JSON documents; None if they are not.
    """

    create: Callable[[ExitStack], Check]
    seeds: Callable[[], list[bytes]]
    json_at: int | None = None


def _requests(stack: ExitStack) -> Check:
    """Decodes messages of the InferenceService, which never raises."""
    from polyhead.v1 import inference_service_pb2 as pb2
    from polyhead_server.inference.types import InvalidItem, Item
    from polyhead_server.rpc.request_decoder import RequestDecoder

    _scan_small_messages(stack)
    decoders = [
        RequestDecoder(kind, max_items=64, max_text_bytes=lambda: 1000)
        for kind in (pb2.AnalyzeRequest, pb2.StreamAnalyzeRequest, pb2.StreamEmbedRequest, pb2.StreamClassifyRequest)
    ]

    def check(data: bytes) -> None:
        for decode in decoders:
            message = decode(data)
            assert 0 <= len(message.items) <= 64
            for item in message.items:
                assert isinstance(item, Item | InvalidItem)
                assert len(item.item_id.encode()) <= 256

    return check


def _recorded_requests() -> list[bytes]:
    return [data for recording in load() for data in recording.requests]


def _scan_small_messages(stack: ExitStack) -> None:
    """Lets the server count the fields of small messages, too: those of the fuzzer are small."""
    from polyhead_server.rpc import message_limits

    stack.enter_context(mock.patch.object(message_limits, "_SMALL_BYTES", 0))


def _folder(stack: ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fuzz-")))


def _loop(stack: ExitStack) -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    stack.callback(loop.close)
    return loop


def _models(stack: ExitStack, loop: asyncio.AbstractEventLoop) -> Any:
    """Returns the models of a server with the golden model alone, as HTTP and the dialects call them."""
    from polyhead_server.inference.model import load_model
    from polyhead_server.inference.pipeline import Pipeline
    from polyhead_server.observability.metrics import Metrics
    from polyhead_server.rpc.inference_service import InferenceService
    from polyhead_server.serving.backend import Backend
    from polyhead_server.serving.models import Models
    from polyhead_server.settings import Settings

    bundle = write_bundle(VERSIONS[-1], _folder(stack))
    settings = Settings(bundle=bundle, threads=1, device="cpu", max_items_per_message=8, max_message_bytes=100_000)

    async def start() -> Models:
        service = InferenceService(settings, Metrics())
        pipeline = Pipeline(load_model(settings), settings, service.metrics.observe_batches)
        pipeline.start()
        stack.callback(lambda: loop.run_until_complete(pipeline.close()))
        service.serve(pipeline)
        return Models([Backend(service, settings, lambda: True)])

    return loop.run_until_complete(start())


def _within_timeout(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> None:
    loop.run_until_complete(asyncio.wait_for(work, _TIMEOUT_S))


def _http(stack: ExitStack) -> Check:
    """Sends bodies to the HTTP API, which answers each in its own words and never with an internal error."""
    from polyhead_server.http.api import create_app

    loop = _loop(stack)
    app = create_app(_models(stack, loop), None, ["polyhead", "openai", "tei", "oip"], with_playground=False)

    async def send_body(data: bytes) -> None:
        path, content_type = _HTTP[data[0] % len(_HTTP)]
        headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(data) - 1).encode())]
        if content_type == "application/octet-stream":
            head, _, _ = data[1:].partition(b"\0")
            headers.append((b"inference-header-content-length", str(len(head)).encode()))
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": headers,
            "query_string": b"",
            "client": None,
        }
        body = [{"type": "http.request", "body": data[1:], "more_body": False}]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return body.pop() if body else {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await app(scope, receive, send)
        content = b"".join(message.get("body", b"") for message in sent)
        assert sent[0]["status"] in {200, 400, 404, 413, 422, 504}, (sent[0]["status"], content[:200])
        # A stream of lines has begun before its answers are known.
        assert b"internal error, incident" not in content, content[:200]

    def check(data: bytes) -> None:
        if data:
            _within_timeout(loop, send_body(data))

    return check


def _http_bodies() -> list[bytes]:
    bodies = [json.dumps(document).encode() for document in _DOCUMENTS]
    lines = b'{"id": 1, "text": "a"}\n"b"\n'
    tensor = json.dumps(
        {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}}]}
    ).encode()
    seeds = [bytes([number]) + body for number in range(len(_HTTP)) for body in bodies]
    return [*seeds, b"\x01" + lines, b"\x09" + tensor + b"\x01\0\0\0a"]


def _tensors(stack: ExitStack) -> Check:
    """Answers requests of the Open Inference Protocol over gRPC; it rejects them with a ``ServerError`` alone."""
    from google.protobuf.message import DecodeError
    from polyhead_server.errors import InternalError, ServerError
    from polyhead_server.rpc.dialects.descriptors import TYPES
    from polyhead_server.rpc.dialects.open_inference import OpenInferenceService

    _scan_small_messages(stack)
    loop = _loop(stack)
    service = OpenInferenceService(_models(stack, loop))
    decode = service.deserializer("ModelInfer")
    context: Any = SimpleNamespace(time_remaining=lambda: None)

    async def infer(data: bytes) -> None:
        try:
            request = decode(data)
            response = TYPES["inference.ModelInferResponse"].FromString(await service.ModelInfer(request, context))
        except InternalError:
            raise
        except (DecodeError, ServerError):
            return
        assert len(response.raw_output_contents) == len(response.outputs)
        assert response.id == request.id

    return lambda data: _within_timeout(loop, infer(data))


def _tensor_requests() -> list[bytes]:
    from polyhead_server.rpc.dialects.descriptors import TYPES

    kind = TYPES["inference.ModelInferRequest"]
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2]}
    whole = kind(
        model_name="golden", id="1", inputs=[{**tensor, "contents": {"bytes_contents": [b"a", b"b"]}}]
    ).SerializeToString()
    raw = kind(
        model_name="golden",
        inputs=[tensor],
        raw_input_contents=[b"\x01\0\0\0a\x01\0\0\0b"],
        outputs=[{"name": "topic"}, {"name": "embedding"}],
        parameters={"truncation": {"string_param": "window"}, "timeout": {"int64_param": 5}},
    ).SerializeToString()
    return [whole, raw]


def _manifests(stack: ExitStack) -> Check:
    """Reads ``bundle.json``. The digest of a JSON object is corrected, or nothing behind it would be tested."""
    import hashlib

    from polyhead_bundle import FormatError, codec

    path = _folder(stack) / "bundle.json"

    def canonical(value: object) -> bytes:
        return (json.dumps(value, sort_keys=True, indent=2) + "\n").encode()

    def check(data: bytes) -> None:
        try:
            document = json.loads(data)
            document.pop("digest", None)
            data = canonical({**document, "digest": hashlib.sha256(canonical(document)).hexdigest()})
        except (ValueError, AttributeError, TypeError, RecursionError):
            pass
        path.write_bytes(data)
        try:
            manifest, digest, _ = codec.parse(path)
        except FormatError:
            return
        assert len(digest) == 64
        codec.render(manifest)

    return check


def _golden_manifests() -> list[bytes]:
    found = []
    for version in VERSIONS:
        with tempfile.TemporaryDirectory() as folder:
            document = json.loads((write_bundle(version, Path(folder)) / "bundle.json").read_bytes())
        for variant in document["variants"].values():
            del variant["golden"][1:]
        found.append(json.dumps(document).encode())
    return found


def _tokenizers(stack: ExitStack) -> Check:
    """Opens ``tokenizer.json`` as a server does, and encodes texts: the same ids on every path, or one error.

    The library may refuse a file, or panic; what it raises is an ``Exception`` of no more special class.
    """
    from polyhead_server.inference import tokenization
    from polyhead_server.inference.tokenization import Placement, Tokenizer
    from polyhead_server.inference.types import Flow, TokenizedText

    path, loop = _folder(stack) / "tokenizer.json", _loop(stack)
    texts = ["Where is my refund?", "", "🙂 a" * 50, "query: " + "café, [SEP] 中文 " * 40, "a-b " * 300]
    max_tokens, max_windows, prefix = 24, 3, 7
    # A text is divided into parts on one of the paths.
    for name in ("_STEP_CHARACTERS", "_EXPENSIVE_STEP_CHARACTERS"):
        stack.enter_context(mock.patch.object(tokenization, name, 64))

    async def encoded(tokenizer: Tokenizer) -> list[list[TokenizedText]]:
        await tokenizer.describe(texts[3], Flow(), special=True)
        await tokenizer.decode(range(30), Flow(), skip_special=True)
        # Twice: the second time, the words are known.
        found = [tokenizer.encode(texts, max_windows, prefix) for _ in range(2)]
        made = [await tokenizer.encode_async(texts, place, Flow(), max_windows, prefix) for place in Placement]
        return [*found, *(one.texts for one in made)]

    def check(data: bytes) -> None:
        path.write_bytes(data)
        opened: list[Tokenizer] = []
        try:
            opened.extend(Tokenizer(path, max_tokens, 1000, word_cache=cached) for cached in (True, False))
            answers = [answer for one in opened for answer in loop.run_until_complete(encoded(one))]
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            if len(opened) == 2 and type(error) is not Exception and type(error).__name__ != "PanicException":
                raise
            return
        finally:
            for one in opened:
                one.close()
        assert len(answers[0]) == len(texts)
        assert all(answer == answers[0] for answer in answers)

    return check


def _tokenizer_files() -> list[bytes]:
    """Returns the golden tokenizer, which is BERT's, and small ones of other kinds."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    with tempfile.TemporaryDirectory() as folder:
        golden = (write_bundle(VERSIONS[-1], Path(folder)) / "tokenizer.json").read_bytes()
    pieces = ["<s>", "</s>", "<unk>", "▁", "▁a", "b", "e", "r", "f", "-", ",", "▁re"]
    unigram = Tokenizer(models.Unigram([(piece, -1.0 - number) for number, piece in enumerate(pieces)], unk_id=2))
    unigram.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", *alphabet, "re", "Ġa"])}
    bpe = Tokenizer(models.BPE(vocabulary, [("r", "e"), ("Ġ", "a")]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    for one in (unigram, bpe):
        one.add_special_tokens(["<s>", "</s>"])
        one.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    return [golden, unigram.to_str().encode(), bpe.to_str().encode()]


def _rows(extension: str) -> Callable[[ExitStack], Check]:
    def create(stack: ExitStack) -> Check:
        from polyhead_rows import Problem, RawRow, read_rows, read_stream

        path = _folder(stack) / f"rows.{extension}"
        for name, limit in _ROW_LIMITS.items():
            stack.enter_context(mock.patch(f"polyhead_rows.{name}", limit))

        def check(data: bytes) -> None:
            """Reads a file of rows: each is a row or a problem with its position, and nothing follows a final one."""
            path.write_bytes(data)
            readers = [read_rows(path, ("text", "label")), read_rows(path, None)]
            if extension in ("csv", "jsonl"):
                readers.append(read_stream(io.BytesIO(data), extension, Path("-")))
            for rows in map(list, readers):
                for row in rows:
                    assert isinstance(row, RawRow | Problem)
                    assert str(row)
                assert not any(isinstance(row, Problem) and row.is_final for row in rows[:-1])

        return check

    return create


def _text_rows(extension: str) -> Callable[[], list[bytes]]:
    samples = {
        "csv": [
            'text,label\n"a ""b""",x\n',
            "sep=;\ntext;label\r\na;b\r\n",
            "text\tlabel\na\tb\n",
            "\ufefftext,label\n",
        ],
        "jsonl": [
            '{"text": "a", "label": ["x", 1.5, null]}\n',
            '[1]\n{"text": "\\ud83d\\ude42"}\n',
            '{"a": {"b": 1}}',
            '{"text": "a", "text": "b"}\n{"text": "\\ud800"}\n',
            f'{{"text": "{"a" * 20_000}"}}\n{{"text": "a"}}\n',
            # Beyond what Python's parser reads.
            f'{{"other": {"[" * 2000}{"]" * 2000}, "text": "a", "number": {"9" * 5000}}}\n',
        ],
    }
    return lambda: [sample.encode() for sample in samples[extension]]


def _compressed_rows() -> list[bytes]:
    members = [gzip.compress(sample, mtime=0) for sample in _text_rows("jsonl")()]
    return [*members, members[0] + members[0], gzip.compress(b"\n" * 100_000, mtime=0)]


def _parquet_rows() -> list[bytes]:
    import pyarrow as pa
    from pyarrow import parquet

    columns: dict[str, Any] = {
        "text": ["a", None, "b" * 300],
        "label": [["x"], [], None],
        "dictionary": pa.array(["a", "a", None]).dictionary_encode(),
        "bytes": [b"a", b"\xff", None],
        "half": pa.array([0.1, None, -0.0], pa.float16()),
        "single": pa.array([0.1, None, float("nan")], pa.float32()),
        "decimal": [Decimal("1.50"), None, Decimal("-0.01")],
        "time": pa.array([0, None, 2**62], pa.timestamp("ns", "UTC")),
        "struct": [{"a": 1}, None, {"a": None}],
    }
    options: tuple[dict[str, Any], ...] = (
        {"compression": "none"},
        {"compression": "zstd", "row_group_size": 1},
        {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}},
    )
    found = []
    for table in (pa.table({name: columns[name] for name in ("text", "label")}), pa.table(columns)):
        for one in options:
            file = io.BytesIO()
            parquet.write_table(table, file, **one)
            found.append(file.getvalue())
    return found


TARGETS = {
    "requests": Target(_requests, _recorded_requests),
    "http": Target(_http, _http_bodies, json_at=1),
    "tensors": Target(_tensors, _tensor_requests),
    "manifests": Target(_manifests, _golden_manifests, json_at=0),
    "tokenizers": Target(_tokenizers, _tokenizer_files, json_at=0),
    "csv": Target(_rows("csv"), _text_rows("csv")),
    "jsonl": Target(_rows("jsonl"), _text_rows("jsonl")),
    "gzip": Target(_rows("jsonl.gz"), _compressed_rows),
    "parquet": Target(_rows("parquet"), _parquet_rows),
}

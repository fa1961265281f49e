"""Decodes request messages into the server's own types.

Decoding never raises: an item that cannot be decoded becomes an ``InvalidItem`` with its error, so that a bad item
does not affect the other items of its message.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, overload

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory
from polyhead.v1 import inference_service_pb2, item_pb2

from polyhead_server.errors import InvalidRequestError, TooManyItemsError
from polyhead_server.inference.types import (
    ALL_TASKS,
    MAX_ITEM_ID_BYTES,
    MAX_PART_CHARACTERS,
    MAX_PART_ITEMS,
    Encoding,
    InvalidItem,
    Item,
    Message,
    RequestOptions,
    Task,
    Truncation,
)
from polyhead_server.out_of_memory import exit_if_out_of_memory
from polyhead_server.serving.texts import item_from_bytes

from . import message_limits

# Code points of an invalid id that its answer repeats: enough to find the item, few enough to keep the answer small.
_MAX_ECHOED_ID = 64
_ID_TOO_LONG = InvalidRequestError("ITEM_ID_TOO_LONG", f"item_id has more than {MAX_ITEM_ID_BYTES} bytes")
_ID_NOT_UTF8 = InvalidRequestError("ITEM_ID_NOT_UTF8", "item_id is not valid UTF-8")
# Every fingerprint has so many hexadecimal digits.
_FINGERPRINT_DIGITS = 16
# Options that are kept: those of one client take some hundred bytes, and the names of heads may be long.
_MAX_KNOWN_OPTIONS = 256
_MAX_KNOWN_OPTION_BYTES = 512
# More heads than any model has.
_MAX_EXPECTED_HEADS = 1024

_TASKS = {
    item_pb2.TASK_EMBEDDING: Task.EMBEDDING,
    item_pb2.TASK_CLASSIFICATION: Task.CLASSIFICATION,
    item_pb2.TASK_SENTIMENT: Task.SENTIMENT,
    item_pb2.TASK_LABELS: Task.LABELS,
    item_pb2.TASK_SCORE: Task.SCORE,
}
_ENCODINGS = {
    item_pb2.EMBEDDING_ENCODING_UNSPECIFIED: Encoding.FLOAT32_LE,
    item_pb2.EMBEDDING_ENCODING_FLOAT32_LE: Encoding.FLOAT32_LE,
    item_pb2.EMBEDDING_ENCODING_FLOAT16_LE: Encoding.FLOAT16_LE,
    item_pb2.EMBEDDING_ENCODING_INT8: Encoding.INT8,
    item_pb2.EMBEDDING_ENCODING_BINARY: Encoding.BINARY,
}
_TRUNCATION = {
    item_pb2.TRUNCATION_POLICY_UNSPECIFIED: Truncation.TRUNCATE,
    item_pb2.TRUNCATION_POLICY_TRUNCATE: Truncation.TRUNCATE,
    item_pb2.TRUNCATION_POLICY_ERROR: Truncation.ERROR,
    item_pb2.TRUNCATION_POLICY_WINDOW: Truncation.WINDOW,
}
_IN_ORDER = {
    item_pb2.ANSWER_ORDER_UNSPECIFIED: None,
    item_pb2.ANSWER_ORDER_REQUEST: True,
    item_pb2.ANSWER_ORDER_COMPLETION: False,
}


class RequestDecoder:
    """Decodes request messages of one type; used as gRPC's deserializer."""

    def __init__(
        self,
        request_type: type[message.Message],
        max_items: int,
        tasks: frozenset[Task] = ALL_TASKS,
        max_text_bytes: Callable[[], int] = lambda: sys.maxsize,
    ) -> None:
        """Creates a decoder.

        Args:
            request_type: The generated class.
            max_items: Maximum number of items in a message; a message with more gets one answer as a whole.
            tasks: Tasks of a message that names none, or whose type has no such field.
            max_text_bytes: Returns how many bytes of a text to decode; the rest is ignored.
        """
        self._type = _BYTES_TYPES[request_type.DESCRIPTOR.name]
        self._max_items = max_items
        self._tasks = tasks
        self._max_text_bytes = max_text_bytes
        fields = self._type.DESCRIPTOR.fields_by_name
        # To ask a message for a field that its type lacks takes half as long as decoding an item.
        self._has_tasks, self._has_order = "tasks" in fields, "order" in fields
        self._has_embedding = "embedding_options" in fields
        # Most messages have the same few options.
        self._known_options: dict[tuple[tuple[int, ...], bytes, bytes], RequestOptions] = {}

    def __call__(self, data: bytes) -> Message:
        """Decodes a message; never raises."""
        try:
            message_limits.check(data, self._max_items)
            return self._decode(self._type.FromString(data), len(data))
        except InvalidRequestError as error:
            return _invalid_message(error)
        except message.DecodeError as error:
            exit_if_out_of_memory(error)
            problem = "the message is not a valid protobuf message of this RPC; none of its items were decoded"
            return _invalid_message(InvalidRequestError("MALFORMED_MESSAGE", problem))

    def _decode(self, request: Any, size: int) -> Message:
        count = len(request.items)
        if count > self._max_items:
            # One answer for the whole message: answering thousands of empty items would cost more than sending them.
            raise TooManyItemsError(self._max_items, "are allowed")
        items: Sequence[Item | InvalidItem]
        if count <= MAX_PART_ITEMS and size <= MAX_PART_CHARACTERS:
            max_text_bytes = self._max_text_bytes()
            items = tuple([_decode_item(one.item_id, one.text, max_text_bytes) for one in request.items])
        else:
            items = _Items(request.items, self._max_text_bytes())
        try:
            in_order = _lookup(_IN_ORDER, request.order, "order") if self._has_order else None
            return Message(items, self._options(request), in_order)
        except InvalidRequestError as error:
            return Message(items, RequestOptions(), error=error)

    def _options(self, request: Any) -> RequestOptions:
        """Returns the options of a request, from a table if others had the same, which takes a quarter of the time."""
        tasks = tuple(request.tasks[:]) if self._has_tasks else ()
        embedding = request.embedding_options.SerializeToString() if self._has_embedding else b""
        key = tasks, request.options.SerializeToString(), embedding
        if (known := self._known_options.get(key)) is not None:
            return known
        made = self._new_options(request, tasks)
        if sum(map(len, key)) <= _MAX_KNOWN_OPTION_BYTES:
            if len(self._known_options) >= _MAX_KNOWN_OPTIONS:
                self._known_options.clear()
            self._known_options[key] = made
        return made

    def _new_options(self, request: Any, numbers: Sequence[int]) -> RequestOptions:
        # Deduplicated first: even a small message may repeat a task thousands of times.
        tasks = frozenset(_lookup(_TASKS, task, "task") for task in set(numbers))
        embedding_options = request.embedding_options if self._has_embedding else None
        expected = request.options.expected_fingerprints
        return RequestOptions(
            tasks=tasks or self._tasks,
            required_tasks=tasks or (frozenset() if self._tasks == ALL_TASKS else self._tasks),
            encoding=_lookup(_ENCODINGS, embedding_options.encoding if embedding_options else 0, "encoding"),
            dimensions=embedding_options.dimensions if embedding_options else 0,
            truncation=_lookup(_TRUNCATION, request.options.truncation, "truncation"),
            prompt=request.options.prompt,
            timings=request.options.include_timings,
            novelty=request.options.include_novelty,
            prediction_sets=request.options.include_prediction_sets,
            expected_space=_fingerprint(expected.embedding_space),
            expected_heads=_expected_heads(expected.heads),
        )


class _Items(Sequence[Item | InvalidItem]):
    """The items of a message, each decoded when it is read, so that a large message can be decoded in parts."""

    def __init__(self, encoded: Sequence[Any], max_text_bytes: int) -> None:
        self._encoded = encoded
        self._max_text_bytes = max_text_bytes

    def __len__(self) -> int:
        return len(self._encoded)

    @overload
    def __getitem__(self, index: int) -> Item | InvalidItem: ...

    @overload
    def __getitem__(self, index: slice) -> list[Item | InvalidItem]: ...

    def __getitem__(self, index: int | slice) -> Item | InvalidItem | list[Item | InvalidItem]:
        if isinstance(index, slice):
            return [_decode_item(one.item_id, one.text, self._max_text_bytes) for one in self._encoded[index]]
        one = self._encoded[index]
        return _decode_item(one.item_id, one.text, self._max_text_bytes)


def _invalid_message(error: InvalidRequestError) -> Message:
    """Returns a message of one invalid item, which stands for a message whose items were not decoded."""
    return Message((InvalidItem("", error),), RequestOptions(), error=error)


def _lookup(table: dict[Any, Any], number: int, field: str) -> Any:
    if number not in table:
        raise InvalidRequestError(f"UNKNOWN_{field.upper()}", f"the {field} is not one that this server knows")
    return table[number]


def _fingerprint(expected: str) -> str:
    if len(expected) not in {0, _FINGERPRINT_DIGITS}:
        problem = f"an expected fingerprint does not have {_FINGERPRINT_DIGITS} digits"
        raise InvalidRequestError("INVALID_FINGERPRINT", problem)
    return expected


def _expected_heads(heads: Sequence[Any]) -> tuple[tuple[str, str], ...]:
    if len(heads) > _MAX_EXPECTED_HEADS:
        problem = f"expected_fingerprints lists more than {_MAX_EXPECTED_HEADS} heads"
        raise InvalidRequestError("INVALID_FINGERPRINT", problem)
    return tuple((head.head, _fingerprint(head.fingerprint)) for head in heads)


def _decode_item(item_id: bytes, text: bytes, max_text_bytes: int) -> Item | InvalidItem:
    """Decodes an item, and of its text only as much as the model may need."""
    if len(item_id) > MAX_ITEM_ID_BYTES:
        return InvalidItem(_echoed(item_id), _ID_TOO_LONG)
    try:
        decoded_id = item_id.decode()
    except UnicodeDecodeError:
        return InvalidItem(_echoed(item_id), _ID_NOT_UTF8)
    return item_from_bytes(decoded_id, text, max_text_bytes)


def _echoed(item_id: bytes) -> str:
    return item_id[:MAX_ITEM_ID_BYTES].decode(errors="replace")[:_MAX_ECHOED_ID]


def _bytes_types() -> dict[str, type[message.Message]]:
    """Builds variants of the request messages whose items hold ``bytes`` instead of ``string`` fields.

    protobuf rejects a whole message for one string that is not UTF-8, and it decodes texts of megabytes of which the
    model reads a few kilobytes. Both types have the same encoding on the wire.
    """
    package = "polyhead.bytes"
    file = descriptor_pb2.FileDescriptorProto(name="polyhead/bytes.proto", package=package, syntax="proto3")
    items = descriptor_pb2.FileDescriptorProto.FromString(item_pb2.DESCRIPTOR.serialized_pb)
    service = descriptor_pb2.FileDescriptorProto.FromString(inference_service_pb2.DESCRIPTOR.serialized_pb)
    requests = [kind for kind in service.message_type if kind.name.endswith("Request")]
    file.enum_type.extend(items.enum_type)
    file.message_type.extend(
        kind
        for kind in items.message_type
        if kind.name in {"Item", "ItemOptions", "EmbeddingOptions", "Fingerprints", "HeadFingerprint"}
    )
    file.message_type.extend(requests)
    for kind in file.message_type:
        for field in kind.field:
            if field.type_name:
                field.type_name = field.type_name.replace(".polyhead.v1.", f".{package}.")
            if kind.name == "Item":
                field.type = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        kind.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{kind.name}"))
        for kind in requests
    }


_BYTES_TYPES = _bytes_types()

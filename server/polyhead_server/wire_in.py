"""Wire in: request messages to the server's own types.

Reading never raises: what cannot be read becomes an item with an error, so that a bad item costs nobody else's answer.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory
from polyhead.v1 import inference_service_pb2, item_pb2

from .errors import InvalidRequestError
from .items import ALL_TASKS, BadItem, Encoding, Item, Message, Task, Truncation, Wishes

MAX_ITEM_ID_BYTES = 256
# Code points of an unusable id that come back: enough to find it, too few to make the answer too large for the client.
_SHOWN = 64

_TASKS = {
    item_pb2.TASK_EMBEDDING: Task.EMBEDDING,
    item_pb2.TASK_CLASSIFICATION: Task.CLASSIFICATION,
    item_pb2.TASK_SENTIMENT: Task.SENTIMENT,
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
    item_pb2.ANSWER_ORDER_FINISHED: False,
}


class Reader:
    """Reads request messages of one type; used as gRPC's deserializer."""

    def __init__(self, request_type: type[message.Message], max_items: int, tasks: frozenset[Task] = ALL_TASKS) -> None:
        """Prepares to read.

        Args:
            request_type: The generated class.
            max_items: Items that a message may carry; a message with more is answered once, as a whole.
            tasks: What is asked for when the message does not say, or cannot.
        """
        self._strict = request_type
        self._lenient = _LENIENT_TYPES[request_type.DESCRIPTOR.name]
        self._max_items = max_items
        self._tasks = tasks

    def __call__(self, data: bytes) -> Message:
        """Reads a message; never raises."""
        try:
            return self._read(self._strict.FromString(data))
        except message.DecodeError:
            pass
        try:
            return self._read(self._lenient.FromString(data))
        except message.DecodeError:
            return _unread(
                "MALFORMED_MESSAGE", "the message is no protobuf message of this RPC; nothing of it was read"
            )

    def _read(self, request: Any) -> Message:
        if len(request.items) > self._max_items:
            # One answer for all: an answer for each of millions of empty items would cost more than they did.
            problem = f"the message has {len(request.items)} items; at most {self._max_items} are allowed"
            return _unread("TOO_MANY_ITEMS", problem)
        items = tuple(_read_item(item.item_id, item.text) for item in request.items)
        try:
            in_order = _known(_IN_ORDER, getattr(request, "order", 0), "order")
            return Message(items, self._wishes(request), in_order)
        except InvalidRequestError as error:
            return Message(tuple(BadItem(item.item_id, error) for item in items), Wishes())

    def _wishes(self, request: Any) -> Wishes:
        tasks = frozenset(_known(_TASKS, task, "task") for task in getattr(request, "tasks", ()))
        embedding_options = getattr(request, "embedding_options", None)
        expected = request.options.expected_fingerprints
        return Wishes(
            tasks=tasks or self._tasks,
            encoding=_known(_ENCODINGS, embedding_options.encoding if embedding_options else 0, "encoding"),
            dimensions=embedding_options.dimensions if embedding_options else 0,
            truncation=_known(_TRUNCATION, request.options.truncation, "truncation"),
            timings=request.options.include_timings,
            expected_space=expected.embedding_space,
            expected_heads=tuple((head.head, head.fingerprint) for head in expected.heads),
        )


def _unread(reason: str, problem: str) -> Message:
    """Stands for a message of which no item was read."""
    return Message((BadItem("", InvalidRequestError(reason, problem)),), Wishes())


def _known(table: dict[Any, Any], number: int, field: str) -> Any:
    if number not in table:
        raise InvalidRequestError(f"UNKNOWN_{field.upper()}", f"{field} {number} is not known to this server")
    return table[number]


def _read_item(item_id: str | bytes, text: str | bytes) -> Item | BadItem:
    """An item; its fields are bytes when the message holds text that is not UTF-8."""
    identity = item_id if isinstance(item_id, str) else item_id.decode(errors="replace")
    if isinstance(item_id, bytes) and identity.encode() != item_id:
        return BadItem(identity[:_SHOWN], InvalidRequestError("ITEM_ID_NOT_UTF8", "item_id is not valid UTF-8"))
    if len(identity.encode()) > MAX_ITEM_ID_BYTES:
        problem = f"item_id has more than {MAX_ITEM_ID_BYTES} bytes"
        return BadItem(identity[:_SHOWN], InvalidRequestError("ITEM_ID_TOO_LONG", problem))
    try:
        return Item(identity, text if isinstance(text, str) else text.decode())
    except UnicodeDecodeError as error:
        problem = f"text is not valid UTF-8: {error.reason} at byte {error.start}"
        return BadItem(identity, InvalidRequestError("TEXT_NOT_UTF8", problem))


def _lenient_types() -> dict[str, type[message.Message]]:
    """The request messages once more, with bytes where items have strings.

    protobuf refuses a whole message for one string that is not UTF-8; bytes have the same form on the wire, so these
    read what the generated classes cannot.
    """
    package = "polyhead.lenient"
    file = descriptor_pb2.FileDescriptorProto(name="polyhead/lenient.proto", package=package, syntax="proto3")
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


_LENIENT_TYPES = _lenient_types()

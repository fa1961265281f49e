"""An HTTP/2 client that does what gRPC's own clients never do: it grants no window, cuts messages, and reads slowly."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.settings import SettingCodes, Settings

TIMEOUT_S = 30.0
_FRAME_HEADER, _GOAWAY = 9, 7


def frame(message: bytes, *, compressed: bool = False) -> bytes:
    """Returns a message with gRPC's prefix: whether it is compressed, and its length."""
    return struct.pack(">BI", compressed, len(message)) + message


@dataclass
class Outcome:
    """What a stream has received so far.

    Attributes:
        data: Bytes of its messages, with gRPC's prefixes.
        headers: Headers and trailers.
        ended: Whether the server has ended it, with or without a status.
    """

    data: bytearray = field(default_factory=bytearray)
    headers: dict[str, str] = field(default_factory=dict)
    ended: bool = False

    @property
    def status(self) -> int | None:
        """The gRPC status code; None before the trailers, or if the stream or the connection was reset."""
        return int(self.headers["grpc-status"]) if "grpc-status" in self.headers else None


class Http2Client:
    """A connection to a server, as a context manager.

    Attributes:
        closed: Whether the server has closed the connection.
        going_away: Whether the server has sent GOAWAY.
    """

    def __init__(self, port: int, window: int = 65_535) -> None:
        """Connects.

        Args:
            port: Port on the loopback interface.
            window: Initial flow-control window of each stream in bytes; 0 lets the server send no message.
        """
        self.closed = self.going_away = False
        self._socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        self._connection = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._connection.local_settings = Settings(
            client=True, initial_values={SettingCodes.INITIAL_WINDOW_SIZE: window}
        )
        self._connection.initiate_connection()
        self._outcomes: dict[int, Outcome] = {}
        self._received = bytearray()
        self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()

    def open(self, method: str, headers: Sequence[tuple[str, str]] = (), *, end: bool = False) -> int:
        """Sends the headers of a call and returns its stream id.

        Args:
            method: ``SERVICE/METHOD``.
            headers: Additional headers.
            end: Whether to end the client's side of the call at once.
        """
        stream = self._connection.get_next_available_stream_id()
        base = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", f"/{method}"),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ]
        self._connection.send_headers(stream, [*base, *headers], end_stream=end)
        self._outcomes[stream] = Outcome()
        self._flush()
        return stream

    def send(self, stream: int, data: bytes, *, end: bool = True) -> None:
        """Sends bytes of a message under flow control, and then ends the client's side of the call if requested."""
        deadline = time.monotonic() + TIMEOUT_S
        while data and not self.closed and not self._outcomes[stream].ended:
            size = min(self._connection.local_flow_control_window(stream), self._connection.max_outbound_frame_size)
            if size:
                self._connection.send_data(stream, data[:size])
                data = data[size:]
                self._flush()
            else:
                assert time.monotonic() < deadline, "the server grants no window"
                self.receive(0.05)
        if end and not self.closed and not self._outcomes[stream].ended:
            self._connection.end_stream(stream)
            self._flush()

    def call(self, method: str, message: bytes, headers: Sequence[tuple[str, str]] = (), **options: bool) -> Outcome:
        """Sends a unary call, reads its response and returns the outcome."""
        stream = self.open(method, headers)
        self.send(stream, frame(message, **options))
        return self.finish(stream)

    def finish(self, stream: int, *, timeout_s: float = TIMEOUT_S, bytes_per_s: float | None = None) -> Outcome:
        """Reads until a stream ends, the connection is closed or the time is over; returns the outcome.

        Args:
            stream: Id of the stream.
            timeout_s: Limit on the time.
            bytes_per_s: Reads no faster than this.
        """
        deadline, outcome = time.monotonic() + timeout_s, self._outcomes[stream]
        while not outcome.ended and not self.closed and time.monotonic() < deadline:
            received = self.receive(0.1, acknowledge=True)
            if bytes_per_s:
                time.sleep(received / bytes_per_s)
        return outcome

    def outcome(self, stream: int) -> Outcome:
        """Returns what a stream has received so far."""
        return self._outcomes[stream]

    def receive(self, timeout_s: float, *, acknowledge: bool = False) -> int:
        """Processes what arrives next within a time; returns the number of bytes of messages.

        Args:
            timeout_s: Time to wait for anything.
            acknowledge: Whether to grant window for the bytes that were read.
        """
        self._socket.settimeout(timeout_s)
        try:
            data = self._socket.recv(65_536)
        except TimeoutError:
            return 0
        except OSError:
            data = b""
        if not data:
            self.closed = True
            return 0
        events = self._connection.receive_data(self._frames_but_goaway(data))
        received = sum(self._on_event(event, acknowledge=acknowledge) for event in events)
        self._flush()
        return received

    def _frames_but_goaway(self, data: bytes) -> bytes:
        """Returns the frames that are complete. h2 would read nothing after GOAWAY, which only precedes the end."""
        self._received += data
        frames = bytearray()
        while len(self._received) >= _FRAME_HEADER:
            end = _FRAME_HEADER + int.from_bytes(self._received[:3], "big")
            if len(self._received) < end:
                break
            if self._received[3] == _GOAWAY:
                self.going_away = True
            else:
                frames += self._received[:end]
            del self._received[:end]
        return bytes(frames)

    def _on_event(self, event: Event, *, acknowledge: bool) -> int:
        outcome = self._outcomes.get(getattr(event, "stream_id", None) or 0)
        if outcome is None:
            return 0
        if isinstance(event, ResponseReceived | TrailersReceived):
            outcome.headers.update((str(name), str(value)) for name, value in event.headers or ())
        elif isinstance(event, StreamEnded | StreamReset):
            outcome.ended = True
        elif isinstance(event, DataReceived):
            outcome.data += event.data or b""
            if acknowledge and event.flow_controlled_length and event.stream_id:
                self._connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            return len(event.data or b"")
        return 0

    def _flush(self) -> None:
        try:
            self._socket.settimeout(TIMEOUT_S)
            self._socket.sendall(self._connection.data_to_send())
        except OSError:
            self.closed = True

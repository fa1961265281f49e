"""A bad network between a client and a server: a TCP proxy that is slow, late, or breaks off."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass


@dataclass
class NetworkConditions:
    """How the network is; may change while connections are open.

    Attributes:
        delay_s: Each way, before anything comes through.
        bytes_per_s: Each way, of each connection; 0 for as fast as it goes.
        break_after: Bytes towards the client after which a connection is reset; 0 for never.
        breaks: Connections that were reset.
    """

    delay_s: float = 0.0
    bytes_per_s: float = 0.0
    break_after: int = 0
    breaks: int = 0


@contextlib.asynccontextmanager
async def bad_network(target: str, weather: NetworkConditions) -> AsyncIterator[str]:
    """A proxy before HOST:PORT; yields its own."""
    host, _, port = target.rpartition(":")
    writers: set[asyncio.StreamWriter] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(host, int(port))
        both = {writer, upstream_writer}
        writers.update(both)
        try:
            await asyncio.gather(
                _pass_on(reader, upstream_writer, weather, towards_client=False),
                _pass_on(upstream_reader, writer, weather, towards_client=True),
            )
        except OSError:
            _reset(writer)
        finally:
            for one in both:
                one.close()
            writers.difference_update(both)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in list(writers):
            writer.transport.abort()
        # So that the connections' tasks see it before the loop ends.
        await asyncio.sleep(0.1)


async def _pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, weather: NetworkConditions, *, towards_client: bool
) -> None:
    """Hands on what comes, in its order, each piece so much later than it came."""
    pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)
    loop = asyncio.get_running_loop()

    async def take() -> None:
        while data := await reader.read(8192):
            await pieces.put((loop.time() + weather.delay_s, data))
        await pieces.put((0.0, b""))

    taking = asyncio.create_task(take())
    passed = 0
    try:
        while True:
            due, data = await pieces.get()
            if not data:
                # The other way may still be open.
                if writer.can_write_eof():
                    writer.write_eof()
                await taking
                return
            await asyncio.sleep(max(0.0, due - loop.time()))
            if weather.bytes_per_s:
                await asyncio.sleep(len(data) / weather.bytes_per_s)
            passed += len(data)
            if towards_client and weather.break_after and passed > weather.break_after:
                # In the middle of a message, as it comes.
                writer.write(data[: len(data) // 2])
                weather.breaks += 1
                raise ConnectionResetError
            writer.write(data)
            await writer.drain()
    finally:
        taking.cancel()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection without a farewell: the peer sees a reset."""
    # It may have ended from the other side.
    with contextlib.suppress(OSError):
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()

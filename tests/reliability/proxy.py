"""A bad network between a client and a server: a TCP proxy that delays, throttles and resets connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass


@dataclass
class NetworkConditions:
    """State of the network; may change while connections are open.

    Attributes:
        delay_s: Delay in each direction.
        bytes_per_s: Throughput of each connection in each direction; 0 for no limit.
        reset_after_bytes: Bytes towards the client after which a connection is reset; 0 for never.
        resets: Number of connections that were reset.
    """

    delay_s: float = 0.0
    bytes_per_s: float = 0.0
    reset_after_bytes: int = 0
    resets: int = 0


@contextlib.asynccontextmanager
async def bad_network(target: str, conditions: NetworkConditions) -> AsyncIterator[str]:
    """Runs a proxy in front of HOST:PORT; yields the HOST:PORT of the proxy."""
    host, _, port = target.rpartition(":")
    writers: set[asyncio.StreamWriter] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(host, int(port))
        both = {writer, upstream_writer}
        writers.update(both)
        try:
            await asyncio.gather(
                _forward(reader, upstream_writer, conditions, towards_client=False),
                _forward(upstream_reader, writer, conditions, towards_client=True),
            )
        except OSError:
            _reset(writer)
        finally:
            for one in both:
                one.close()
            writers.difference_update(both)

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in list(writers):
            writer.transport.abort()
        # Lets the tasks of the connections finish before the loop ends.
        await asyncio.sleep(0.1)


async def _forward(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, conditions: NetworkConditions, *, towards_client: bool
) -> None:
    """Forwards data in order, each chunk after the delay."""
    chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)
    loop = asyncio.get_running_loop()

    async def receive() -> None:
        while data := await reader.read(8192):
            await chunks.put((loop.time() + conditions.delay_s, data))
        await chunks.put((0.0, b""))

    receiving = asyncio.create_task(receive())
    forwarded = 0
    try:
        while True:
            due, data = await chunks.get()
            if not data:
                # The other direction may still be open.
                if writer.can_write_eof():
                    writer.write_eof()
                await receiving
                return
            await asyncio.sleep(max(0.0, due - loop.time()))
            if conditions.bytes_per_s:
                await asyncio.sleep(len(data) / conditions.bytes_per_s)
            forwarded += len(data)
            if towards_client and conditions.reset_after_bytes and forwarded > conditions.reset_after_bytes:
                # Half of a chunk, so that the reset falls into the middle of a message.
                writer.write(data[: len(data) // 2])
                conditions.resets += 1
                raise ConnectionResetError
            writer.write(data)
            await writer.drain()
    finally:
        receiving.cancel()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Closes a connection so that the peer sees a reset instead of an orderly end."""
    # The peer may have closed it already.
    with contextlib.suppress(OSError):
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()

"""The connections of a client: unary calls with retries and hedging, streaming calls, and closing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from polyhead.v1 import inference_service_pb2_grpc as service_grpc

from polyhead_client.core.batch_call import Attempts
from polyhead_client.core.hedging import Hedging
from polyhead_client.core.retry import Deadline, RetryPolicy
from polyhead_client.transport.diagnosis import Diagnosis
from polyhead_client.transport.pool import ConnectionPool
from polyhead_client.transport.runtime import Queue, Runtime

from .errors import PolyheadError, UnavailableError
from .streaming import Stream

StreamMethod = Literal["StreamAnalyze", "StreamEmbed", "StreamClassify", "StreamSentiment"]
UnaryMethod = Literal["Analyze", "GetModelInfo"]


class Session:
    """Open connections to one target.

    Attributes:
        runtime: Threads or asyncio.
        pool: The connections.
    """

    def __init__(
        self,
        runtime: Runtime,
        channels: list[Any],
        *,
        hedging: Hedging,
        diagnosis: Diagnosis,
        metadata: tuple[tuple[str, str], ...],
        wait_for_ready: bool,
    ) -> None:
        """Takes over the channels.

        Args:
            runtime: Threads or asyncio.
            channels: Channels that connect on first use.
            hedging: When unary calls are sent a second time.
            diagnosis: Explains why calls fail.
            metadata: Sent with every call.
            wait_for_ready: Wait for an unreachable server until the call's deadline.
        """
        self.runtime = runtime
        self.pool = ConnectionPool([service_grpc.InferenceServiceStub(channel) for channel in channels])
        self._channels = channels
        self._hedging = hedging
        self._diagnosis = diagnosis
        self._responded = False  # whether any unary call had a response
        self._metadata = metadata
        self._wait_for_ready = wait_for_ready
        self._streams: set[Stream] = set()  # those that are running
        self._closed = False
        self._changed = runtime.condition()  # notified when the session is closed

    @property
    def running_streams(self) -> int:
        """Number of streams between start and stop."""
        return len(self._streams)

    def start_stream(self, stub: Any, method: StreamMethod, requests: Any, deadline: Deadline) -> Any:
        """Starts a streaming gRPC call."""
        self.require_still_open()
        return getattr(stub, method)(requests, **self._call_options(deadline))

    @contextmanager
    def running(self, stream: Stream) -> Iterator[None]:
        """Registers a stream while it runs, so that ``close`` ends it."""
        self._streams.add(stream)
        try:
            self.require_still_open()
            yield
        finally:
            self._streams.discard(stream)

    async def close(self) -> None:
        """Ends all calls and closes the connections."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()
        for stream in list(self._streams):
            await stream.fail(_closed_error())
        await self.runtime.close_channels(self._channels)

    async def call(self, method: UnaryMethod, request: Any, retry: RetryPolicy) -> Any:
        """Makes a unary call, in as many attempts as it takes, and returns its response."""
        attempts = Attempts(retry)
        while True:
            self.require_still_open()
            hedge_s = self._hedging.delay_s()
            start = time.monotonic()
            try:
                with self.runtime.map_errors():
                    if hedge_s is None:
                        response = await self._attempt(method, request, attempts)
                    else:
                        response = await self._hedged_attempt(method, request, attempts, hedge_s)
            except PolyheadError as error:
                delay_s = attempts.on_failure(error)
                if delay_s is None:
                    raise await self.explain(error, self._responded) from error.__cause__
                await self.wait(delay_s)
            except ValueError:  # gRPC raises it for a channel that was closed in this moment
                self.require_still_open()
                raise
            else:
                attempts.on_success()
                self._responded = True
                self._hedging.observe(time.monotonic() - start)
                return response

    async def explain(self, error: PolyheadError, responded: bool) -> PolyheadError:
        """Returns the error that tells the cause and the fix, if they can be found; otherwise ``error``.

        Args:
            error: The error of a call that is not retried.
            responded: Whether the server has responded before, so that an expired deadline has no cause to look for.
        """
        if error.code in {"UNAVAILABLE", "UNIMPLEMENTED"} or (error.code == "DEADLINE_EXCEEDED" and not responded):
            return await self.runtime.offload(self._diagnosis.explain, error)
        return error

    async def _attempt(self, method: UnaryMethod, request: Any, attempts: Attempts) -> Any:
        with self.pool.acquire(attempts.tried) as lease:
            attempts.tried.add(lease.index)
            return await self.runtime.call(
                getattr(lease.stub, method), request, **self._call_options(attempts.deadline)
            )

    async def _hedged_attempt(self, method: UnaryMethod, request: Any, attempts: Attempts, hedge_s: float) -> Any:
        """Returns the first response of two calls; the second starts after ``hedge_s`` if the budget allows it."""
        completed = self.runtime.queue()
        calls = [self._start_call(method, request, attempts, completed)]
        try:
            first = await completed.get(hedge_s)
            if first is None:
                if self._hedging.try_spend():
                    calls.append(self._start_call(method, request, attempts, completed))
                first = await completed.get()
            if len(calls) > 1 and not await self.runtime.succeeded(first):
                first = await completed.get()
            return await self.runtime.response(first)
        finally:
            for call in calls:
                call.cancel()

    def _start_call(self, method: UnaryMethod, request: Any, attempts: Attempts, completed: Queue) -> Any:
        """Starts a call that puts itself into ``completed`` at its end."""
        self.require_still_open()
        lease = self.pool.acquire(attempts.tried)
        attempts.tried.add(lease.index)
        try:
            stub_method = getattr(lease.stub, method)
            call = self.runtime.start_call(stub_method, request, **self._call_options(attempts.deadline))
        except BaseException:
            lease.release()
            raise
        call.add_done_callback(lambda _: lease.release())
        call.add_done_callback(completed.put)
        return call

    async def wait(self, seconds: float) -> None:
        """Waits, until the client is closed at most.

        Raises:
            UnavailableError: The client was closed.
        """
        if seconds > 0:
            async with self._changed:
                await self._changed.wait_until(lambda: self._closed, seconds)
        self.require_still_open()

    def require_still_open(self) -> None:
        """Ends a call during which the client was closed."""
        if self._closed:
            raise _closed_error()

    def _call_options(self, deadline: Deadline) -> dict[str, Any]:
        """Returns the gRPC options of a call."""
        return {
            "timeout": deadline.left_s(),
            "wait_for_ready": self._wait_for_ready,
            "metadata": self._metadata,
        }


def _closed_error() -> UnavailableError:
    return UnavailableError("CANCELLED", "the client was closed before the call ended")

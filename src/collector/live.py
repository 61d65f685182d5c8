"""Live subscribers over WebSocket: dashboards and tails that would rather lose a batch than hold anybody up.

A subscriber says its token in the `Authorization: Bearer` header of the handshake, and gets its own org's batches as
binary messages: one line of JSON (stream, number, exporter, records, and how many batches were shed for it so far),
a newline, then the batch's IPFIX messages. What does not fit its buffer is shed, counted and told. Before all else
comes, in messages with `"options": true`, what the org's exporters on this collector told of themselves (sampling
rates, names), so that a subscriber need not wait until they say it again.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import structlog
import trio
import trio_websocket
from attrs import define, frozen

from collector.endpoints import Endpoint, StreamState
from sapflow.link import Batch, Traffic
from sapflow.runtime.channel import ByteChannel

log = structlog.get_logger()

PATH = "/live"
RECEIVE_BUFFER_BYTES = 256 << 10
MAX_INCOMING_BYTES = 32 << 10
INCOMING_BYTES_PER_S = 256
"""What a subscriber may say: its handshake, pings now and then. All else costs nobody memory or time."""


@frozen
class LiveSettings:
    """Bounds of the live door."""

    buffer_bytes: int = 4 << 20
    handshake_timeout_s: float = 5.0
    send_timeout_s: float = 30.0


@define
class LiveCounts:
    """What live subscribers were given and not given; never goes down, but for `subscribers`."""

    subscribers: int = 0
    unauthorized: int = 0
    batches_shed: int = 0
    records_shed: int = 0


class _Subscription:
    """One live subscriber's buffer: takes a batch or sheds it."""

    def __init__(self, counts: LiveCounts, buffer_bytes: int) -> None:
        self.channel: ByteChannel[tuple[StreamState, Batch, int]] = ByteChannel(buffer_bytes)
        self.shed = 0
        self._counts = counts

    def offer(self, stream: StreamState, batch: Batch) -> None:
        """Never waits."""
        if not self.channel.try_send((stream, batch, self.shed), batch.size):
            self.shed += 1
            self._counts.batches_shed += 1
            self._counts.records_shed += batch.records


class _Laconic(trio.abc.Stream):
    """A stream whose other end may say little: more is as if it had gone."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._left = float(MAX_INCOMING_BYTES)
        self._since = trio.current_time()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._stream.receive_some(max_bytes)
        now = trio.current_time()
        refilled = self._left + (now - self._since) * INCOMING_BYTES_PER_S
        self._left, self._since = min(refilled, MAX_INCOMING_BYTES) - len(data), now
        if self._left < 0:
            raise trio.BrokenResourceError("a live subscriber said more than it may")
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


class LiveDoor:
    """Serves WebSocket subscribers of one collector."""

    def __init__(
        self, settings: LiveSettings, authenticate: Callable[[str], str | None], endpoint: Callable[[str], Endpoint]
    ) -> None:
        self.settings = settings
        self.counts = LiveCounts()
        self.given = Traffic()
        self._authenticate = authenticate
        self._endpoint = endpoint

    async def serve(self, stream: trio.abc.Stream, peer: str) -> None:
        """One connection; its subscription lives in this task's nursery and cannot outlive it."""
        try:
            async with trio.open_nursery() as nursery:
                with trio.fail_after(self.settings.handshake_timeout_s):
                    request = await trio_websocket.wrap_server_stream(nursery, _Laconic(stream))
                    org = self._org(request)
                    if org is None:
                        self.counts.unauthorized += 1
                        log.warning("live subscriber refused", peer=peer, reason="credential or path not accepted")
                        await request.reject(401, body=b"credential not accepted\n")
                        nursery.cancel_scope.cancel()
                        return
                    socket = await request.accept()
                await self._feed(socket, org, nursery)
        except* (trio_websocket.ConnectionClosed, trio_websocket.HandshakeError, trio.TooSlowError):
            log.info("live subscriber left", peer=peer)

    def _org(self, request: trio_websocket.WebSocketRequest) -> str | None:
        credentials = [value for name, value in request.headers if name.lower() == b"authorization"]
        if request.path.split("?")[0] != PATH or len(credentials) != 1:
            return None
        scheme, _, token = credentials[0].decode("latin-1").partition(" ")
        return self._authenticate(token.strip()) if scheme.lower() == "bearer" else None

    async def _feed(self, socket: trio_websocket.WebSocketConnection, org: str, nursery: trio.Nursery) -> None:
        endpoint = self._endpoint(org)
        subscription = _Subscription(self.counts, self.settings.buffer_bytes)
        endpoint.live.append(subscription)
        self.counts.subscribers += 1
        try:
            nursery.start_soon(_until_closed, socket, nursery.cancel_scope)
            await self._tell(socket, endpoint)
            while True:
                for stream, batch, shed in await subscription.channel.receive_all(RECEIVE_BUFFER_BYTES):
                    await self._send(socket, _message(stream, batch, shed))
                    self.given.add(batch)
        finally:
            endpoint.live.remove(subscription)
            self.counts.subscribers -= 1

    async def _tell(self, socket: trio_websocket.WebSocketConnection, endpoint: Endpoint) -> None:
        """First what the org's exporters told of themselves, in messages of options data only."""
        for stream in list(endpoint.streams.values()):
            for data in stream.told.messages():
                await self._send(socket, _options(stream, data))

    async def _send(self, socket: trio_websocket.WebSocketConnection, message: bytes) -> None:
        with trio.fail_after(self.settings.send_timeout_s):
            await socket.send_message(message)


async def _until_closed(socket: trio_websocket.WebSocketConnection, scope: trio.CancelScope) -> None:
    """A live subscriber has nothing to say; what it says is read and let go, and its close ends its tasks."""
    try:
        while True:
            await socket.get_message()
    except trio_websocket.ConnectionClosed:
        scope.cancel()


def _message(stream: StreamState, batch: Batch, shed: int) -> bytes:
    head = {
        "stream": stream.id.hex(),
        "seq": batch.seq,
        "exporter": stream.exporter,
        "records": batch.records,
        "received_us": batch.received_us,
        "shed": shed,
    }
    return json.dumps(head, separators=(",", ":")).encode() + b"\n" + batch.payload


def _options(stream: StreamState, data: bytes) -> bytes:
    """Of what was told before: no batch, so it has no number."""
    head = {"stream": stream.id.hex(), "exporter": stream.exporter, "options": True}
    return json.dumps(head, separators=(",", ":")).encode() + b"\n" + data

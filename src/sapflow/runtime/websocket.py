"""A WebSocket as a byte stream, for links where only HTTPS gets out (RFC 6455).

wsproto does the protocol; here is only the transport. A link needs no message boundaries, so nothing is gathered:
fragments are passed on as they come, and a message that is too long or in too many pieces is refused. No extension is
negotiated: permessage-deflate inflates before any limit can be checked.
"""

from __future__ import annotations

from contextlib import suppress

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Message,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
)
from wsproto.events import Event as WebSocketEvent
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from sapflow.errors import LinkError

PATH = "/link"
READ_BYTES = 256 << 10
MAX_HANDSHAKE_BYTES = 16 << 10
MAX_MESSAGE_BYTES = 1 << 20
MAX_FRAGMENTS = 1024
SEND_BYTES = 256 << 10
LINGER_S = 0.5
GOING_AWAY, PROTOCOL, UNSUPPORTED, TOO_BIG = 1001, 1002, 1003, 1009


class WebSocketStream(trio.abc.Stream):
    """Binary messages as bytes, over any transport; `accept` or `connect` make one."""

    def __init__(self, transport: trio.abc.Stream, kind: ConnectionType) -> None:
        self._transport = transport
        self._protocol = WSConnection(kind)
        self._sending = trio.Lock()
        self._events: list[WebSocketEvent] = []
        self._ended = False
        self._message_bytes = 0
        self._fragments = 0

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Bytes of the next binary fragments; b"" when the other end closed.

        Raises LinkError when it broke the protocol, after telling it so.
        """
        pieces: list[bytes] = []
        while not pieces and not self._ended:
            while self._events:
                await self._take(self._events.pop(0), pieces)
            if not pieces and not self._ended:
                await self._read()
        return b"".join(pieces)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes as binary messages."""
        view = memoryview(data)
        for at in range(0, len(view), SEND_BYTES):
            await self._say(BytesMessage(data=bytes(view[at : at + SEND_BYTES])))

    async def wait_send_all_might_not_block(self) -> None:
        """Until the transport may take more."""
        await self._transport.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Say goodbye if that can be said now, and close."""
        try:
            # The other end may have gone already; then nobody is left to say it to.
            with trio.move_on_after(1.0), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                if self._protocol.state is ConnectionState.OPEN:
                    await self._say(CloseConnection(code=GOING_AWAY))
        finally:
            await self._transport.aclose()

    async def _take(self, event: WebSocketEvent, pieces: list[bytes]) -> None:
        match event:
            case BytesMessage():
                self._message_bytes += len(event.data)
                self._fragments += 1
                if self._message_bytes > MAX_MESSAGE_BYTES or self._fragments > MAX_FRAGMENTS:
                    await self._refuse(TOO_BIG, "a message that is too long, or in too many pieces")
                if event.message_finished:
                    self._message_bytes = self._fragments = 0
                if event.data:
                    pieces.append(bytes(event.data))
            case Ping():
                await self._say(event.response())
            case CloseConnection() if self._protocol.state is ConnectionState.REMOTE_CLOSING:
                self._ended = True
                await self._say(event.response())
            case CloseConnection() if self._protocol.state is ConnectionState.OPEN:
                # What wsproto makes of a frame that breaks the protocol, for us to say.
                await self._refuse(event.code, f"not a WebSocket frame: {event.reason}")
            case CloseConnection():
                self._ended = True
            case Message():
                await self._refuse(UNSUPPORTED, "a text message; a link speaks binary")
            case Pong():
                return
            case _:
                await self._refuse(PROTOCOL, f"{type(event).__name__} inside a link")

    async def _refuse(self, code: int, what: str) -> None:
        self._ended = True
        with trio.move_on_after(LINGER_S), suppress(trio.BrokenResourceError):
            await self._say(CloseConnection(code=code, reason=what[:100]))
            # A close with bytes unread is a reset, which would overtake what was just said.
            while await self._transport.receive_some(READ_BYTES):
                continue
        raise LinkError(what, code=code)

    async def _read(self) -> None:
        data = await self._transport.receive_some(READ_BYTES)
        try:
            self._protocol.receive_data(bytes(data) or None)
            self._events += self._protocol.events()
        except RemoteProtocolError as error:
            if not data:
                self._ended = True
                return
            code = error.event_hint.code if isinstance(error.event_hint, CloseConnection) else PROTOCOL
            await self._refuse(code, f"not a WebSocket frame: {error}")
        if not data:
            self._ended = True

    async def _say(self, event: WebSocketEvent) -> None:
        async with self._sending:
            try:
                data = self._protocol.send(event)
            except LocalProtocolError as error:
                raise trio.BrokenResourceError("the WebSocket is closed") from error
            await self._transport.send_all(data)

    async def handshake_event(self) -> WebSocketEvent:
        """The next event of the opening handshake. Raises LinkError when it is none, or too long."""
        taken = 0
        while not self._events:
            data = await self._transport.receive_some(4096)
            taken += len(data)
            if not data or taken > MAX_HANDSHAKE_BYTES:
                raise LinkError("no WebSocket handshake", code=PROTOCOL)
            try:
                self._protocol.receive_data(bytes(data))
                self._events += self._protocol.events()
            except (RemoteProtocolError, UnicodeDecodeError) as error:
                # wsproto takes header values to be ASCII before it looks at them.
                raise LinkError(f"not a WebSocket handshake: {error}", code=PROTOCOL) from error
        return self._events.pop(0)

    async def answer(self, event: WebSocketEvent) -> None:
        """Say an event of the opening handshake."""
        await self._say(event)


async def accept(transport: trio.abc.Stream) -> WebSocketStream:
    """The server's side of the handshake. Raises LinkError; its deadline is the caller's."""
    stream = WebSocketStream(transport, ConnectionType.SERVER)
    request = await stream.handshake_event()
    if not isinstance(request, Request) or request.target.split("?")[0] != PATH:
        await stream.answer(RejectConnection(status_code=404, has_body=True))
        await stream.answer(RejectData(data=f"links are at {PATH}\n".encode()))
        raise LinkError("a WebSocket to another path", code=PROTOCOL)
    await stream.answer(AcceptConnection())
    return stream


async def connect(transport: trio.abc.Stream, host: str, target: str = PATH) -> WebSocketStream:
    """The client's side of the handshake. Raises LinkError; its deadline is the caller's."""
    stream = WebSocketStream(transport, ConnectionType.CLIENT)
    await stream.answer(Request(host=host, target=target))
    answer = await stream.handshake_event()
    if not isinstance(answer, AcceptConnection):
        raise LinkError("the other end takes no WebSocket here", code=PROTOCOL)
    return stream

"""What a link may run over: plain TCP, TLS, WebSocket, or WebSocket inside TLS. One door takes them all.

The first bytes say which: a link's own preamble, a TLS handshake, or an HTTP request.
"""

from __future__ import annotations

import ssl
from urllib.parse import urlsplit

import trio
from attrs import frozen

from sapflow.errors import ConfigurationError, LinkError, Unreachable
from sapflow.link.frames import MAGIC
from sapflow.runtime import websocket
from sapflow.runtime.dial import dial

SCHEMES = ("link", "links", "ws", "wss")
TLS_HANDSHAKE = b"\x16"
HTTP_GET = b"GET "
FIRST_BYTES = 4


class _Begun(trio.abc.Stream):
    """A stream whose first bytes were read already."""

    def __init__(self, stream: trio.abc.Stream, head: bytes) -> None:
        self._stream = stream
        self._head = head

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._head:
            await trio.lowlevel.checkpoint()
            size = len(self._head) if max_bytes is None else max_bytes
            head, self._head = self._head[:size], self._head[size:]
            return head
        return await self._stream.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


async def accept_link(stream: trio.abc.Stream, tls: ssl.SSLContext | None) -> trio.abc.Stream:
    """The bytes of a link, whatever it came over. Raises LinkError; its deadline is the caller's."""
    begun = await _begin(stream)
    if begun is not None and begun[0][:1] == TLS_HANDSHAKE:
        if tls is None:
            raise LinkError("TLS, but this collector has no certificate (collector.tls_certificate)", code=1002)
        secured = trio.SSLStream(begun[1], tls, server_side=True, https_compatible=True)
        try:
            await secured.do_handshake()
        except trio.BrokenResourceError as error:
            raise LinkError(f"TLS handshake failed: {error.__cause__ or error}", code=1002) from error
        begun = await _begin(secured)
    if begun is None:
        raise LinkError("closed before its preamble", code=0)
    head, rest = begun
    if head == HTTP_GET:
        return await websocket.accept(rest)
    return rest


async def _begin(stream: trio.abc.Stream) -> tuple[bytes, trio.abc.Stream] | None:
    head = b""
    while len(head) < FIRST_BYTES:
        data = await stream.receive_some(FIRST_BYTES - len(head))
        if not data:
            return None
        head += bytes(data)
        if head[:1] not in (MAGIC[:1], HTTP_GET[:1], TLS_HANDSHAKE):
            break
    return head, _Begun(stream, head)


@frozen
class LinkUrl:
    """Where a link goes, and over what."""

    scheme: str
    address: str

    @property
    def secure(self) -> bool:
        """Whether TLS is under it."""
        return self.scheme in ("links", "wss")

    @property
    def websocket(self) -> bool:
        """Whether a WebSocket is under it."""
        return self.scheme in ("ws", "wss")


def link_url(url: str) -> LinkUrl:
    """Parse `link://HOST:PORT`, `links://…`, `ws://…`, `wss://…`. Raises ConfigurationError."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in SCHEMES or not parts.hostname or not port:
        raise ConfigurationError(f"'{url}' is not a link; write {', '.join(f'{name}://HOST:PORT' for name in SCHEMES)}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return LinkUrl(parts.scheme, f"{host}:{port}")


async def dial_link(
    url: LinkUrl, *, timeout_s: float, tls: ssl.SSLContext | None = None, target: str = websocket.PATH
) -> trio.abc.Stream:
    """A stream for a link. Raises Unreachable within `timeout_s` seconds.

    `tls` is for `links` and `wss`; when it is None, the system's certificate authorities are trusted.
    """
    context = (tls or client_tls(None)) if url.secure else None
    opened = await dial(url.address, timeout_s=timeout_s, tls=context)
    if not url.websocket:
        return opened
    try:
        with trio.fail_after(timeout_s):
            return await websocket.connect(opened, url.address, target)
    except trio.TooSlowError:
        await trio.aclose_forcefully(opened)
        raise Unreachable(f"{url.address} did not answer the WebSocket handshake within {timeout_s:g} s") from None
    except (LinkError, trio.BrokenResourceError) as error:
        await trio.aclose_forcefully(opened)
        raise Unreachable(f"{url.address}: {error}") from error


def server_tls(certificate: str, key: str, *, minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """TLS for a server, 1.3 unless told otherwise. Raises ConfigurationError when the files cannot be used."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = minimum
    try:
        context.load_cert_chain(certificate, key or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"TLS certificate {certificate} with key {key or 'in it'}: {error}") from error
    return context


def client_tls(authority: str | None) -> ssl.SSLContext:
    """TLS 1.3 for a client that trusts `authority` (a PEM file), or the system's. Raises ConfigurationError."""
    try:
        context = ssl.create_default_context(cafile=authority)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"certificate authority {authority}: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context

"""The server name in the first bytes of a TLS connection. Pure; what it says is the client's word (RFC 6066, 3)."""

from __future__ import annotations

TLS_HANDSHAKE = 0x16
MAX_HELLO_BYTES = 16 << 10
_CLIENT_HELLO = 1
_SERVER_NAME = 0


def name_asked_for(data: bytes) -> str | None:
    """The host name that a client asks for, in lower case; None when more bytes are needed.

    "" when there is none, when it is no TLS, or when the ClientHello is not in one record.
    """
    if data[:1] != bytes([TLS_HANDSHAKE]):
        return "" if data else None
    if len(data) < 5:
        return None
    length = 5 + int.from_bytes(data[3:5], "big")
    if len(data) < length:
        return None if length <= MAX_HELLO_BYTES else ""
    try:
        return _server_name(data[5:length])
    except IndexError:
        return ""


def _server_name(hello: bytes) -> str:
    """The host name of a ClientHello (RFC 8446, 4.1.2); "" when it has none. Raises IndexError when it is cut off."""
    if hello[0] != _CLIENT_HELLO:
        return ""
    at = 4 + 2 + 32
    at += 1 + hello[at]
    at += 2 + _u16(hello, at)
    at += 1 + hello[at]
    end = at + 2 + _u16(hello, at)
    at += 2
    while at + 4 <= min(end, len(hello)):
        kind, size = _u16(hello, at), _u16(hello, at + 2)
        if kind == _SERVER_NAME:
            start = at + 4 + 5
            return hello[start : start + _u16(hello, start - 2)].decode("ascii", "replace")[:256].lower()
        at += 4 + size
    return ""


def _u16(data: bytes, at: int) -> int:
    return data[at] << 8 | data[at + 1]

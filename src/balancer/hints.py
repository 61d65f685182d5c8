"""What a link's first bytes hint at: its org, its meter, the collector it wants. Pure, and never trusted.

The hint is in the link's own clear preamble, in the path of a WebSocket (`GET /link?org=…&name=…&want=…`), or in the
server name of a TLS ClientHello (RFC 6066, 3), where `ORG.links.example` hints at the org by its first label.
"""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from sapflow.errors import LinkError
from sapflow.link.frames import Hint, LinkLimits, decode_preamble

MAX_HINT_BYTES = 16 << 10
_TLS_HANDSHAKE = 0x16
_CLIENT_HELLO = 1
_SERVER_NAME = 0


def read_hint(data: bytes, limits: LinkLimits) -> Hint | None:
    """The hint in a link's first bytes; None when more of them are needed. Raises LinkError for what is no link."""
    if data[0] == _TLS_HANDSHAKE:
        return _from_tls(data)
    if data[:4] == b"GET "[: len(data)]:
        return _from_http(data)
    found = decode_preamble(data, limits)
    return None if found is None else found[0]


def _from_http(data: bytes) -> Hint | None:
    line, ended, _ = data.partition(b"\r\n")
    if not ended:
        if len(data) >= MAX_HINT_BYTES:
            raise LinkError("an HTTP request line without end", code=1002)
        return None
    parts = line.split(b" ")
    target = parts[1].decode("latin-1") if len(parts) == 3 else ""
    try:
        fields = parse_qs(urlsplit(target).query, max_num_fields=16)
    except ValueError:
        return Hint()
    org, name, want = (fields.get(key, [""])[0][:256] for key in ("org", "name", "want"))
    return Hint(org, name, want)


def _from_tls(data: bytes) -> Hint | None:
    """A ClientHello that is not in one record, or says no name, hints at nothing: it is placed all the same."""
    if len(data) < 5:
        return None
    length = 5 + int.from_bytes(data[3:5], "big")
    if len(data) < length:
        return None if length <= MAX_HINT_BYTES else Hint()
    try:
        name = server_name(data[5:length])
    except IndexError:
        return Hint()
    return Hint(org=name.split(".")[0]) if name.count(".") >= 2 else Hint()


def server_name(hello: bytes) -> str:
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

"""What a link's first bytes hint at: its org, its meter, the collector it wants. Pure, and never trusted.

The hint is in the link's own clear preamble, in the path of a WebSocket (`GET /link?org=…&name=…&want=…`), or in the
server name of a TLS ClientHello (RFC 6066, 3), where `ORG.links.example` hints at the org by its first label.
"""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from sapflow.errors import LinkError
from sapflow.link.frames import Hint, LinkLimits, decode_preamble
from sapflow.runtime.client_hello import MAX_HELLO_BYTES, TLS_HANDSHAKE, name_asked_for

MAX_HINT_BYTES = MAX_HELLO_BYTES


def read_hint(data: bytes, limits: LinkLimits) -> Hint | None:
    """The hint in a link's first bytes; None when more of them are needed. Raises LinkError for what is no link."""
    if data[0] == TLS_HANDSHAKE:
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
    name = name_asked_for(data)
    if name is None:
        return None
    return Hint(org=name.split(".")[0]) if name.count(".") >= 2 else Hint()

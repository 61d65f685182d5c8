"""The link's wire form.

A client first sends a *preamble*: `SAPL`, a version octet, and a hint (JSON: org, name, the wanted collector) that a
balancer may peek at to place the link, and that nobody trusts. Then both ends send frames:

    type u8 | 0 u8 | 0 u16 | body length u32 | body            (network byte order)

Control bodies are JSON objects; bodies on the data path are fixed structs. Every length is checked here before a
byte of the body is waited for. Reading a frame never copies a batch more than twice.
"""

from __future__ import annotations

import enum
import json
import struct
from typing import Any, NewType

from attrs import frozen

from sapflow.errors import LinkError
from sapflow.link.account import MAX_ACCOUNT_BYTES

StreamId = NewType("StreamId", bytes)
Buffers = tuple[bytes, ...]
"""What is to be sent, as pieces in order, so that a payload is not copied to join it to its header."""

MAGIC = b"SAPL"
VERSION = 2
PREAMBLE = struct.Struct("!4sBxH")
HEADER = struct.Struct("!BxxxI")
BATCH = struct.Struct("!IQIIQH")
"""handle, sequence number, messages, records, time of reception at the intake (microseconds UTC), length of the account
that comes before the messages, and in its highest bit (`TELLS`) whether they may tell of the exporter itself."""
TELLS = 0x8000
MARK = struct.Struct("!IQ")
"""handle, a stream's number or cumulative bytes."""
OPEN = struct.Struct("!I16s")
NONCE = struct.Struct("!Q")
HANDLE = struct.Struct("!I")


class Frame(enum.IntEnum):
    """What a frame says."""

    HELLO = 1
    WELCOME = 2
    OPEN = 3
    BATCH = 4
    ACKNOWLEDGE = 5
    WANT = 6
    GRANT = 7
    REWIND = 8
    MOVE = 9
    GO_AWAY = 10
    HOLD = 11
    PING = 12
    PONG = 13
    CLOSE = 14
    SUBSCRIBE = 15
    END = 16
    NOTICE = 17
    REFUSED = 18


CAN_REPLACE = "replace"
"""In a hello's list `can`: this end puts another batch in the place of one that is refused. To others nobody says
REFUSED; their link is closed."""


class Close(enum.IntEnum):
    """Why a link ends; the numbers are on the wire."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL = 1002
    UNAUTHORIZED = 4401
    FORBIDDEN = 4403
    UNKNOWN = 4404
    CONFLICT = 4409
    OVERLOADED = 4429
    TIMEOUT = 4408


@frozen
class LinkLimits:
    """Bounds of one link; reaching one closes that link with an error that says which."""

    max_batch_bytes: int = 2 << 20
    max_control_bytes: int = 64 << 10
    max_streams: int = 65_536
    max_hint_bytes: int = 1024


@frozen
class Hint:
    """What a client says about itself in clear, to be placed by; never trusted."""

    org: str = ""
    name: str = ""
    want: str = ""


_FIXED_BODY = {
    Frame.ACKNOWLEDGE: MARK.size,
    Frame.WANT: MARK.size,
    Frame.GRANT: MARK.size,
    Frame.REWIND: MARK.size,
    Frame.PING: NONCE.size,
    Frame.PONG: NONCE.size,
    Frame.END: HANDLE.size,
}


def encode_preamble(hint: Hint) -> bytes:
    """The first bytes a client sends."""
    body = json.dumps({"org": hint.org, "name": hint.name, "want": hint.want}, separators=(",", ":")).encode()
    return PREAMBLE.pack(MAGIC, VERSION, len(body)) + body


def decode_preamble(data: bytes, limits: LinkLimits) -> tuple[Hint, int] | None:
    """The hint and the length of the preamble; None when more bytes are needed.

    Raises LinkError as soon as the bytes cannot be a preamble.
    """
    if data[:4] != MAGIC[: len(data)]:
        raise LinkError("this is not a sapflow link: the first bytes are not 'SAPL'", code=Close.PROTOCOL)
    if len(data) < PREAMBLE.size:
        return None
    _, version, length = PREAMBLE.unpack_from(data)
    if version != VERSION:
        raise LinkError(f"link version {version} is not spoken here (this end speaks {VERSION})", code=Close.PROTOCOL)
    if length > limits.max_hint_bytes:
        raise LinkError(f"hint of {length:,} bytes (limit {limits.max_hint_bytes:,})", code=Close.PROTOCOL)
    if len(data) < PREAMBLE.size + length:
        return None
    fields = decode_json(data[PREAMBLE.size : PREAMBLE.size + length])
    return Hint(*(str(fields.get(key, ""))[:256] for key in ("org", "name", "want"))), PREAMBLE.size + length


def encode_json(kind: Frame, fields: dict[str, Any]) -> bytes:
    """A control frame."""
    body = json.dumps(fields, separators=(",", ":")).encode()
    return HEADER.pack(kind, len(body)) + body


def decode_json(body: bytes) -> dict[str, Any]:
    """A control frame's fields. Raises LinkError when they are not a JSON object."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise LinkError(f"a control frame is not JSON: {type(error).__name__}", code=Close.PROTOCOL) from None
    if not isinstance(fields, dict):
        raise LinkError("a control frame is not a JSON object", code=Close.PROTOCOL)
    return fields


def encode_mark(kind: Frame, handle: int, number: int) -> bytes:
    """One of the small frames about a stream: ACKNOWLEDGE, WANT, GRANT, REWIND."""
    return HEADER.pack(kind, MARK.size) + MARK.pack(handle, number)


class FrameReader:
    """Whole frames out of a byte stream cut anywhere.

    Chunks are kept as they came and joined once per completed frame, so a large batch in many pieces costs no
    more than one copy.
    """

    def __init__(self, limits: LinkLimits) -> None:
        self._limits = limits
        self._chunks: list[bytes] = []
        self._have = 0
        self._need = HEADER.size

    def feed(self, data: bytes) -> list[tuple[Frame, bytes]]:
        """Frames completed by `data`, in order. Raises LinkError for an unknown type or a length out of bounds."""
        self._have += len(data)
        self._chunks.append(data)
        if self._have < self._need:
            return []
        joined = b"".join(self._chunks) if len(self._chunks) > 1 else data
        frames = []
        at, end = 0, len(joined)
        self._need = HEADER.size
        while end - at >= HEADER.size:
            kind, length = HEADER.unpack_from(joined, at)
            frame = self._check(kind, length)
            stop = at + HEADER.size + length
            if stop > end:
                self._need = HEADER.size + length
                break
            frames.append((frame, joined[at + HEADER.size : stop]))
            at = stop
        self._chunks = [joined[at:]] if at < end else []
        self._have = end - at
        return frames

    def _check(self, kind: int, length: int) -> Frame:
        try:
            frame = Frame(kind)
        except ValueError:
            raise LinkError(f"unknown frame type {kind}", code=Close.PROTOCOL) from None
        if frame is Frame.BATCH:
            low, high = BATCH.size, BATCH.size + MAX_ACCOUNT_BYTES + self._limits.max_batch_bytes
        elif frame in _FIXED_BODY:
            low = high = _FIXED_BODY[frame]
        else:
            low, high = 0, self._limits.max_control_bytes
        if not low <= length <= high:
            raise LinkError(
                f"{frame.name} frame of {length:,} bytes (allowed {low:,} to {high:,})", code=Close.PROTOCOL
            )
        return frame

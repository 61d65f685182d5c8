"""One end of a link: bytes and events in, bytes and events out; no await in this file.

Rule 1: everything that changes the state of a link is in this file.
Rule 2: which frame may come in which state is the table `_LEGAL`; anything else is a LinkError.
Rule 3: a sender sends no byte that it has no credit for; a receiver treats one as a LinkError.
Rule 4: numbers of bytes are cumulative from the opening of a stream, so a repeated or late grant does no harm.
Rule 5: an acknowledgement says what is durable at the far end of the chain, never what was merely received.

Either end may open streams: a meter does to its collector, a collector to Phloem. Handles are per direction.
"""

from __future__ import annotations

import enum
from typing import Any

from attrs import define

from sapflow.errors import LinkError
from sapflow.link import frames
from sapflow.link.account import MAX_ACCOUNT_BYTES
from sapflow.link.events import (
    Acknowledged,
    Batch,
    BatchReceived,
    BatchRefused,
    Closed,
    CreditGranted,
    CreditWanted,
    Event,
    GoAway,
    HelloReceived,
    Hold,
    Moved,
    Noticed,
    Opened,
    Ponged,
    Rewound,
    StreamEnded,
    Subscribed,
    Welcomed,
)
from sapflow.link.frames import Close, Frame, FrameReader, Hint, LinkLimits, StreamId


class Side(enum.Enum):
    """Who opened the transport."""

    CLIENT = "client"
    SERVER = "server"


class State(enum.Enum):
    """Where a link is in its life."""

    PREAMBLE = "awaits the preamble"
    HELLO = "awaits the hello"
    WELCOMING = "owes the welcome"
    WELCOME = "awaits the welcome"
    OPEN = "open"
    CLOSED = "closed"


_LEGAL: dict[State, frozenset[Frame]] = {
    State.PREAMBLE: frozenset(),
    State.HELLO: frozenset({Frame.HELLO, Frame.CLOSE}),
    State.WELCOMING: frozenset({Frame.CLOSE}),
    State.WELCOME: frozenset({Frame.WELCOME, Frame.CLOSE, Frame.HOLD}),
    State.OPEN: frozenset(Frame) - {Frame.HELLO, Frame.WELCOME},
    State.CLOSED: frozenset(),
}


@define
class _Sending:
    limit: int = 0
    sent: int = 0
    wanted: int = 0


@define
class _Receiving:
    limit: int = 0
    received: int = 0
    ended: bool = False


class Connection:
    """One end of one link.

    `receive(data)` gives the events that the bytes make; methods named for what is said give the bytes to send.
    Bytes that answer by themselves (pongs) collect in `replies`, taken by `take_replies()`.
    """

    def __init__(self, side: Side, limits: LinkLimits | None = None) -> None:
        self.side = side
        self.limits = limits or LinkLimits()
        self.state = State.WELCOME if side is Side.CLIENT else State.PREAMBLE
        self._reader = FrameReader(self.limits)
        self._head = b""
        self._hint = Hint()
        self._sending: dict[int, _Sending] = {}
        self._receiving: dict[int, _Receiving] = {}
        self._next_handle = 1
        self._replies: list[bytes] = []

    # --- in ---------------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[Event]:
        """Events in order. Raises LinkError when the other end broke the protocol; the link is then closed."""
        if self.state is State.CLOSED:
            return []
        try:
            if self.state is State.PREAMBLE:
                self._head += data
                found = frames.decode_preamble(self._head, self.limits)
                if found is None:
                    return []
                self._hint, length = found
                data, self._head = self._head[length:], b""
                self.state = State.HELLO
            events: list[Event] = []
            for kind, body in self._reader.feed(data):
                if kind not in _LEGAL[self.state]:
                    if self.state is State.CLOSED:
                        return events
                    raise LinkError(f"{kind.name} frame while this end {self.state.value}", code=Close.PROTOCOL)
                event = self._event(kind, body)
                if event is not None:
                    events.append(event)
            return events
        except LinkError:
            self.state = State.CLOSED
            raise

    def take_replies(self) -> list[bytes]:
        """Bytes that the protocol itself owes the other end."""
        replies, self._replies = self._replies, []
        return replies

    def _event(self, kind: Frame, body: bytes) -> Event | None:
        match kind:
            case Frame.BATCH:
                return self._batch_received(body)
            case Frame.ACKNOWLEDGE:
                handle, number = frames.MARK.unpack(body)
                return Acknowledged(handle, number) if handle in self._sending else None
            case Frame.REWIND:
                handle, number = frames.MARK.unpack(body)
                return Rewound(handle, number) if handle in self._sending else None
            case Frame.GRANT:
                return self._granted(*frames.MARK.unpack(body))
            case Frame.WANT:
                handle, number = frames.MARK.unpack(body)
                self._receiver(handle)
                return CreditWanted(handle, number)
            case Frame.OPEN:
                return self._opened(body)
            case Frame.END:
                (handle,) = frames.HANDLE.unpack(body)
                self._receiver(handle)
                del self._receiving[handle]
                return StreamEnded(handle)
            case Frame.PING:
                self._replies.append(frames.HEADER.pack(Frame.PONG, len(body)) + body)
                return None
            case Frame.PONG:
                return Ponged(frames.NONCE.unpack(body)[0])
            case _:
                return self._control(kind, frames.decode_json(body))

    def _control(self, kind: Frame, fields: dict[str, Any]) -> Event:
        match kind:
            case Frame.HELLO:
                self.state = State.WELCOMING
                return HelloReceived(self._hint, fields)
            case Frame.WELCOME:
                self.state = State.OPEN
                return Welcomed(fields)
            case Frame.MOVE:
                return Moved(_integer(fields, "handle"), str(fields.get("to", "")), str(fields.get("address", "")))
            case Frame.REFUSED:
                seq, reason = _integer(fields, "seq"), str(fields.get("reason", ""))
                return BatchRefused(_integer(fields, "handle"), seq, reason)
            case Frame.GO_AWAY:
                return GoAway(_seconds(fields, "deadline_s"), str(fields.get("reason", "")))
            case Frame.HOLD:
                return Hold(_seconds(fields, "seconds"), str(fields.get("reason", "")))
            case Frame.SUBSCRIBE:
                return Subscribed(fields)
            case Frame.NOTICE:
                return Noticed(fields)
            case _:
                self.state = State.CLOSED
                return Closed(_integer(fields, "code"), str(fields.get("reason", "")))

    def _opened(self, body: bytes) -> Opened:
        if len(body) < frames.OPEN.size:
            raise LinkError(f"OPEN frame of {len(body)} bytes", code=Close.PROTOCOL)
        if len(self._receiving) >= self.limits.max_streams:
            raise LinkError(f"more than {self.limits.max_streams:,} streams on one link", code=Close.OVERLOADED)
        handle, stream = frames.OPEN.unpack_from(body)
        if handle in self._receiving:
            raise LinkError(f"stream handle {handle} opened twice", code=Close.PROTOCOL)
        fields = frames.decode_json(body[frames.OPEN.size :])
        self._receiving[handle] = _Receiving()
        return Opened(handle, StreamId(stream), str(fields.get("org", "")), str(fields.get("exporter", "")))

    def _batch_received(self, body: bytes) -> BatchReceived:
        handle, seq, messages, records, received_us, told = frames.BATCH.unpack_from(body)
        tells, told = told & frames.TELLS, told & ~frames.TELLS
        at = frames.BATCH.size + told
        if told > MAX_ACCOUNT_BYTES or at > len(body):
            raise LinkError(f"stream {handle}: an account of {told:,} bytes", code=Close.PROTOCOL)
        batch = Batch(seq, messages, records, received_us, body[at:], body[frames.BATCH.size : at], tells > 0)
        receiver = self._receiver(handle)
        receiver.received += batch.size
        if receiver.received > receiver.limit:
            raise LinkError(
                f"stream {handle}: {receiver.received - receiver.limit:,} bytes more than were granted",
                code=Close.PROTOCOL,
            )
        if seq < 1:
            raise LinkError(f"stream {handle}: batch number {seq}; numbers begin at 1", code=Close.PROTOCOL)
        return BatchReceived(handle, batch)

    def _receiver(self, handle: int) -> _Receiving:
        receiver = self._receiving.get(handle)
        if receiver is None:
            raise LinkError(f"stream handle {handle} is not open", code=Close.PROTOCOL)
        return receiver

    def _granted(self, handle: int, limit: int) -> Event | None:
        sender = self._sending.get(handle)
        if sender is None or limit <= sender.limit:
            return None
        sender.limit = limit
        return CreditGranted(handle, limit)

    # --- out --------------------------------------------------------------------------------------------------

    def hello(self, hint: Hint, **fields: Any) -> bytes:
        """A client's first bytes: the preamble with its hint, and the hello with its credentials."""
        assert self.side is Side.CLIENT
        return frames.encode_preamble(hint) + frames.encode_json(Frame.HELLO, fields)

    def welcome(self, **fields: Any) -> bytes:
        """A server's answer to a hello that it accepts."""
        assert self.state is State.WELCOMING, self.state
        self.state = State.OPEN
        return frames.encode_json(Frame.WELCOME, fields)

    def open(self, stream: StreamId, org: str, exporter: str) -> tuple[int, bytes]:
        """Open a stream towards the other end: its handle, and the bytes. It has no credit yet."""
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        self._sending[handle] = _Sending()
        tail = frames.encode_json(Frame.OPEN, {"org": org, "exporter": exporter})[frames.HEADER.size :]
        body = frames.OPEN.pack(handle, stream) + tail
        return handle, frames.HEADER.pack(Frame.OPEN, len(body)) + body

    def end(self, handle: int) -> bytes:
        """Nothing more comes on this stream of ours."""
        del self._sending[handle]
        return frames.HEADER.pack(Frame.END, frames.HANDLE.size) + frames.HANDLE.pack(handle)

    def credit(self, handle: int) -> int:
        """Bytes that may be sent on a stream of ours now."""
        sender = self._sending[handle]
        return sender.limit - sender.sent

    def batch(self, handle: int, batch: Batch) -> frames.Buffers:
        """The frame of a batch; its bytes must be within the stream's credit."""
        sender = self._sending[handle]
        sender.sent += batch.size
        assert sender.sent <= sender.limit, (handle, sender.sent, sender.limit)
        account, payload = batch.account, batch.payload
        head = frames.HEADER.pack(Frame.BATCH, frames.BATCH.size + len(account) + len(payload))
        told = len(account) | (frames.TELLS if batch.tells else 0)
        fixed = frames.BATCH.pack(handle, batch.seq, batch.messages, batch.records, batch.received_us, told)
        return head + fixed + account, payload

    def want(self, handle: int, bytes_waiting: int) -> bytes:
        """Ask for credit for what waits; b"" when that has been asked for already."""
        sender = self._sending[handle]
        limit = sender.sent + bytes_waiting
        if limit <= max(sender.wanted, sender.limit):
            return b""
        sender.wanted = limit
        return frames.encode_mark(Frame.WANT, handle, limit)

    def grant(self, handle: int, limit: int) -> bytes:
        """Let the other end send up to `limit` bytes in all on its stream; b"" when the stream has ended."""
        receiver = self._receiving.get(handle)
        if receiver is None:
            return b""
        assert limit >= receiver.limit, (limit, receiver.limit)
        receiver.limit = limit
        return frames.encode_mark(Frame.GRANT, handle, limit)

    def acknowledge(self, handle: int, through: int) -> bytes:
        """All batches of the other end's stream up to `through` are durable."""
        return frames.encode_mark(Frame.ACKNOWLEDGE, handle, through) if handle in self._receiving else b""

    def rewind(self, handle: int, mark: int) -> bytes:
        """The batch after `mark` is missing here: the other end is to send again from its lowest unacknowledged."""
        return frames.encode_mark(Frame.REWIND, handle, mark) if handle in self._receiving else b""

    def refuse(self, handle: int, seq: int, reason: str) -> bytes:
        """Another is to come in the place of batch `seq`, and all behind it again. Only to one that `CAN_REPLACE`."""
        return frames.encode_json(Frame.REFUSED, {"handle": handle, "seq": seq, "reason": reason})

    def move(self, handle: int, to: str, address: str) -> bytes:
        """Ask the other end to take a stream of its to another collector, make before break."""
        return frames.encode_json(Frame.MOVE, {"handle": handle, "to": to, "address": address})

    def go_away(self, deadline_s: float, reason: str) -> bytes:
        """This end is to be left within `deadline_s` seconds."""
        return frames.encode_json(Frame.GO_AWAY, {"deadline_s": deadline_s, "reason": reason})

    def hold(self, seconds: float, reason: str) -> bytes:
        """Come back after `seconds`, jittered by the receiver."""
        return frames.encode_json(Frame.HOLD, {"seconds": seconds, "reason": reason})

    def subscribe(self, **fields: Any) -> bytes:
        """Ask for batches of orgs."""
        return frames.encode_json(Frame.SUBSCRIBE, fields)

    def notice(self, **fields: Any) -> bytes:
        """Tell the other end something about its data: a gap, the end of the log."""
        return frames.encode_json(Frame.NOTICE, fields)

    def ping(self, nonce: int) -> bytes:
        """Ask for a sign of life."""
        return frames.HEADER.pack(Frame.PING, frames.NONCE.size) + frames.NONCE.pack(nonce)

    def close(self, code: int, reason: str) -> bytes:
        """The last bytes of this end."""
        self.state = State.CLOSED
        return frames.encode_json(Frame.CLOSE, {"code": int(code), "reason": reason})


def _integer(fields: dict[str, Any], key: str) -> int:
    value = fields.get(key)
    if type(value) is not int:
        raise LinkError(f"a control frame's '{key}' is not an integer", code=Close.PROTOCOL)
    return value


def _seconds(fields: dict[str, Any], key: str) -> float:
    value = fields.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 86_400:
        raise LinkError(f"a control frame's '{key}' is not a number of seconds up to a day", code=Close.PROTOCOL)
    return float(value)

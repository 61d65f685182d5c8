"""What became of an exporter's records since its last batch: the account that travels with each batch of a stream.

    fields u16 | a varint for each field that is not as usual | refused | faults

As usual is: received and exported are the batch's records, all else is nothing; then the account takes no byte at all.
Varints are zigzag, since what was told as lost may turn out not to be. Reasons are a count, then name and varint each.
Accounts are sums: those of two batches may be added, and it does not matter in which order.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from attrs import evolve, field, frozen

from sapflow.errors import LinkError

MAX_REASONS = 24
"""Different ones in one account; all further ones are `other`."""
MAX_REASON_BYTES = 32
MAX_ACCOUNT_BYTES = 4096
MAX_FIGURE = 1 << 40
"""No batch tells of more than so many records."""
OTHER = "other"
UNREADABLE = "unreadable"
"""Records of sets that could not be read, or whose template never came, as far as sequence numbers tell how many."""
PROTOCOL_ERROR = 1002

FIGURES = (
    "received",
    "exported",
    "repeated",
    "uncounted",
    "lost",
    "packets_received",
    "packets_exported",
    "packets_repeated",
    "packets_lost",
)
_BITS = struct.Struct("!H")
_REFUSED, _FAULTS, _BEGINS = 1 << 9, 1 << 10, 1 << 11


@frozen(slots=True)
class Account:
    """Data records, but for `packets_…`, which are of protocols whose numbers count those (NetFlow v9, sFlow).

    exported + repeated + uncounted = received + lost, and packets_exported + packets_repeated = packets_received +
    packets_lost; what is stored of `received` is what no reason refused.
    """

    received: int = 0
    """Came here, whatever became of them."""
    exported: int = 0
    """Sent, by the exporter's own sequence numbers."""
    repeated: int = 0
    """Received although their numbers had been received before."""
    uncounted: int = 0
    """Received of exporters whose numbers do not count records."""
    lost: int = 0
    """Never came."""
    packets_received: int = 0
    packets_exported: int = 0
    packets_repeated: int = 0
    packets_lost: int = 0
    refused: Mapping[str, int] = field(factory=dict)
    """Records that were received and not passed on, by reason."""
    faults: Mapping[str, int] = field(factory=dict)
    """Messages and sets that could not be read, by reason; `UNREADABLE` says how many records, where that is known."""
    begins: bool = False
    """The stream begins with this batch, though its number is not 1."""

    @classmethod
    def usual(cls, records: int) -> Account:
        """All that was exported came, and is in the batch."""
        return cls(received=records, exported=records)

    @classmethod
    def of(
        cls, figures: Sequence[int], refused: Mapping[str, int], faults: Mapping[str, int], *, begins: bool = False
    ) -> Account:
        """From figures in the order of `FIGURES`."""
        received, exported, repeated, uncounted, lost, came, sent, again, missing = figures
        return cls(received, exported, repeated, uncounted, lost, came, sent, again, missing, refused, faults, begins)

    @property
    def figures(self) -> list[int]:
        """In the order of `FIGURES`."""
        return [getattr(self, name) for name in FIGURES]

    def __add__(self, other: Account) -> Account:
        """Both together."""
        figures = [one + two for one, two in zip(self.figures, other.figures, strict=True)]
        refused, faults = together(self.refused, other.refused), together(self.faults, other.faults)
        return Account.of(figures, refused, faults, begins=self.begins or other.begins)

    def __bool__(self) -> bool:
        return not self._is_usual(0)

    def _is_usual(self, records: int) -> bool:
        # Each batch asks; comparing with another account takes several times as long.
        if self.received != records or self.exported != records or self.refused or self.faults or self.begins:
            return False
        other = self.repeated or self.uncounted or self.lost or self.packets_received or self.packets_exported
        return not (other or self.packets_repeated or self.packets_lost)

    def refusing(self, reason: str, records: int) -> Account:
        """As it is, and so many records more are refused."""
        return evolve(self, refused=together(self.refused, {reason: records}))

    def encode(self, records: int) -> bytes:
        """For a batch of so many records."""
        if self._is_usual(records):
            return b""
        bits = _BEGINS * self.begins
        pieces = []
        for index, value in enumerate(self.figures):
            if value != (records if index < 2 else 0):
                bits |= 1 << index
                pieces.append(_varint(value))
        for bit, reasons in ((_REFUSED, self.refused), (_FAULTS, self.faults)):
            if reasons:
                bits |= bit
                pieces.append(_reasons(reasons))
        return _BITS.pack(bits) + b"".join(pieces)


NOTHING = Account()


def together(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """Figures by reason, added; a name too many or too long is `OTHER`."""
    total = dict(one)
    for reason, count in other.items():
        if reason not in total and (len(total) >= MAX_REASONS - 1 or len(reason.encode()) > MAX_REASON_BYTES):
            reason = OTHER
        total[reason] = total.get(reason, 0) + count
    return {reason: count for reason, count in total.items() if count}


def decode_account(data: bytes, records: int) -> Account:
    """The account of a batch of so many records. Raises LinkError."""
    if not data:
        return Account.usual(records)
    try:
        return _decode(data, records)
    except (IndexError, struct.error, UnicodeDecodeError):
        raise LinkError(f"a batch's account of {len(data)} bytes is cut off or no text", code=PROTOCOL_ERROR) from None


def _decode(data: bytes, records: int) -> Account:
    (bits,) = _BITS.unpack_from(data)
    at = _BITS.size
    figures = []
    for index in range(len(FIGURES)):
        value = records if index < 2 else 0
        if bits & 1 << index:
            value, at = _read_varint(data, at)
        figures.append(value)
    found: list[dict[str, int]] = []
    for bit in (_REFUSED, _FAULTS):
        reasons: dict[str, int] = {}
        if bits & bit:
            reasons, at = _read_reasons(data, at)
        found.append(reasons)
    if at != len(data) or bits >= _BEGINS << 1:
        raise LinkError(f"a batch's account has {len(data) - at} bytes too many", code=PROTOCOL_ERROR)
    return Account.of(figures, found[0], found[1], begins=bool(bits & _BEGINS))


def _varint(value: int) -> bytes:
    value = value << 1 if value >= 0 else (-value << 1) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            break
        shift += 7
        if shift > 42:
            raise LinkError("a batch's account has a figure that cannot be", code=PROTOCOL_ERROR)
    value = value >> 1 if not value & 1 else -(value + 1 >> 1)
    if abs(value) > MAX_FIGURE:
        raise LinkError(f"a batch's account says {value:,}", code=PROTOCOL_ERROR)
    return value, at


def _reasons(reasons: Mapping[str, int]) -> bytes:
    bounded = together({}, reasons)
    pieces = [bytes([len(bounded)])]
    for reason, count in bounded.items():
        name = reason.encode()
        pieces += (bytes([len(name)]), name, _varint(count))
    return b"".join(pieces)


def _read_reasons(data: bytes, at: int) -> tuple[dict[str, int], int]:
    found: dict[str, int] = {}
    count, at = data[at], at + 1
    if count > MAX_REASONS:
        raise LinkError(f"a batch's account has {count} reasons (limit {MAX_REASONS})", code=PROTOCOL_ERROR)
    for _ in range(count):
        size, at = data[at], at + 1
        if size > MAX_REASON_BYTES:
            raise LinkError(f"a reason of {size} bytes (limit {MAX_REASON_BYTES})", code=PROTOCOL_ERROR)
        name = data[at : at + size].decode()
        value, at = _read_varint(data, at + size)
        found[name] = found.get(name, 0) + value
    return found, at

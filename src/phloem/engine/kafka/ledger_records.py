"""Checkpoints of partitions' ledgers, as they stand in the ledger's topic; pure.

A checkpoint is one record or more: its *parts*. Their keys name the partition, one of two *slots*, and the part; Kafka
keeps the last record of each key. A checkpoint is put in the slot where the last whole one is not, so whoever is killed
amid its parts, or writes at the same time as another, costs at most that one: the other slot's is whole. Which of two
whole ones is taken makes no difference to what comes of it, only to how much is folded again.

    version u8 | crc32c u32 | head length u32 | head, as JSON | rows: kind u8, length u32, and so many bytes, each
"""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Iterator
from enum import IntEnum

from attrs import asdict, define, field, frozen
from crc32c import crc32c

from phloem.engine.kafka.ledger_fold import Fold, Forgotten, OrgSum
from phloem.engine.kafka.ledger_points import Points
from phloem.engine.kafka.names import Place
from phloem.engine.layout import ORG
from sapflow.errors import StorageError

VERSION = 1
PART_BYTES = 512 << 10
"""Of rows in one part; one of a single large row may be larger."""
SLOTS = 2
_HEAD = struct.Struct("!BII")
_ROW = struct.Struct("!BI")
_ORG_ROW = struct.Struct("!IQQQQH")
_STREAM_KEY_BYTES = ORG.size + 16


class _Kind(IntEnum):
    """Of a row."""

    STREAM = 1
    ORG = 2
    POINTS = 3
    FORGOTTEN = 4
    REPEATED = 5


class DamagedCheckpoint(StorageError):
    """A record of the ledger's topic is not what was written, or never was ours."""


@frozen
class Head:
    """What each part says of its checkpoint."""

    name: str
    """No other checkpoint's."""
    node: str
    index: int
    parts: int
    topic_id: str
    begun: int
    unknown_through: int
    why: str
    through: int
    read_bytes: int
    newest_us: int
    repeats: int
    damaged: int
    has_dropped_marks: bool
    point_bytes: int


def key_of(place: Place, slot: int, index: int) -> bytes:
    """A part's key."""
    return b"%s/%d/%d/%d" % (place.topic.encode(), place.partition, slot, index)


def slot_of(key: bytes, place: Place) -> int | None:
    """Which slot a record is in; None when it is of another partition."""
    prefix = b"%s/%d/" % (place.topic.encode(), place.partition)
    if not key.startswith(prefix):
        return None
    slot = key[len(prefix) :].partition(b"/")[0]
    return int(slot) if slot.isdigit() and int(slot) < SLOTS else None


def encode(fold: Fold, name: str, node: str) -> Iterator[bytes]:
    """The parts of a checkpoint of a fold as it stands, one after the other."""
    fold.settle()
    told = (fold.topic_id, fold.begun, fold.unknown_through, fold.why, fold.through, fold.read_bytes, fold.newest_us)
    counted = (fold.repeats, fold.damaged, fold.has_dropped_marks, fold.point_bytes)
    parts = sum(1 for _ in _bodies(fold))
    for index, body in enumerate(_bodies(fold)):
        yield _part(Head(name, node, index, parts, *told, *counted), body)


def _bodies(fold: Fold) -> Iterator[bytes]:
    rows: list[bytes] = []
    size = 0
    for kind, data in _rows(fold):
        if size > PART_BYTES:
            yield b"".join(rows)
            rows, size = [], 0
        rows += (_ROW.pack(kind, len(data)), data)
        size += _ROW.size + len(data)
    yield b"".join(rows)


def _part(head: Head, body: bytes) -> bytes:
    text = json.dumps(asdict(head)).encode()
    checked = crc32c(body, crc32c(text))
    return b"".join((_HEAD.pack(VERSION, checked, len(text)), text, body))


def _rows(fold: Fold) -> Iterator[tuple[int, bytes]]:
    for org in fold.orgs.values():
        fixed = _ORG_ROW.pack(org.number, org.entries, org.records, org.unknown, org.noted_bytes, len(org.name))
        yield _Kind.ORG, fixed + org.name + org.folded
        if org.points:
            yield _Kind.POINTS, org.number.to_bytes(4, "big") + org.points.pack()
    for key, packed in fold.rows.items():
        yield _Kind.STREAM, key + packed
    yield _Kind.FORGOTTEN, bytes(fold.forgotten)
    yield _Kind.REPEATED, struct.pack(f"!{len(fold.repeated)}Q", *fold.repeated)


def decode(data: bytes) -> tuple[Head, memoryview]:
    """A part's head, and its rows. Raises DamagedCheckpoint, StorageError for one of a newer sapflow."""
    try:
        version, checked, length = _HEAD.unpack_from(data)
        if version > VERSION:
            raise StorageError(
                f"a checkpoint of the ledger of version {version}, which is not known here; a newer sapflow wrote it. "
                "This node tells of no ledger until it is that new too"
            )
        body = memoryview(data)[_HEAD.size :]
        if version != VERSION or crc32c(body) != checked:
            raise DamagedCheckpoint("a checkpoint of the ledger is damaged")
        return Head(**json.loads(bytes(body[:length]))), body[length:]
    except (struct.error, ValueError, TypeError) as error:
        raise DamagedCheckpoint(f"a checkpoint of the ledger cannot be read: {error}") from None


@define
class _Slot:
    """What came into a slot: the parts of one checkpoint, in order."""

    name: str = ""
    parts: int = 0
    bodies: list[bytes] = field(factory=list)
    head: Head | None = None

    def take(self, head: Head, data: bytes) -> None:
        if head.name != self.name:
            self.name, self.parts, self.bodies, self.head = head.name, head.parts, [], head
        if head.index == len(self.bodies):
            self.bodies.append(data)

    @property
    def is_whole(self) -> bool:
        return bool(self.parts) and len(self.bodies) == self.parts


@frozen
class Found:
    """What the ledger's topic says of a partition."""

    fold: Fold | None
    slot: int
    """Where the next checkpoint may be put."""
    is_ahead: bool = False
    """There are checkpoints, and the partition ends before them."""
    is_of_another: bool = False
    """There are checkpoints of a topic that had this name before."""


class Loading:
    """Records of the ledger's topic, in order, to what they say of one partition."""

    def __init__(self, place: Place) -> None:
        self.damaged = 0
        self._place = place
        self._slots = [_Slot() for _ in range(SLOTS)]

    def take(self, key: bytes, data: bytes) -> None:
        """The next record, perhaps of another partition. Raises StorageError for one of a newer sapflow."""
        slot = slot_of(key, self._place)
        if slot is None:
            return
        try:
            head, _ = decode(data)
        except DamagedCheckpoint:
            self.damaged += 1
            return
        self._slots[slot].take(head, data)

    def found(self, topic_id: str, end: int) -> Found:
        """The furthest whole checkpoint of a topic that is not ahead of its end."""
        whole = [(slot.head, index) for index, slot in enumerate(self._slots) if slot.is_whole and slot.head]
        own = [(head, index) for head, index in whole if head.topic_id == topic_id]
        _, index = max(((head.through, index) for head, index in own if head.through <= end), default=(0, -1))
        if index < 0:
            return Found(None, 0, is_ahead=bool(own), is_of_another=bool(whole) and not own)
        return Found(restored(self._slots[index].bodies), 1 - index)


def restored(parts: list[bytes]) -> Fold:
    """The fold that a checkpoint's parts say. Raises DamagedCheckpoint."""
    head, _ = decode(parts[0])
    told = asdict(head)
    for name in ("name", "node", "index", "parts"):
        del told[name]
    fold = Fold(**told)
    numbers: dict[int, OrgSum] = {}
    for part in parts:
        _, body = decode(part)
        at = 0
        while at < len(body):
            kind, length = _ROW.unpack_from(body, at)
            at += _ROW.size
            _restore(fold, numbers, kind, bytes(body[at : at + length]))
            at += length
    fold.count_points()
    return fold


def _restore(fold: Fold, numbers: dict[int, OrgSum], kind: int, row: bytes) -> None:
    match kind:
        case _Kind.STREAM:
            fold.rows[row[:_STREAM_KEY_BYTES]] = row[_STREAM_KEY_BYTES:]
        case _Kind.ORG:
            number, entries, records, unknown, noted, length = _ORG_ROW.unpack_from(row)
            end = _ORG_ROW.size + length
            org = OrgSum(number, row[_ORG_ROW.size : end], entries, records, row[end:], unknown, noted)
            numbers[number] = fold.orgs[org.name] = org
        case _Kind.POINTS:
            numbers[int.from_bytes(row[:4], "big")].points = Points.unpack(row[4:])
        case _Kind.FORGOTTEN:
            fold.forgotten = Forgotten(row)
        case _Kind.REPEATED:
            fold.repeated = array("Q", struct.unpack(f"!{len(row) // 8}Q", row))

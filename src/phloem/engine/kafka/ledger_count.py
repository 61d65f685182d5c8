"""How much of an org stands before a place of its partition: from the nearest point that its ledger has, counted on."""

from __future__ import annotations

import time

from attrs import define

from phloem.engine.kafka.clients import Message
from phloem.engine.kafka.ledger_fold import Fold
from phloem.engine.kafka.ledger_points import Point
from phloem.engine.kafka.names import Place
from phloem.engine.kafka.reading import Readers
from sapflow.entry import entry_head

COUNT_S = 2.0
"""What takes longer is told as not certain."""
COUNT_BYTES = 4 << 20


def before(readers: Readers, place: Place, fold: Fold, org: bytes, low: int, position: int) -> tuple[Point, int]:
    """What of an org stands up to a position that is not before the log's begin `low`; and how many records of it less
    than that there may be, where counting would take too long. Raises StorageError.
    """
    position = max(position, low)
    below, above = fold.around(org, position)
    if position <= below.position or below.entries == above.entries:
        return below, 0
    if position >= above.position:
        return above, 0
    from_below = below.position >= low and position - below.position < above.position - position
    counted = (
        _counted(readers, place, fold, org, below.position, position)
        if from_below
        else _counted(readers, place, fold, org, position, above.position)
    )
    if counted is None:
        return above, above.records - below.records
    sign, point = (1, below) if from_below else (-1, above)
    return Point(position, point.entries + sign * counted.entries, point.records + sign * counted.records), 0


@define
class _Count:
    entries: int = 0
    records: int = 0


def _counted(readers: Readers, place: Place, fold: Fold, org: bytes, after: int, through: int) -> _Count | None:
    """An org's entries between two positions, without those that stand there again; None when it takes too long."""
    until = time.monotonic() + COUNT_S
    count = _Count()

    def take(message: Message) -> None:
        position, value = message.offset() + 1, message.value() or b""
        if message.key() != org or position > through or fold.was_repeated(position):
            return
        entry = entry_head(value)
        if entry is not None:
            count.entries += 1
            count.records += entry.records

    while after < through:
        if time.monotonic() > until:
            return None
        with readers.take((place, after)) as reader:
            begin, reached = reader.scan(place, after, take, max_bytes=COUNT_BYTES)
        if begin != after or reached == after:
            return None  # removed meanwhile
        after = reached
    return count

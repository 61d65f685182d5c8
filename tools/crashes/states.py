"""Which files a loss of power may leave; pure.

Of what was written since a file's last sync any part may be there: each page of it, or a torn one, in whole sectors.
What was synced is there. Pages of one write are taken apart, since the kernel writes back pages.
"""

from __future__ import annotations

import random
from collections.abc import Container, Iterable, Iterator, Sequence

from attrs import define, field, frozen

from tools.crashes.record import Event, Renamed, Resized, Synced, Write
from tools.crashes.workload import Promise

PAGE, SECTOR = 4096, 512
SUBSETS = 6
"""Drawn at random at each moment, beside those that are always tried."""


@frozen
class State:
    """Files after a crash, and what must be in them."""

    number: int
    moment: int
    """After so many events."""
    what: str
    files: dict[str, bytes] = field(repr=False)
    promise: Promise


@define
class _Disk:
    """What is durable, and what was written since."""

    files: dict[str, bytearray] = field(factory=dict)
    pending: list[Write | Resized] = field(factory=list)

    def happen(self, event: Write | Resized | Synced | Renamed) -> None:
        match event:
            case Write(durable=True):
                _apply(self.files, event)
            case Write():
                self.pending += _pages(event)
            case Resized():
                self.pending.append(event)
            case Synced(file):
                for one in [one for one in self.pending if one.file == file]:
                    _apply(self.files, one)
                self.pending = [one for one in self.pending if one.file != file]
            case Renamed(file, to):
                assert not [one for one in self.pending if one.file == file], "it was not synced before"
                self.files[to] = self.files.pop(file)

    def with_only(self, kept: Iterable[Write | Resized]) -> dict[str, bytes]:
        """The files, when of the pending writes only these arrived."""
        files = {name: bytearray(data) for name, data in self.files.items()}
        for one in kept:
            _apply(files, one)
        return {name: bytes(data) for name, data in files.items()}


def count(events: Sequence[Event], seed: int) -> int:
    """How many crash states a recording gives."""
    return sum(1 for _ in _moments(events, seed))


def states(events: Sequence[Event], seed: int, wanted: Container[int]) -> Iterator[State]:
    """The crash states of a recording whose numbers are wanted, in their order."""
    for number, (moment, what, kept, disk, promise) in enumerate(_moments(events, seed)):
        if number in wanted:
            yield State(number, moment, what, disk.with_only(kept), promise)


_Moment = tuple[int, str, list[Write | Resized], _Disk, Promise]


def _moments(events: Sequence[Event], seed: int) -> Iterator[_Moment]:
    """Every moment of a recording, many times: with each choice of what arrived of the pending writes."""
    rng = random.Random(seed)
    disk, promise = _Disk(), Promise()
    for moment, event in enumerate(events, 1):
        if isinstance(event, Promise):
            promise = event
            continue
        if isinstance(event, Write) and event.durable:
            # Until it has returned it may be there or not; once it has, it is.
            yield moment, "before a synced write", disk.pending, disk, promise
        disk.happen(event)
        for what, kept in _kept(disk.pending, rng):
            yield moment, what, kept, disk, promise


def _kept(pending: list[Write | Resized], rng: random.Random) -> Iterator[tuple[str, list[Write | Resized]]]:
    """Which of the pending writes may have arrived."""
    yield "all arrived", pending
    if not pending:
        return
    yield "none arrived", []
    for index, one in enumerate(pending):
        yield f"all but {index}", pending[:index] + pending[index + 1 :]
        yield f"only {index}", [one]
    for cut in _tears(pending[-1], rng):
        yield "torn last", [*pending[:-1], cut]
        yield "torn last alone", [cut]
    for _ in range(SUBSETS):
        some = [one for one in pending if rng.random() < 0.5]
        torn = [rng.choice(list(_tears(one, rng)) or [one]) if rng.random() < 0.2 else one for one in some]
        yield "some, some of them torn", torn


def _tears(one: Write | Resized, rng: random.Random) -> Iterator[Write]:
    """A write of which only a part arrived: its first sectors, or its last."""
    if isinstance(one, Resized) or len(one.data) <= SECTOR:
        return
    at = rng.randrange(SECTOR, len(one.data), SECTOR)
    yield Write(one.file, one.at, one.data[:at])
    yield Write(one.file, one.at + at, one.data[at:])


def _pages(write: Write) -> Iterator[Write]:
    at = 0
    while at < len(write.data):
        size = PAGE - (write.at + at) % PAGE
        yield Write(write.file, write.at + at, write.data[at : at + size])
        at += size


def _apply(files: dict[str, bytearray], event: Write | Resized) -> None:
    data = files.setdefault(event.file, bytearray())
    if isinstance(event, Resized):
        if event.size < len(data):
            del data[event.size :]
        data.extend(bytes(event.size - len(data)))
        return
    data.extend(bytes(max(0, event.at - len(data))))
    data[event.at : event.at + len(event.data)] = event.data

"""Consumer groups: where each has come to in its org's log, and which member may say so.

Rule 1: a member that begins to read for a group takes the next *generation*; only the latest one commits.
Rule 2: a commit goes neither backwards nor beyond the log's end; only a reset goes where it wants.
Rule 3: a member's own `state` is replaced together with the position, in the same transaction.
Rule 4: a reset takes a generation too, so that no commit that was under way undoes it, and forgets the state.
Rule 5: a group that is beyond the log's end was of another log, or of one that has lost its last entries: what of this
one it has read is not known, and it begins at the first entry again. Its state says what its members need not do twice.

What may change a group is the pure `changed`, on every engine. Here `GroupTable` reads and writes the rows in a
transaction of the embedded log; where nodes share a log, `kafka/group_state.py` says whose turn it is among them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Literal

import lmdb
from attrs import evolve, field, frozen

from phloem.engine.layout import ORG, Place, Tables, Tail, number_of
from sapflow.errors import StorageError

ROW = struct.Struct("!BQQQQQQQQ")
VERSION = 1


@frozen
class Group:
    """A group as it is stored."""

    place: Place
    """All up to here has been read and dealt with."""
    generation: int = 0
    resets: int = 0
    quarantined: int = 0
    """Entries that its members could not use."""
    made_us: int = 0
    touched_us: int = 0
    """When a member last began or committed."""
    state: bytes = field(default=b"", repr=lambda state: f"<{len(state)} bytes>")
    ahead: int = 0
    """By how much it was beyond the log's end when its member began; not stored."""


@frozen
class Take:
    """A member begins to read: of a group that is new, from `first` on."""

    org: str
    name: str
    first: Place
    most_groups: int
    seat: int = 0
    """Which member of its node it is, in a log that nodes share."""


@frozen
class Commit:
    """A member of this generation has dealt with all up to `place`."""

    org: str
    name: str
    generation: int
    place: Place
    state: bytes = b""
    quarantined: int = 0
    seat: int = 0


@frozen
class Reset:
    """Whoever reads for the group next begins behind `place`."""

    org: str
    name: str
    place: Place


@frozen
class Remove:
    """Forget the group; one that was touched after `unless_after_us` stays."""

    org: str
    name: str
    unless_after_us: int | None = None


@frozen
class Leave:
    """A member reads no more; in a log that nodes share, so that others need not wait."""

    org: str
    name: str
    seat: int


@frozen
class Beat:
    """The node that says so is there, and so are its members; in a log that nodes share."""


Change = Take | Commit | Reset | Remove
SharedChange = Change | Leave | Beat


@frozen
class Declined:
    """A change that was not made: nothing is different."""

    kind: Literal["fenced", "unknown", "full", "ahead", "in use", "held", "state"]
    reason: str


def changed(group: Group | None, change: Change, tail: Tail, now_us: int) -> Group | Declined | None:
    """What becomes of a group; None: it is no more. `tail` is that of the org's log."""
    if isinstance(change, Take) and group is None:
        group = Group(change.first, made_us=now_us)
    if group is None:
        return Declined("unknown", f"org '{change.org}' has no group '{change.name}'")
    match change:
        case Take():
            ahead = max(0, group.place.position - tail.end.position)
            place = tail.start if ahead else group.place
            return evolve(group, place=place, generation=group.generation + 1, touched_us=now_us, ahead=ahead)
        case Reset(place=place):
            return evolve(
                group,
                place=place,
                generation=group.generation + 1,
                resets=group.resets + 1,
                state=b"",
                touched_us=now_us,
            )
        case Remove(unless_after_us=limit):
            if limit is not None and group.touched_us > limit:
                return Declined("in use", "a member has begun or committed since")
            return None
        case Commit():
            return _committed(group, change, tail.end, now_us)


def _committed(group: Group, change: Commit, end: Place, now_us: int) -> Group | Declined:
    place = change.place
    if change.generation != group.generation:
        return Declined("fenced", "another member has taken over since, or the group was reset")
    if place.position > end.position:
        return Declined("ahead", f"position {place.position} is beyond the log's end, {end.position}")
    if place.position < group.place.position:
        return Declined("fenced", f"the group is at position {group.place.position} already")
    return evolve(
        group,
        place=place,
        state=change.state,
        quarantined=group.quarantined + change.quarantined,
        touched_us=now_us,
    )


class GroupTable:
    """The rows, within one transaction."""

    def __init__(self, tables: Tables, txn: lmdb.Transaction) -> None:
        self._tables = tables
        self._txn = txn

    def apply(self, change: SharedChange, now_us: int) -> Group | Declined | None:
        """Make a change, if it may be made."""
        assert not isinstance(change, Leave | Beat), "nobody shares this log"
        number = number_of(self._txn, self._tables, change.org)
        key = _key(number, change.name)
        before = self.get(number, change.name)
        if before is None and isinstance(change, Take) and sum(1 for _ in self.of(number)) >= change.most_groups:
            return Declined("full", f"org '{change.org}' has {change.most_groups} groups, as many as it may")
        after = changed(before, change, Tail.read(self._txn, self._tables, number), now_us)
        if isinstance(after, Group):
            self._txn.put(key, _packed(after), db=self._tables.groups)
        elif after is None:
            self._txn.delete(key, db=self._tables.groups)
        return after

    def of(self, number: int) -> Iterator[tuple[str, Group]]:
        """An org's groups, by its number."""
        prefix = ORG.pack(number)
        cursor = self._txn.cursor(self._tables.groups)
        if cursor.set_range(prefix):
            for key, value in cursor:
                if key[:4] != prefix:
                    return
                yield bytes(key[4:]).decode(), _unpacked(value)

    def numbers(self) -> Iterator[int]:
        """Of the orgs that have groups."""
        cursor = self._txn.cursor(self._tables.groups)
        found = cursor.first()
        while found:
            number: int = ORG.unpack_from(cursor.key())[0]
            yield number
            found = cursor.set_range(ORG.pack(number + 1))

    def get(self, number: int, name: str) -> Group | None:
        """A group of an org, by the org's number."""
        value = self._txn.get(_key(number, name), db=self._tables.groups)
        return _unpacked(value) if value is not None else None


def _key(number: int, name: str) -> bytes:
    return ORG.pack(number) + name.encode()


def _packed(group: Group) -> bytes:
    place = group.place
    head = ROW.pack(
        VERSION,
        place.position,
        place.bytes,
        place.records,
        group.generation,
        group.resets,
        group.quarantined,
        group.made_us,
        group.touched_us,
    )
    return head + group.state


def _unpacked(value: bytes | memoryview) -> Group:
    version, position, size, records, generation, resets, quarantined, made_us, touched_us = ROW.unpack_from(value)
    if version != VERSION:
        raise StorageError(f"a consumer group of version {version}, which is not known here; a newer sapflow wrote it")
    place = Place(position, size, records)
    return Group(place, generation, resets, quarantined, made_us, touched_us, bytes(value[ROW.size :]))

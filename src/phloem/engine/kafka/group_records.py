"""The records of the groups' topic: what nodes propose, and snapshots of what has become of it; pure.

A topic that is never shortened would have to be read from its beginning by whoever starts. So now and then a node
writes all groups as they are after some position, in *parts* of one snapshot, and then has Kafka forget what is before
that. Whoever starts reads from the first record that is there: a snapshot, once all its parts have come, takes the
place of what is gone, and the records behind its position are applied to it. It does not matter who wrote it, or how
often: what stands after a position is the same for all.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator

from attrs import frozen
from cattrs.preconf.json import make_converter
from cattrs.strategies import configure_tagged_union

from phloem.engine.groups import SharedChange
from phloem.engine.kafka.group_state import GroupState, Proposal, Sign, Standing
from sapflow.errors import StorageError

VERSION = 1
PART_BYTES = 512 << 10
"""Of groups in one part of a snapshot, states as they are; a part of one group may be larger."""


@frozen
class Row:
    """A group in a snapshot."""

    org: str
    name: str
    standing: Standing


@frozen
class Part:
    """One of `parts` of the snapshot `name`, of what stands after the position `through`."""

    name: str
    through: int
    index: int
    parts: int
    rows: tuple[Row, ...] = ()
    signs: tuple[tuple[str, Sign], ...] = ()
    """Of the first part: those heard of last come last."""


Record = Proposal | Part

_converter = make_converter(omit_if_default=True)
configure_tagged_union(SharedChange, _converter, tag_name="kind", tag_generator=lambda kind: kind.__name__.lower())
configure_tagged_union(Record, _converter, tag_name="record", tag_generator=lambda kind: kind.__name__.lower())


def encode(record: Record) -> bytes:
    """As it stands in Kafka: JSON behind a version and a checksum."""
    text = json.dumps(_converter.unstructure(record, Record)).encode()
    return b"%d %08x " % (VERSION, zlib.crc32(text)) + text


def decode(data: bytes) -> Record | None:
    """The record; None of one that is damaged, or was never ours. Raises StorageError for one of a newer sapflow."""
    version, _, rest = data.partition(b" ")
    checksum, _, text = rest.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    if version != b"%d" % VERSION:
        raise StorageError(
            f"a record of consumer groups of version {version.decode(errors='replace'):.20}, which is not known here; "
            "a newer sapflow wrote it. Groups are not served until this node is that new too"
        )
    record: Record = _converter.structure(json.loads(text), Record)  # type: ignore[arg-type]
    return record


def snapshot(state: GroupState, name: str) -> Iterator[Part]:
    """The parts of what stands now."""
    pages: list[list[Row]] = [[]]
    size = 0
    for org, group, standing in state.all():
        if size > PART_BYTES:
            pages.append([])
            size = 0
        pages[-1].append(Row(org, group, standing))
        size += len(standing.group.state) + len(org) + len(group) + 200
    for index, rows in enumerate(pages):
        signs = tuple(state.signs.items()) if index == 0 else ()
        yield Part(name, state.through, index, len(pages), tuple(rows), signs)


def restored(parts: list[Part]) -> GroupState:
    """What a whole snapshot says."""
    state = GroupState()
    for part in parts:
        state.through = part.through
        for node, sign in part.signs:
            state.signs[node] = sign
        for row in part.rows:
            state.put(row.org, row.name, row.standing)
    return state


class Loading:
    """From the first record that is there, which `after` is the position before, to a state."""

    def __init__(self, after: int) -> None:
        self.state = GroupState() if after == 0 else None
        """None until it is known."""
        self._after = after
        self._parts: dict[str, list[Part]] = {}
        self._waiting: list[tuple[int, Proposal]] = []

    def take(self, position: int, record: Record) -> None:
        """The next record; of no use once the state is known."""
        assert self.state is None
        if isinstance(record, Proposal):
            self._waiting.append((position, record))
            return
        if record.through < self._after:
            return  # of what stood before: what came between is gone
        parts = self._parts.setdefault(record.name, [])
        if record.index == len(parts):
            parts.append(record)
        if len(parts) == record.parts:
            state = restored(parts)
            for at, proposal in self._waiting:
                if at > state.through:
                    state.apply(at, proposal)
            state.through = position
            self.state = state

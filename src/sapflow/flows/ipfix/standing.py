"""What one exporter's session has told in options data, as it stands: the last record of each template and scope.

Pure: batches come in by their positions in a log, and what was in force at a position goes out as IPFIX messages, in
the order in which it was told last. A record that is told again unchanged takes no room; of one that changed a few
versions are kept, for readers that begin before the change. All of it is bounded in bytes: then old versions go first,
and then what was told longest ago. Where the version that was in force at a position is not kept any more, the oldest
of that record that is kept stands for it.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator

from attrs import define, field
from crc32c import crc32c

from sapflow.flows.ipfix.encode import Encoder
from sapflow.flows.ipfix.shapes import shape_of
from sapflow.flows.ipfix.telling import IDENTITIES, sets_that_tell
from sapflow.flows.ipfix.templates import Template, variable_records

MAX_VERSIONS = 4
"""Of one record, the last of which is in force now."""
RECORD_BYTES = 40
"""What a record counts for beside its octets and its template: as many go out if each needs messages of its own."""
HEAD = struct.Struct("!BIQHIB")
"""version, CRC of all else, the last position that told, templates, records, length of the exporter's name."""
VERSION = 1
_TEMPLATE = struct.Struct("!HHH")
"""set id, template id, length of the shape that follows."""
_RECORD = struct.Struct("!BHIIQQH")
"""whether nothing was dropped before it, template, domain, export time, since, told, length of the octets behind."""

Key = tuple[int, bytes, bytes]
"""Domain, shape of the template, and what in its record says what that is of."""


class DamagedStanding(ValueError):
    """It is not what was packed."""


@define(slots=True, eq=False)
class _Version:
    template: Template
    domain: int
    time: int
    octets: bytes
    since: int
    """The position where it was first told so."""
    told: int
    """The last one where it was told so."""
    is_first: bool = True
    """What came before it was not dropped."""

    @property
    def size(self) -> int:
        return len(self.octets) + RECORD_BYTES + self.template.raw_bytes


@define
class Standing:
    """By record; those told last are last."""

    exporter: str = ""
    told: int = 0
    """The last position that told anything."""
    forgotten: int = 0
    """Records that there was no room for, since this was made or unpacked."""
    _records: dict[Key, list[_Version]] = field(factory=dict)
    _bytes: int = 0

    def __len__(self) -> int:
        return len(self._records)

    def take(self, payload: bytes, position: int) -> None:
        """What a self-contained batch tells. Raises MalformedMessage, after what stands before the fault."""
        for domain, time, template, body, end in sets_that_tell(payload):
            for octets, identity, says in records_of(payload, body, end, template):
                key = (domain, template.shape.key, identity)
                # A rate of 0 or an empty name says nothing: what was told before stands.
                if says or key not in self._records:
                    self._put(key, template, time, octets, position)
                self.told = position

    def _put(self, key: Key, template: Template, time: int, octets: bytes, position: int) -> None:
        versions = self._records.pop(key, [])
        self._records[key] = versions
        if versions and versions[-1].octets == octets:
            versions[-1].told = position
            return
        new = _Version(template, key[0], time, octets, position, position)
        self._bytes += new.size
        if versions and versions[-1].since == position:
            old = versions.pop()  # of one batch the last counts
            new.is_first = old.is_first
            self._bytes -= old.size
        versions.append(new)
        if len(versions) > MAX_VERSIONS:
            self._drop_oldest(versions)

    def _drop_oldest(self, versions: list[_Version]) -> None:
        self._bytes -= versions.pop(0).size
        versions[0].is_first = False

    def trim(self, most_bytes: int, first_position: int) -> None:
        """Forget what nobody can ask for who reads from `first_position` on, and what is too much."""
        for versions in self._records.values():
            while len(versions) > 1 and versions[1].since < first_position:
                self._drop_oldest(versions)
        for versions in self._records.values():
            while self._bytes > most_bytes and len(versions) > 1:
                self._drop_oldest(versions)
        while self._bytes > most_bytes:
            versions = self._records.pop(next(iter(self._records)))
            self._bytes -= sum(version.size for version in versions)
            self.forgotten += 1

    def in_force(self, position: int) -> tuple[bytes, int, int]:
        """What was in force at a position: self-contained messages, how many, and how many records they hold."""
        found = [version for versions in self._records.values() if (version := _at(versions, position)) is not None]
        messages: list[bytes] = []
        defined: dict[tuple[int, int], bytes] = {}
        for place, run in itertools.groupby(found, lambda one: (one.domain, one.template.id, one.template.shape.key)):
            domain, number, shape = place
            encoder, records = Encoder(domain), list(run)
            template, time = records[-1].template, records[-1].time
            if defined.get((domain, number)) != shape:
                defined[domain, number] = shape
                messages.append(encoder.templates([template], export_time=time))
            messages.append(encoder.records(template, [one.octets for one in records], export_time=time))
        data = b"".join(messages)
        return data, _count(data), len(found)

    # --- as it is kept ----------------------------------------------------------------------------------------

    def pack(self) -> bytes:
        """For a disk."""
        templates: dict[tuple[int, bytes], int] = {}
        shapes, records = [], []
        for version in itertools.chain.from_iterable(self._records.values()):
            template = version.template
            name = (template.id, template.shape.key)
            if name not in templates:
                templates[name] = len(templates)
                shapes += [_TEMPLATE.pack(template.set_id, template.id, len(template.shape.raw)), template.shape.raw]
            fields = (version.is_first, templates[name], version.domain, version.time, version.since, version.told)
            records += [_RECORD.pack(*fields, len(version.octets)), version.octets]
        exporter = self.exporter.encode()[:255]
        body = exporter + b"".join((*shapes, *records))
        head = (self.told, len(templates), len(records) // 2, len(exporter))
        crc = crc32c(body, crc32c(HEAD.pack(VERSION, 0, *head)))
        return HEAD.pack(VERSION, crc, *head) + body

    @classmethod
    def unpack(cls, data: bytes) -> Standing:
        """What `pack` made. Raises DamagedStanding."""
        if len(data) < HEAD.size:
            raise DamagedStanding(f"{len(data)} bytes are too few")
        version, crc, told, shapes, records, named = HEAD.unpack_from(data)
        bare = HEAD.pack(version, 0, told, shapes, records, named)
        if version != VERSION or crc32c(data[HEAD.size :], crc32c(bare)) != crc:
            raise DamagedStanding("its checksum or version is another")
        at = HEAD.size + named
        standing = cls(data[HEAD.size : at].decode("utf-8", "replace"), told)
        templates = []
        for _ in range(shapes):
            set_id, number, length = _TEMPLATE.unpack_from(data, at)
            at += _TEMPLATE.size
            templates.append(Template(number, shape_of(data[at : at + length], set_id)))
            at += length
        for _ in range(records):
            is_first, which, domain, time, since, last, length = _RECORD.unpack_from(data, at)
            at += _RECORD.size
            octets = data[at : at + length]
            at += length
            standing._restore(_Version(templates[which], domain, time, octets, since, last, bool(is_first)))
        return standing

    def _restore(self, version: _Version) -> None:
        [(octets, identity, _)] = records_of(version.octets, 0, len(version.octets), version.template)
        assert octets == version.octets
        self._records.setdefault((version.domain, version.template.shape.key, identity), []).append(version)
        self._bytes += version.size


def last_told(packed: bytes | memoryview) -> int:
    """The last position that told anything, of what is packed."""
    found: int = HEAD.unpack_from(packed)[2]
    return found


def _at(versions: list[_Version], position: int) -> _Version | None:
    """What was in force; None: nothing was told by then."""
    for version in reversed(versions):
        if version.since <= position:
            return version
    return None if versions[0].is_first else versions[0]


def records_of(data: bytes, body: int, end: int, template: Template) -> Iterator[tuple[bytes, bytes, bool]]:
    """Each record of a data set, what in it says what it is of, and whether it says anything beside that."""
    scopes, size = template.scope_count, template.record_bytes
    names = [n < scopes or (spec.pen, spec.id) in IDENTITIES for n, spec in enumerate(template.fields)]
    if not size:
        begin = body
        for spans in variable_records(data, body, end, template):
            pieces = [data[first:stop] for (first, stop), named in zip(spans, names, strict=True) if named]
            # With their lengths, so that two that differ never look the same.
            identity = b"".join(bytes([len(one) & 255]) + one for one in pieces)
            says = any(any(data[first:stop]) for (first, stop), named in zip(spans, names, strict=True) if not named)
            yield data[begin : spans[-1][1]], identity, says
            begin = spans[-1][1]
        return
    places, at = [], 0
    for spec, named in zip(template.fields, names, strict=True):
        if named:
            places.append((at, at + spec.length))
        at += spec.length
    for start in range(body, end - size + 1, size):
        octets = data[start : start + size]
        identity = b"".join([octets[first:stop] for first, stop in places])
        # Its octets that are not 0 are more than those of its identity.
        yield octets, identity, size - octets.count(0) > len(identity) - identity.count(0)


def _count(data: bytes) -> int:
    """How many messages."""
    count = at = 0
    while at < len(data):
        at += data[at + 2] << 8 | data[at + 3]
        count += 1
    return count

"""The log in Kafka: what it stores is durable when all replicas in sync have it.

Any number of nodes may append. What two of them stored of one stream stands there twice, and whoever reads drops what
is not above what it had (`repeats.py`). First appearances are in order, since every sender begins with the lowest
number that it has not seen acknowledged. Headers carry org, stream and number beside the entry itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence, Set

from attrs import asdict, define, frozen

from phloem.engine.engine import Outcome, Stretch
from phloem.engine.groups import Declined, Group, SharedChange
from phloem.engine.kafka.clients import REAL, Clients, Trouble
from phloem.engine.kafka.group_log import GroupLog
from phloem.engine.kafka.ledger_log import LedgerLog
from phloem.engine.kafka.marks import Key, Mark, Marks
from phloem.engine.kafka.names import TELLS, Place
from phloem.engine.kafka.producing import Draft, Producing
from phloem.engine.kafka.reading import END, ReadCounts, Readers
from phloem.engine.kafka.settings import KafkaSettings
from phloem.engine.kafka.topics import Topics
from phloem.engine.layout import Place as PlaceInLog
from phloem.engine.layout import Tail
from sapflow.entry import LogEntry, encode_entry, entry_number
from sapflow.errors import StorageError
from sapflow.ledger import Backlog, OrgLedger

LEARN_BYTES = 64 << 20
"""What is read at most to find out whether another node stored what is missing."""


@frozen(slots=True)
class _Judged:
    """What is to become of one batch: `draft` where it is to be stored."""

    key: Key
    seq: int
    crc: int
    outcome: Outcome
    draft: Draft | None = None


@define
class LearningCounts:
    """How often a gap made it look for what another node stored; never goes down."""

    searches: int = 0
    unknown_gaps: int = 0
    """Streams that went on above a gap, of which the log did not say within `LEARN_BYTES` whether it is one."""


class KafkaLog:
    """All orgs' logs, in Kafka. Synchronous; the storage thread appends, others read."""

    is_shared = True
    measures = False
    removes = False

    def __init__(self, settings: KafkaSettings, clients: Clients = REAL) -> None:
        self.is_open = False
        self.learning = LearningCounts()
        self.settings = settings
        self._trouble = Trouble(settings.servers)
        self._topics = Topics(settings, clients, self._trouble)
        self._producing = Producing(settings, clients, self._trouble)
        self._readers = Readers(settings, clients, self._trouble)
        self._marks = Marks()
        self._groups = GroupLog(settings, clients, self._trouble, self._topics, self._tails)
        self._ledgers = LedgerLog(settings, clients, self._trouble, self._topics, self._readers)
        self._to_forget: deque[str] = deque()
        self._seen_ends: dict[Place, int] = {}
        self._seen_orgs: set[str] = set()

    @property
    def read_counts(self) -> ReadCounts:
        """What its readers have done."""
        return self._readers.counts

    def counts(self) -> dict[str, int]:
        """See `Engine`."""
        groups = {f"groups_{name}": value for name, value in asdict(self._groups.counts).items()}
        ledgers = {f"ledger_{name}": value for name, value in asdict(self._ledgers.counts).items()}
        options = asdict(self._ledgers.options_counts)
        return {**asdict(self.learning), **asdict(self._readers.counts), **groups, **ledgers, **options}

    def look_ahead(self) -> None:
        """Nothing: brokers remove what is old."""

    def reopen(self) -> None:
        """See `Engine`."""
        self._producing.throw_away()
        self._topics.open()
        self.is_open = True

    def interrupt(self) -> None:
        """See `Engine`."""
        self._producing.interrupt()
        self._groups.interrupt()
        self._ledgers.interrupt()

    def close(self) -> None:
        """See `Engine`."""
        self.is_open = False
        self._producing.throw_away()
        self._ledgers.close()
        self._readers.close()
        self._groups.close()

    def forget(self, org: str) -> None:
        """See `Engine`."""
        self._to_forget.append(org)

    def upkeep(self, orgs: Set[str]) -> Iterator[int]:
        """Retention is Kafka's own; topics of orgs that are gone are taken away."""
        return self._topics.upkeep(orgs)

    # --- writing ----------------------------------------------------------------------------------------------

    def append(self, batches: Sequence[tuple[str, LogEntry]]) -> list[Outcome]:
        """See `Engine`."""
        if not self.is_open:
            raise StorageError("the log is not open")
        while self._to_forget:
            self._marks.forget_org(self._to_forget.popleft())
        try:
            self._topics.prepare({org for org, _ in batches})
            self._learn_of_gaps(batches)
            judged = self._judge(batches)
            to_store = [(one, one.draft) for one in judged if one.draft is not None]
            positions: dict[int, int] = {}

            def stored(index: int, offset: int) -> None:
                one = to_store[index][0]
                positions[id(one)] = offset + 1
                self._marks.note(one.key, one.seq, one.crc, offset + 1)

            self._producing.store([draft for _, draft in to_store], stored)
        except StorageError:
            self.is_open = False
            self._topics.doubt(self._producing.turned_away)
            raise
        return [
            Outcome(one.outcome.kind, one.outcome.mark, positions.get(id(one), 0)) if one.draft else one.outcome
            for one in judged
        ]

    def _judge(self, batches: Sequence[tuple[str, LogEntry]]) -> list[_Judged]:
        marks: dict[Key, Mark] = {}
        judged = []
        for org, entry in batches:
            key = (org, entry.stream)
            mark = marks.get(key) or self._marks.get(key)
            data, crc = encode_entry(entry)
            if mark is not None and entry.seq <= mark.mark:
                outcome = Outcome("duplicate" if mark.has(entry.seq, crc) else "conflict", mark.mark)
                judged.append(_Judged(key, entry.seq, crc, outcome))
            elif mark is not None and entry.seq > mark.mark + 1:
                judged.append(_Judged(key, entry.seq, crc, Outcome("refused", mark.mark)))
            else:
                marks[key] = mark.followed_by(crc) if mark is not None else Mark(entry.seq, (crc,), 0)
                draft = self._draft(org, entry, data)
                judged.append(_Judged(key, entry.seq, crc, Outcome("stored", entry.seq), draft))
        return judged

    def _draft(self, org: str, entry: LogEntry, data: bytes) -> Draft:
        name = org.encode()
        headers = [("org", name), ("stream", entry.stream), ("seq", b"%d" % entry.seq)]
        if entry.tells:
            headers.append((TELLS, b"1"))
        self._seen_orgs.add(org)
        return Draft(self._topics.place(org), name, data, headers)

    def _learn_of_gaps(self, batches: Sequence[tuple[str, LogEntry]]) -> None:
        """Where a stream goes on above what is known of it, find out whether another node stored what is between."""
        highest: dict[Key, int] = {}
        gaps: dict[str, set[Key]] = {}
        for org, entry in batches:
            key = (org, entry.stream)
            mark = self._marks.get(key)
            if mark is None:
                continue
            if entry.seq > highest.get(key, mark.mark) + 1:
                gaps.setdefault(org, set()).add(key)
            highest[key] = max(highest.get(key, mark.mark), entry.seq)
        for org, keys in gaps.items():
            self._learn(org, keys)

    def _learn(self, org: str, keys: set[Key]) -> None:
        self.learning.searches += 1
        after = min(mark.since for key in keys if (mark := self._marks.get(key)) is not None)
        read = 0
        while read < LEARN_BYTES:
            found = self.stretch(org, after, max_bytes=4 << 20, max_entries=10_000)
            for position, data in found.entries:
                number = entry_number(data)
                if number is not None:
                    stream, seq, crc = number
                    self._marks.note((org, stream), seq, crc, position)
                read += len(data)
            if found.through == after and found.gap_to is None:
                for key in keys:
                    self._marks.learned(key, after)
                return
            after = found.through
            if found.gap_to is not None:
                break
        for key in keys:
            # Its sender begins with what it has not seen acknowledged: what is below is stored, by the rules of links.
            self.learning.unknown_gaps += 1
            self._marks.forget_stream(key)

    # --- reading ----------------------------------------------------------------------------------------------

    def stretch(self, org: str, after: int, *, max_bytes: int, max_entries: int) -> Stretch:
        """See `Engine`."""
        place = self._topics.place(org)
        with self._readers.take((place, after)) as reader:
            return reader.stretch(place, org.encode(), after, max_bytes=max_bytes, max_entries=max_entries)

    def news(self, orgs: Set[str]) -> Set[str]:
        """See `Engine`; where orgs share a partition, all of them may have more."""
        by_place: dict[Place, set[str]] = {}
        for org in orgs:
            by_place.setdefault(self._topics.place(org), set()).add(org)
        found: set[str] = set()
        ends = self._topics.ends(by_place.keys())
        for place, end in ends.items():
            if self._seen_ends.get(place) != end:
                found |= by_place[place]
        self._seen_ends = dict(ends)
        return found

    def tail(self, org: str) -> Tail:
        """See `Engine`; positions only."""
        return self._tails({org}).get(org, Tail())

    def walk(self, org: str, place: PlaceInLog, through: int, *, at_most: int) -> PlaceInLog:
        """See `Engine`; without bytes and records."""
        return PlaceInLog(through)

    def _tails(self, orgs: Set[str]) -> dict[str, Tail]:
        """Where orgs' logs begin and end, asked for all at once. Raises StorageError."""
        places = {org: self._topics.place(org) for org in orgs}
        asked = set(places.values())
        starts = self._topics.starts(asked) if asked else {}
        ends = self._topics.ends(asked) if asked else {}
        return {org: Tail(starts.get(place, 0) + 1, ends.get(place, 0) + 1) for org, place in places.items()}

    def first_position(self, org: str) -> int:
        """See `Engine`."""
        return self._ends(org)[0] + 1

    def last_position(self, org: str) -> int:
        """See `Engine`."""
        return self._ends(org)[1]

    def position_at(self, org: str, time_us: int) -> int:
        """See `Engine`; by when it was stored, which is not before it was taken in."""
        place = self._topics.place(org)
        with self._readers.take() as reader:
            offset = reader.offset_at(place, time_us // 1000)
            return (reader.ends(place)[1] if offset == END else offset) + 1

    # --- consumer groups ----------------------------------------------------------------------------------------

    @property
    def shared_groups(self) -> GroupLog:
        """See `Engine`."""
        return self._groups

    def change_groups(self, changes: Sequence[SharedChange], now_us: int) -> list[Group | Declined | None]:
        """See `Engine`."""
        return self._groups.change(changes, now_us)

    def group(self, org: str, name: str) -> Group | None:
        """See `Engine`."""
        return self._groups.of(org).get(name)

    def groups(self, org: str) -> dict[str, Group]:
        """See `Engine`."""
        return self._groups.of(org)

    def orgs_with_groups(self) -> list[str]:
        """See `Engine`."""
        return self._groups.orgs()

    # --- the ledger ---------------------------------------------------------------------------------------------

    @property
    def shared_ledger(self) -> LedgerLog:
        """See `Engine`."""
        return self._ledgers

    def ledger(self, org: str, *, most_rows: int = 0) -> OrgLedger:
        """See `Engine`."""
        return self._ledgers.ledger(org, most_rows)

    def backlog(self, org: str, position: int) -> Backlog:
        """See `Engine`."""
        return self._ledgers.backlog(org, position)

    def told_streams(self, org: str) -> list[bytes]:
        """See `Engine`."""
        return self._ledgers.told_streams(org)

    def told(self, org: str, stream: bytes, position: int) -> bytes | None:
        """See `Engine`."""
        return self._ledgers.told(org, stream, position)

    def holds(self, org: str) -> bool:
        """See `Engine`: what this node has stored of it, or its topic."""
        if org in self._seen_orgs:
            return True
        return self.settings.topic_per_org and self._topics.is_there(self._topics.place(org).topic)

    def _ends(self, org: str) -> tuple[int, int]:
        with self._readers.take() as reader:
            return reader.ends(self._topics.place(org))

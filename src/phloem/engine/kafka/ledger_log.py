"""Orgs' ledgers, folded from their partitions of the log; and the ledger's topic, with what was folded so far.

What exporters told in options data is folded beside them, into a topic of its own (`options_log.py`).

Synchronous; all of it belongs to one thread. Any node may fold any partition and comes to the same, so nothing here has
to be agreed on: that each is folded by one node at a time, that of an org's claim, only saves work.
"""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Set

import structlog
from attrs import define

from phloem.engine.kafka.clients import Clients, Message, Trouble
from phloem.engine.kafka.ledger_count import before
from phloem.engine.kafka.ledger_fold import Fold
from phloem.engine.kafka.ledger_records import Loading, encode, key_of
from phloem.engine.kafka.names import TELLS, Place, beside, ledger_topic_of
from phloem.engine.kafka.options_fold import OptionsFold
from phloem.engine.kafka.options_log import OptionsLog
from phloem.engine.kafka.producing import UNKNOWN, Draft, Producing
from phloem.engine.kafka.reading import Readers
from phloem.engine.kafka.settings import KafkaSettings
from phloem.engine.kafka.topics import Topics
from phloem.engine.options import OptionsCounts
from sapflow.entry import entry_head
from sapflow.errors import StorageError
from sapflow.ledger import Backlog, OrgLedger, StreamLedger

log = structlog.get_logger()

STEP_BYTES = 4 << 20
"""Of a partition that is folded before anybody else has a turn."""
CATCH_UP_S = 5.0
"""Whoever asks for a ledger waits so long for what is not folded yet, and is told how much is left."""
MAX_HELD = 16_384
"""Rows of streams and orgs of all partitions that are in memory; of one partition there may be more."""
MOST_WAITING = 1024
"""Entries that tell something are folded when there are so many, while there is more of the partition to be counted."""
REMOVED = "retention had removed what came before {} when it was first counted"
OVERTAKEN = "retention removed what came before {} before it was counted"
ANEW = "the topic was made anew, so it begins anew"
CUT = "the log was cut, so it begins anew"


@define
class LedgerCounts:
    """What was done for ledgers; never goes down."""

    folded_entries: int = 0
    loads: int = 0
    checkpoints: int = 0
    checkpoint_bytes: int = 0
    begun_anew: int = 0
    damaged: int = 0
    """Records of the ledger's topic that are not what was written."""


@define(eq=False)
class _Held:
    """A partition's fold, and what of it is in the ledger's topic."""

    fold: Fold
    options: OptionsFold
    slot: int
    """Where its next checkpoint is put."""
    written: int

    @property
    def weight(self) -> int:
        """What takes memory."""
        return self.fold.weight + len(self.options.rows)


class LedgerLog:
    """All ledgers of the fleet, as one node knows them."""

    def __init__(
        self,
        settings: KafkaSettings,
        clients: Clients,
        trouble: Trouble,
        topics: Topics,
        readers: Readers,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counts = LedgerCounts()
        self._settings = settings
        self._topics = topics
        self._readers = readers
        self._producing = Producing(settings, clients, trouble)
        self._options = OptionsLog(settings, topics, readers, self._producing)
        self._clock = clock
        self._held: OrderedDict[Place, _Held] = OrderedDict()
        self._noted: dict[Place, int] = {}
        """Of the ledger's topic: up to where this node has written, or seen that another did."""
        self._is_interrupted = False

    # --- keeping ----------------------------------------------------------------------------------------------

    def keep(self, orgs: Set[str]) -> Iterator[None]:
        """Fold what these orgs' partitions have, and write checkpoints, in bounded steps. Raises StorageError.

        A partition in which another node has orgs too is left to that node as long as it writes checkpoints.
        """
        places = {self._topics.place(org) for org in orgs}
        identities = self._topics.identities({place.topic for place in places})
        places = {place for place in places if place.topic in identities}
        if not places:
            return
        partitions = self._topics.prepare_ledger()
        written = self._topics.ends({self._ledger_place(place, partitions) for place in places})
        try:
            for place in sorted(places, key=lambda place: (place.topic, place.partition)):
                # Asked for now: between the steps of the one before, somebody may have asked for this one's ledger.
                end = self._topics.ends({place}).get(place)
                if end is None or self._is_others(place, partitions, written):
                    self._held.pop(place, None)
                    continue
                held = self._hold(place, identities[place.topic], end, partitions)
                while held.fold.through < end:
                    self._step(place, held)
                    yield
                    while held.options.waits > MOST_WAITING:
                        self._options.fold_some(held.options, held.fold)
                        yield
                while held.options.is_due:
                    self._options.fold_some(held.options, held.fold)
                    yield
                # No turn of anybody else's in between: nothing waits that the checkpoint goes beyond.
                if held.fold.through > held.written:
                    self._write(place, held, partitions)
                    yield
                self._let_go_of_some()
        finally:
            self._producing.throw_away()

    def _is_others(self, place: Place, partitions: int, written: Mapping[Place, int]) -> bool:
        """Whether another node has written checkpoints since this one looked; at first that is not known."""
        if self._settings.topic_per_org or partitions != self._settings.partitions:
            return False  # there, what is written says nothing of who has written
        into = self._ledger_place(place, partitions)
        end = written.get(into, 0)
        if self._noted.get(into) == end:
            return False
        self._noted[into] = end
        return True

    def _write(self, place: Place, held: _Held, partitions: int) -> None:
        """A checkpoint of what is folded. Raises StorageError."""
        fold, end = held.fold, UNKNOWN
        fold.forget_points(self._topics.starts({place}).get(place, 0))
        into = self._ledger_place(place, partitions)
        for index, part in enumerate(encode(fold, uuid.uuid4().hex, self._settings.node)):
            offsets = [UNKNOWN]
            self._producing.store([Draft(into, key_of(place, held.slot, index), part, [])], offsets.__setitem__)
            end = offsets[0] + 1
            self.counts.checkpoint_bytes += len(part)
        held.slot, held.written = 1 - held.slot, fold.through
        self._noted[into] = end
        self.counts.checkpoints += 1

    def _ledger_place(self, place: Place, partitions: int) -> Place:
        topic = ledger_topic_of(self._settings.fleet)
        return beside(place, topic, partitions, per_org=self._settings.topic_per_org)

    # --- folding ----------------------------------------------------------------------------------------------

    def _hold(self, place: Place, topic_id: str, end: int, partitions: int) -> _Held:
        """A partition's fold, as far as it is known: here, or by its last checkpoint. Raises StorageError."""
        held = self._held.get(place)
        if held is None or held.fold.topic_id != topic_id or held.fold.through > end:
            known = held.fold.topic_id if held is not None else None
            held = self._load(place, topic_id, end, partitions, known)
            self._held[place] = held
        self._held.move_to_end(place)
        return held

    def _load(self, place: Place, topic_id: str, end: int, partitions: int, known: str | None) -> _Held:
        self.counts.loads += 1
        into = self._ledger_place(place, partitions)
        loading = Loading(place)

        def take(message: Message) -> None:
            loading.take(message.key() or b"", message.value() or b"")

        after, through = 0, -1
        while through != after:
            after = max(through, 0)
            with self._readers.take((into, after)) as reader:
                _, through = reader.scan(into, after, take, max_bytes=STEP_BYTES)
        self._noted.setdefault(into, through)
        self.counts.damaged += loading.damaged
        found = loading.found(topic_id, end)
        fold, written = found.fold, found.fold.through if found.fold is not None else 0
        if fold is None:
            is_cut, is_anew = found.is_ahead or known == topic_id, found.is_of_another or known is not None
            fold = self._anew(place, topic_id, CUT if is_cut else ANEW if is_anew else "")
        fold.silent_us = int(self._settings.ledger_streams_s * 1e6)
        return _Held(fold, OptionsFold(place, topic_id), found.slot, written)

    def _anew(self, place: Place, topic_id: str, why: str) -> Fold:
        """A fold that begins with what is there."""
        low = self._topics.starts({place}).get(place, 0)
        if low and not why:
            why = REMOVED.format(f"position {low + 1:,}")
        if why:
            self.counts.begun_anew += 1
            log.warning("ledger begins anew", topic=place.topic, partition=place.partition, position=low, reason=why)
        return Fold(topic_id=topic_id, begun=low, unknown_through=low, through=low, why=why)

    def _step(self, place: Place, held: _Held) -> None:
        """Fold a stretch of a partition, and note what in it tells of exporters. Raises StorageError."""
        fold = held.fold
        if self._is_interrupted:
            raise StorageError("this process ends; what is not folded yet is folded by the next")

        def begins(position: int) -> None:
            if position > fold.through:
                why = OVERTAKEN.format(f"position {position + 1:,}")
                log.warning("ledger lacks entries", topic=place.topic, partition=place.partition, reason=why)
                fold.skip(position, why)

        def take(message: Message) -> None:
            position, key, value = message.offset() + 1, message.key(), message.value() or b""
            entry = entry_head(value) if key is not None else None
            if entry is None or key is None:
                fold.pass_over(position, len(value))
                return
            self.counts.folded_entries += 1
            counts = fold.take(key, position, entry, len(value), message.timestamp()[1] * 1000)
            if counts and any(name == TELLS for name, _ in message.headers() or ()):
                self._options.counts.options_skipped += held.options.note(key, entry.stream, position)

        try:
            with self._readers.take((place, fold.through)) as reader:
                _, through = reader.scan(place, fold.through, take, begins, max_bytes=STEP_BYTES)
            fold.reach(through)
        finally:
            fold.settle()

    def _let_go_of_some(self) -> None:
        """Of what was not used for longest; it is in the ledger's topic, or in the log."""
        total = sum(one.weight for one in self._held.values())
        while total > MAX_HELD and len(self._held) > 1:
            total -= self._held.popitem(last=False)[1].weight

    # --- looking ----------------------------------------------------------------------------------------------

    def ledger(self, org: str, most_rows: int) -> OrgLedger:
        """See `Engine`; of what is counted, if not all is in time. Raises StorageError."""
        name, place, held, low, end = self._current(org)
        if held is None:
            return OrgLedger(org, StreamLedger())
        fold = held.fold
        total, streams = fold.folded(name)
        rows: deque[StreamLedger] = deque(maxlen=most_rows)
        for row in fold.streams(name):
            total.add(row)
            streams += 1
            rows.append(row)
        stored = fold.around(name, fold.through)[1].records
        removed, uncertain = before(self._readers, place, fold, name, low, low)
        return OrgLedger(
            org,
            total,
            streams,
            kept=stored - removed.records,
            removed=removed.records - uncertain,
            rows=list(reversed(rows)),
            behind=max(0, end - fold.through),
            uncertain=uncertain,
            begun=fold.why,
        )

    def backlog(self, org: str, position: int) -> Backlog:
        """See `Engine`. Raises StorageError."""
        name, place, held, low, end = self._current(org)
        if held is None:
            return Backlog(0, 0, 0)
        position = max(min(position, end), low)
        all_of_it = held.fold.around(name, held.fold.through)[1]
        read, uncertain = before(self._readers, place, held.fold, name, low, position)
        left = all_of_it.entries - read.entries, all_of_it.records - read.records
        return Backlog(position, *left, uncertain)

    def told_streams(self, org: str) -> list[bytes]:
        """See `Engine`. Raises StorageError."""
        name, _, held, _, _ = self._current(org)
        if held is None:
            return []
        self._options.refresh(held.options)
        return held.options.streams(name)

    def told(self, org: str, stream: bytes, position: int) -> bytes | None:
        """See `Engine`. Raises StorageError."""
        name, held = org.encode(), self._held.get(self._topics.place(org))
        if held is None or held.fold.through < position:
            _, _, held, _, _ = self._current(org)
            if held is None:
                return None
            self._options.refresh(held.options)
        return self._options.in_force(held.options, (name, stream), position)

    @property
    def options_counts(self) -> OptionsCounts:
        """What became of options data."""
        return self._options.counts

    def _current(self, org: str) -> tuple[bytes, Place, _Held | None, int, int]:
        """An org's partition, its fold to the end if that does not take too long, and where the log begins and ends."""
        name, place = org.encode(), self._topics.place(org)
        identity = self._topics.identities({place.topic}).get(place.topic)
        end = self._topics.ends({place}).get(place) if identity is not None else None
        if end is None or identity is None:
            return name, place, None, 0, 0
        held = self._hold(place, identity, end, self._topics.prepare_ledger())
        until = self._clock() + CATCH_UP_S
        while held.fold.through < end and self._clock() < until:
            self._step(place, held)
        self._let_go_of_some()
        return name, place, held, self._topics.starts({place}).get(place, 0), end

    # --- the end ----------------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """Give up what is waited for."""
        self._is_interrupted = True
        self._options.interrupt()
        self._producing.interrupt()

    def close(self) -> None:
        """Let go of what is written."""
        self._producing.throw_away()

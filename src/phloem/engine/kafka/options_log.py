"""What exporters told in options data, for readers that begin behind it: the topic in which it is kept.

Synchronous; it belongs to the thread of the ledgers (`ledger_log.py`), which finds what waits, has it folded in turn
with its own work, and holds what is known of each partition. Rows are read where they are needed, one at a time.
"""

from __future__ import annotations

from phloem.engine.kafka.clients import Message
from phloem.engine.kafka.ledger_fold import Fold
from phloem.engine.kafka.names import Place, beside, options_topic_of
from phloem.engine.kafka.options_fold import OptionsFold, Owner, key_of, packed_in, row_of
from phloem.engine.kafka.producing import Draft, Producing
from phloem.engine.kafka.reading import Readers
from phloem.engine.kafka.settings import KafkaSettings
from phloem.engine.kafka.topics import Topics
from phloem.engine.options import OptionsCounts
from sapflow.entry import CorruptEntry, LogEntry, decode_entry, encode_entry
from sapflow.errors import MalformedMessage, StorageError
from sapflow.flows.ipfix.standing import DamagedStanding, Standing

STEP_BYTES = 1 << 20
"""Of rows that are written at once; of one more it may be exceeded."""
STEP_READS = 32
"""Entries and rows that are read in a step; of one more stream it may be exceeded. One takes up to 0.2 s."""
SCAN_BYTES = 4 << 20


class OptionsLog:
    """The rows of all partitions."""

    def __init__(self, settings: KafkaSettings, topics: Topics, readers: Readers, producing: Producing) -> None:
        self.counts = OptionsCounts()
        self._settings = settings
        self._topics = topics
        self._readers = readers
        self._producing = producing
        self._is_interrupted = False

    def interrupt(self) -> None:
        """This process ends: rows that are not heard yet are left. Never waits, in any thread."""
        self._is_interrupted = True

    def refresh(self, fold: OptionsFold) -> Place:
        """Hear what was written of a partition's rows, by whomever: where they are. Raises StorageError."""
        topic, partitions = options_topic_of(self._settings.fleet), self._topics.prepare_options()
        fold.into = into = beside(fold.place, topic, partitions, per_org=self._settings.topic_per_org)

        if self._topics.ends({into}).get(into, 0) < fold.heard_through:
            fold.hear_anew()  # the topic was deleted, and made again

        def take(message: Message) -> None:
            fold.hear(message.key() or b"", message.value(), message.offset() + 1)

        while True:
            if self._is_interrupted:
                raise StorageError("this process ends; what exporters told is told by the next")
            after = fold.heard_through
            with self._readers.take((into, after)) as reader:
                _, fold.heard_through = reader.scan(into, after, take, max_bytes=SCAN_BYTES)
            if fold.heard_through == after:
                break
        # Asked for afterwards: what was heard of is not ahead of it.
        end = self._topics.ends({fold.place}).get(fold.place)
        if end is not None:
            fold.end_at(end)
        return into

    def fold_some(self, fold: OptionsFold, ledger: Fold) -> None:
        """Fold what waits into its streams' rows, a bounded step. Raises StorageError."""
        into = self.refresh(fold)
        first = self._topics.starts({fold.place}).get(fold.place, 0) + 1
        drafts = [self._draft(fold, into, owner, None) for owner in fold.beyond]
        done: list[tuple[Owner, list[int]]] = []
        size = reads = 0
        for owner in fold.due():
            if size >= STEP_BYTES or reads >= STEP_READS:
                break
            positions = list(fold.waiting.get(owner, ()))
            standing = self._standing(fold, into, owner, positions, self.counts)
            standing.trim(self._settings.options.bytes_per_stream, first)
            self.counts.options_forgotten += standing.forgotten
            if len(standing) or owner in fold.rows:
                row = row_of(fold.topic_id, standing.pack()) if len(standing) else None
                drafts.append(self._draft(fold, into, owner, row))
                size += len(row or b"")
            done.append((owner, positions))
            reads += 1 + len(positions)
        self._write(drafts)
        for owner, positions in done:
            fold.settle(owner, positions)
        fold.beyond.clear()
        self.refresh(fold)
        self._forget(fold, into, ledger)

    def in_force(self, fold: OptionsFold, owner: Owner, position: int) -> bytes | None:
        """What a stream had told by a position, as an entry of number 0; None when that is nothing."""
        into = fold.into or self.refresh(fold)
        waiting = [at for at in fold.waiting.get(owner, ()) if at <= position]
        standing = self._standing(fold, into, owner, waiting, OptionsCounts())
        standing.trim(self._settings.options.bytes_per_stream, 0)
        payload, messages, records = standing.in_force(position)
        if not records:
            return None
        return encode_entry(LogEntry(owner[1], 0, standing.exporter, 0, messages, records, payload))[0]

    # --- rows -------------------------------------------------------------------------------------------------

    def _standing(
        self, fold: OptionsFold, into: Place, owner: Owner, positions: list[int], counts: OptionsCounts
    ) -> Standing:
        """What a stream had told by the last of some entries that wait. Raises StorageError."""
        standing = self._row(fold, into, owner)
        for position in positions:
            if position <= standing.told:
                continue
            message = self._at(fold, fold.place, position)
            if message is None or message.key() != owner[0]:
                continue  # removed meanwhile
            try:
                entry = decode_entry(message.value() or b"")
                standing.exporter = entry.exporter
                standing.take(entry.payload, position)
                counts.options_folded += 1
            except (CorruptEntry, MalformedMessage):
                counts.options_unreadable += 1
        return standing

    def _row(self, fold: OptionsFold, into: Place, owner: Owner) -> Standing:
        for _ in range(2):
            known = fold.rows.get(owner)
            if known is None:
                return Standing()
            message = self._at(fold, into, known.position)
            if message is not None and message.key() == key_of(fold.place, owner):
                packed = packed_in(fold.topic_id, message.value() or b"")
                try:
                    return Standing.unpack(packed or b"")
                except DamagedStanding:
                    break
            # Written anew by another node, and the topic compacted since.
            self.refresh(fold)
        self.counts.options_unreadable += 1
        fold.drop(owner)
        return Standing()

    def _forget(self, fold: OptionsFold, into: Place, ledger: Fold) -> None:
        """Remove what there is no room for."""

        def heard(owner: Owner) -> int:
            return ledger.last_heard(*owner)

        excess = fold.excess(self._settings.options.bytes_per_org, heard)
        self._write([self._draft(fold, into, owner, None) for owner in excess])
        for owner in excess:
            fold.drop(owner)
        self.counts.options_streams_forgotten += len(excess)

    def _draft(self, fold: OptionsFold, into: Place, owner: Owner, row: bytes | None) -> Draft:
        return Draft(into, key_of(fold.place, owner), row, [])

    def _write(self, drafts: list[Draft]) -> None:
        self._producing.store(drafts, lambda index, offset: None)

    def _at(self, fold: OptionsFold, place: Place, position: int) -> Message | None:
        stood = fold.stands.get(place.topic, 0)
        with self._readers.take((place, stood)) as reader:
            found = reader.at(place, position)
            fold.stands[place.topic] = reader.stands[1] if reader.stands is not None else 0
        return found

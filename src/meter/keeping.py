"""What a spool is to do next, and what of it goes to the link: decisions only; no await, no disk in this file.

Rule 1: a batch gets its number here, in order, and goes to the link only once it is durable.
Rule 2: a stream's batches go to the link in order. What has no room in the window (memory) stays on disk, and is read
        back when there is room: while the fleet is away the disk fills, never the memory.
Rule 3: an exporter that can wait has one stream. One that cannot (UDP) begins another whenever its last one cannot be
        carried at once; the next is offered when all before it is durable in the log, so the exporter's order holds.
Rule 4: when the spool is full for an org, its exporters that can wait wait. For those that cannot, the org's oldest
        stream that was never offered is given up whole, so no stream ever has a gap; or, by choice, what comes is
        dropped.
Rule 5: orgs share the spool (`room`, `window`, `pending`): one that nobody takes from holds up no other.

`put`, `acknowledged` and `close` say what happened; `collect` gives the next transaction, `applied` what came of it.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field, frozen

from meter.batching import Draft, telling
from meter.debts import Debts
from meter.droppable import Droppable
from meter.keeping_settings import KeepingSettings
from meter.lanes import KeptStream, Lane, reopened, resumed
from meter.left import LeftStream
from meter.pending import Pending
from meter.room import Room
from meter.spool import Spool
from meter.spooled import SPOOL_FULL, Applied, Changes, Cut, Put, StreamRecord, entry_charge
from meter.window import Window
from sapflow.link import Batch, StreamId
from sapflow.link.account import NOTHING


@frozen
class Offer:
    """A batch for the link: durable."""

    stream: KeptStream
    batch: Batch


@define
class Keeping:
    """All lanes over one spool."""

    spool: Spool
    settings: KeepingSettings
    new_id: Callable[[], StreamId]
    streams: dict[StreamId, KeptStream] = field(factory=dict)
    refused_batches: int = 0
    """Dropped before they were taken: no room could be made."""
    refused_records: int = 0
    pending: Pending = field(factory=Pending)
    window: Window = field(init=False)
    room: Room = field(init=False)
    finished: list[KeptStream] = field(factory=list)
    """Streams of which all is acknowledged and nothing more comes; whoever offers them empties the list."""
    _droppable: Droppable = field(init=False)
    _opened: dict[StreamId, StreamRecord] = field(factory=dict)
    _acknowledged: dict[StreamId, int] = field(factory=dict)
    _dropped: set[StreamId] = field(factory=set)
    _ended: set[StreamId] = field(factory=set)
    _cuts: list[Cut] = field(factory=list)
    _notes: dict[str, str] = field(factory=dict)
    _lanes: dict[tuple[str, str, str], Lane] = field(factory=dict)
    """Those that are found again: droppable ones by exporter, files by source."""
    _order: int = 0
    _debts: Debts = field(factory=Debts)
    """Of exporters that have left; nothing here is what the spool has the account of."""
    _latest_us: int = 0
    """When the last batch was taken in, as its exporter's intake said."""

    def __attrs_post_init__(self) -> None:
        """Everything that an earlier life left is on its way again; only files may bring more of the same."""
        self.window = Window(self.settings)
        self.room = Room(self.spool, self.settings, self.pending)
        self._droppable = Droppable(lambda stream: self.streams.get(stream.id) is stream)
        for stream in reopened(self.spool.records.values(), self._lanes):
            self._enter(stream)
            self._order = stream.order
        self._find_owing()
        for stream in list(self.streams.values()):
            self._settle(stream)

    def _find_owing(self) -> None:
        """What was dropped in an earlier life is told of by the exporter's next batch, or by one of its own."""
        lanes = {(stream.lane.org, stream.lane.exporter): stream.lane for stream in self.streams.values()}
        for org, exporter in sorted(self.spool.owing):
            lane = lanes.get((org, exporter))
            if lane is not None:
                lane.owes = True
            else:
                self._tell(Lane(org, exporter))

    def lane(self, org: str, exporter: str, *, droppable: bool = False, source: str = "") -> Lane:
        """Where an exporter's batches are put; that of before, for a file, or an exporter over UDP."""
        if not droppable and not source:
            return Lane(org, exporter)
        key = (org, exporter, source)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(org, exporter, droppable, source)
        else:
            lane.users += 1
            lane.closed = False
        return lane

    def resume(self, org: str, exporter: str, left: LeftStream, now_us: int) -> Lane:
        """The lane of a stream that another process left, most often with all of it on disk.

        A new one where some of it is neither here nor durable: nothing behind it would ever be stored.
        """
        stream = self.streams.get(left.id)
        if stream is not None:
            stream.lane.closed, stream.lane.users = False, 1
            return stream.lane
        lane = Lane(org, exporter)
        if not left.is_whole:
            return lane
        # What is acknowledged was let go of: it begins again behind that.
        self.finished = [one for one in self.finished if one.id != left.id]
        self._ended.discard(left.id)
        self._order += 1
        self._enter(resumed(left, lane, self._order))
        for batch in left.batches:
            self._number(lane, Draft(batch.messages, batch.records, batch.payload, batch.account), now_us)
        return lane

    def sources(self) -> list[Lane]:
        """Files that were being read in an earlier life."""
        return [lane for lane in self._lanes.values() if lane.source]

    def put(self, lane: Lane, draft: Draft, received_us: int, offset: int = 0) -> KeptStream | None:
        """Number a batch and have it written. None when its exporter cannot wait and there is no room: dropped."""
        assert not lane.closed
        self._latest_us = max(self._latest_us, received_us)
        draft = draft.owing(lane.owed)
        cost = entry_charge(lane.exporter, _batch(0, draft, 0))
        if lane.droppable and not self._make_room(lane, cost):
            self.refused_batches += 1
            self.refused_records += draft.records
            lane.owed = draft.given_up(SPOOL_FULL)
            return None
        lane.owed, lane.owes = NOTHING, False
        return self._number(lane, draft, received_us, offset)

    def _number(self, lane: Lane, draft: Draft, received_us: int, offset: int = 0) -> KeptStream:
        stream = self._continued(lane) or self._begun(lane)
        size = draft.size
        at_once = stream.loaded == stream.last and lane.streams[0] is stream and self.window.fits_new(stream, size)
        stream.last += 1
        if at_once:
            stream.loaded, stream.offered = stream.last, True
            self.window.add(stream, size)
        batch = _batch(stream.last, draft, received_us)
        self.pending.add(lane.org, Put(stream.id, batch, at_once, offset), entry_charge(lane.exporter, batch))
        return stream

    def acknowledged(self, stream_id: StreamId, batch: Batch) -> None:
        """The fleet has made a batch durable."""
        stream = self.streams[stream_id]
        assert stream.acknowledged < batch.seq <= stream.loaded, (stream, batch.seq)
        stream.acknowledged = batch.seq
        self._acknowledged[stream_id] = batch.seq
        self.window.add(stream, -batch.size)
        self._settle(stream)

    def replaced(self, stream_id: StreamId, batch: Batch, by: Batch) -> None:
        """No collector takes a batch: another is on its way in its place. On disk it is as it was, until that is
        acknowledged; if this process dies before, it is refused again."""
        self.window.add(self.streams[stream_id], by.size - batch.size)

    def close(self, lane: Lane) -> None:
        """Nothing more is put into this lane; what is held is still delivered."""
        lane.users -= 1
        if lane.users > 0:
            return
        if lane.owed:
            self._tell(lane)
        lane.closed = True
        if lane.streams:
            self._settle(lane.streams[-1])
        self._forget(lane)

    def note(self, name: str, text: str) -> None:
        """Keep a text in the spool."""
        self._notes[name] = text

    @property
    def has_work(self) -> bool:
        """Whether another transaction would do something at once."""
        return bool(self._cuts or self.window.may_read or self.may_write)

    @property
    def may_write(self) -> bool:
        """Whether anything that was put has room on disk."""
        return self.pending.may_take(self.room.to_write)

    # --- transactions -----------------------------------------------------------------------------------------

    def collect(self, *, with_puts: bool = True) -> Changes:
        """The next transaction's work; no other is collected before `applied`, or `put_back`."""
        changes = Changes(
            acknowledged=self._acknowledged,
            dropped=self._dropped,
            cuts=self._cuts,
            ended=self._ended,
            notes=self._notes,
            read=self.window.reads(),
        )
        self._acknowledged, self._dropped, self._ended, self._notes, self._cuts = {}, set(), set(), {}, []
        if with_puts:
            changes.put = self.pending.take(self.settings.commit_bytes, self.room.to_write)
        for put in changes.put:
            stream = self.streams[put.stream]
            if not stream.stored:
                lane = stream.lane
                through = put.batch.seq - 1  # of a stream that goes on, what was before is acknowledged
                changes.opened.setdefault(
                    stream.id,
                    StreamRecord(
                        *(stream.id, stream.id, lane.org, lane.exporter, stream.order, lane.source, lane.droppable),
                        first=through + 1,
                        last=through,
                    ),
                )
        return changes

    def put_back(self, changes: Changes) -> None:
        """Take the batches out of a transaction for which there was no room; they come again later."""
        self.pending.put_back()
        changes.put, changes.opened = [], {}
        if self.settings.when_full == "oldest":
            # The disk has no room for anybody: who holds most gives up.
            any(self._give_up_oldest(org) for org, _ in self.spool.held_by.most_common())

    def applied(self, changes: Changes, applied: Applied) -> list[Offer]:
        """A transaction is durable: what may go to the link by it, in order."""
        self.spool.adopt(applied)
        self.room.dropping.clear()
        for record in map(self.spool.records.__getitem__, self._dropped):
            self.room.dropping[record.org] += record.held_bytes
        offers = []
        touched = {put.stream: self.streams[put.stream] for put in changes.put}
        for put, batch in zip(changes.put, applied.put, strict=True):
            stream = self.streams[put.stream]
            stream.stored, stream.durable, stream.offset = True, batch.seq, put.offset
            if put.offered:
                self.window.add(stream, batch.size - put.batch.size)
                offers.append(Offer(stream, batch))
        self.pending.done()
        for read in changes.read:
            stream, found = self.streams[read.stream], applied.found[read.stream]
            touched[read.stream] = stream
            stream.queued = False
            self.window.add(stream, sum(batch.size for batch in found.batches) - read.most_bytes)
            stream.loaded += len(found.batches)
            carried = stream if found.damaged is None else self._split(stream, found.damaged)
            offers += [Offer(carried, batch) for batch in found.batches]
        for stream in touched.values():
            self._settle(stream)
        self._tell_debts()
        return offers

    # --- within -----------------------------------------------------------------------------------------------

    def _continued(self, lane: Lane) -> KeptStream | None:
        """The stream that a lane's next batch is of; None when another begins with it."""
        if not lane.streams:
            return None
        newest = lane.streams[-1]
        if not lane.droppable:
            return newest
        if newest.offered:
            return newest if newest.loaded == newest.last else None
        record = self.spool.records.get(newest.id)
        return newest if record is None or record.held_bytes < self.settings.segment_bytes else None

    def _begun(self, lane: Lane) -> KeptStream:
        self._order += 1
        stream = KeptStream(self.new_id(), lane, self._order)
        lane.streams.append(stream)
        self._enter(stream)
        if len(lane.streams) > 1:
            self._settle(lane.streams[-2])
        return stream

    def _enter(self, stream: KeptStream) -> None:
        self.streams[stream.id] = stream
        self.room.count_stream(stream.lane.org, 1)
        if stream.lane.droppable:
            self._droppable.add(stream)

    def _leave(self, stream: KeptStream) -> None:
        del self.streams[stream.id]
        self.room.count_stream(stream.lane.org, -1)

    def _settle(self, stream: KeptStream) -> None:
        """After a change: read on, or let go, and let the next of its lane come."""
        lane = stream.lane
        if stream.id not in self.streams:
            return
        if stream.sealed and stream.acknowledged == stream.last:
            self._leave(stream)
            lane.streams.remove(stream)
            self.finished.append(stream)
            if stream.stored:
                self._ended.add(stream.id)
            if lane.streams:
                self._settle(lane.streams[0])
            self._forget(lane)
        elif lane.streams[0] is stream and stream.loaded < stream.durable and not stream.queued:
            self.window.wait(stream)

    def _tell(self, lane: Lane) -> None:
        """Have what a lane owes told by a batch of its own, as soon as there is room for one."""
        self._debts.add(lane.org, lane.exporter, lane.owed)
        lane.owed, lane.owes = NOTHING, False
        self._tell_debts()

    def _tell_debts(self) -> None:
        """In streams of their own, which are never given up."""
        while (due := self._debts.take(self.room.for_telling)) is not None:
            teller = Lane(due.org, due.exporter)
            self._number(teller, telling(due.owed), self._latest_us)
            teller.closed = True

    def _forget(self, lane: Lane) -> None:
        if lane.closed and not lane.streams:
            if lane.owes:
                self._tell(lane)
            key = (lane.org, lane.exporter, lane.source)
            if self._lanes.get(key) is lane:
                del self._lanes[key]

    def _make_room(self, lane: Lane, cost: int) -> bool:
        org, room = lane.org, self.room
        if not room.in_memory(org):
            return False
        while not room.for_dropping(org, cost) or not (room.for_stream(org) or self._continued(lane)):
            if self.settings.when_full == "newest" or not self._give_up_oldest(org):
                return False
        return True

    def _give_up_oldest(self, org: str) -> bool:
        """Drop an org's oldest stream that may be: False if there is none."""
        stream = self._droppable.oldest(org)
        if stream is None:
            return False
        self._dropped.add(stream.id)
        self.room.dropping[org] += self.spool.records[stream.id].held_bytes
        self._leave(stream)
        lane = stream.lane
        lane.owes = True
        was_first = lane.streams[0] is stream
        lane.streams.remove(stream)
        self.window.forget(stream)
        if was_first and lane.streams:
            self._settle(lane.streams[0])
        self._forget(lane)
        return True

    def _split(self, stream: KeptStream, damaged: int) -> KeptStream:
        """A batch cannot be read: its stream ends before it (which is returned), and another goes on behind it."""
        lane = stream.lane
        lane.owes = True
        done = KeptStream(
            stream.id, lane, stream.order, damaged - 1, damaged - 1, damaged - 1, stream.acknowledged, True, True
        )
        done.window_bytes, stream.window_bytes = stream.window_bytes, 0
        stream.id, stream.offered = self.new_id(), False
        stream.loaded = stream.acknowledged = damaged
        self._cuts.append(Cut(done.id, damaged, stream.id))
        self.streams[done.id] = done
        self._enter(stream)
        lane.streams.insert(lane.streams.index(stream), done)
        self.pending.rename(lane.org, done.id, stream.id)
        self._settle(done)
        return done


def _batch(number: int, draft: Draft, received_us: int) -> Batch:
    return Batch(number, draft.messages, draft.records, received_us, draft.payload, draft.account)

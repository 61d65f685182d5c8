"""Every order of putting, syncing, offering, acknowledging and crashing: once, in order, whatever dies; and the
accounts tell of each record what became of it."""

import shutil
import tempfile
from collections import defaultdict
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meter.batching import Draft
from meter.keeping import Keeping, Offer
from meter.keeping_settings import KeepingSettings
from meter.lanes import Lane
from meter.left import LeftStream
from meter.spool import MIN_BYTES, Spool
from meter.spooled import SPOOL_FULL, Applied, Changes
from sapflow.link import Batch, StreamId
from sapflow.link.account import NOTHING, decode_account

BOUNDS = KeepingSettings(
    window_bytes=300,
    stream_window_bytes=200,
    pending_bytes=1000,
    segment_bytes=600,
    read_bytes=150,
    commit_bytes=250,
    max_streams=12,
)
LIMIT = 3000
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where a sync costs nothing; what dies here are processes, not machines."""


class SpoolOrders(RuleBasedStateMachine):
    """A meter with two exporters that can wait (0, 1) and one that cannot (2), and an engine that keeps rule 3."""

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp(dir=MEMORY))
        self.ids = iter(range(1, 1 << 32))
        self.numbers = iter(range(1 << 32))
        # The model: what was put by exporter, what of it must arrive, what the engine has.
        self.put: dict[str, list[bytes]] = defaultdict(list)
        self.durable: dict[StreamId, dict[int, bytes]] = defaultdict(dict)
        self.log: dict[StreamId, list[bytes]] = defaultdict(list)
        self.stored: dict[str, list[bytes]] = defaultdict(list)
        self.told = NOTHING
        self.refused = 0
        self.killed = False
        self.boot()

    def boot(self) -> None:
        self.spool = Spool.open(self.path, spool_bytes=MIN_BYTES)
        self.spool.limit_bytes = LIMIT
        self.keeping = Keeping(self.spool, BOUNDS, lambda: StreamId(next(self.ids).to_bytes(16, "big")))
        self.writing: Changes | None = None
        self.written: Applied | None = None
        self.outbox: dict[StreamId, list[Batch]] = defaultdict(list)
        self.names = {stream.id: stream.lane.exporter for stream in self.keeping.streams.values()}
        self.lanes: list[Lane] = [
            self.keeping.lane("o", f"x{index}", droppable=index == 2, source="a file" if index == 1 else "")
            for index in range(3)
        ]

    @rule(sizes=st.lists(st.integers(1, 120), min_size=1, max_size=8))
    def the_one_that_cannot_wait_sends(self, sizes: list[int]) -> None:
        self.an_exporter_sends(2, sizes)

    @rule(index=st.integers(0, 2), sizes=st.lists(st.integers(1, 120), min_size=1, max_size=8))
    def an_exporter_sends(self, index: int, sizes: list[int]) -> None:
        lane = self.lanes[index]
        for size in sizes:
            if not (lane.droppable or self.keeping.room.for_waiting("o")):
                return
            payload = b"%d:" % next(self.numbers) + bytes(size)
            stream = self.keeping.put(lane, Draft(1, 1, payload), 1)
            if stream is not None:
                self.names[stream.id] = lane.exporter
                self.put[lane.exporter].append(payload)
            else:
                self.refused += 1

    @rule(index=st.integers(0, 2))
    def an_exporter_leaves_and_comes_again(self, index: int) -> None:
        self.keeping.close(self.lanes[index])
        old = self.lanes[index]
        self.lanes[index] = self.keeping.lane("o", old.exporter, droppable=old.droppable, source=old.source)

    @rule()
    def a_whole_transaction(self) -> None:
        if self.writing is None:
            self.a_transaction_begins(cramped=False)
        if self.written is None:
            self.it_becomes_durable(again=False)
        self.what_may_go_is_offered()

    @precondition(lambda self: self.writing is None)
    @rule(cramped=st.sampled_from([False, False, False, True]))
    def a_transaction_begins(self, cramped: bool) -> None:
        self.writing = self.keeping.collect()
        if cramped:
            self.keeping.put_back(self.writing)

    @precondition(lambda self: self.writing is not None and self.written is None)
    @rule(again=st.booleans())
    def it_becomes_durable(self, again: bool) -> None:
        assert self.writing is not None
        if again:  # it had failed, though it was in the file
            self.spool.write(self.writing)
            self.spool.reopen()
        self.written = self.spool.write(self.writing)
        for put in self.writing.put:
            self.durable[put.stream][put.batch.seq] = put.batch.payload

    @precondition(lambda self: self.written is not None)
    @rule()
    def what_may_go_is_offered(self) -> None:
        assert self.writing is not None
        assert self.written is not None
        for offer in self.keeping.applied(self.writing, self.written):
            self.offer(offer)
        self.keeping.finished.clear()
        self.writing = self.written = None

    def offer(self, offer: Offer) -> None:
        seq, stream = offer.batch.seq, offer.stream.id
        assert self.durable[stream][seq] == offer.batch.payload, "only what is durable, and always the same"
        assert not self.outbox[stream] or self.outbox[stream][-1].seq == seq - 1
        self.outbox[stream].append(offer.batch)
        log = self.log[stream]
        assert seq <= len(log) + 1, "no gap"
        if seq == len(log) + 1:
            log.append(offer.batch.payload)
            self.told += decode_account(offer.batch.account, offer.batch.records)
            if not offer.batch.payload:
                return
            self.stored[self.names[stream]].append(offer.batch.payload)

    @rule(data=st.data())
    def some_is_acknowledged(self, data: st.DataObject) -> None:
        waiting = [stream for stream, batches in self.outbox.items() if batches]
        if waiting:
            stream = data.draw(st.sampled_from(waiting))
            for _ in range(data.draw(st.integers(1, len(self.outbox[stream])))):
                self.keeping.acknowledged(stream, self.outbox[stream].pop(0))

    @rule()
    def the_meter_is_killed(self) -> None:
        """Whatever was not durable is gone; the rest is found again."""
        self.killed = True
        self.spool.close()
        self.boot()

    @rule()
    def a_session_is_left_and_goes_on_in_the_next_process(self) -> None:
        """That of an exporter that can wait, once all of it is on disk; its stream goes on, whatever came of it."""
        streams = self.lanes[0].streams
        left = LeftStream(StreamId(next(self.ids).to_bytes(16, "big")), 0, 0)
        if streams:
            newest = streams[-1]
            if newest.durable < newest.last:
                return
            left = LeftStream(newest.id, newest.last, newest.acknowledged)
        self.killed = True
        self.spool.close()
        self.boot()
        self.lanes[0] = self.keeping.resume("o", "x0", left, 1)
        assert self.lanes[0].streams[-1].id == left.id
        assert self.lanes[0].streams[-1].last == left.last

    @invariant()
    def memory_and_disk_are_bounded(self) -> None:
        keeping = self.keeping
        held = sum(batch.size for batches in self.outbox.values() for batch in batches)
        assert held <= keeping.window.used_bytes <= BOUNDS.window_bytes + 300
        assert keeping.pending.used_bytes <= BOUNDS.pending_bytes + 300
        # What a transaction that failed did all the same is counted twice until it is done again.
        assert keeping.spool.held_bytes <= LIMIT + 2000
        assert keeping.spool.held_bytes == sum(record.held_bytes for record in keeping.spool.records.values())

    @invariant()
    def each_exporters_batches_arrive_once_in_order(self) -> None:
        for name, stored in self.stored.items():
            places = {payload: place for place, payload in enumerate(self.put[name])}
            found = [places[payload] for payload in stored]
            assert len(set(found)) == len(found)
            if name == "x2":
                assert found == sorted(found)

    def teardown(self) -> None:
        """Once faults stop, everything that was durable and not counted as dropped is in the log."""
        killed = self.killed
        if killed:
            self.the_meter_is_killed()
        for lane in self.lanes:
            self.keeping.close(lane)
        for _ in range(1000):
            if not self.keeping.streams:
                break
            if self.writing is None:
                self.writing = self.keeping.collect()
            if self.written is None:
                self.it_becomes_durable(again=False)
            self.what_may_go_is_offered()
            for stream, batches in self.outbox.items():
                while batches:
                    self.keeping.acknowledged(stream, batches.pop(0))
        self.spool.adopt(self.spool.write(self.keeping.collect()))
        totals = self.spool.totals
        missing = sum(len(batches) - len(self.log[stream]) for stream, batches in self.durable.items())
        assert missing == totals.dropped_batches
        assert all(self.log[stream] in ([], list(batches.values())) for stream, batches in self.durable.items()), (
            "a stream is given up whole or not at all"
        )
        assert totals.taken_batches == sum(map(len, self.durable.values()))
        assert (totals.held_batches, totals.corrupt_batches, self.spool.held_bytes) == (0, 0, 0)
        assert not self.spool.records
        # The account: what is not in the log was told as refused, to the record.
        stored = sum(map(len, self.stored.values()))
        refused = self.told.refused.get(SPOOL_FULL, 0)
        assert self.told.received == self.told.exported == stored + refused
        assert totals.dropped_records <= refused <= totals.dropped_records + self.refused
        if not killed:
            assert refused == totals.dropped_records + self.refused
        self.spool.close()
        shutil.rmtree(self.path)


TestSpoolOrders = SpoolOrders.TestCase
TestSpoolOrders.settings = settings(max_examples=100, stateful_step_count=80, deadline=None)

"""Several orgs over one spool, in every order of putting, syncing, acknowledging and crashing: one that nobody takes
from keeps to its share, loses nothing of its own that could wait, and holds up no other."""

import shutil
import tempfile
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from meter.batching import Draft
from meter.keeping import Keeping
from meter.keeping_settings import KeepingSettings
from meter.lanes import Lane
from meter.share import Share
from meter.spool import MIN_BYTES, Spool
from meter.spooling import random_id
from sapflow.link import Batch, StreamId
from tests.unit.meter.test_spool_orders import MEMORY

ORGS = ("dead", "gone", "acme", "globex")
DEAD = ("dead", "gone")
"""Nobody acknowledges anything of theirs, until the end."""
LIMIT = 30_000
BOUNDS = KeepingSettings(
    window_bytes=4000,
    stream_window_bytes=600,
    pending_bytes=4000,
    segment_bytes=800,
    read_bytes=300,
    commit_bytes=500,
    max_streams=40,
    org_share=0.5,
)


class SpoolShares(RuleBasedStateMachine):
    """Each org has an exporter that can wait (0) and one that cannot (1), which sessions follow one another of."""

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp(dir=MEMORY))
        # The model: what each org put that is durable, and what of it has come to its log, once, by stream and number.
        self.durable: dict[str, set[tuple[StreamId, int]]] = defaultdict(set)
        self.log: dict[str, list[tuple[StreamId, int]]] = defaultdict(list)
        self.marks: dict[StreamId, int] = defaultdict(int)
        self.boot()

    def boot(self) -> None:
        self.spool = Spool.open(self.path, spool_bytes=MIN_BYTES)
        self.spool.limit_bytes, self.spool.most_bytes = LIMIT, LIMIT * 5 // 4
        self.keeping = Keeping(self.spool, BOUNDS, random_id)
        self.waiting: dict[str, list[tuple[StreamId, Batch]]] = defaultdict(list)
        self.lanes = {org: [self.lane(org, 0), self.lane(org, 1)] for org in ORGS}

    def lane(self, org: str, index: int) -> Lane:
        return self.keeping.lane(org, f"x{index}", droppable=index == 1)

    @rule(
        org=st.sampled_from(ORGS), index=st.integers(0, 1), sizes=st.lists(st.integers(1, 200), min_size=1, max_size=9)
    )
    def an_exporter_sends(self, org: str, index: int, sizes: list[int]) -> None:
        lane = self.lanes[org][index]
        for size in sizes:
            if lane.droppable or self.keeping.room.for_waiting(org):
                self.keeping.put(lane, Draft(1, 1, bytes(size)), 1)

    @rule(org=st.sampled_from(ORGS), index=st.integers(0, 1), last=st.integers(0, 200))
    def an_exporter_leaves_with_a_last_word_and_comes_again(self, org: str, index: int, last: int) -> None:
        lane = self.lanes[org][index]
        if last:
            self.keeping.put(lane, Draft(1, 1, bytes(last)), 1)
        self.keeping.close(lane)
        self.lanes[org][index] = self.lane(org, index)

    @rule(times=st.integers(1, 5))
    def transactions(self, times: int) -> None:
        for _ in range(times):
            self.a_transaction()

    def a_transaction(self) -> None:
        changes = self.keeping.collect()
        owners = {stream: self.spool.records[stream].org for stream in changes.dropped}
        applied = self.spool.write(changes)
        for stream, org in owners.items():
            assert not self.marks[stream], "a stream is given up whole or not at all"
            self.durable[org] = {one for one in self.durable[org] if one[0] != stream}
        for put in changes.put:
            if put.batch.payload:
                self.durable[self.keeping.streams[put.stream].lane.org].add((put.stream, put.batch.seq))
        for offer in self.keeping.applied(changes, applied):
            self.waiting[offer.stream.lane.org].append((offer.stream.id, offer.batch))
        self.keeping.finished.clear()

    @rule(org=st.sampled_from(ORGS[2:]))
    def its_batches_are_taken(self, org: str) -> None:
        for stream, batch in self.waiting.pop(org, []):
            if batch.seq > self.marks[stream]:
                assert batch.seq == self.marks[stream] + 1
                self.marks[stream] = batch.seq
                self.log[org] += [(stream, batch.seq)] if batch.payload else []
            self.keeping.acknowledged(stream, batch)

    @rule()
    def it_is_killed(self) -> None:
        self.spool.close()
        self.boot()

    @rule()
    def orgs_that_are_taken_from_are_held_up_by_no_other(self) -> None:
        for _ in range(300):
            for org in ORGS[2:]:
                self.its_batches_are_taken(org)
            self.a_transaction()
        for org in ORGS[2:]:
            assert self.durable[org] == set(self.log[org])
            assert self.keeping.room.used_of(org) == 0
            assert self.keeping.room.for_waiting(org)

    @invariant()
    def no_org_has_more_than_its_share(self) -> None:
        room, batch = self.keeping.room, 800
        for org in ORGS:
            assert self.spool.held_by[org] <= self.spool.most_bytes // 2 + batch
            assert self.keeping.window.used_of(org) <= BOUNDS.window_bytes // 2 + 300
        assert self.spool.held_bytes <= self.spool.most_bytes
        assert self.keeping.window.used_bytes <= BOUNDS.window_bytes
        assert room.used_bytes == sum(map(room.used_of, ORGS))
        assert room.all_streams == room.streams.total() == len(self.keeping.streams)

    @invariant()
    def whoever_has_nothing_here_may_come(self) -> None:
        room = self.keeping.room
        for org in ORGS:
            if not room.used_of(org) and not room.streams[org] and not room.pending.bytes_of(org):
                assert room.for_waiting(org)

    def teardown(self) -> None:
        """When their consumers are back, all that the dead ones had is in their logs, but for what was dropped."""
        for _ in range(2000):
            for org in ORGS:
                self.its_batches_are_taken(org)
            if not self.keeping.has_work and not self.spool.held_bytes:
                break
            self.a_transaction()
        else:
            pytest.fail("it does not come to an end")
        for org in ORGS:
            assert self.durable[org] == set(self.log[org])
            assert len(self.durable[org]) == len(self.log[org])
        self.spool.close()
        shutil.rmtree(self.path)


TestSpoolShares = SpoolShares.TestCase
TestSpoolShares.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)


@pytest.mark.parametrize("stuck", [1, 2, 10, 100])
def test_however_many_orgs_are_stuck_there_is_room_for_another(stuck: int) -> None:
    share, limit = Share(0.5), 1 << 30
    held = [0] * stuck
    filling = True
    while filling:
        filling = False
        for number in range(stuck):
            if share.fits(1 << 16, held[number], sum(held), limit):
                held[number] += 1 << 16
                filling = True
    assert max(held) <= limit // 2
    assert share.room(0, sum(held), limit) > limit / (3 * (stuck + 1))


def test_with_a_share_of_all_an_org_may_have_all() -> None:
    assert Share(1.0).fits(100, 900, 900, 1000)
    assert not Share(1.0).fits(101, 900, 900, 1000)

"""Acknowledged only when synced; a failing disk acknowledges nothing and loses nothing."""

import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import trio
import trio.testing
from attrs import define, field

from phloem.commits import Commit, Committer
from phloem.engine.embedded import EmbeddedLog
from phloem.engine.writing import Outcome
from sapflow.entry import LogEntry
from sapflow.errors import StorageError
from sapflow.link import Batch

STREAM = b"0123456789abcdef"


@define(eq=False)
class Source:
    outcomes: list[Outcome] = field(factory=list)
    dropped_batches: int = 0
    ended: set[int] = field(factory=set)
    failures: int = 0
    settled: trio.Event = field(factory=trio.Event)
    failed_once: trio.Event = field(factory=trio.Event)

    def is_due(self, commit: Commit) -> bool:
        return commit.handle not in self.ended

    def committed(self, commit: Commit, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def dropped(self, commit: Commit) -> None:
        self.dropped_batches += 1

    def settle(self) -> None:
        self.settled.set()

    def failed(self) -> None:
        self.failures += 1
        self.failed_once.set()


class FailingLog(EmbeddedLog):
    """A log whose disk fails at one commit."""

    failures_due = 0

    def append(self, batches: Sequence[tuple[str, LogEntry]]) -> list[Outcome]:
        if self.failures_due:
            self.failures_due -= 1
            raise StorageError("input/output error")
        return super().append(batches)


def a_commit(source: Source, seq: int, org: str = "acme", payload: bytes = b"payload") -> Commit:
    entry = LogEntry(STREAM, seq, "x", 1, 1, 1, payload)
    return Commit(org, entry, source, 1, Batch(seq, 1, 1, 1, payload))


async def test_c08_a_commit_that_failed_is_never_acknowledged_and_the_next_ones_are(tmp_path: Path) -> None:
    log = FailingLog.open(tmp_path)
    assert isinstance(log, FailingLog)
    log.failures_due = 1
    source = Source()
    stored: set[str] = set()
    committer = Committer(log, channel_bytes=1000, commit_bytes=1000, on_stored=stored.update)
    committer.sources[source] = None
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(committer.run)
            assert committer.channel.try_send(a_commit(source, 1), 7)
            await source.failed_once.wait()
            assert (source.outcomes, source.failures) == ([], 1)
            assert committer.channel.try_send(a_commit(source, 1), 7)
            await source.settled.wait()
            nursery.cancel_scope.cancel()
    assert [outcome.kind for outcome in source.outcomes] == ["stored"]
    assert source.dropped_batches == 1
    assert stored == {"acme"}
    assert log.marks("acme") == {STREAM: 1}
    log.close()


async def test_what_is_another_nodes_by_now_is_let_go_of_and_not_stored(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path)
    source = Source()
    committer = Committer(log, channel_bytes=1000, commit_bytes=1000, on_stored=lambda _: None)
    for seq in (1, 2):
        committer.put(a_commit(source, seq))
    source.ended.add(1)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(committer.run)
            while source.dropped_batches < 2:
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert (source.outcomes, log.marks("acme")) == ([], {})
    log.close()


class SlowLog(EmbeddedLog):
    """A commit of much takes 60 ms, another 10; what was in it is noted."""

    orders: list[list[tuple[str, int]]]

    def append(self, batches: Sequence[tuple[str, LogEntry]]) -> list[Outcome]:
        self.orders.append([(org, entry.seq) for org, entry in batches])
        time.sleep(0.06 if sum(len(entry.payload) for _, entry in batches) > 100 else 0.01)
        return super().append(batches)


async def test_while_the_log_rests_from_a_backlog_those_without_one_are_stored(tmp_path: Path) -> None:
    log = SlowLog.open(tmp_path)
    assert isinstance(log, SlowLog)
    log.orders = []
    source = Source()
    committer = Committer(log, channel_bytes=10_000, commit_bytes=100, on_stored=lambda _: None, backlog_rest=100.0)
    for seq in range(1, 9):
        committer.put(a_commit(source, seq, "busy", bytes(200)))
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(committer.run)
            for seq in range(1, 5):
                while ("quiet", seq - 1) not in chain(*log.orders) and seq > 1:
                    await trio.sleep(0.01)
                await trio.sleep(0.07)
                committer.put(a_commit(source, seq, "quiet"))
            while ("quiet", 4) not in chain(*log.orders):
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    # The first came beside the backlog; from then on the log rests from that, for seconds.
    quiet = next(index for index, order in enumerate(log.orders) if ("quiet", 1) in order)
    assert log.orders[0] == [("busy", 1)]
    assert [org for org, _ in log.orders[quiet]] == ["quiet", "busy"]
    assert log.orders[quiet + 1 :] == [[("quiet", 2)], [("quiet", 3)], [("quiet", 4)]]
    log.close()


async def test_who_is_alone_with_its_backlog_does_not_wait(tmp_path: Path) -> None:
    log = SlowLog.open(tmp_path)
    assert isinstance(log, SlowLog)
    log.orders = []
    source = Source()
    committer = Committer(log, channel_bytes=10_000, commit_bytes=100, on_stored=lambda _: None, backlog_rest=1000.0)
    for seq in range(1, 6):
        committer.put(a_commit(source, seq, "busy", bytes(200)))
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(committer.run)
            while len(source.outcomes) < 5:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert log.orders == [[("busy", seq)] for seq in range(1, 6)]
    log.close()

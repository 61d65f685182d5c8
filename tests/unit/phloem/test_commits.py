"""Acknowledged only when synced; a failing disk acknowledges nothing and loses nothing."""

import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import IO

import trio
import trio.testing
from attrs import define, field

from phloem.commits import Commit, Committer
from phloem.engine.embedded import EmbeddedLog
from phloem.engine.retaining import Retention
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


async def test_c08_what_comes_while_a_failed_commit_is_cleared_away_is_not_cleared_away_with_it(tmp_path: Path) -> None:
    log = FailingLog.open(tmp_path)
    assert isinstance(log, FailingLog)
    log.failures_due = 1
    source, later = Source(), Source()
    committer = Committer(log, channel_bytes=10_000, commit_bytes=100, on_stored=lambda _: None, backlog_rest=1.0)
    for seq in range(1, 4):
        committer.put(a_commit(source, seq, "busy", bytes(200)))
    # Its first turn: what is left is backlog.
    await committer.channel.receive_all(1)
    committer.put(a_commit(source, 1, "quiet"))
    committer.sources[source] = None
    # It rests from the backlog, stores what is fresh, and that fails.
    committer._rest.until = trio.current_time() + 2.0
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(committer.run)
            await source.failed_once.wait()
            committer.put(a_commit(later, 1, "another"))
            await later.settled.wait()
            nursery.cancel_scope.cancel()
    assert (source.dropped_batches, later.dropped_batches) == (3, 0)
    assert [outcome.kind for outcome in later.outcomes] == ["stored"]
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

    def __init__(self, path: Path, lock: IO[bytes], map_bytes: int) -> None:
        super().__init__(path, lock, map_bytes)
        self.orders: list[list[tuple[str, int]]] = []

    def append(self, batches: Sequence[tuple[str, LogEntry]]) -> list[Outcome]:
        self.orders.append([(org, entry.seq) for org, entry in batches])
        time.sleep(0.06 if sum(len(entry.payload) for _, entry in batches) > 100 else 0.01)
        return super().append(batches)


def a_busy_log(path: Path, batches: int, *, backlog_rest: float) -> tuple[SlowLog, Committer, Source]:
    """One for which an org has so many batches, one of which fills a commit."""
    log, source = SlowLog.open(path), Source()
    assert isinstance(log, SlowLog)
    committer = Committer(
        log, channel_bytes=20_000, commit_bytes=100, on_stored=lambda _: None, backlog_rest=backlog_rest
    )
    for seq in range(1, batches + 1):
        committer.put(a_commit(source, seq, "busy", bytes(200)))
    return log, committer, source


async def test_while_the_log_rests_from_a_backlog_those_without_one_are_stored(tmp_path: Path) -> None:
    log, committer, source = a_busy_log(tmp_path, 50, backlog_rest=100.0)
    quiet = 0
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(committer.run)
            while not any({org for org, _ in order} == {"quiet"} for order in log.orders):
                quiet += 1
                committer.put(a_commit(source, quiet, "quiet"))
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    # Without a rest each commit would have some of the backlog, to its end.
    assert ("busy", 50) not in chain(*log.orders)
    log.close()


async def test_who_is_alone_with_its_backlog_does_not_wait(tmp_path: Path) -> None:
    log, committer, source = a_busy_log(tmp_path, 5, backlog_rest=1000.0)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(committer.run)
            while len(source.outcomes) < 5:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert log.orders == [[("busy", seq)] for seq in range(1, 6)]
    log.close()


class WatchedLog(EmbeddedLog):
    """One whose next entries to go were looked at, and when."""

    looked_from: tuple[int, ...] = ()

    def look_ahead(self) -> None:
        super().look_ahead()
        self.looked_from += (self.first_position("acme"),)


async def test_what_goes_next_is_looked_at_once_something_has_gone_and_not_before(tmp_path: Path) -> None:
    log, source = WatchedLog.open(tmp_path), Source()
    assert isinstance(log, WatchedLog)
    log.retention = Retention(bytes_per_org=1000)
    committer = Committer(log, channel_bytes=1000, commit_bytes=1000, on_stored=lambda _: None)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(committer.run)
            for seq in range(1, 21):
                committer.put(a_commit(source, seq))
                while len(source.outcomes) < seq or (log.removes and not log.looked_from):
                    await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
    assert log.looked_from
    assert min(log.looked_from) > 1
    log.close()

"""Consumer groups: what may become of them, and that it is durable."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import trio

from phloem.engine.embedded import EmbeddedLog
from phloem.engine.groups import Change, Commit, Declined, Group, Remove, Reset, Take
from phloem.engine.layout import OLD_TAIL, ORG, Place
from phloem.groups import Groups, GroupSettings
from phloem.turns import Seat
from sapflow.entry import LogEntry
from sapflow.errors import Overloaded, StorageError
from sapflow.runtime.threads import ThreadKind

STREAM = b"0123456789abcdef"


def stored(log: EmbeddedLog, first: int, last: int, org: str = "acme") -> None:
    log.append([(org, LogEntry(STREAM, seq, "x", seq * 1000, 1, 2, b"payload")) for seq in range(first, last + 1)])


def take(name: str = "billing", first: Place | None = None, most: int = 100) -> Take:
    return Take("acme", name, first or Place(), most)


def commit(generation: int, position: int, state: bytes = b"", name: str = "billing") -> Commit:
    return Commit("acme", name, generation, Place(position), state)


def kinds(log: EmbeddedLog, *changes: Change) -> list[str]:
    outcomes = log.change_groups(changes, 1)
    return [one.kind if isinstance(one, Declined) else "made" for one in outcomes]


def test_only_the_latest_generation_commits_and_never_backwards(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path)
    stored(log, 1, 9)
    assert kinds(log, take(), commit(1, 4, b"four"), take(), commit(1, 6), commit(2, 3), commit(2, 10)) == [
        "made",
        "made",
        "made",
        "fenced",
        "fenced",
        "ahead",
    ]
    group = log.group("acme", "billing")
    assert group is not None
    assert (group.place.position, group.generation, group.state) == (4, 2, b"four")


def test_a_reset_goes_anywhere_forgets_the_state_and_fences_who_was_reading(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path)
    stored(log, 1, 9)
    kinds(log, take(), commit(1, 8, b"eight"))
    assert kinds(log, Reset("acme", "billing", Place(2)), commit(1, 9)) == ["made", "fenced"]
    group = log.group("acme", "billing")
    assert group is not None
    assert (group.place.position, group.resets, group.state) == (2, 1, b"")


def test_what_is_not_there_is_not_changed_and_there_are_not_more_than_may_be(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path)
    gone = Remove("acme", "billing")
    assert kinds(log, commit(1, 0), Reset("acme", "x", Place()), gone) == ["unknown"] * 3
    assert kinds(log, take("a", most=2), take("b", most=2), take("c", most=2), take("b", most=2)) == [
        "made",
        "made",
        "full",
        "made",
    ]
    assert sorted(log.groups("acme")) == ["a", "b"]
    assert log.orgs_with_groups() == ["acme"]


def test_one_that_was_touched_is_not_removed_as_idle(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path)
    log.change_groups([take()], 5000)
    assert kinds(log, Remove("acme", "billing", unless_after_us=4999)) == ["in use"]
    assert kinds(log, Remove("acme", "billing", unless_after_us=5000)) == ["made"]
    assert log.groups("acme") == {}


def test_c24_a_group_ahead_of_the_log_begins_at_the_first_entry_and_keeps_its_state(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path / "log")
    stored(log, 1, 9)
    kinds(log, take(), commit(1, 9, b"nine"))
    with log.environment.writing() as txn:  # as a copy of before would have it
        number = ORG.pack(1)
        txn.put(number, OLD_TAIL.pack(3, 6, 5, 100, 10, 2, 4), db=log.environment.tables.tails)
    (group,) = log.change_groups([take()], 1)
    assert isinstance(group, Group)
    assert (group.place, group.ahead, group.state) == (Place(2, 0, 4), 4, b"nine")
    # Whether it is so is known by the log, not by who reads.
    assert kinds(log, commit(2, 1), commit(2, 4)) == ["fenced", "made"]


def test_walking_counts_what_lies_between_and_steps_over_what_is_gone(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path)
    stored(log, 1, 9)
    size = log.tail("acme").bytes // 9
    assert log.walk("acme", Place(), 4, at_most=100) == Place(4, 4 * size, 8)
    assert log.walk("acme", Place(4, 4 * size, 8), 99, at_most=2) == Place(6, 6 * size, 12)
    assert log.walk("acme", Place(), 99, at_most=100) == log.tail("acme").end
    log.remove_oldest("acme", before_us=6000, keep_bytes=1 << 30)
    assert log.tail("acme").start == Place(5, 5 * size, 10)
    assert log.walk("acme", Place(2, 2 * size, 4), 7, at_most=100) == Place(7, 7 * size, 14)
    assert log.walk("acme", Place(2, 2 * size, 4), 4, at_most=100).position == 4
    assert log.walk("nobody", Place(), 4, at_most=100) == Place()


def test_a_log_of_before_is_read_as_it_is(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path)
    with log.environment.writing() as txn:
        txn.put(b"acme", ORG.pack(1), db=log.environment.tables.orgs)
        txn.put(ORG.pack(1), OLD_TAIL.pack(3, 6, 5, 100, 10, 2, 4), db=log.environment.tables.tails)
    tail = log.tail("acme")
    assert (tail.first, tail.next, tail.bytes, tail.removed_bytes) == (3, 6, 100, 0)


def test_what_was_committed_outlives_kill_9(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(Path.cwd())!r})
        from tests.unit.phloem.test_groups import *
        log = EmbeddedLog.open(Path({str(tmp_path)!r}))
        stored(log, 1, 9)
        kinds(log, take(), commit(1, 7, b"seven"))
        print("committed", flush=True)
        sys.stdin.read()
    """)
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"committed\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    group = EmbeddedLog.open(tmp_path).group("acme", "billing")
    assert group is not None
    assert (group.place.position, group.state) == (7, b"seven")


class Failing(EmbeddedLog):
    """A log whose disk fails at one change of groups."""

    failures_due = 0
    calls = 0
    reopened = 0

    def change_groups(self, changes, now_us):  # type: ignore[no-untyped-def]
        self.calls += 1
        if self.failures_due:
            self.failures_due -= 1
            raise StorageError("input/output error")
        return super().change_groups(changes, now_us)

    def reopen(self) -> None:
        self.reopened += 1
        super().reopen()


async def test_commits_are_written_together_and_one_that_failed_is_said_to_be(tmp_path: Path) -> None:
    log = Failing.open(tmp_path)
    assert isinstance(log, Failing)
    stored(log, 1, 9)
    groups = Groups(log, ThreadKind("storage", 1), ThreadKind("reading", 1), GroupSettings(), lambda: 1)
    found: dict[str, object] = {}

    async def one(name: str, position: int) -> None:
        await groups.take("acme", name, Place(), Seat(1))
        found[name] = await groups.commit(commit(1, position, name=name))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(groups.run)
            async with trio.open_nursery() as members:
                for number in range(1, 10):
                    members.start_soon(one, f"g{number}", number)
            assert log.calls <= 4
            log.failures_due = 1
            with pytest.raises(StorageError):
                await groups.commit(commit(1, 9, name="g1"))
            assert log.reopened == 1
            assert isinstance(await groups.commit(commit(1, 9, name="g1")), Group)
            nursery.cancel_scope.cancel()
    assert len(found) == 9
    assert all(isinstance(one, Group) for one in found.values())
    assert (groups.counts.commits, groups.counts.failures) == (10, 1)


async def test_seats_are_taken_over_in_the_order_they_were_taken(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path)
    groups = Groups(log, ThreadKind("storage", 1), ThreadKind("reading", 1), GroupSettings(max_members=3))
    with groups.seat("acme", "a") as first:
        with groups.seat("acme", "a") as second, groups.seat("acme", "a") as third, groups.seat("acme", "b") as other:
            assert [seat.turn.is_set() for seat in (first, second, third, other)] == [True, False, False, True]
            with pytest.raises(Overloaded, match="3 members"), groups.seat("acme", "a"):
                pass
        assert groups.members("acme", "a") == 1
        assert not second.turn.is_set()
    with groups.seat("acme", "a") as first, groups.seat("acme", "a") as second:
        pass
    assert groups.members("acme", "a") == 0


async def test_groups_that_nobody_uses_are_forgotten_and_those_with_members_are_not(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path)
    now = [1_000_000]
    groups = Groups(log, ThreadKind("storage", 1), ThreadKind("reading", 1), GroupSettings(idle_s=10), lambda: now[0])
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(groups.run)
            await groups.take("acme", "idle", Place(), Seat(1))
            await groups.take("acme", "used", Place(), Seat(2))
            now[0] += 10_000_001
            with groups.seat("acme", "used"):
                nursery.start_soon(groups.keep)
                while not groups.counts.idle_removed:
                    await trio.sleep(0.01)
                assert log.group("acme", "idle") is None
                assert log.group("acme", "used") is not None
            nursery.cancel_scope.cancel()
    assert groups.counts.idle_removed == 1

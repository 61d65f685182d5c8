"""A loss of power at any moment: what the embedded log's storage may then hold is opened, and has what was synced."""

from pathlib import Path

from tools.crashes.record import Event, Synced, Write, record
from tools.crashes.run import check, run
from tools.crashes.states import count
from tools.crashes.workload import Promise

from tests.peers import needs


@needs("strace")
def test_c03_every_state_that_a_crash_may_leave_opens_and_has_all_that_was_acknowledged() -> None:
    report = run(groups=40, at_most=5_000, seed=0)
    assert report.faults == ()
    assert report.checked == 5_000


@needs("strace")
def test_the_check_finds_a_log_that_acknowledges_before_it_syncs(tmp_path: Path) -> None:
    events: list[Event] = []
    for event in record(tmp_path, groups=5, seed=1):
        if isinstance(event, Promise):
            last_sync = max(at for at, one in enumerate(events) if isinstance(one, Synced))
            events.insert(last_sync, event)
        else:
            events.append(event)
    _, faults = check(events, 1, set(range(count(events, 1))))
    assert any("was acknowledged" in fault for fault in faults)


@needs("strace")
def test_the_check_finds_a_write_that_went_elsewhere(tmp_path: Path) -> None:
    events = record(tmp_path, groups=5, seed=1)
    largest = max((event for event in events if isinstance(event, Write)), key=lambda event: len(event.data))
    events[events.index(largest)] = Write(largest.file, largest.at, bytes(len(largest.data)))
    _, faults = check(events, 1, set(range(count(events, 1))))
    assert faults

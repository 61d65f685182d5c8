"""The ledger's rows: each account once, with its batch, whatever comes again or dies."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phloem.engine import ledger as rows
from phloem.engine.embedded import EmbeddedLog
from sapflow.entry import LogEntry
from sapflow.ledger import Backlog, OrgLedger, StreamLedger
from sapflow.link.account import Account

LATER_US = 1 << 62


def an_entry(seq: int, account: Account | None = None, *, records: int = 2, stream: int = 1) -> LogEntry:
    told = account.encode(records) if account is not None else b""
    payload = b"messages" if records else b""
    return LogEntry(bytes([stream]) * 16, seq, "192.0.2.1:9", 7, 1, records, payload, told)


def store(log: EmbeddedLog, *entries: LogEntry, org: str = "acme") -> OrgLedger:
    log.append([(org, entry) for entry in entries])
    return log.ledger(org, most_rows=9)


def test_an_account_is_counted_once_however_often_its_batch_comes(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path)
    lossy = an_entry(2, Account(received=3, exported=5, lost=2, refused={"spool_full": 1}))
    found = store(log, an_entry(1), lossy, lossy, an_entry(1), an_entry(9))
    assert found.total.account == Account(received=5, exported=7, lost=2, refused={"spool_full": 1})
    assert (found.total.stored, found.kept, found.total.batches, found.streams) == (4, 4, 2, 1)
    assert found.closes
    assert [row.exporter for row in found.rows] == ["192.0.2.1:9"]


def test_a_batch_with_nothing_but_an_account_has_its_number_and_its_place_in_the_log(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path)
    found = store(log, an_entry(1), an_entry(2, Account(exported=4, lost=4), records=0), an_entry(3))
    assert (found.total.account.lost, found.total.batches, found.total.stored) == (4, 3, 4)
    assert log.marks("acme") == {bytes([1]) * 16: 3}
    assert [position for position, _ in log.read("acme", 0, max_bytes=1 << 20, max_entries=9)] == [1, 2, 3]
    assert found.closes


def test_a_record_that_is_stored_and_not_told_of_or_told_of_and_not_stored_is_seen(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path)
    assert store(log, an_entry(1, Account.usual(1))).differences() == {"stored": -1}
    assert store(log, an_entry(2, Account.usual(9))).differences() == {"stored": 6}
    assert store(log, an_entry(1, Account(received=2, exported=3)), org="b").differences() == {"numbers": 1}
    packets = Account(received=2, uncounted=2, packets_received=1)
    assert store(log, an_entry(1, packets), org="c").differences() == {"packets": -1}


def test_batches_before_the_first_that_the_log_saw_are_missing_unless_the_stream_says_that_it_begins(
    tmp_path: Path,
) -> None:
    log = EmbeddedLog.open(tmp_path)
    assert store(log, an_entry(7), an_entry(8)).differences() == {"missing_batches": 6}
    begins = Account(received=2, exported=2, begins=True)
    assert store(log, an_entry(7, begins), an_entry(8), org="b").closes


def test_what_retention_removes_was_stored_all_the_same(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path)
    store(log, *(an_entry(seq) for seq in range(1, 6)))
    log.remove_oldest("acme", before_us=LATER_US, keep_bytes=1 << 30, at_most=3)
    found = log.ledger("acme")
    assert (found.total.stored, found.kept, found.removed, found.closes) == (10, 4, 6, True)


@pytest.mark.parametrize("removed", [0, 3, 256, 300, 700])
def test_what_is_left_to_read_behind_a_position_is_counted(tmp_path: Path, removed: int) -> None:
    log = EmbeddedLog.open(tmp_path)
    store(log, *(an_entry(seq, records=seq % 7) for seq in range(1, 701)))
    store(log, an_entry(1), org="other")
    if removed:
        assert log.remove_oldest("acme", before_us=LATER_US, keep_bytes=0, at_most=removed) == removed
    for position in (0, 1, removed, 255, 256, 257, 511, 512, 513, 699, 700, 9000):
        left = range(max(position, removed) + 1, 701)
        found = log.backlog("acme", position)
        assert (found.batches, found.records) == (len(left), sum(seq % 7 for seq in left)), position
        assert found.position == max(removed, min(position, 700))
    assert log.backlog("nobody", 1) == Backlog(0, 0, 0)


def test_streams_that_are_silent_for_long_are_folded_into_their_orgs_sum(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path)
    store(log, *(an_entry(1, stream=stream) for stream in range(1, 6)))
    before = store(log, an_entry(1), org="other")
    assert log.fold_ledger("acme", before_us=0) == 0
    assert log.fold_ledger("acme", before_us=LATER_US, at_most=3) == 3
    assert log.fold_ledger("acme", before_us=LATER_US) == 2
    found = store(log, an_entry(2, stream=3))
    assert (found.streams, found.total.stored, len(found.rows), found.closes) == (6, 12, 1, True)
    assert log.ledger("other", most_rows=9) == before


def test_an_account_that_is_none_stops_no_commit_and_no_figure_breaks_a_row(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path)
    broken = LogEntry(bytes(16), 1, "x", 7, 1, 2, b"messages", b"\xff\xff\xff")
    found = store(log, broken)
    assert (dict(found.total.account.faults), found.differences()) == ({"account": 1}, {"stored": -2})
    store(log, LogEntry(bytes([2]) * 16, 1, "n" * 60_000, 7, 1, 2, b"messages"), org="b")
    assert len(log.ledger("b", most_rows=1).rows[0].exporter) == rows.MAX_EXPORTER
    row = StreamLedger(Account(received=1 << 80))
    assert rows.decode_row(bytes(20), rows.encode_row(row))[0].account.received == rows.MOST


def test_the_ledger_is_the_same_after_a_kill(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import pathlib, sys
        from phloem.engine.embedded import EmbeddedLog
        from tests.unit.phloem.test_ledger import Account, an_entry, store
        log = EmbeddedLog.open(pathlib.Path(sys.argv[1]))
        seq = 0
        while True:
            seq += 1
            store(log, an_entry(seq, Account(received=3, exported=4, lost=1, refused={"x": 1})))
            print(seq, flush=True)
    """)
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = 0
    while said < 20:
        said = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    found = EmbeddedLog.open(tmp_path).ledger("acme")
    assert found.total.batches >= said
    assert found.total.account.received == 3 * found.total.batches
    assert found.closes


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("sends"), st.integers(1, 3), st.integers(0, 4), st.integers(0, 3)),
        st.tuples(st.just("goes back"), st.integers(1, 3), st.integers(1, 4), st.just(0)),
        st.tuples(st.sampled_from(["dies", "folds", "removes"]), st.just(0), st.just(0), st.just(0)),
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_the_ledger_is_the_sum_of_what_was_sent_in_whatever_order_things_happen(
    steps: list[tuple[str, int, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A model of three lines: sent records, lost records, and how many streams' batches there are."""
    path = tmp_path_factory.mktemp("log")
    log = EmbeddedLog.open(path)
    sent: dict[int, list[LogEntry]] = {1: [], 2: [], 3: []}
    for what, stream, records, lost in steps:
        match what:
            case "sends":
                account = Account(received=records, exported=records + lost, lost=lost)
                sent[stream].append(an_entry(len(sent[stream]) + 1, account, records=records, stream=stream))
                store(log, sent[stream][-1])
            case "goes back":  # after a move, or a reconnect: from the lowest that was not acknowledged
                store(log, *sent[stream][-records:])
            case "dies":
                log.close()
                log = EmbeddedLog.open(path)
            case "folds":
                log.fold_ledger("acme", before_us=LATER_US, at_most=2)
            case _:
                log.remove_oldest("acme", before_us=LATER_US, keep_bytes=0, at_most=2)
    entries = [entry for its in sent.values() for entry in its]
    found = log.ledger("acme")
    assert found.closes, found.differences()
    assert found.total.stored == sum(entry.records for entry in entries)
    assert found.total.account.lost == sum(lost for what, _, _, lost in steps if what == "sends")
    assert found.total.batches == len(entries)
    log.close()

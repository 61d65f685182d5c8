"""What exporters told in options data, kept by the embedded log beside its entries."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from phloem.engine import options
from phloem.engine.embedded import EmbeddedLog
from phloem.engine.layout import ORG
from phloem.engine.options import OptionsBounds
from sapflow.entry import LogEntry, decode_entry
from sapflow.flows.columns.batches import decode
from tests.unit.flows.flows_made import messages, seen

A, B = b"a" * 16, b"b" * 16
FLOW = messages({"ingressInterface": 7, "octetDeltaCount": 1})


def interface(number: int, name: str) -> bytes:
    return messages({"ingressInterface": number, "interfaceName": name}, scopes=1)


def store(log: EmbeddedLog, stream: bytes, seq: int, payload: bytes, *, tells: bool = True, org: str = "acme") -> int:
    entry = LogEntry(stream, seq, f"192.0.2.1:{stream[0]}", time.time_ns() // 1000, 2, 1, payload, tells=tells)
    [outcome] = log.append([(org, entry)])
    assert outcome.kind == "stored"
    return outcome.position


def names(log: EmbeddedLog, stream: bytes = A, position: int = 1 << 40, org: str = "acme") -> list[str]:
    told = log.told(org, stream, position)
    return [] if told is None else [str(row["interfaceName"]) for row in seen(decode(decode_entry(told).payload))]


def waiting(log: EmbeddedLog) -> int:
    with log.environment.reading() as txn:
        found: int = txn.stat(log.environment.tables.telling)["entries"]
        return found


def fold(log: EmbeddedLog) -> None:
    for _ in log.upkeep({"acme"}):
        pass
    assert not waiting(log)


@pytest.mark.parametrize("is_folded", [True, False])
def test_what_was_told_is_there_for_readers_that_begin_behind_it(is_folded: bool, tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path)
    store(log, A, 1, interface(7, "eth0"))
    store(log, B, 1, interface(7, "other"))
    store(log, A, 2, FLOW, tells=False)
    store(log, A, 3, interface(7, "renamed"))
    store(log, A, 1, interface(7, "foreign"), org="globex")
    if is_folded:
        fold(log)
    assert log.told_streams("acme") == [B, A]
    assert [names(log, A, position) for position in range(5)] == [[], ["eth0"], ["eth0"], ["eth0"], ["renamed"]]
    assert (names(log, B, 4), names(log, A, org="globex"), log.told_streams("nobody")) == (["other"], ["foreign"], [])
    told = log.told("acme", A, 4)
    assert told is not None
    entry = decode_entry(told)
    assert (entry.seq, entry.exporter, entry.messages, entry.records) == (0, "192.0.2.1:97", 2, 1)


def test_a_batch_that_tells_nothing_costs_nothing_and_a_repeat_is_not_noted_again(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path)
    store(log, A, 1, FLOW, tells=False)
    assert (waiting(log), log.told_streams("acme")) == (0, [])
    store(log, A, 2, interface(7, "eth0"))
    again = LogEntry(A, 2, "192.0.2.1:97", 0, 2, 1, interface(7, "eth0"), tells=True)
    log.append([("acme", again), ("acme", LogEntry(A, 9, "", 0, 2, 1, interface(7, "late"), tells=True))])
    assert waiting(log) == 1


def test_it_outlives_the_entries_that_told_it(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path)
    store(log, A, 1, interface(7, "eth0"))
    store(log, A, 2, FLOW, tells=False)
    log.retention = type(log.retention)(seconds=0.0)
    fold(log)
    assert log.first_position("acme") == 3
    assert names(log) == ["eth0"]
    log.close()
    assert names(EmbeddedLog.open(tmp_path)) == ["eth0"]


def test_what_an_org_holds_too_much_stays_while_what_it_told_is_not_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EmbeddedLog.open(tmp_path)
    log.retention = type(log.retention)(bytes_per_org=1)
    store(log, A, 1, FLOW, tells=False)
    store(log, A, 2, interface(7, "eth0"))
    store(log, B, 1, interface(8, "eth1"))
    for number in range(3, 6):
        store(log, A, number, FLOW, tells=False)
    assert log.first_position("acme") == 2, "what told nothing is gone"
    monkeypatch.setattr("phloem.engine.retaining.MOST_TELLING", 1)
    store(log, A, 6, FLOW, tells=False)
    assert log.first_position("acme") == 2, "nor is any gone when too many wait to look at"
    while log.fold_options():
        assert waiting(log)
    assert (waiting(log), log.first_position("acme")) == (0, 2), "as the log stores on, it removes"
    for number in range(7, 10):
        store(log, A, number, FLOW, tells=False)
    assert log.first_position("acme") > 3
    assert (names(log), names(log, B)) == (["eth0"], ["eth1"])


def test_a_stream_s_bound_costs_what_it_told_longest_ago_and_is_counted(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path)
    log.options = OptionsBounds(bytes_per_stream=400, bytes_per_org=4000)
    for n in range(1, 11):
        store(log, A, n, interface(n, f"interface {n}"))
    before = names(log)
    fold(log)
    assert before == names(log)
    assert (names(log)[-1], log.counts()["options_forgotten"]) == ("interface 10", 10 - len(before))
    assert 2 <= len(before) < 10


def test_an_org_s_bound_costs_the_streams_that_were_not_heard_of_for_longest(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path)
    log.options = OptionsBounds(bytes_per_stream=400, bytes_per_org=2000)
    streams = [bytes([n]) * 16 for n in range(1, 41)]
    for stream in streams:
        store(log, stream, 1, interface(7, "eth0"))
        if stream != streams[0]:
            seq = log.marks("acme")[streams[0]] + 1
            store(log, streams[0], seq, FLOW, tells=False)
        fold(log)
    left = log.told_streams("acme")
    # The first told longest ago, and is heard of all the time.
    assert left[0] == streams[0]
    assert left[1:] == streams[-len(left) + 1 :]
    assert log.counts()["options_streams_forgotten"] == 40 - len(left)
    with log.environment.reading() as txn:
        tables = log.environment.tables
        rows = [(bytes(key), len(value)) for key, value in txn.cursor(tables.options) if len(key) > ORG.size]
        [total] = [bytes(value) for key, value in txn.cursor(tables.options) if len(key) == ORG.size]
    assert options.TOTAL.unpack(total) == (sum(size for _, size in rows), len(rows))
    assert sum(size for _, size in rows) <= 2000


def test_of_very_many_that_come_at_once_the_newest_count(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path)
    for n in range(1, options.MAX_ENTRIES + 6):
        store(log, A, n, interface(1, "first") if n == 1 else interface(2, f"name {n}"))
    fold(log)
    assert names(log) == [f"name {options.MAX_ENTRIES + 5}"]
    assert (log.counts()["options_skipped"], log.counts()["options_folded"]) == (5, options.MAX_ENTRIES)


def test_a_step_is_bounded_and_the_next_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "STEP_STREAMS", 2)
    log = EmbeddedLog.open(tmp_path)
    for n in range(1, 6):
        store(log, bytes([n]) * 16, 1, interface(7, "eth0"))
    assert [log.fold_options() for _ in range(4)] == [True, True, False, False]
    assert len(log.told_streams("acme")) == 5


def test_damage_costs_its_row_or_its_entry_only(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path)
    for stream in (A, B):
        store(log, stream, 1, interface(7, "eth0"))
    fold(log)
    store(log, B, 2, b"\x00\x0a\x00\x18 no message at all")
    with log.environment.writing() as txn:
        key = ORG.pack(1) + A
        row = bytearray(txn.get(key, db=log.environment.tables.options) or b"")
        row[-1] ^= 1
        txn.put(key, bytes(row), db=log.environment.tables.options)
    assert (names(log, A), names(log, B)) == ([], ["eth0"])
    store(log, A, 2, interface(8, "eth1"))
    fold(log)
    assert (names(log, A), names(log, B)) == (["eth1"], ["eth0"])
    assert log.counts()["options_unreadable"] == 2


WRITER = """
    import sys
    from phloem.engine.embedded import EmbeddedLog
    from pathlib import Path
    from tests.unit.phloem.test_options import A, interface, store

    log = EmbeddedLog.open(Path(sys.argv[1]))
    seq = log.last_position("acme")
    while True:
        seq += 1
        store(log, A, seq, interface(seq % 5, f"name {seq}"))
        print(seq, flush=True)
        if seq % 7 == 0:
            log.fold_options()
"""


@pytest.mark.parametrize("lines", [1, 6, 7, 8, 40])
def test_kill_9_leaves_what_was_told_by_every_entry_that_is_there(lines: int, tmp_path: Path) -> None:
    for life in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path)], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            for _ in range(lines):
                assert writer.stdout.readline(), life
            os.kill(writer.pid, signal.SIGKILL)
        log = EmbeddedLog.open(tmp_path)
        last = log.last_position("acme")
        expected = [f"name {seq}" for seq in range(max(last - 4, 1), last + 1)]
        assert names(log) == expected
        fold(log)
        assert names(log) == expected
        log.close()

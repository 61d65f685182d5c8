"""The embedded engine: contiguous, once, found after any death."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import lmdb
import pytest

from phloem.engine.embedded import EmbeddedLog
from phloem.engine.retaining import Retention
from sapflow.entry import CorruptEntry, LogEntry, decode_entry, encode_entry
from sapflow.errors import EngineLocked, StorageError

STREAM = b"0123456789abcdef"


def an_entry(seq: int, payload: bytes = b"payload", stream: bytes = STREAM, received_us: int = 0) -> LogEntry:
    return LogEntry(stream, seq, "192.0.2.1:9", received_us or seq * 1000, 1, 2, payload)


def kinds(log: EmbeddedLog, *entries: LogEntry, org: str = "acme") -> list[str]:
    return [outcome.kind for outcome in log.append([(org, entry) for entry in entries])]


def test_a_stream_is_stored_contiguously_from_wherever_it_begins(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path)
    assert kinds(log, an_entry(7), an_entry(8), an_entry(8), an_entry(10), an_entry(9)) == [
        "stored",
        "stored",
        "duplicate",
        "refused",
        "stored",
    ]
    assert log.marks("acme") == {STREAM: 9}
    assert kinds(log, an_entry(9), an_entry(11)) == ["duplicate", "refused"]


def test_the_same_number_with_other_content_is_a_conflict(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path)
    kinds(log, an_entry(1), an_entry(2))
    assert kinds(log, an_entry(1, b"other"), an_entry(2)) == ["conflict", "duplicate"]


def test_orgs_do_not_touch_each_other(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path)
    assert kinds(log, an_entry(1)) == ["stored"]
    assert kinds(log, an_entry(5), org="globex") == ["stored"]
    assert [position for position, _ in log.read("globex", 0, max_bytes=1 << 20, max_entries=9)] == [1]
    assert sorted(log.orgs()) == ["acme", "globex"]
    assert log.read("nobody", 0, max_bytes=1, max_entries=1) == []


def test_reading_gives_what_was_stored_from_any_position(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path)
    kinds(log, *(an_entry(seq, bytes([seq]) * 100) for seq in range(1, 11)))
    found = log.read("acme", 4, max_bytes=1 << 20, max_entries=3)
    assert [(position, decode_entry(data).seq) for position, data in found] == [(5, 5), (6, 6), (7, 7)]
    assert len(log.read("acme", 0, max_bytes=1, max_entries=9)) == 1
    assert log.position_at("acme", 3000) == 3
    assert log.position_at("acme", 99_000) == 11


def test_retention_removes_the_oldest_and_says_how_many(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path)
    kinds(log, *(an_entry(seq) for seq in range(1, 11)))
    assert log.remove_oldest("acme", before_us=4000, keep_bytes=1 << 30) == 3
    assert log.first_position("acme") == 4
    assert log.remove_oldest("acme", before_us=0, keep_bytes=0) == 7
    tail = log.tail("acme")
    assert (tail.removed_entries, tail.removed_records, tail.bytes) == (10, 20, 0)
    assert kinds(log, an_entry(3), an_entry(11)) == ["duplicate", "stored"]


def test_an_org_that_holds_too_much_loses_its_oldest_as_it_stores_more_and_never_what_it_stores_now(
    tmp_path: Path,
) -> None:
    log = EmbeddedLog.open(tmp_path)
    size = len(encode_entry(an_entry(1, bytes(100)))[0])
    kinds(log, *(an_entry(seq, bytes(100)) for seq in range(1, 11)))
    log.retention = Retention(bytes_per_org=5 * size)
    assert not log.removes
    firsts = []
    for seq in range(11, 19):
        assert kinds(log, an_entry(seq, bytes(100))) == ["stored"]
        log.look_ahead()
        firsts.append(log.first_position("acme"))
        assert log.removes
    # Twice as many as come, until there are few enough.
    assert firsts == [3, 5, 7, 9, 11, 12, 13, 14]
    log.retention = Retention(bytes_per_org=1)
    kinds(log, an_entry(19, bytes(100)), an_entry(20, bytes(100)))
    kinds(log, an_entry(21, bytes(100)), an_entry(22, bytes(100)))
    kinds(log, an_entry(23, bytes(100)), an_entry(24, bytes(100)))
    tail = log.tail("acme")
    assert (tail.first, tail.next, tail.bytes) == (23, 25, 2 * size)
    assert tail.removed_bytes == 22 * size
    log.retention = Retention()
    kinds(log, an_entry(25, bytes(100)))
    assert (log.removes, log.first_position("acme")) == (False, 23)


def test_c09_a_second_process_is_refused(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path)
    code = "import sys, pathlib, phloem.engine.embedded as e; e.EmbeddedLog.open(pathlib.Path(sys.argv[1]))"
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert found.returncode != 0
    assert "EngineLocked" in found.stderr
    log.close()
    EmbeddedLog.open(tmp_path).close()


def test_c09_a_second_opening_says_what_to_do(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path)
    with pytest.raises(EngineLocked, match=rf"\(pid {os.getpid()}\).*exactly one Phloem node"):
        EmbeddedLog.open(tmp_path)
    log.close()


def test_c07_a_full_log_acknowledges_nothing_and_goes_on_after_it_has_room(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path, map_bytes=1 << 20)
    stored = 0

    def fill() -> None:
        nonlocal stored
        for seq in range(1, 100):
            kinds(log, an_entry(seq, bytes(100_000)))
            stored = seq

    with pytest.raises(StorageError, match="cannot be written"):
        fill()
    log.close()
    log = EmbeddedLog.open(tmp_path, map_bytes=1 << 26)
    assert log.marks("acme") == {STREAM: stored}
    assert kinds(log, an_entry(stored + 1)) == ["stored"]


def test_retention_makes_room_in_a_full_log(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path, map_bytes=4 << 20)
    seq = 0

    def fill() -> None:
        nonlocal seq
        while True:
            kinds(log, an_entry(seq + 1, bytes(50_000)))
            seq += 1

    with pytest.raises(StorageError, match="cannot be written"):
        fill()
    log.reopen()
    # What one transaction frees, LMDB uses in the next but one.
    assert [log.remove_oldest("acme", before_us=0, keep_bytes=0, at_most=10) for _ in range(2)] == [10, 10]
    assert kinds(log, an_entry(seq + 1, bytes(50_000))) == ["stored"]


def test_retention_that_cannot_write_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> int:
        raise lmdb.DiskError("mdb_txn_commit: No space left on device")

    log = EmbeddedLog.open(tmp_path)
    kinds(log, an_entry(1))
    monkeypatch.setattr("phloem.engine.embedded.remove_oldest", full)
    with pytest.raises(StorageError, match=r"cannot be written.*No space left"):
        log.remove_oldest("acme", before_us=1, keep_bytes=0)


def test_c06_a_flipped_bit_costs_its_entry_only(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path)
    kinds(log, *(an_entry(seq, f"content-{seq}-".encode() * 500) for seq in range(1, 6)))
    log.close()
    file = tmp_path / "data.mdb"
    data = bytearray(file.read_bytes())
    at = data.index(b"content-3-")
    data[at + 100] ^= 4
    file.write_bytes(data)
    log = EmbeddedLog.open(tmp_path)
    assert [position for position, _ in log.verify("acme")] == [3]


def test_c05_an_entry_cut_anywhere_or_changed_is_found() -> None:
    data, _ = encode_entry(an_entry(1))
    assert decode_entry(data) == an_entry(1)
    for at in range(len(data)):
        with pytest.raises(CorruptEntry):
            decode_entry(data[:at])
    for at in [0, *range(4, len(data))]:  # 1 to 3 are always zero, and not looked at
        changed = bytearray(data)
        changed[at] ^= 1
        with pytest.raises(CorruptEntry):
            decode_entry(bytes(changed))


OPEN_READ_WRITE = """
import sys
from pathlib import Path
from phloem.engine.embedded import EmbeddedLog
from sapflow.entry import LogEntry
from sapflow.errors import StorageError
stream = b"0123456789abcdef"
try:
    log = EmbeddedLog.open(Path(sys.argv[1]))
    list(log.verify("acme"))
    log.append([("acme", LogEntry(stream, 41, "x", 1, 1, 1, bytes(50_000)))])
except StorageError as error:
    print(error)
"""


def opened(path: Path) -> str:
    """What a process says that opens, reads and writes a log; it does not die of a signal."""
    found = subprocess.run(
        [sys.executable, "-c", OPEN_READ_WRITE, str(path)], capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 0, (found.returncode, found.stderr)
    return found.stdout


def a_full_log(path: Path) -> int:
    """A log of 40 entries in `path`, closed: the size of its file."""
    log = EmbeddedLog.open(path)
    for seq in range(1, 41):
        kinds(log, an_entry(seq, os.urandom(3000)))
    log.close()
    return (path / "data.mdb").stat().st_size


@pytest.mark.parametrize("cut", [1, 100, 4096, 4097, 50_000, "all but a page", "all"])
def test_c05_a_log_cut_short_is_refused_with_what_is_missing_and_what_to_do(tmp_path: Path, cut: int | str) -> None:
    size = a_full_log(tmp_path)
    missing = cut if isinstance(cut, int) else size - (4096 if cut == "all but a page" else 0)
    os.truncate(tmp_path / "data.mdb", size - missing)
    said = opened(tmp_path)
    assert f"of the {size:,} bytes of data.mdb that were synced the last {missing:,} are missing" in said
    assert "move the directory away" in said
    assert (tmp_path / "data.mdb").stat().st_size == size - missing


def test_c05_a_cut_log_whose_length_is_not_known_ends_no_process(tmp_path: Path) -> None:
    """As when only data.mdb was brought back, from a copy that is not whole."""
    size = a_full_log(tmp_path)
    whole = (tmp_path / "data.mdb").read_bytes()
    for cut in (100, 4096, 20_000, 100_000, size - 2 * 4096):
        (tmp_path / "synced-length").unlink()
        (tmp_path / "data.mdb").write_bytes(whole[: size - cut])
        opened(tmp_path)


def test_pages_that_were_taken_and_given_back_are_not_missing(tmp_path: Path) -> None:
    """A file may be shorter than LMDB's last page, and whole: retention gives back pages before they are written."""
    log = EmbeddedLog.open(tmp_path)
    for seq in range(1, 400):
        kinds(log, an_entry(seq, bytes(seq * 37 % 9000)))
        if seq % 3 == 0:
            log.remove_oldest("acme", before_us=seq * 1000, keep_bytes=seq * 53 % 40_000, at_most=seq % 17)
        if seq % 10 == 0:
            log.close()
            log = EmbeddedLog.open(tmp_path)
            assert not list(log.verify("acme"))
    log.close()


WRITER = """
import sys
from pathlib import Path
from phloem.engine.embedded import EmbeddedLog
from sapflow.entry import LogEntry
log = EmbeddedLog.open(Path(sys.argv[1]))
stream = b"0123456789abcdef"
seq = log.marks("acme").get(stream, 0)
while True:
    group = [("acme", LogEntry(stream, seq + n, "x", 1, 1, 1, bytes(20_000))) for n in range(1, 20)]
    assert all(outcome.kind == "stored" for outcome in log.append(group))
    seq += 19
    print(seq, flush=True)
"""


def test_c01_killed_at_any_moment_it_has_all_that_it_acknowledged(tmp_path: Path) -> None:
    last = 0
    for lines in (1, 3, 7, 4, 2):
        writer = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path)], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        for _ in range(lines):
            last = int(writer.stdout.readline())
        os.kill(writer.pid, signal.SIGKILL)
        rest = writer.stdout.read().split()
        writer.wait(timeout=30)
        writer.stdout.close()
        last = int(rest[-1]) if rest else last
        log = EmbeddedLog.open(tmp_path)
        mark = log.marks("acme")[STREAM]
        assert mark >= last
        assert log.last_position("acme") == mark
        assert not list(log.verify("acme"))
        log.close()

"""`sapflow groups` and `sapflow tail --group`, as a user runs them."""

import json
import signal
import subprocess
from pathlib import Path

import trio

from sapflow.cli.extents import batches, mebibytes, not_read, records
from sapflow.client import Extent, GroupFigures, list_groups
from tests.unit.cli.test_tail import SAPFLOW, arguments, positions, sapflow
from tests.unit.client.doors import Door, a_door


def groups(door: Door, tmp_path: Path, *words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    (tmp_path / "token").write_text("a-token\n")
    return sapflow("groups", *words, "--to", door.url, "--token-file", tmp_path / "token", code=code)


def figures(door: Door) -> GroupFigures:
    """Of the group, without a process of its own."""

    async def ask() -> GroupFigures:
        return (await list_groups(door.url, "acme", "a-token", group="billing"))[0]

    return trio.run(ask)


def test_a_group_is_read_on_listed_reset_and_removed(tmp_path: Path) -> None:
    with a_door(tmp_path, batches=6) as door:
        assert "no groups yet" in groups(door, tmp_path, "list", "acme").stderr
        tail = arguments(door, tmp_path, "--group", "billing", "--no-follow")
        assert positions(sapflow(*tail, "--limit", 30).stdout) == [1] * 24 + [2] * 24
        listed = json.loads(groups(door, tmp_path, "list", "acme", "--json").stdout)["groups"]
        assert [(one["group"], one["position"], one["lag"]["entries"], one["lag"]["records"]) for one in listed] == [
            ("billing", 2, 4, 96)
        ]
        assert set(positions(sapflow(*tail).stdout)) == {3, 4, 5, 6}
        assert (
            "reads on after position 4; 2 batches"
            in groups(door, tmp_path, "reset", "acme", "billing", "--at", "4").stdout
        )
        assert set(positions(sapflow(*tail).stdout)) == {5, 6}
        assert "beyond the log's end" in groups(door, tmp_path, "reset", "acme", "billing", "--at", "99").stderr
        groups(door, tmp_path, "reset", "acme", "billing", "--at", "1970-01-01T00:00:00.005")
        assert figures(door).position == 4
        groups(door, tmp_path, "reset", "acme", "billing", "--at", "soon", code=2)
        groups(door, tmp_path, "reset", "acme", "billing", code=2)
        groups(door, tmp_path, "remove", "acme", "billing")
        assert "has no group 'billing'" in groups(door, tmp_path, "show", "acme", "billing", code=1).stderr


def test_parquet_is_committed_when_its_file_is_whole(tmp_path: Path) -> None:
    import pyarrow.parquet

    with a_door(tmp_path, batches=6) as door:
        file = tmp_path / "out.parquet"
        words = ("--group", "billing", "--no-follow", "--format", "parquet", "-o", file)
        sapflow(*arguments(door, tmp_path, *words))
        assert figures(door).position == 6
        assert pyarrow.parquet.read_table(file).num_rows == 6 * 24


def test_what_cannot_be_written_is_not_committed(tmp_path: Path) -> None:
    with a_door(tmp_path, batches=6) as door:
        words = ("--group", "billing", "--no-follow", "-o", "/dev/full")
        assert "No space left" in sapflow(*arguments(door, tmp_path, *words), code=1).stderr
        assert figures(door).position == 0


def test_ctrl_c_commits_what_was_written(tmp_path: Path) -> None:
    with a_door(tmp_path, batches=3) as door:
        command = [*SAPFLOW, *map(str, arguments(door, tmp_path, "--group", "billing"))]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(3 * 24):
            assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, "")
        assert figures(door).position == 3


def test_when_a_member_is_killed_the_one_that_stands_by_reads_on(tmp_path: Path) -> None:
    with a_door(tmp_path, batches=4) as door:
        command = [*SAPFLOW, *map(str, arguments(door, tmp_path, "--group", "billing"))]
        first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        second = None
        try:
            assert first.stdout is not None
            assert positions("".join(first.stdout.readline() for _ in range(4 * 24)))[-1] == 4
            while figures(door).position != 4:
                pass
            second = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            while figures(door).members != 2:
                pass
            first.kill()
            door.store(5, 5)
            assert second.stdout is not None
            assert positions(second.stdout.readline()) == [5]
            assert figures(door).members == 1
        finally:
            for process in (first, second):
                if process is not None:
                    process.kill()
                    process.wait()


def test_c22_what_retention_removed_is_told_with_its_size_and_the_exit_code_says_so(tmp_path: Path) -> None:
    with a_door(tmp_path, batches=10) as door:
        tail = arguments(door, tmp_path, "--group", "billing", "--no-follow")
        sapflow(*tail, "--limit", 24)
        door.engine.remove_oldest("acme", before_us=6000, keep_bytes=1 << 30)
        gap = figures(door).gap
        assert gap is not None
        assert (gap.entries, gap.records) == (4, 96)
        shown = json.loads(groups(door, tmp_path, "show", "acme", "billing", "--json").stdout)
        assert (shown["gap"]["entries"], shown["lag"]["entries"]) == (4, 5)
        assert "4 batches, 96 records" in groups(door, tmp_path, "show", "acme", "billing").stdout
        found = sapflow(*tail, code=1)
        assert set(positions(found.stdout)) == {6, 7, 8, 9, 10}
        assert "4 stored batches after position 1 (96 records" in found.stderr
        assert "4 stored batches are not in what was read" in found.stderr
        plain = sapflow(*arguments(door, tmp_path, "--no-follow", "--at", 2), code=1)
        assert "3 stored batches after position 2 are past retention" in plain.stderr


def test_c23_what_cannot_be_decoded_is_told_counted_and_the_others_are_written(tmp_path: Path) -> None:
    from sapflow.entry import LogEntry

    with a_door(tmp_path, batches=2) as door:
        poison = LogEntry(bytes(16), 1, "x", 1, 1, 1, b"\x00\x09 this is no IPFIX")
        door.engine.append([("acme", poison)])
        door.store(3, 4)
        for words in (("--at", "earliest"), ("--group", "billing")):
            found = sapflow(*arguments(door, tmp_path, "--no-follow", *words), code=1)
            assert set(positions(found.stdout)) == {1, 2, 4, 5}
            assert "position 3 is damaged and left out: it cannot be decoded" in found.stderr
        assert figures(door).quarantined == 1


def test_what_is_not_known_of_a_shared_log_is_not_shown_as_a_number() -> None:
    known, unknown = Extent(1234, 1234, 3 << 20, 5678), Extent(1234, None, None, None)
    assert [(batches(one), records(one), mebibytes(one)) for one in (known, unknown)] == [
        ("1,234", "5,678", "3.0"),
        ("<=1,234", "-", "-"),
    ]
    assert [str(known), str(unknown)] == ["1,234 batches, 5,678 records, 3,145,728 bytes", "up to 1,234 batches"]
    assert [not_read(one) for one in (unknown, None)] == ["  <=1,234 batches past retention were not read", ""]

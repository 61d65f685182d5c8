"""`decode` into the formats of tables."""

import io
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sapflow.flows.columns.records import Context
from sapflow.flows.formats import FORMATS, open_writer
from sapflow.flows.ipfix.encode import Encoder, make_template
from sapflow.flows.reference import reference_work
from tests.unit.cli.test_files import run


@pytest.mark.parametrize("format_", ["arrow", "parquet"])
def test_a_file_is_decoded_into_a_table(tmp_path: Path, format_: str) -> None:
    path, out = tmp_path / "work.ipfix", tmp_path / "flows"
    path.write_bytes(reference_work(10))
    assert run("decode", path, "--format", format_, "-o", out).exit_code == 0
    table = pq.read_table(out) if format_ == "parquet" else pa.ipc.open_stream(out.read_bytes()).read_all()
    assert (table.num_rows, table.num_columns) == (240, 6 + 14)


def test_tables_go_through_pipes() -> None:
    command = [sys.executable, "-m", "sapflow", "decode", "-", "--fields", "octetDeltaCount", "--format"]
    for format_ in ("arrow", "parquet"):
        done = subprocess.run([*command, format_], input=reference_work(2), capture_output=True, check=True, timeout=60)
        out = io.BytesIO(done.stdout)
        table = pq.read_table(out) if format_ == "parquet" else pa.ipc.open_stream(out).read_all()
        assert (table.num_rows, table.column_names) == (48, ["octetDeltaCount"])


def test_what_a_header_has_no_place_for_is_told_on_standard_error(tmp_path: Path) -> None:
    path = tmp_path / "two.ipfix"
    encoder = Encoder()
    data = b""
    for template, record in ((make_template(256, [(0, 4, 1)]), b"\x06"), (make_template(257, [(0, 7, 2)]), b"\0\x50")):
        data += encoder.templates([template], export_time=1) + encoder.records(template, [record], export_time=1)
    path.write_bytes(data)
    result = run("decode", path, "--format", "csv")
    assert len(result.stdout.splitlines()) == 3
    assert "sourceTransportPort" in result.stderr
    assert "left out" not in run("decode", path, "--format", "jsonl").stderr


def test_a_table_that_ctrl_c_ended_has_its_end(tmp_path: Path) -> None:
    out = tmp_path / "flows.parquet"
    command = [sys.executable, "-m", "sapflow", "decode", "-", "--format", "parquet", "-o", str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        # When the pipe has taken it all, most of it was read: more than a pipe holds by far.
        process.stdin.write(reference_work(4_000))
        process.stdin.flush()
        for _ in range(6):
            # Python loses one now and then that comes while C code clears errors of its own.
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
                break
        process.stdin.close()
    assert process.returncode == 1
    assert pq.read_table(out).num_rows > 24_000


@pytest.mark.parametrize("format_", FORMATS)
def test_a_batch_that_holds_but_an_account_adds_nothing_to_an_output(format_: str) -> None:
    outputs = []
    for batches in ((reference_work(2),), (b"", reference_work(2), b"")):
        out = io.BytesIO()
        writer = open_writer(format_, out)
        assert sum(writer.write(data, Context("acme", "x", "00", 1)) for data in batches) == 48
        writer.close()
        outputs.append(out.getvalue())
    assert outputs[0] == outputs[1]

"""IPFIX Files that we write of what exporters sent are read by libfixbuf's reader, every record and every value."""

from pathlib import Path

from tests.interop import ipfixdump
from tests.interop.recordings import Recordings, of_each, sapflow
from tests.peers import needs


@needs("ipfixDump")
@of_each()
def test_every_value_of_an_ipfix_file_that_we_write_is_as_ipfixdump_reads_it(
    recordings: Recordings, exporter: str, tmp_path: Path
) -> None:
    recording = recordings[exporter]
    written = tmp_path / "written.ipfix"
    sapflow("decode", recording.capture, "--format", "ipfix", "-o", written)
    assert ipfixdump.records(written) == [ipfixdump.as_printed(row) for row in recording.rows]

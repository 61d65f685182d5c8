"""What scapy crafts is read alike by us, tshark, nfdump and ipfixDump: options, engines, domains, private elements."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop import crafted, ipfixdump, nfdump, tshark
from tests.interop.exporters import a_capture_of, nfcapd
from tests.interop.recordings import decoded, sapflow
from tests.peers import needs

of_each_protocol = pytest.mark.parametrize(
    ("craft", "records"),
    [(crafted.netflow5, 6), (crafted.netflow9, 17), (crafted.ipfix, 16)],
    ids=["v5", "v9", "ipfix"],
)
Craft = Callable[[], list[bytes]]


@needs("tshark")
@of_each_protocol
def test_every_field_crafted_is_as_tshark_reads_it(craft: Craft, records: int, tmp_path: Path) -> None:
    capture = a_capture_of(craft(), tmp_path / "crafted.pcap")
    rows, theirs = decoded(capture), tshark.records(capture)
    assert len(rows) == len(theirs) == records
    assert [tshark.difference(row, seen) for row, seen in zip(rows, theirs, strict=True)] == [""] * records


@needs("nfcapd", "nfdump")
@of_each_protocol
def test_every_flow_crafted_is_as_nfdump_reads_it(craft: Craft, records: int, tmp_path: Path) -> None:
    datagrams = craft()
    rows = decoded(a_capture_of(datagrams, tmp_path / "crafted.pcap"))
    flows = nfdump.flows(nfcapd(tmp_path / "nfcapd", datagrams))
    source = nfdump.Source.of(datagrams, rows)
    ours = [row for row in rows if nfdump.is_flow(row)]
    assert len(ours) == len(flows) > 0
    assert [source.expected(row, flow) for row, flow in zip(ours, flows, strict=True)] == list(map(nfdump.given, flows))


@needs("ipfixDump")
@of_each_protocol
def test_an_ipfix_file_of_what_is_crafted_is_as_ipfixdump_reads_it(craft: Craft, records: int, tmp_path: Path) -> None:
    capture = a_capture_of(craft(), tmp_path / "crafted.pcap")
    sapflow("decode", capture, "--format", "ipfix", "-o", tmp_path / "written.ipfix")
    theirs = ipfixdump.records(tmp_path / "written.ipfix")
    assert len(theirs) == records
    assert theirs == [ipfixdump.as_printed(row) for row in decoded(capture)]

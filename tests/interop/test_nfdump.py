"""nfdump and we read the same in what exporters sent: flow by flow, every field that nfdump gives."""

from pathlib import Path

from tests.interop import nfdump
from tests.interop.exporters import EXPORTERS, nfcapd
from tests.interop.recordings import Recordings, of_each
from tests.peers import needs

WITH_LISTS = "fixbuf ipfix tcp"
"""Its records are made of what nfdump does not know: lists, elements of an enterprise."""


@needs("nfcapd", "nfdump")
@of_each(*(name for name in EXPORTERS if name != WITH_LISTS))
def test_every_field_that_nfdump_gives_of_a_flow_is_ours(recordings: Recordings, exporter: str, tmp_path: Path) -> None:
    recording = recordings[exporter]
    ours = list(filter(nfdump.is_flow, recording.rows))
    theirs = nfdump.flows(nfcapd(tmp_path / "nfcapd", recording.datagrams))
    assert len(ours) == len(theirs) > 0
    source = nfdump.Source.of(recording.datagrams, recording.rows)
    for row, flow in zip(ours, theirs, strict=True):
        assert source.expected(row, flow) == nfdump.given(flow)

"""F33: what real exporters of IPFIX sent, as one stream cut at each byte and in pieces of any size, reads the same."""

from random import Random

from meter.batching import Batcher, Draft
from sapflow.flows.limits import FlowLimits
from tests.interop.recordings import Recordings, of_each

IPFIX = ("softflowd ipfix", "pmacctd ipfix", "softflowd ipfix tcp", "fixbuf ipfix tcp")
CUTS = 3000


def taken(*pieces: bytes) -> Draft | None:
    """What an intake makes of a stream read in these pieces; nothing of what exporters send is malformed."""
    batcher = Batcher(FlowLimits(), batch_bytes=1 << 30)
    for piece in pieces:
        batcher.feed(piece)
    assert (batcher.fault, batcher.partial_bytes, batcher.counts.refused_sets) == (None, 0, {})
    return batcher.flush()


# F33
@of_each(*IPFIX)
def test_f33_a_recorded_stream_cut_anywhere_reads_as_in_one_piece(recordings: Recordings, exporter: str) -> None:
    stream = b"".join(recordings[exporter].datagrams)
    whole = taken(stream)
    assert whole is not None
    assert whole.records > 0
    random = Random(1)
    places = range(1, len(stream)) if len(stream) <= CUTS else random.sample(range(1, len(stream)), CUTS)
    for place in places:
        # Around the place a few bytes come one by one, as TLS may bring them.
        around = range(place, min(place + 4, len(stream)))
        assert taken(stream[:place], *(stream[at : at + 1] for at in around), stream[place + len(around) :]) == whole
    for size in (1, 2, 7, 1400):
        assert taken(*(stream[at : at + size] for at in range(0, len(stream), size))) == whole
    for _ in range(20):
        cuts = sorted(random.sample(range(1, len(stream)), 50))
        assert taken(*(stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True))) == whole

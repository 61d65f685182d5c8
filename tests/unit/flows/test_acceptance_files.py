"""IPFIX Files of streams whose templates come and go: what the file gives is what the stream gave, set by set."""

import io
import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from sapflow.flows.columns.batches import decode
from sapflow.flows.columns.records import Context
from sapflow.flows.formats import open_writer
from sapflow.flows.ipfix.encode import make_message, make_set, make_template
from sapflow.flows.ipfix.session import Session

WIDE, NARROW = make_template(256, [(0, 1, 8)]), make_template(256, [(0, 4, 1)])
OTHER = make_template(257, [(0, 7, 2)])
DATA = make_set(256, bytes(range(8)))
WITHDRAWN = make_set(2, struct.pack("!HH", 256, 0))


def filed(*payloads: bytes) -> bytes:
    """An IPFIX File of these batches."""
    out = io.BytesIO()
    writer = open_writer("ipfix", out)
    for payload in payloads:
        writer.write(payload, Context())
    writer.close()
    assert Session().walk(out.getvalue()).fault is None
    return out.getvalue()


def records(data: bytes) -> list[tuple[str, ...]]:
    """The elements of each record, in order."""
    found = [(place, tuple(batch.columns)) for batch in decode(data) for place in batch.order.tolist()]
    return [names for _, names in sorted(found)]


# F18 F31
def test_data_without_template_are_not_read_by_what_another_stream_called_so() -> None:
    first = make_message(make_set(2, WIDE.raw) + DATA)
    assert records(filed(first, make_message(DATA))) == [("octetDeltaCount",)]
    assert records(filed(first + make_message(WITHDRAWN + DATA))) == [("octetDeltaCount",)]


# F19
def test_data_before_and_after_a_redefinition_in_one_message_are_each_read_by_their_own() -> None:
    message = make_message(make_set(2, WIDE.raw) + DATA + make_set(2, NARROW.raw) + DATA)
    assert records(filed(message)) == [("octetDeltaCount",)] + [("protocolIdentifier",)] * 8


SETS = st.sampled_from(
    [DATA, DATA, make_set(257, b"\0\x50"), WITHDRAWN, make_set(5, b"abc"), make_set(2, struct.pack("!HH", 2, 0))]
    + [make_set(2, template.raw) for template in (WIDE, NARROW, OTHER)]
)


@given(st.lists(st.lists(st.lists(SETS, max_size=6), min_size=1, max_size=4), min_size=1, max_size=3))
@settings(deadline=None)
def test_a_file_gives_what_its_streams_gave(streams: list[list[list[bytes]]]) -> None:
    payloads = [b"".join(make_message(b"".join(sets)) for sets in stream) for stream in streams]
    assert records(filed(*payloads)) == [row for payload in payloads for row in records(payload)]

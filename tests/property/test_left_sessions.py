"""A session that is left at any byte, written down, read by another process and gone on with there gives what it would
have given here: the same batches, the same accounts."""

import itertools
import json
import struct

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from meter.batching import Batcher, Draft
from meter.left import _HEAD, LeftSession, LeftStream
from sapflow.errors import LinkError
from sapflow.flows.ipfix.encode import make_message, make_set, make_template
from sapflow.flows.limits import FlowLimits
from sapflow.link import Batch, StreamId

LIMITS = FlowLimits(max_malformed_in_a_row=3)
SHAPES = (
    ([(0, 8, 4), (0, 12, 4), (0, 1, 8)], 0),
    ([(0, 8, 4), (0, 82, 65535)], 0),
    ([(0, 302, 4), (0, 305, 4)], 1),
    ([(0, 8, 4), (0, 291, 65535)], 0),  # it holds a list
    ([(0, 1, 0), (0, 2, 0), (0, 4, 1)], 0),
)
SIZES = (16, 0, 8, 0, 1)

define = st.tuples(st.just("define"), st.integers(0, 1), st.integers(256, 258), st.integers(0, len(SHAPES) - 1))
withdraw = st.tuples(st.just("withdraw"), st.integers(0, 1), st.integers(256, 258), st.just(0))
data = st.tuples(st.just("data"), st.integers(0, 1), st.integers(256, 258), st.integers(0, 5))
lose = st.tuples(st.just("lose"), st.integers(0, 1), st.integers(1, 40), st.just(0))
broken = st.tuples(st.just("broken"), st.integers(0, 1), st.just(0), st.just(0))
steps = st.lists(st.one_of(define, data, data, data, withdraw, lose, broken), max_size=30)
cuts = st.lists(st.floats(0, 1), min_size=1, max_size=3)


def the_bytes(told: list[tuple[str, int, int, int]]) -> bytes:
    """What an exporter sends that does all this, in two observation domains."""
    sequences, known, pieces = [0, 7], dict[tuple[int, int], int](), []
    for what, domain, number, more in told:
        sets = b""
        if what == "define":
            fields, scopes = SHAPES[more]
            template = make_template(number, fields, scopes=scopes)
            sets = make_set(3 if scopes else 2, template.raw)
            known[domain, number] = more
        elif what == "withdraw":
            sets = make_set(2, struct.pack("!HH", number, 0))
        elif what == "broken":
            sets = make_set(2, struct.pack("!HHHH", 259, 1, 8, 0)) + make_set(2, struct.pack("!HHH", 260, 9, 8))
        elif what == "lose":
            sequences[domain] += number
        else:
            size = SIZES[known.get((domain, number), 0)]
            record = bytes(size) if size else struct.pack("!IB", more, 3) + b"\1\2\3"
            sets = make_set(number, record * more)
        if sets:
            pieces.append(make_message(sets, domain=domain, sequence=sequences[domain], export_time=len(pieces)))
        if what == "data":
            sequences[domain] += more
    return b"".join(pieces)


def left_and_taken_up(batcher: Batcher) -> Batcher:
    session = LeftSession("acme", "192.0.2.1:9", LeftStream(StreamId(bytes(16)), 0, 0), batcher.state())
    read = LeftSession.decode(session.encode())
    return Batcher.resumed(read.batcher, LIMITS, batch_bytes=400)


def carried(pieces: list[bytes], *, leaving: bool) -> tuple[list[Draft], str]:
    """All batches, and what was malformed, of a session that is flushed between the pieces, and may be left there."""
    batcher = Batcher(LIMITS, batch_bytes=400)
    drafts: list[Draft | None] = []
    for number, piece in enumerate(pieces):
        if number and batcher.fault is None and leaving:
            batcher = left_and_taken_up(batcher)
        for at in range(0, len(piece), 100):
            if batcher.fault is None:
                drafts.append(batcher.feed(piece[at : at + 100]))
        drafts.append(batcher.last())
    return [draft for draft in drafts if draft is not None], str(batcher.fault)


@given(steps, cuts)
def test_a_session_goes_on_elsewhere_as_if_nothing_had_been(
    told: list[tuple[str, int, int, int]], where: list[float]
) -> None:
    sent = the_bytes(told)
    at = sorted({int(len(sent) * share) for share in where} | {0, len(sent)})
    pieces = [sent[start:stop] for start, stop in itertools.pairwise(at)]
    assert carried(pieces, leaving=True) == carried(pieces, leaving=False)


batches = st.lists(st.tuples(st.integers(0, 9), st.binary(max_size=40), st.binary(max_size=9)), max_size=4)


@given(st.integers(0, 1 << 60), batches, st.text(max_size=9), st.text(max_size=30), st.floats(0, 1e12))
def test_what_is_said_of_a_stream_is_read_as_it_was_written(
    first: int, held: list[tuple[int, bytes, bytes]], org: str, peer: str, rate: float
) -> None:
    numbered = tuple(Batch(first + n, 1, one[0], n, one[1], one[2]) for n, one in enumerate(held, 1))
    last = first + len(held)
    stream = LeftStream(StreamId(b"s" * 16), last, last - len(held), numbered, "c1", rate)
    session = LeftSession(org, peer, stream, Batcher(LIMITS, batch_bytes=400).state())
    read = LeftSession.decode(session.encode())
    assert (read.org, read.peer, read.stream) == (org, peer, stream)
    assert read.stream.is_whole


@settings(max_examples=300)
@given(steps, st.data())
def test_what_was_damaged_on_its_way_is_refused(told: list[tuple[str, int, int, int]], draw: st.DataObject) -> None:
    batcher = Batcher(LIMITS, batch_bytes=1 << 20)
    batcher.feed(the_bytes(told))
    if batcher.fault is not None:
        return
    batcher.last()
    whole = LeftSession("acme", "x", LeftStream(StreamId(bytes(16)), 0, 0), batcher.state()).encode()
    at = draw.draw(st.integers(0, len(whole) - 1))
    damaged = draw.draw(
        st.sampled_from(
            [whole[:at], whole[:at] + bytes([whole[at] ^ draw.draw(st.integers(1, 255))]) + whole[at + 1 :]]
        )
    )
    with pytest.raises(LinkError, match="cannot be read"):
        LeftSession.decode(damaged)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 1},
        {"stream": "00"},
        {"last": 5, "batches": [[3, 0, 0, 0, 0, 0]]},
        {"tail": 1 << 40},
        {"batches": [[0, 0, 0, 0, -1, 0]]},
        {"session": {"domains": {"0": {"_expected": "x"}}, "numbers": [0, 0, 0, 0]}},
        {"session": {"domains": {"0": {"counter": {}}}, "numbers": [0, 0, 0, 0]}},
        {"session": {"domains": {}, "numbers": []}},
        {"definitions": None},
    ],
)
def test_what_another_version_wrote_is_refused_and_never_half_understood(change: dict[str, object]) -> None:
    session = LeftSession(
        "acme", "x", LeftStream(StreamId(bytes(16)), 0, 0), Batcher(LIMITS, batch_bytes=400).state()
    ).encode()
    _, size = _HEAD.unpack_from(session)
    head = json.dumps(json.loads(session[_HEAD.size : _HEAD.size + size]) | change).encode()
    body = head + session[_HEAD.size + size :]
    with pytest.raises(LinkError, match="cannot be read"):
        LeftSession.decode(_HEAD.pack(crc32c(body), len(head)) + body)

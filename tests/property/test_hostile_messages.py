"""No message of 64 KiB costs a decoder more than 0.5 s and 8 MiB, and none gets another error than MalformedMessage.

The worst take 30 to 50 ms, as datagrams of NetFlow v9 up to 90; the rest is a margin for slow or busy machines.
`pytest -s` shows the figures.
"""

import struct
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meter.batching import Batcher
from sapflow.errors import MalformedMessage
from sapflow.flows.columns.batches import decode
from sapflow.flows.datagrams.session import DatagramSession
from sapflow.flows.ipfix.encode import make_message, make_set, make_template, make_variable
from sapflow.flows.ipfix.session import Session
from sapflow.flows.ipfix.structured import ListDecoder
from sapflow.flows.limits import FlowLimits
from sapflow.flows.registry import registry
from sapflow.flows.wire import VARIABLE_LENGTH
from tests.hostile import ROOM, records_of, worst_cases

MOST_S, MOST_BYTES = 0.5, 8 << 20
CASES = worst_cases()
RECEIVED_S = 1_750_000_000.0

Work = Callable[[], object]


def measured(prepare: Callable[[], Work], what: str) -> None:
    """Assert the bounds of what `prepare` gives, run for its CPU time and again for its memory.

    MalformedMessage is an answer as well.
    """
    took, _ = _run(prepare())
    work = prepare()
    tracemalloc.start()
    try:
        _, peak = _run(work)
    finally:
        tracemalloc.stop()
    print(f"{what}: {took * 1000:.1f} ms, {peak / (1 << 20):.1f} MiB")
    assert took < MOST_S
    assert peak < MOST_BYTES


def _run(work: Work) -> tuple[float, int]:
    began = time.process_time()
    try:
        kept = work()
    except MalformedMessage as fault:
        kept = fault
    took = time.process_time() - began
    peak = tracemalloc.get_traced_memory()[1] if tracemalloc.is_tracing() else 0
    del kept
    return took, peak


@pytest.mark.parametrize("case", CASES)
def test_an_intake_walks_the_worst_messages_in_time_and_memory(case: str) -> None:
    *stage, costly = CASES[case]

    def prepare() -> Work:
        batcher = Batcher(FlowLimits(), batch_bytes=1 << 30)
        for message in stage:
            batcher.feed(message)
        batcher.flush()
        return lambda: (batcher.feed(costly), batcher.flush())

    measured(prepare, case)


@pytest.mark.parametrize("case", CASES)
def test_the_worst_messages_become_columns_in_time_and_memory(case: str) -> None:
    batcher = Batcher(FlowLimits(), batch_bytes=1 << 30)
    for message in CASES[case]:
        batcher.feed(message)
    draft = batcher.flush()
    payload = b"".join(CASES[case]) if draft is None else draft.payload
    measured(lambda: lambda: decode(payload), case)
    measured(lambda: lambda: [batch.to_arrow() for batch in decode(payload)], f"{case}, to Arrow")


@pytest.mark.parametrize("protocol", ["ipfix", "netflow9"])
@pytest.mark.parametrize("case", CASES)
def test_the_worst_datagrams_are_taken_in_time_and_memory(case: str, protocol: Any) -> None:
    messages = CASES[case] if protocol == "ipfix" else [as_netflow9(message) for message in CASES[case]]
    *stage, costly = [message[:65_507] for message in messages]

    def prepare() -> Work:
        session = DatagramSession(protocol)
        session.take(stage, RECEIVED_S)
        return lambda: session.take([costly], RECEIVED_S)

    measured(prepare, f"{protocol} {case}")


def as_netflow9(message: bytes) -> bytes:
    """The same sets in a v9 datagram: templates have the same form there, and options templates another."""
    body = bytearray(message[16:])
    at = 0
    while at + 4 <= len(body):
        set_id, length = struct.unpack_from("!HH", body, at)
        if set_id in (2, 3):
            body[at : at + 2] = (set_id - 2).to_bytes(2, "big")
        at += max(length, 4)
    return struct.pack("!HHIIII", 9, 65_535, 1, 1_750_000_000, 1, 1) + bytes(body)


LISTS = {
    "empty values": ("basicList", struct.pack("!BHH", 3, 82, VARIABLE_LENGTH) + bytes(ROOM - 5)),
    "one-byte values": ("basicList", struct.pack("!BHH", 3, 4, 1) + bytes(ROOM - 5)),
    "one-byte records": ("subTemplateList", b"\xff\x01\x2c" + bytes(ROOM - 3)),
    "records of no length but one": ("subTemplateList", b"\xff\x01\x2d" + bytes(ROOM - 3)),
    "empty entries": ("subTemplateMultiList", b"\xff" + struct.pack("!HH", 300, 4) * ((ROOM - 1) // 4)),
    "entries of one record": ("subTemplateMultiList", b"\xff" + struct.pack("!HHB", 300, 5, 6) * ((ROOM - 1) // 5)),
    "entries of unknown templates": ("subTemplateMultiList", b"\xff" + struct.pack("!HHB", 999, 5, 6) * 13_000),
    "empty lists": (
        "basicList",
        struct.pack("!BHH", 3, 292, VARIABLE_LENGTH) + make_variable(b"\xff\x01\x2c") * ((ROOM - 5) // 4),
    ),
}
TEMPLATES = {
    300: make_template(300, [(0, 4, 1)]),
    301: make_template(301, [(0, 4, 1), *((0, 8, 0) for _ in range(2000))]),
}


@pytest.mark.parametrize("case", LISTS)
@pytest.mark.parametrize("size", [16_000, ROOM])
def test_the_worst_lists_are_decoded_in_time_and_memory(case: str, size: int) -> None:
    kind, data = LISTS[case]
    decoder = ListDecoder(TEMPLATES.get, registry())
    decoder.render(kind, data[:100])
    measured(lambda: lambda: decoder.render(kind, data[:size]), f"{case}, {size:,} bytes")


FIELD = st.tuples(
    st.sampled_from([0, 0, 0, 9, 29_305]),
    st.sampled_from([1, 4, 8, 27, 82, 152, 154, 291, 292, 293, 32_000]),
    st.sampled_from([0, 1, 2, 4, 8, 16, 200, VARIABLE_LENGTH]),
)
NUMBER = st.integers(256, 260)


@st.composite
def template_records(draw: st.DrawFn, set_id: int) -> bytes:
    number, fields = draw(NUMBER), draw(st.lists(FIELD, max_size=6))
    fields = fields * draw(st.sampled_from([1, 1, 1, 40]))
    raw = struct.pack("!HH", number, draw(st.sampled_from([len(fields)] * 4 + [0, len(fields) + 1, 65_535])))
    if set_id == 3:
        raw += struct.pack("!H", draw(st.integers(0, 3)))
    for pen, element, length in fields:
        raw += struct.pack("!HH", element | (0x8000 if pen else 0), length) + (struct.pack("!I", pen) if pen else b"")
    return raw


@st.composite
def hostile_sets(draw: st.DrawFn) -> bytes:
    kind = draw(st.integers(0, 4))
    if kind <= 1:
        set_id = draw(st.sampled_from([2, 2, 3]))
        body = b"".join(draw(st.lists(template_records(set_id), max_size=3)))
    else:
        set_id = draw(NUMBER)
        body = draw(st.binary(max_size=40)) * draw(st.sampled_from([1, 1, 3, 100]))
    claimed = draw(st.sampled_from([None] * 12 + [-5, -1, 1, 60_000]))
    if claimed is None:
        return make_set(set_id, body)
    return struct.pack("!HH", set_id, max(0, min(65_535, 4 + len(body) + claimed))) + body


@given(st.lists(st.lists(hostile_sets(), max_size=6), min_size=1, max_size=8))
@settings(max_examples=150, deadline=None)
def test_any_structure_is_read_or_refused_by_every_decoder(messages: list[list[bytes]]) -> None:
    stream = [make_message(b"".join(sets)[:65_000], sequence=number) for number, sets in enumerate(messages)]
    began = time.perf_counter()
    batcher = Batcher(FlowLimits(), batch_bytes=1 << 30)
    for message in stream:
        if batcher.fault is None:
            batcher.feed(message)
    draft = batcher.flush()
    if draft is not None:
        walk = Session().walk(draft.payload)
        assert (walk.fault, walk.records) == (None, draft.records)
        assert sum(batch.records for batch in decode(draft.payload)) == draft.records
        if draft.records < 1000:
            assert len(records_of(draft.payload)) == draft.records
    for protocol, datagrams in (("ipfix", stream), ("netflow9", [as_netflow9(message) for message in stream])):
        session = DatagramSession(protocol)  # type: ignore[arg-type]
        behind = Batcher(FlowLimits(), batch_bytes=1 << 30)
        for datagram in datagrams:
            behind.feed(session.take([datagram], RECEIVED_S))
        assert behind.fault is None
    assert time.perf_counter() - began < 5

"""Sets that cannot be read within messages that can: each costs itself, and what it means for what comes after."""

import io
import json
import struct

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from meter.batching import Batcher
from sapflow.errors import MalformedMessage
from sapflow.flows.columns import decode
from sapflow.flows.encode import make_message, make_set, make_template, make_variable
from sapflow.flows.formats import open_writer
from sapflow.flows.limits import FlowLimits
from sapflow.flows.mending import Cut, mended
from sapflow.flows.records import Context
from sapflow.flows.session import Session
from sapflow.flows.wire import VARIABLE_LENGTH

FIXED = make_template(256, [(0, 8, 4), (0, 1, 8)])
LOOSE = make_template(257, [(0, 82, VARIABLE_LENGTH), (0, 4, 1)])
OPTIONS = make_template(300, [(0, 10, 4), (0, 34, 4)], scopes=1)
GOOD = make_set(256, struct.pack("!IQ", 0xC0000201, 7))
PAST = make_set(257, b"\xff\xff\xff" + bytes(10))
"""F21: a value that says 65,535 bytes, with 10 left."""


FAULT = MalformedMessage("a record runs past its set", offset=0, reason="record")


def definitions(domain: int = 0) -> bytes:
    templates = make_set(2, FIXED.raw + LOOSE.raw) + make_set(3, OPTIONS.raw)
    return make_message(templates, domain=domain)


def a_batcher(**limits: int) -> Batcher:
    return Batcher(evolve(FlowLimits(), **limits), batch_bytes=1 << 20)


def taken(batcher: Batcher, *messages: bytes) -> bytes:
    """The payload of all messages fed; it must read whole, strictly, and as it was counted."""
    for message in messages:
        batcher.feed(message)
    draft = batcher.flush()
    if draft is None:
        return b""
    walk = Session().walk(draft.payload)
    assert (walk.fault, walk.records) == (None, draft.records)
    return draft.payload


def octets(payload: bytes) -> list[int]:
    return [n for batch in decode(payload) if batch.template.id == 256 for n in batch.columns["octetDeltaCount"]]


# F21
def test_f21_a_record_that_runs_past_costs_its_set_and_its_neighbours_are_delivered() -> None:
    batcher = a_batcher()
    payload = taken(batcher, definitions(), make_message(GOOD + PAST + GOOD), make_message(GOOD, sequence=9))
    assert octets(payload) == [7, 7, 7]
    assert batcher.counts.refused_sets == {"record": 1}
    assert batcher.fault is None


# F21
def test_f21_a_message_of_nothing_else_is_discarded() -> None:
    batcher = a_batcher()
    assert octets(taken(batcher, definitions(), make_message(PAST))) == []
    assert (batcher.counts.records, batcher.counts.refused_sets) == (0, {"record": 1})


def test_what_a_set_left_out_held_is_not_called_loss() -> None:
    batcher = a_batcher()
    taken(batcher, definitions(), make_message(GOOD + PAST), make_message(GOOD, sequence=400))
    assert batcher.counts.lost_records == 0


# F09
def test_f09_a_set_length_beyond_its_message_still_costs_all_of_the_message() -> None:
    batcher = a_batcher()
    payload = taken(batcher, definitions(), make_message(GOOD + struct.pack("!HH", 256, 5)))
    assert octets(payload) == []
    assert batcher.fault is not None
    assert batcher.fault.reason == "set"


BAD_TEMPLATES = {
    "f11 five bytes": (2, b"\x01\x00\x00\x02\x00", "truncated"),
    "f11 seven bytes": (2, b"\x01\x00\x00\x02\x00\x08\x00", "truncated"),
    "f11 options of five bytes": (3, b"\x01\x00\x00\x02\x00", "truncated"),
    "f11 options of nine bytes": (3, b"\x01\x00\x00\x02\x00\x01\x00\x08\x00", "truncated"),
    "f12 65,535 fields in 16 bytes": (2, b"\x01\x00\xff\xff" + bytes(12), "template_fields"),
    "f13 16,000 fields": (2, struct.pack("!HH", 256, 16_000) + b"\0\x04\0\x01" * 16_000, "template_fields"),
    "f15 no length": (2, struct.pack("!HHHHHH", 256, 2, 8, 0, 1, 0), "template"),
    "f20 no scope": (3, struct.pack("!HHHHHHH", 256, 2, 0, 10, 4, 34, 4), "template"),
    "f20 more scopes than fields": (3, struct.pack("!HHHHHHH", 256, 2, 3, 10, 4, 34, 4), "template"),
    "f20 longer than a message": (2, struct.pack("!HHHHHH", 256, 2, 82, 40_000, 83, 40_000), "template"),
}


# F11 F12 F13 F15 F20
@pytest.mark.parametrize("case", BAD_TEMPLATES)
def test_a_template_that_cannot_be_used_is_refused_and_its_neighbours_are_taken(case: str) -> None:
    set_id, body, reason = BAD_TEMPLATES[case]
    other = make_template(400, [(0, 1, 8)])
    message = make_message(make_set(2, other.raw) + make_set(set_id, body) + make_set(400, bytes(8)))
    batcher = a_batcher()
    payload = taken(batcher, message)
    assert batcher.counts.refused_sets == {reason: 1}
    assert [(batch.template.id, batch.records) for batch in decode(payload)] == [(400, 1)]


# F19
@pytest.mark.parametrize("case", BAD_TEMPLATES)
def test_f19_what_an_unusable_redefinition_was_to_replace_decodes_nothing_more(case: str) -> None:
    set_id, body, _ = BAD_TEMPLATES[case]
    batcher = a_batcher()
    payload = taken(batcher, definitions(), make_message(make_set(set_id, body)), make_message(GOOD))
    assert octets(payload) == []
    assert batcher.counts.undecodable_sets == 1
    # Not in a batch of its own either, which begins with what it needs.
    batcher = a_batcher()
    taken(batcher, definitions(), make_message(GOOD))
    assert octets(taken(batcher, make_message(make_set(set_id, body)), make_message(GOOD))) == []


def test_a_template_behind_one_that_cannot_be_used_is_taken() -> None:
    bad = struct.pack("!HHHH", 258, 1, 8, 0)
    unnumbered = struct.pack("!HHHHI", 5, 1, 0x8001, 4, 29_305)
    batcher = a_batcher()
    payload = taken(batcher, make_message(make_set(2, bad + unnumbered + FIXED.raw) + GOOD))
    assert octets(payload) == [7]
    assert batcher.counts.refused_sets == {"template": 1}


# F13 F16
def test_f16_an_element_of_no_length_among_others_is_a_value_of_no_bytes() -> None:
    template = make_template(256, [(0, 82, 0), (0, 1, 8), (0, 8, 0)])
    payload = taken(a_batcher(), make_message(make_set(2, template.raw) + make_set(256, bytes(7) + b"\x05" + bytes(8))))
    out = io.BytesIO()
    open_writer("jsonl", out).write(payload, Context())
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    values = [(row["octetDeltaCount"], row["sourceIPv4Address"]) for row in rows]
    assert values == [(5, ""), (0, "")]


# F13
@pytest.mark.parametrize("element", [(0, 4, 1), (0, 82, VARIABLE_LENGTH)])
def test_f13_elements_of_no_length_cannot_make_more_values_than_the_cap(element: tuple[int, int, int]) -> None:
    wide = make_template(256, [element, *((0, 8, 0) for _ in range(2000))])
    few, many = make_set(256, bytes(65)), make_set(256, bytes(60_000))
    batcher = a_batcher()
    payload = taken(batcher, make_message(make_set(2, wide.raw)), make_message(many), make_message(few))
    assert batcher.counts.refused_sets == {"values": 1}
    assert sum(batch.records for batch in decode(payload)) == 65
    strict = Session()
    strict.walk(make_message(make_set(2, wide.raw)))
    walk = strict.walk(make_message(many))
    assert walk.fault is not None
    assert walk.fault.reason == "values"


# F34
def test_f34_three_messages_in_a_row_of_which_nothing_can_be_read_end_the_session() -> None:
    bad, good = make_message(PAST), make_message(GOOD)
    batcher = a_batcher(max_malformed_in_a_row=3)
    assert len(octets(taken(batcher, definitions(), bad, bad, good, bad, bad, good))) == 2
    assert batcher.fault is None
    payload = taken(batcher, good + bad + bad + bad)
    assert octets(payload) == [7]
    assert batcher.fault is not None
    assert (batcher.fault.reason, batcher.fault.what[:13]) == ("record", "3 messages in")


# F18
@pytest.mark.parametrize(("withdraws", "left"), [(2, 300), (3, 256)])
def test_f18_withdrawing_all_of_a_kind_leaves_the_other_kind_and_other_domains(withdraws: int, left: int) -> None:
    data = GOOD + make_set(257, loose()) + make_set(300, bytes(8))
    batcher = a_batcher()
    payload = taken(
        batcher,
        definitions(domain=1),
        definitions(domain=2),
        make_message(make_set(withdraws, struct.pack("!HH", withdraws, 0)) * 2 + data, domain=1),
        make_message(data, domain=2, sequence=0),
    )
    assert left in {batch.template.id for batch in decode(payload) if batch.domain == 1}
    assert batcher.counts.undecodable_sets == (2 if withdraws == 2 else 1)
    assert sum(batch.records for batch in decode(payload) if batch.domain == 2) == 3


# F18
def test_f18_templates_defined_after_all_were_withdrawn_in_one_message_hold() -> None:
    everything = make_set(2, struct.pack("!HH", 2, 0))
    message = make_message(everything + make_set(2, FIXED.raw) + GOOD + everything + GOOD + make_set(2, FIXED.raw))
    batcher = a_batcher()
    assert octets(taken(batcher, definitions(), message, make_message(GOOD, sequence=1))) == [7, 7]
    assert batcher.counts.undecodable_sets == 1


def loose(name: bytes = b"eth0") -> bytes:
    return make_variable(name) + b"\x06"


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=9), st.binary(max_size=9)), max_size=6))
def test_cuts_are_made_where_they_are_and_lengths_follow(parts: list[tuple[bool, bytes, bytes]]) -> None:
    data, expected, cuts = b"", b"", []
    for drop, body, put in parts:
        start = len(data)
        message = make_message(GOOD + make_set(9, body) + GOOD)
        data += message
        if drop:
            cuts.append(Cut(start, start + 16 + len(GOOD), start + len(message) - len(GOOD), put, FAULT))
            message = make_message(GOOD + put + GOOD)
        expected += message
    assert mended(data, cuts) == expected


SETS = st.sampled_from(
    [
        GOOD,
        PAST,
        make_set(257, loose()),
        make_set(257, loose() + b"\x09"),
        make_set(300, bytes(8)),
        make_set(999, b"abcd"),
        make_set(7, b"abcd"),
        make_set(2, FIXED.raw),
        make_set(2, LOOSE.raw),
        make_set(2, make_template(256, [(0, 1, 8)]).raw),
        make_set(2, make_template(257, [(0, 4, 1)]).raw),
        make_set(3, OPTIONS.raw),
        make_set(2, struct.pack("!HH", 2, 0)),
        make_set(3, struct.pack("!HH", 3, 0)),
        make_set(2, struct.pack("!HH", 256, 0)),
        *(make_set(set_id, body) for set_id, body, _ in BAD_TEMPLATES.values() if len(body) < 100),
        make_set(2, FIXED.raw + BAD_TEMPLATES["f15 no length"][1] + LOOSE.raw),
    ]
)


# F33
@given(
    st.lists(st.lists(SETS, max_size=5), min_size=1, max_size=10),
    st.lists(st.booleans(), min_size=10, max_size=10),
    st.lists(st.integers(1, 80), max_size=60),
)
@settings(max_examples=200, deadline=None)
def test_f33_whatever_sets_come_batches_read_alone_and_as_counted_however_the_bytes_were_cut(
    messages: list[list[bytes]], ends: list[bool], sizes: list[int]
) -> None:
    stream = definitions() + b"".join(make_message(b"".join(sets)) for sets in messages)
    whole = a_batcher()
    expected = taken(whole, stream)
    chopped = a_batcher()
    at = 0
    for size in [*sizes, len(stream)]:
        chopped.feed(stream[at : at + size])
        at += size
    assert taken(chopped) == expected
    assert (chopped.counts, chopped.fault) == (whole.counts, None)
    batches = a_batcher()
    records = rows(taken(batches, definitions()))
    for sets, end in zip(messages, ends, strict=False):
        batches.feed(make_message(b"".join(sets)))
        if end:
            records += rows(taken(batches))
    records += rows(taken(batches))
    assert records == rows(expected)


def rows(payload: bytes) -> list[tuple[int, int, tuple[str, ...]]]:
    """Domain, template and elements of each record, in order."""
    found = [
        (place, (batch.domain, batch.template.id, tuple(batch.columns)))
        for batch in decode(payload)
        for place in batch.order.tolist()
    ]
    return [row for _, row in sorted(found)]

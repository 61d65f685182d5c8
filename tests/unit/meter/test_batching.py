"""Batches fit a link, whatever templates stand before them and however much comes at once."""

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from meter.batching import MAX_BATCH_BYTES, MAX_PRELUDE_BYTES, MOST_BATCH_BYTES, Batcher
from sapflow.flows.ipfix.encode import make_message, make_set, make_template
from sapflow.flows.ipfix.framing import in_parts
from sapflow.flows.ipfix.session import Session
from sapflow.flows.limits import FlowLimits
from sapflow.flows.reference import reference_work
from sapflow.limits import MOST


def wide_templates(count: int, fields: int) -> list[bytes]:
    """Messages that define so many templates of so many fields each, of one octet."""
    return [make_message(make_set(2, make_template(256 + number, [(0, 4, 1)] * fields).raw)) for number in range(count)]


def uses(numbers: range, fields: int) -> bytes:
    """A message with a record of each."""
    return make_message(b"".join(make_set(256 + number, bytes(fields)) for number in numbers))


def test_templates_that_would_not_fit_a_link_end_their_exporters_session() -> None:
    batcher = Batcher(FlowLimits(), batch_bytes=64 << 10)
    for message in wide_templates(512, 511):
        if batcher.fault is None:
            batcher.feed(message)
    assert batcher.fault is not None
    assert batcher.fault.reason == "templates"


def test_the_largest_batch_fits_a_link() -> None:
    limits = FlowLimits()
    fields = 511
    count = limits.max_template_bytes // (4 * fields + 4)
    batcher = Batcher(limits, batch_bytes=MOST_BATCH_BYTES)
    for message in wide_templates(count, fields):
        batcher.feed(message)
    batcher.flush()
    largest = 0
    drafts = [batcher.feed(uses(range(first, min(first + 100, count)), fields)) for first in range(0, count, 100)]
    data = uses(range(100), fields) * 5
    while batcher.waiting_bytes + len(data) < MOST_BATCH_BYTES:
        drafts.append(batcher.feed(data))
    drafts += [batcher.feed(data), batcher.flush()]
    for draft in drafts:
        if draft is not None:
            largest = max(largest, len(draft.payload))
            assert len(draft.payload) <= MAX_BATCH_BYTES
            assert Session(limits).walk(draft.payload).fault is None
    assert largest > MOST_BATCH_BYTES
    assert batcher.fault is None


def test_what_the_configuration_allows_fits() -> None:
    assert MOST["intake.batch_bytes"] <= MOST_BATCH_BYTES
    assert FlowLimits().max_template_bytes < MAX_PRELUDE_BYTES


@settings(max_examples=50)
@given(messages=st.integers(0, 60), batch_bytes=st.integers(1, 200_000), extra=st.integers(0, 40))
def test_however_much_comes_at_once_every_record_is_in_one_batch(messages: int, batch_bytes: int, extra: int) -> None:
    work = reference_work(messages * 20, define=True) + reference_work(extra, define=False, sequence=messages * 480)
    batcher = Batcher(FlowLimits(), batch_bytes=batch_bytes)
    drafts = list(batcher.feed_all(work))
    if (rest := batcher.flush()) is not None:
        drafts.append(rest)
    assert sum(draft.records for draft in drafts) == 24 * (20 * messages + extra)
    for draft in drafts:
        assert len(draft.payload) < MAX_PRELUDE_BYTES + batch_bytes + (256 << 10) + 65_536
        walk = Session().walk(draft.payload)
        assert (walk.records, walk.undecodable_sets, walk.fault) == (draft.records, 0, None)


@given(st.lists(st.integers(16, 400), max_size=30), st.integers(1, 1000))
def test_parts_are_of_whole_messages_and_lose_nothing(lengths: list[int], most: int) -> None:
    messages = [struct.pack("!HHIII", 10, length, 0, 0, 0) + bytes(length - 16) for length in lengths]
    data = b"".join(messages)
    parts = list(in_parts(data, most))
    assert b"".join(parts) == data
    bounds = {sum(lengths[:index]) for index in range(len(lengths) + 1)}
    at = 0
    for part in parts:
        at += len(part)
        assert at in bounds
        assert len(part) < most + 400

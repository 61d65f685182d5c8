"""Records are the same columns whether they are read together with others or layout by layout."""

import struct
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapflow.errors import MalformedMessage
from sapflow.flows.columns import few
from sapflow.flows.columns.batches import FlowBatch, decode
from sapflow.flows.columns.variable import VariableColumn
from sapflow.flows.ipfix.encode import make_message, make_set, make_template, make_variable
from sapflow.flows.wire import VARIABLE_LENGTH

ELEMENTS = (4, 8, 12, 27, 82, 85, 96, 150, 152, 154, 156, 276, 320, 321, 40_000)
LENGTHS = (0, 1, 2, 3, 4, 5, 7, 8, 16, 33, VARIABLE_LENGTH)
FIELDS = st.lists(st.tuples(st.just(0), st.sampled_from(ELEMENTS), st.sampled_from(LENGTHS)), min_size=1, max_size=6)
TEMPLATES = st.lists(FIELDS, min_size=1, max_size=8)


def same(one: list[FlowBatch], other: list[FlowBatch]) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert (left.domain, left.elements) == (right.domain, right.elements)
        assert left.template.same_as(right.template)
        assert list(left.columns) == list(right.columns)
        for name in ("order", "export_times", "template_ids"):
            assert getattr(left, name).tolist() == getattr(right, name).tolist()
        for name, column in left.columns.items():
            others = right.columns[name]
            assert len(column) == len(others) == left.records
            if isinstance(column, VariableColumn):
                assert list(column) == list(others)
            else:
                assert isinstance(others, np.ndarray)
                assert column.dtype == others.dtype
                assert column.tobytes() == others.tobytes()


def decoded(data: bytes, records: int, values: int) -> list[FlowBatch] | int:
    with patch.object(few, "FEW_RECORDS", records), patch.object(few, "FEW_VALUES", values):
        try:
            return decode(data)
        except MalformedMessage as fault:
            return fault.offset


@given(TEMPLATES, st.data())
def test_however_few_are_read_together_the_columns_are_the_same(
    templates: list[list[tuple[int, int, int]]], data: st.DataObject
) -> None:
    made = [make_template(256 + number, fields) for number, fields in enumerate(templates)]
    messages = [make_message(make_set(2, b"".join(template.raw for template in made)), domain=7)]
    for _ in range(data.draw(st.integers(1, 6))):
        template = data.draw(st.sampled_from(made))
        body = b""
        for _ in range(data.draw(st.integers(0, 4))):
            for field in template.fields:
                if field.length == VARIABLE_LENGTH:
                    value = data.draw(st.binary(max_size=9))
                    body += make_variable(value) if data.draw(st.booleans()) else b"\xff\0" + make_variable(value)
                else:
                    body += data.draw(st.binary(min_size=field.length, max_size=field.length))
        body += data.draw(st.sampled_from([b"", b"\0", b"\xff\xff\xff"]))
        messages.append(make_message(make_set(template.id, body), domain=7))
    whole = b"".join(messages)
    apart, together = decoded(whole, 0, -1), decoded(whole, 1 << 30, 1 << 30)
    if isinstance(apart, int) or isinstance(together, int):
        assert apart == together
    else:
        same(apart, together)


def test_what_runs_past_its_set_is_refused_at_the_same_place() -> None:
    template = make_template(256, [(0, 4, 1), (0, 82, VARIABLE_LENGTH)])
    good = make_set(256, b"\x06\x01a" * 3)
    data = make_message(make_set(2, template.raw) + good + make_set(256, b"\x06\x01a\x06" + struct.pack("!B", 9)))
    apart, together = decoded(data, 0, -1), decoded(data, 1 << 30, 1 << 30)
    assert apart == together
    assert isinstance(apart, int)
    with pytest.raises(MalformedMessage):
        decode(data)

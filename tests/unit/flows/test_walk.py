"""Messages walked: every length checked, records counted, templates learned; cases F01 to F31 of the hostile world."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sapflow.flows.columns.batches import decode
from sapflow.flows.ipfix.encode import Encoder, make_message, make_set, make_template, make_variable
from sapflow.flows.ipfix.framing import MessageFramer
from sapflow.flows.ipfix.session import Session
from sapflow.flows.limits import FlowLimits
from sapflow.flows.reference import reference_work
from sapflow.flows.wire import VARIABLE_LENGTH

FIXED = make_template(256, [(0, 8, 4), (0, 1, 8)])
LOOSE = make_template(257, [(0, 82, VARIABLE_LENGTH), (0, 4, 1)])
OPTIONS = make_template(300, [(0, 10, 4), (0, 34, 4)], scopes=1)


def fixed_record(octets: int = 7) -> bytes:
    return struct.pack("!IQ", 0xC0000201, octets)


def loose_record(name: bytes = b"eth0") -> bytes:
    return make_variable(name) + b"\x06"


def a_stream() -> bytes:
    one, two = Encoder(domain=1), Encoder(domain=2)
    return b"".join(
        [
            one.templates([FIXED, LOOSE, OPTIONS], export_time=1),
            one.records(FIXED, [fixed_record(n) for n in range(5)], export_time=2),
            two.templates([make_template(256, [(0, 4, 1)])], export_time=2),
            two.records(make_template(256, [(0, 4, 1)]), [b"\x11"] * 3, export_time=3),
            one.records(LOOSE, [loose_record(b"a" * n) for n in (0, 1, 254, 255, 300)], export_time=4),
            one.records(OPTIONS, [bytes(8)], export_time=5),
        ]
    )


@pytest.mark.parametrize(("head", "reason"), [("000a0000", "length"), ("000a000f", "length")])
def test_f01_f02_a_message_shorter_than_its_header_is_a_fault(head: str, reason: str) -> None:
    framer = MessageFramer()
    assert framer.feed(bytes.fromhex(head) + bytes(12)) == b""
    assert framer.fault is not None
    assert framer.fault.reason == reason


def test_f03_a_header_alone_is_a_message_of_no_records() -> None:
    walk = Session().walk(make_message(b""))
    assert (walk.messages, walk.records, walk.fault) == (1, 0, None)


@pytest.mark.parametrize("first", [b"\x00\x09", b"\x00\x05", b"\x00\x0b", b"\x00\x00", b"GE", b"\x16\x03", b"G"])
def test_f06_what_is_no_ipfix_is_told_by_its_first_bytes(first: bytes) -> None:
    framer = MessageFramer()
    framer.feed(first)
    assert framer.fault is not None
    assert framer.fault.offset == 0


def test_a_fault_behind_whole_messages_leaves_them() -> None:
    framer = MessageFramer()
    good = make_message(b"")
    assert framer.feed(good + b"GET /") == good
    assert framer.fault is not None
    assert framer.fault.offset == 16


@pytest.mark.parametrize("length", [0, 1, 2, 3, 5, 2000])
def test_f07_f09_a_set_that_is_too_short_or_runs_past_its_message_costs_the_message(length: int) -> None:
    session = Session()
    encoder = Encoder()
    session.walk(encoder.templates([FIXED], export_time=1))
    sets = make_set(256, fixed_record()) + struct.pack("!HH", 256, length)
    walk = session.walk(make_message(sets))
    assert walk.fault is not None
    assert walk.fault.reason == "set"
    assert (walk.taken, walk.records) == (0, 0)


@pytest.mark.parametrize("set_id", [2, 3, 256])
def test_f08_an_empty_set_is_skipped(set_id: int) -> None:
    walk = Session().walk(make_message(make_set(set_id, b"")))
    assert (walk.fault, walk.messages, walk.undecodable_sets) == (None, 1, 0)


@pytest.mark.parametrize("set_id", [0, 1, 4, 255])
def test_f10_a_reserved_set_is_ignored_and_counted(set_id: int) -> None:
    walk = Session().walk(make_message(make_set(set_id, b"abcd")))
    assert (walk.fault, walk.ignored_sets) == (None, 1)


@pytest.mark.parametrize("body", [b"\x01\x00\x00\x02\x00\x08\x00", b"\x01\x00\xff\xff" + bytes(12)])
@pytest.mark.parametrize("set_id", [2, 3])
def test_f11_f12_a_template_cut_off_is_a_fault(body: bytes, set_id: int) -> None:
    walk = Session(FlowLimits(max_fields_per_template=65_535)).walk(make_message(make_set(set_id, body)))
    assert walk.fault is not None
    assert walk.taken == 0


def test_f15_a_template_of_no_length_is_refused() -> None:
    body = struct.pack("!HHHHHH", 256, 2, 8, 0, 1, 0)
    walk = Session().walk(make_message(make_set(2, body)))
    assert walk.fault is not None
    assert "0 bytes" in walk.fault.what


def test_f17_f18_withdrawal_makes_later_data_undecodable_and_is_harmless_when_unknown() -> None:
    session = Session()
    assert session.walk(make_message(make_set(2, struct.pack("!HH", 999, 0)))).fault is None
    session.walk(Encoder().templates([FIXED, OPTIONS], export_time=1))
    session.walk(make_message(make_set(2, struct.pack("!HH", 2, 0))))
    walk = session.walk(make_message(make_set(256, fixed_record()) + make_set(300, bytes(8))))
    assert (walk.undecodable_sets, walk.records) == (1, 1)


def test_f19_after_a_redefinition_data_is_never_read_by_the_old_one() -> None:
    session = Session()
    session.walk(Encoder().templates([FIXED], export_time=1))
    walk = session.walk(Encoder().templates([make_template(256, [(0, 4, 1)])], export_time=1))
    assert walk.redefined == 1
    assert session.walk(make_message(make_set(256, bytes(12)))).records == 12


@pytest.mark.parametrize("scopes", [0, 3])
def test_f20_an_options_template_with_impossible_scopes_is_refused(scopes: int) -> None:
    body = struct.pack("!HHHHHHH", 300, 2, scopes, 10, 4, 34, 4)
    assert Session().walk(make_message(make_set(3, body))).fault is not None


def test_f21_a_variable_length_past_its_set_costs_the_message() -> None:
    session = Session()
    session.walk(Encoder().templates([LOOSE], export_time=1))
    walk = session.walk(make_message(make_set(257, b"\xff\xff\xff" + bytes(10))))
    assert walk.fault is not None
    assert walk.fault.reason == "record"


def test_f22_short_values_in_the_long_form_are_accepted() -> None:
    session = Session()
    session.walk(Encoder().templates([LOOSE], export_time=1))
    assert session.walk(make_message(make_set(257, b"\x00\x06" + b"\xff\x00\x02ab\x06"))).records == 2


def test_f28_padding_is_no_record_whatever_its_bytes() -> None:
    session = Session()
    session.walk(Encoder().templates([FIXED], export_time=1))
    assert session.walk(make_message(make_set(256, fixed_record() + b"\xff\xff\xff"))).records == 1


def test_f29_gaps_are_counted_and_repeats_and_wraps_are_none() -> None:
    session = Session()
    encoder = Encoder(sequence=2**32 - 2)
    session.walk(encoder.templates([FIXED], export_time=1))
    first = encoder.records(FIXED, [fixed_record()] * 3, export_time=1)
    assert session.walk(first).lost_records == 0
    assert encoder.sequence == 1
    assert session.walk(first).repeats == 1
    encoder.sequence += 10
    assert session.walk(encoder.records(FIXED, [fixed_record()], export_time=1)).lost_records == 10


def test_f29_numbers_that_count_their_own_message_make_no_loss() -> None:
    session = Session()
    session.walk(Encoder().templates([FIXED], export_time=1))
    number = lost = 0
    for count in (17, 22, 16, 9, 9, 30):
        number += count
        message = make_message(make_set(256, fixed_record() * count), sequence=number)
        lost += session.walk(message).lost_records
    assert lost == 0
    number += 100 + 5
    assert session.walk(make_message(make_set(256, fixed_record() * 5), sequence=number)).lost_records == 100


def test_f29_a_gap_behind_messages_that_followed_on_one_another_is_exact() -> None:
    session = Session()
    encoder = Encoder()
    session.walk(encoder.templates([FIXED], export_time=1))
    for count in (5, 7, 9):
        assert session.walk(encoder.records(FIXED, [fixed_record()] * count, export_time=1)).lost_records == 0
    encoder.sequence += 4
    assert session.walk(encoder.records(FIXED, [fixed_record()] * 3, export_time=1)).lost_records == 4
    assert session.walk(encoder.records(FIXED, [fixed_record()] * 8, export_time=1)).lost_records == 0


def test_a_set_without_its_template_makes_no_false_loss() -> None:
    session = Session()
    session.walk(make_message(make_set(256, fixed_record() * 4), sequence=0))
    assert session.walk(make_message(b"", sequence=4)).lost_records == 0


def test_f30_templates_are_bounded() -> None:
    session = Session(FlowLimits(max_templates=3))
    templates = [make_template(256 + n, [(0, 4, 1)]) for n in range(4)]
    walk = session.walk(Encoder().templates(templates, export_time=1))
    assert walk.fault is not None
    assert walk.fault.reason == "templates"
    assert not session.templates


def test_f31_the_same_id_in_two_domains_is_two_templates() -> None:
    session = Session()
    session.walk(Encoder(domain=1).templates([FIXED], export_time=1))
    session.walk(Encoder(domain=2).templates([make_template(256, [(0, 4, 1)])], export_time=1))
    assert session.walk(make_message(make_set(256, bytes(12)), domain=1)).records == 1
    assert session.walk(make_message(make_set(256, bytes(12)), domain=2)).records == 12


@given(st.lists(st.integers(1, 60), max_size=200))
@settings(max_examples=50, deadline=None)
def test_f33_a_stream_cut_anywhere_walks_as_in_one_piece(cuts: list[int]) -> None:
    data = a_stream()
    framer, session = MessageFramer(), Session()
    whole = b""
    records, at = 0, 0
    for cut in [*cuts, len(data)]:
        piece = framer.feed(data[at : at + cut])
        walk = session.walk(piece)
        assert walk.fault is None
        records += walk.records
        whole += piece
        at += cut
    assert whole == data
    assert records == 14


@given(st.lists(st.booleans(), min_size=12, max_size=12), st.permutations(range(6)))
@settings(max_examples=100, deadline=None)
def test_every_batch_reads_alone_as_it_did_in_its_session(cuts: list[bool], order: list[int]) -> None:
    other = make_template(256, [(0, 4, 1), (0, 5, 1)])
    one = Encoder(domain=1)
    pieces = [
        lambda: one.templates([FIXED, LOOSE], export_time=1),
        lambda: one.records(FIXED, [fixed_record(n) for n in range(5)], export_time=2),
        lambda: one.records(LOOSE, [loose_record()], export_time=2),
        lambda: one.templates([other], export_time=3),
        lambda: make_message(make_set(2, struct.pack("!HH", 257, 0)), domain=1, sequence=one.sequence),
        lambda: one.records(OPTIONS, [bytes(8)], export_time=5),
    ]
    messages = [one.templates([FIXED, LOOSE, OPTIONS], export_time=0), *(pieces[index]() for index in order * 2)]
    session = Session()
    batch, counted, undecodable = b"", 0, 0
    for message, cut in zip(messages, [*cuts, True], strict=True):
        walk = session.walk(message)
        batch += message
        counted += walk.records
        undecodable += walk.undecodable_sets
        if cut:
            alone = Session().walk(session.cut() + batch)
            assert (alone.records, alone.undecodable_sets, alone.fault) == (counted, undecodable, None)
            batch, counted, undecodable = b"", 0, 0


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_changed_bytes_give_a_fault_or_a_count_and_never_another_error(data: st.DataObject) -> None:
    stream = bytearray(a_stream())
    for _ in range(data.draw(st.integers(1, 8))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    whole = MessageFramer().feed(bytes(stream))
    walk = Session().walk(whole)
    assert walk.taken <= len(whole)
    batches = decode(whole[: walk.taken])
    assert sum(batch.records for batch in batches) <= walk.records


def test_the_reference_work_is_counted_and_decoded_to_the_record() -> None:
    work = reference_work(50)
    walk = Session().walk(work)
    (batch,) = decode(work)
    assert (walk.records, walk.lost_records, batch.records) == (1200, 0, 1200)
    assert batch.order.tolist() == list(range(1200))


def test_f05_a_message_of_65_535_bytes_is_decoded_in_full() -> None:
    template = make_template(300, [(0, 4, 1), (0, 7, 2), (0, 11, 2)])
    rows = [bytes((6, 0, 80, number >> 8 & 255, number & 255)) for number in range(13_103)]
    largest = make_message(make_set(300, b"".join(rows)), domain=1)
    assert len(largest) == 65_535
    data = make_message(make_set(2, template.raw), domain=1) + largest
    assert MessageFramer().feed(data) == data
    assert Session().walk(data).records == 13_103
    (batch,) = decode(data)
    assert batch.columns["destinationTransportPort"].tolist() == list(range(13_103))


def test_f14_65_515_records_of_one_byte_are_all_decoded() -> None:
    data = make_message(make_set(2, make_template(300, [(0, 4, 1)]).raw), domain=1)
    data += make_message(make_set(300, bytes(range(256)) * 255 + bytes(235)), domain=1)
    assert Session().walk(data).records == 65_515
    (batch,) = decode(data)
    assert batch.records == 65_515
    assert batch.columns["protocolIdentifier"][:256].tolist() == list(range(256))

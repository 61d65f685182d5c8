"""Elements described by exporters (RFC 5610) and by users' files, over those that we have."""

import io
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapflow.errors import ConfigurationError
from sapflow.flows.columns.batches import FlowBatch, decode
from sapflow.flows.columns.records import Context
from sapflow.flows.ipfix.encode import Encoder, make_template, make_variable
from sapflow.flows.ipfix.templates import Template
from sapflow.flows.meaning.typeinfo import MAX_DESCRIPTION, Dictionaries, TypeInformation
from sapflow.flows.registry import DATA_TYPES, NAME, InformationElement, Registry, load_elements, registry
from sapflow.flows.wire import VARIABLE_LENGTH

ACME = 32473
FULL = make_template(
    400,
    [
        (0, 346, 4),
        (0, 303, 2),
        (0, 339, 1),
        (0, 344, 1),
        (0, 345, 2),
        (0, 342, 8),
        (0, 343, 8),
        (0, 341, VARIABLE_LENGTH),
        (0, 340, VARIABLE_LENGTH),
    ],
    scopes=2,
)
SHORT = make_template(401, [(0, 346, 4), (0, 303, 2), (0, 339, 1), (0, 341, VARIABLE_LENGTH)], scopes=2)
UNSIGNED32, STRING = DATA_TYPES.index("unsigned32"), DATA_TYPES.index("string")
HEADER = "pen,id,name,type,semantics,units,status\n"


def batches(template: Template, *records: bytes) -> list[FlowBatch]:
    encoder = Encoder()
    return decode(encoder.templates([template], export_time=1) + encoder.records(template, records, export_time=1))


def a_description(number: int, name: bytes, *, pen: int = ACME, kind: int = UNSIGNED32) -> bytes:
    return struct.pack("!IHB", pen, number, kind) + make_variable(name)


def learned(
    *records: bytes, template: Template = SHORT, into: TypeInformation | None = None
) -> list[InformationElement]:
    (batch,) = batches(template, *records)
    return (into or TypeInformation()).learn(batch)


def test_a_full_description_gives_an_element() -> None:
    numbers = struct.pack("!IHBBHQQ", ACME, 0x8000 | 5, UNSIGNED32, 3, 2, 1, 900)
    record = numbers + make_variable(b"acmeDroppedOctets") + make_variable("Octets dropped, \u00e9".encode())
    assert learned(record, template=FULL) == [
        InformationElement(
            ACME,
            5,
            "acmeDroppedOctets",
            "unsigned32",
            "deltaCounter",
            "octets",
            description="Octets dropped, \u00e9",
            range=(1, 900),
        )
    ]


def test_numbers_that_no_table_has_and_an_empty_range_say_nothing() -> None:
    record = struct.pack("!IHBBHQQ", ACME, 5, 200, 99, 999, 0, 0) + make_variable(b"odd") + make_variable(b"x" * 9000)
    (element,) = learned(record, template=FULL)
    assert (element.type, element.semantics, element.units, element.range) == ("octetArray", "", "", None)
    assert len(element.description) == MAX_DESCRIPTION


def test_what_is_known_already_is_learned_once_and_what_changes_again() -> None:
    information = TypeInformation()
    assert len(learned(a_description(5, b"one"), a_description(6, b"two"), into=information)) == 2
    assert learned(a_description(5, b"one"), into=information) == []
    (changed,) = learned(a_description(5, b"one", kind=STRING), into=information)
    assert (changed.type, information.elements[ACME, 5].type) == ("string", "string")


@pytest.mark.parametrize(("pen", "number"), [(0, 1), (0, 32000), (6871, 291), (29305, 0)])
def test_what_iana_assigned_or_a_registry_lists_is_never_redefined(pen: int, number: int) -> None:
    known = Registry([InformationElement(6871, 291, "mine", "string"), InformationElement(29305, 0, "x", "string")])
    information = TypeInformation(known)
    assert learned(a_description(number, b"evil", pen=pen), into=information) == []
    assert (information.refused, information.elements) == (1, {})


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        (b"plain_Name9", "plain_Name9"),
        (b"with space/and.dots", "with_space_and_dots"),
        (b'\xff\x00\x1b[31m\n"name"', "31m_name"),
        (b"_org", "org"),
        ("\u00fcber".encode(), "ber"),
        (b"a" * 200, "a" * 64),
    ],
)
def test_a_name_becomes_what_every_output_can_hold(name: bytes, kept: str) -> None:
    (element,) = learned(a_description(5, name))
    assert element.name == kept


@pytest.mark.parametrize("name", [b"", b"\0\0", b"___", "\u65e5\u672c".encode()])
def test_an_element_without_a_usable_name_stays_unnamed(name: bytes) -> None:
    information = TypeInformation()
    assert learned(a_description(5, name), into=information) == []
    assert information.refused == 1


def test_the_table_is_bounded_and_still_takes_changes() -> None:
    information = TypeInformation(limit=3)
    assert len(learned(*[a_description(number, b"name") for number in range(5)], into=information)) == 3
    assert information.refused == 2
    (changed,) = learned(a_description(1, b"other"), into=information)
    assert changed.name == "other"
    assert len(information.elements) == 3


@pytest.mark.parametrize(
    "template",
    [
        make_template(401, [(0, 346, 4), (0, 303, 2), (0, 339, 1), (0, 341, VARIABLE_LENGTH)]),
        make_template(401, [(0, 346, 4), (0, 303, 2), (0, 339, 1), (0, 341, VARIABLE_LENGTH)], scopes=1),
        make_template(401, [(9, 346, 4), (9, 303, 2), (0, 339, 1), (0, 341, VARIABLE_LENGTH)], scopes=2),
    ],
)
def test_records_without_number_and_id_in_their_scope_are_no_type_information(template: Template) -> None:
    information = TypeInformation()
    assert learned(a_description(5, b"name"), template=template, into=information) == []
    assert information.refused == 0


@given(st.lists(st.integers(1, 12), min_size=7, max_size=7), st.binary(min_size=200, max_size=400))
def test_any_widths_and_bytes_give_elements_with_sound_names_or_none(widths: list[int], data: bytes) -> None:
    numbers = (346, 303, 339, 344, 345, 342, 343)
    fields = [(0, number, width) for number, width in zip(numbers, widths, strict=True)]
    template = make_template(400, [*fields, (0, 341, 20)], scopes=2)
    records = [data[at : at + template.record_bytes] for at in range(0, 200 - template.record_bytes, 30)]
    information = TypeInformation()
    elements = learned(*records, template=template, into=information)
    assert all(NAME.fullmatch(element.name) and element.pen and element.type in DATA_TYPES for element in elements)
    assert len(elements) + information.refused <= len(records)


def test_an_extended_registry_has_the_new_and_the_first_stays_as_it_is() -> None:
    first = Registry([InformationElement(0, 1, "octetDeltaCount", "unsigned64")])
    assert first.lookup(ACME, 5).name == "e32473id5"
    second = first.extended([InformationElement(ACME, 5, "acmeName", "string")])
    assert second.lookup(ACME, 5).name == "acmeName"
    assert second.by_name("acmeName").id == 5
    assert second.lookup(0, 1) == first.lookup(0, 1)
    assert first.lookup(ACME, 5).name == "e32473id5"
    assert (ACME, 5) in second
    assert (ACME, 5) not in first


def test_an_extended_registry_keeps_iana_elements_and_their_names() -> None:
    first = Registry([InformationElement(0, 1, "octetDeltaCount", "unsigned64")])
    evil = [InformationElement(0, 1, "evil", "string"), InformationElement(ACME, 1, "octetDeltaCount", "string")]
    second = first.extended(evil)
    assert second.lookup(0, 1).name == "octetDeltaCount"
    assert second.by_name("octetDeltaCount").pen == 0
    assert second.extended([InformationElement(ACME, 1, "late", "string")]).lookup(ACME, 1).name == "late"


def test_elements_that_are_lists_are_known_as_such_in_both_directions() -> None:
    extended = registry().extended([InformationElement(ACME, 9, "acmeList", "subTemplateList")])
    assert {(0, 291), (0, 292), (0, 293), (29305, 292), (ACME, 9)} <= extended.list_elements
    assert (6871, 292) not in extended.list_elements


def test_a_file_of_elements_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ours.csv"
    path.write_text(
        "\ufeff" + HEADER + "32473,1,acmeName,string,default,,current\n\n32473,2,acmeCount,unsigned64,,octets,\n",
        encoding="utf-8",
    )
    expected = [
        InformationElement(ACME, 1, "acmeName", "string", "default", "", "current"),
        InformationElement(ACME, 2, "acmeCount", "unsigned64", "", "octets", ""),
    ]
    assert load_elements(path) == expected
    assert registry().extended(expected).by_name("acmeCount").units == "octets"


def test_a_file_may_name_an_element_of_iana_that_we_lack_and_repeat_one_that_we_have() -> None:
    rows = HEADER + "0,1,octetDeltaCount,unsigned64,deltaCounter,octets,current\n0,32000,brandNew,string,,,current\n"
    assert [element.name for element in load_elements(io.StringIO(rows))] == ["octetDeltaCount", "brandNew"]


@pytest.mark.parametrize(
    ("rows", "line", "what"),
    [
        ("", 1, "the first line is not pen,id"),
        ("id,pen,name\n", 1, "the first line is not pen,id"),
        (HEADER + "1,2,name,string\n", 2, "4 columns, not 7"),
        (HEADER + "1,1,a,string,,,\nx,2,name,string,,,\n", 3, "enterprise number 'x'"),
        (HEADER + "4294967296,2,name,string,,,\n", 2, "enterprise number '4294967296'"),
        (HEADER + "9,32768,name,string,,,\n", 2, "element id '32768'"),
        (HEADER + "9,\u0663,name,string,,,\n", 2, "element id"),
        (HEADER + "9,1,_org,string,,,\n", 2, "the name '_org'"),
        (HEADER + "9,1,a b,string,,,\n", 2, "the name 'a b'"),
        (HEADER + "9,1,name,text,,,\n", 2, "no data type 'text'"),
        (HEADER + "9,1,a,string,,,\n9,1,b,string,,,\n", 3, "element 1 of enterprise 9 for the second time"),
        (HEADER + "0,1,myOctets,unsigned64,,,\n", 2, "octetDeltaCount of IANA"),
    ],
)
def test_a_bad_row_is_refused_with_file_and_line(tmp_path: Path, rows: str, line: int, what: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(rows, encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        load_elements(path)
    assert f"{path}, line {line}: " in str(caught.value)
    assert what in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.csv: No such file"):
        load_elements(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes(HEADER.encode() + b"9,1,\xe9t\xe9,string,,,\n")
    with pytest.raises(ConfigurationError, match=r"latin\.csv, line 1: "):
        load_elements(tmp_path / "latin.csv")


def described(number: int, name: bytes) -> bytes:
    encoder = Encoder()
    record = a_description(number, name)
    return encoder.templates([SHORT], export_time=1) + encoder.records(SHORT, [record], export_time=1)


def test_each_exporter_has_its_own_dictionary_and_keeps_it_over_its_ports() -> None:
    known = Dictionaries()
    known.registry_for(Context("acme", "192.0.2.1:1"), described(5, b"acmeTime"))
    assert known.registry_for(Context("acme", "192.0.2.1:2"), b"").lookup(ACME, 5).name == "acmeTime"
    for other in (Context("acme", "192.0.2.2:1"), Context("rival", "192.0.2.1:1")):
        assert known.registry_for(other, b"").lookup(ACME, 5).name == "e32473id5"


def test_exporters_that_tell_the_same_share_a_registry() -> None:
    known = Dictionaries()
    one, other = (
        known.registry_for(Context("acme", f"192.0.2.{host}:1"), described(5, b"acmeTime")) for host in (1, 2)
    )
    assert one is other


def test_the_number_of_exporters_with_dictionaries_is_bounded() -> None:
    known = Dictionaries(max_exporters=2)
    for host in range(3):
        known.registry_for(Context("acme", f"192.0.2.{host}:1"), described(5, b"acmeTime"))
    names = [known.registry_for(Context("acme", f"192.0.2.{host}:1"), b"").lookup(ACME, 5).name for host in range(3)]
    assert names == ["e32473id5", "acmeTime", "acmeTime"]

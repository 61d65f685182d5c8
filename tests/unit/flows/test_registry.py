"""The data files of elements, and which registry is in force."""

from importlib import resources
from pathlib import Path

import pytest
from tools.registry.check import faults
from tools.registry.wireshark import Vendor, elements_of

from sapflow.flows.columns.batches import decode
from sapflow.flows.columns.records import values_of
from sapflow.flows.datagrams.netflow9 import Netflow9
from sapflow.flows.ipfix.encode import Encoder, make_template
from sapflow.flows.ipfix.structured import holds_lists
from sapflow.flows.registry import COLUMNS, InformationElement, built_in, registry, using
from tests.unit.flows.test_netflow import flowset, template, v9

FOLDER = Path(str(resources.files("sapflow.flows"))) / "elements"
ACME = InformationElement(32473, 5, "acmeRoundTripTime", "unsigned32")


def test_every_data_file_reads_is_in_order_and_has_its_source_named() -> None:
    assert faults(FOLDER) == []
    assert len([*FOLDER.glob("*.csv")]) >= 18


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("9,2,b,unsigned8,,,\n9,1,a,unsigned8,,,", "not in the order"),
        ("9,1,a,unsigned8,guess,,", "no semantics 'guess'"),
        ("9,1,a,unsigned8,,bytes,", "no units 'bytes'"),
        ("9,1,a,unsigned8,,,\n9,2,a,unsigned8,,,", "element 2 has the name of element 1 of enterprise 9, a"),
        ("9,1,a,number,,,", "mine.csv, line 2: no data type 'number'"),
    ],
)
def test_what_is_wrong_in_a_data_file_is_found(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "mine.csv").write_text(",".join(COLUMNS) + f"\n{line}\n")
    (tmp_path / "README.md").write_text("`mine.csv`")
    (fault,) = faults(tmp_path)
    assert message in fault


def test_a_data_file_without_a_source_is_found(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(",".join(COLUMNS) + "\n9,1,a,unsigned8,,,\n")
    (tmp_path / "README.md").write_text("`other.csv`")
    assert faults(tmp_path) == ["mine.csv: README.md names no source of it"]


@pytest.mark.parametrize(
    ("pen", "number", "name", "kind"),
    [
        (0, 1, "octetDeltaCount", "unsigned64"),
        (9, 7232, "aaaUsername", "string"),
        (637, 93, "aluNatSubString", "string"),
        (2011, 1, "ingressGponGemPortId", "unsigned16"),
        (2636, 137, "juniperCommonPropertiesId", "unsigned32"),
        (3054, 110, "ixiaL7ApplicationID", "unsigned32"),
        (5951, 128, "roundTripTime", "unsigned32"),
        (6871, 14, "initialTCPFlags", "unsigned16"),
        (6871, 0x4000 | 14, "reverseInitialTCPFlags", "unsigned16"),
        (6876, 880, "tenantProtocol", "unsigned8"),
        (8057, 2, "DNSName", "string"),
        (10704, 5, "barracudaServiceName", "string"),
        (25461, 23933, "App_ID", "string"),
        (26866, 1, "gigamonHttpReqUrl", "string"),
        (29305, 1, "reverseOctetDeltaCount", "unsigned64"),
        (35632, 118, "L7_PROTO", "unsigned16"),
        (45346, 12234, "vcPriority", "unsigned8"),
        (56506, 101, "sourcePodName", "string"),
    ],
)
def test_elements_of_each_vendor_have_names_and_types(pen: int, number: int, name: str, kind: str) -> None:
    element = built_in().lookup(pen, number)
    assert (element.name, element.type) == (name, kind)


def test_what_nobody_knows_is_named_by_its_number_whatever_was_asked_before() -> None:
    assert built_in().lookup(0, 32000).name == "e0id32000"
    assert built_in().lookup(29305, 32000).name == "e29305id32000"


def test_ntop_s_elements_are_the_same_in_v9_as_in_ipfix() -> None:
    layout = template(301, (57_590, 2), (57_660, 3))
    data = Netflow9().translate(v9(flowset(0, layout), flowset(301, b"\0\x05www")), 0)
    (batch,) = decode(data)
    assert values_of(batch) == {"L7_PROTO": [5], "SSL_SERVER_NAME": ["www"]}


def a_message() -> bytes:
    made = make_template(300, [(ACME.pen, ACME.id, 4)])
    encoder = Encoder()
    return encoder.templates([made], export_time=1) + encoder.records(made, [b"\0\0\1\0"], export_time=1)


def test_a_registry_is_in_force_within_and_not_after() -> None:
    for _ in range(2):
        assert values_of(decode(a_message())[0]) == {"e32473id5": ["00000100"]}
        with using(registry().extended([ACME])):
            assert values_of(decode(a_message())[0]) == {"acmeRoundTripTime": [256]}
    assert registry() is built_in()


def test_lists_of_a_registry_in_force_are_known_to_need_templates() -> None:
    made = make_template(300, [(ACME.pen, 6, 65_535)])
    assert not holds_lists(made)
    with using(registry().extended([InformationElement(ACME.pen, 6, "acmeEvents", "subTemplateList")])):
        assert holds_lists(made)


def test_wireshark_s_tables_are_joined_by_name_and_else_by_place_but_never_guessed() -> None:
    values = "".join(
        f"V\tcflow.template_acme_field_type\t{number}\t{title}\n"
        for number, title in ((1, "First Thing"), (2, "Renamed"), (3, "THIRD_THING"), (4, "No field"), (5, "Nor this"))
    )
    fields = "".join(
        f"F\t{title}\tcflow.pie.acme.{short}\t{kind}\tcflow\n"
        for title, short, kind in (
            ("First thing", "first-thing", "FT_UINT16"),
            ("Second", "second", "FT_IPv4"),
            ("Third", "third_thing", "FT_STRING"),
        )
    )
    vendor = Vendor("acme", 32473, "acme", "acme", "acme")
    assert [(item.id, item.name, item.type) for item in elements_of(vendor, values, fields)] == [
        (1, "acmeFirstThing", "unsigned16"),
        (2, "acmeRenamed", "ipv4Address"),
        (3, "acmeTHIRDTHING", "string"),
    ]

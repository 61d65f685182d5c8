"""What libfixbuf exports, against what it was told to export and against libfixbuf's own reader; lists above all."""

import subprocess
from pathlib import Path

import pytest

from sapflow.flows.columns import decode
from sapflow.flows.typeinfo import TypeInformation
from tests.interop import ipfixdump
from tests.interop.exporters import messages_of, program
from tests.interop.recordings import Row, decoded, undescribed
from tests.peers import needs

pytestmark = needs("fixbuf_exporter", "ipfixDump")
RECORDS = 200
FLOW, LISTS, INTERFACES, TYPES = 300, 303, 400, 401
LENGTHS = (0, 1, 254, 255, 256, 700)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An IPFIX File that libfixbuf wrote."""
    path = tmp_path_factory.mktemp("fixbuf") / "exported.ipfix"
    subprocess.run([program("fixbuf_exporter"), "file", str(path), str(RECORDS)], check=True, timeout=60)
    return path


@pytest.fixture(scope="module")
def rows(file: Path) -> list[Row]:
    return undescribed(file)


def of_template(rows: list[Row], number: int) -> list[Row]:
    return [row for row in rows if row["_template"] == number]


def hexed(text: str) -> str:
    return text.encode().hex()


def alphabet(length: int, first: str) -> str:
    return "".join(chr(ord(first) + at % 26) for at in range(length))


def test_every_record_in_many_messages_is_as_libfixbufs_reader_reads_it(file: Path, rows: list[Row]) -> None:
    assert len(messages_of(file.read_bytes())) > 5
    assert ipfixdump.records(file) == [ipfixdump.as_printed(row) for row in rows]


def test_values_of_any_length_and_of_reduced_size_are_those_that_were_exported(rows: list[Row]) -> None:
    flows = of_template(rows, FLOW)
    assert len(flows) == RECORDS
    for number, flow in enumerate(flows):
        assert len(flow["e32473id5"]) == 2 * LENGTHS[number % 6]
        assert flow["interfaceDescription"] == alphabet(LENGTHS[(number + 1) % 6], "a")
        assert flow["e32473id1"] == hexed(f'label "{number}"')
        assert (flow["octetDeltaCount"], flow["packetDeltaCount"]) == (1000 + number, number)
        assert flow["dataRecordsReliability"] is (number % 2 == 1)
        assert flow["sourceMacAddress"] == f"02:00:00:00:00:{number:02x}"


def test_lists_hold_what_was_put_into_them(rows: list[Row]) -> None:
    def part(number: int) -> Row:
        address = f"203.0.113.{number & 255}"
        return {"octetDeltaCount": 100 + number, "sourceIPv4Address": address, "sourceTransportPort": 2000 + number}

    lists = of_template(rows, LISTS)
    assert [row["flowId"] for row in lists] == list(range(RECORDS))
    for number, row in enumerate(lists):
        address = 10 << 24 | 16 * number
        assert [item["sourceIPv4Address"] for item in row["basicList"]] == [
            ".".join(map(str, (address + at).to_bytes(4, "big"))) for at in range(number % 4)
        ]
        assert [item["e32473id1"] for item in row["basicList_2"]] == [
            hexed(f"first of {number}"),
            hexed(alphabet(LENGTHS[number % 6], "A")),
        ]
        assert row["subTemplateList"] == [part(number + at) for at in range(number % 3)]
        named = {"e32473id1": hexed(f"in a multi list, {number}"), "e32473id2": f"{number:016x}"}
        assert row["subTemplateMultiList"] == [part(10 * number), part(10 * number + 1), named]
        ports = [{"sourceTransportPort": 3000 + number}, {"sourceTransportPort": 3001 + number}]
        assert row["subTemplateList_2"] == [
            {"basicList": ports[:1], "ingressInterface": 0},
            {"basicList": ports, "ingressInterface": 1},
        ]


def test_options_records_are_those_that_were_exported(rows: list[Row]) -> None:
    named = [(row["ingressInterface"], row["interfaceName"]) for row in of_template(rows, INTERFACES)]
    assert named == [(1, "eth1"), (2, "eth2"), (3, "eth3")]


def test_elements_are_learned_as_libfixbuf_describes_them(file: Path) -> None:
    known = TypeInformation()
    for batch in decode(file.read_bytes()):
        known.learn(batch)
    described = {
        element.id: (element.name, element.type, element.semantics, element.units)
        for (pen, _), element in known.elements.items()
        if pen == 32473
    }
    assert described == {
        1: ("exampleLabel", "string", "default", ""),
        2: ("exampleCounter", "unsigned64", "deltaCounter", "octets"),
        3: ("exampleOffset", "signed32", "quantity", ""),
        4: ("exampleRatio", "float64", "quantity", ""),
        5: ("exampleOctets", "octetArray", "default", ""),
    }
    assert known.elements[32473, 1].description == "A text of any length"


def test_elements_that_are_described_have_their_names_and_types_in_what_decode_writes(file: Path) -> None:
    flows = of_template(decoded(file), FLOW)
    assert [flow["exampleLabel"] for flow in flows] == [f'label "{number}"' for number in range(RECORDS)]
    assert all(isinstance(flow["exampleRatio"], float) for flow in flows)

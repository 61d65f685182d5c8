"""Names that exporters tell in options data, beside the numbers in their flows."""

import struct

import pytest

from sapflow.flows.columns.batches import decode
from sapflow.flows.columns.records import Context
from sapflow.flows.datagrams.netflow9 import Netflow9
from sapflow.flows.meaning.names import MAX_NAME, Names, application
from sapflow.flows.meaning.told import Told, address_of
from sapflow.flows.meaning.view import View
from tests.unit.flows.flows_made import Record, a_batch, seen
from tests.unit.flows.test_netflow import flowset, options, template, v9

HERE = Context("acme", "192.0.2.1:4739")


def named(stage: Names, record: Record, context: Context = HERE, domain: int = 1) -> dict[str, object]:
    """What stands beside one flow."""
    (row,) = seen(stage.apply([a_batch(record, domain=domain)], context))
    return {name: value for name, value in row.items() if name.endswith("Name")}


def told(*records: Record, scopes: int = 1, context: Context = HERE, domain: int = 1) -> Names:
    stage = Names()
    stage.apply([a_batch(*records, scopes=scopes, domain=domain)], context)
    return stage


FLOW: Record = {"ingressInterface": 7, "egressInterface": 8}


def test_interfaces_have_names_where_flows_come_in_and_go_out() -> None:
    stage = told({"ingressInterface": 7, "interfaceName": "eth0"}, {"ingressInterface": 8, "interfaceName": "eth1"})
    assert named(stage, FLOW) == {"ingressInterfaceName": "eth0", "egressInterfaceName": "eth1"}


def test_an_interface_without_a_name_has_its_description() -> None:
    stage = told(
        {"ingressInterface": 7, "interfaceName": "", "interfaceDescription": "uplink"},
        {"ingressInterface": 8, "interfaceName": "eth1", "interfaceDescription": "office"},
    )
    assert named(stage, FLOW) == {"ingressInterfaceName": "uplink", "egressInterfaceName": "eth1"}


def test_what_has_no_name_gets_none() -> None:
    stage = told({"ingressInterface": 7, "interfaceName": "eth0"})
    assert named(stage, FLOW) == {"ingressInterfaceName": "eth0"}
    assert named(Names(), FLOW) == {}


def test_v9_s_interface_scope_is_the_interface() -> None:
    stage = Names()
    parts = (
        flowset(1, options(310, [(2, 4)], [(82, 8)]), b"\0\0"),
        flowset(310, struct.pack("!I8s", 7, b"Gi0/1")),
        flowset(0, template(300, (10, 4))),
        flowset(300, struct.pack("!I", 7)),
    )
    for batch in decode(Netflow9().translate(v9(*parts), 0)):
        (batch,) = stage.apply([batch], HERE)
    assert batch.columns["ingressInterfaceName"].tolist() == ["Gi0/1"]


def test_vrfs_samplers_and_applications_have_names() -> None:
    stage = told({"ingressVRFID": 3, "VRFname": "customer-a"})
    stage.apply([a_batch({"samplerId": 2, "samplerName": "coarse"}, scopes=1)], HERE)
    stage.apply([a_batch({"applicationId": b"\x0d\0\0\x35", "applicationName": "dns"}, scopes=1)], HERE)
    record = {"ingressVRFID": 3, "egressVRFID": 4, "samplerId": 2, "applicationId": b"\x0d\0\0\x35"}
    assert named(stage, record) == {
        "ingressVRFName": "customer-a",
        "samplerName": "coarse",
        "applicationName": "dns",
    }


def test_users_that_options_data_name_by_address_stand_beside_flows_from_them_or_to_them() -> None:
    stage = told({"sourceIPv4Address": "192.0.2.9", "userName": "ada"})
    stage.apply([a_batch({"sourceIPv6Address": "2001:db8::9", "userName": "grace"}, scopes=1)], HERE)
    there: Record = {"sourceIPv4Address": "192.0.2.9", "destinationIPv4Address": "198.51.100.1"}
    back: Record = {"sourceIPv4Address": "198.51.100.1", "destinationIPv4Address": "192.0.2.9"}
    six: Record = {"sourceIPv6Address": "2001:db8::9", "destinationIPv6Address": "2001:db8::1"}
    assert [named(stage, flow) for flow in (there, back, six)] == [
        {"userName": "ada"},
        {"userName": "ada"},
        {"userName": "grace"},
    ]
    assert named(stage, {"sourceIPv4Address": "192.0.2.8", "destinationIPv4Address": "192.0.2.7"}) == {}
    assert named(stage, there | {"userName": "own"}) == {"userName": "own"}
    (row,) = seen(View(names=True).apply(stage.apply([a_batch(back)], HERE), HERE))
    assert row["user"] == "ada"


def test_a_flow_that_has_its_user_tells_nothing_of_other_flows() -> None:
    stage = Names()
    stage.apply([a_batch({"sourceIPv4Address": "192.0.2.9", "octetDeltaCount": 1, "userName": "ada"})], HERE)
    assert named(stage, {"sourceIPv4Address": "192.0.2.9"}) == {}


@pytest.mark.parametrize(("one", "other"), [(b"\x03\x01\xbb", b"\x03\0\0\x01\xbb"), (b"\x0d\0\0\x35", b"\x0d\x35")])
def test_an_application_is_its_engine_and_selector_in_however_many_octets(one: bytes, other: bytes) -> None:
    assert application(one) == application(other)
    stage = told({"applicationId": one, "applicationName": "known"})
    assert named(stage, {"applicationId": other}) == {"applicationName": "known"}
    assert named(stage, {"applicationId": b"\x05" + other[1:]}) == {}


def test_a_record_s_own_name_is_not_replaced() -> None:
    stage = told({"applicationId": b"\x0d\x35", "applicationName": "dns"})
    record: Record = {"applicationId": b"\x0d\x35", "applicationName": "mine", "octetDeltaCount": 1}
    assert named(stage, record)["applicationName"] == "mine"


def test_tables_without_a_scope_are_understood() -> None:
    stage = told({"ingressInterface": 7, "interfaceName": "eth0"}, scopes=0)
    assert named(stage, FLOW)["ingressInterfaceName"] == "eth0"


def test_a_name_of_another_port_or_domain_counts_until_its_own_is_told() -> None:
    stage = told({"ingressInterface": 7, "interfaceName": "old"}, context=Context("acme", "192.0.2.1:1"), domain=9)
    assert named(stage, FLOW) == {"ingressInterfaceName": "old"}
    stage.apply([a_batch({"ingressInterface": 7, "interfaceName": "new"}, scopes=1)], HERE)
    assert named(stage, FLOW) == {"ingressInterfaceName": "new"}


@pytest.mark.parametrize("context", [Context("acme", "192.0.2.2:4739"), Context("rival", "192.0.2.1:4739")])
def test_no_name_is_taken_from_another_exporter_or_org(context: Context) -> None:
    assert named(told({"ingressInterface": 7, "interfaceName": "eth0"}), FLOW, context) == {}


def test_names_are_cut_and_bounded_in_number() -> None:
    stage = Names(Told(limit=40))
    for number in range(100):
        stage.apply([a_batch({"ingressInterface": number, "interfaceName": "x" * 500}, scopes=1)], HERE)
    assert stage.told.forgotten
    (name,) = named(stage, {"ingressInterface": 99}).values()
    assert name == "x" * MAX_NAME


@pytest.mark.parametrize(
    ("exporter", "address"),
    [
        ("192.0.2.1:4739", "192.0.2.1"),
        ("[2001:db8::1]:4739", "[2001:db8::1]"),
        ("2001:db8::1:4739", "2001:db8::1"),
        ("flows.ipfix", "flows.ipfix"),
        ("", ""),
    ],
)
def test_an_exporter_s_address_is_what_stands_before_its_port(exporter: str, address: str) -> None:
    assert address_of(exporter) == address

"""Sampling rates: from records and options data, by exporter, domain and sampler; counters scaled beside raw ones."""

import struct

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sapflow.flows.columns.batches import decode
from sapflow.flows.columns.records import Context
from sapflow.flows.datagrams.netflow5 import Netflow5
from sapflow.flows.datagrams.netflow9 import Netflow9
from sapflow.flows.ipfix.encode import Encoder, make_template
from sapflow.flows.meaning.sampling import Sampling, SamplingRates, scaled
from sapflow.flows.meaning.told import Told
from sapflow.flows.registry import InformationElement, registry, using
from tests.unit.flows.flows_made import Record, a_batch, messages, seen
from tests.unit.flows.test_netflow import flowset, options, template, v5, v5_record, v9

HERE = Context("acme", "192.0.2.1:4739")
OTHER_PORT = Context("acme", "192.0.2.1:50000")
ELSEWHERE = Context("acme", "192.0.2.2:4739")
OTHER_ORG = Context("rival", "192.0.2.1:4739")


def rate_of(stage: Sampling, record: Record | None = None, context: Context = HERE, domain: int = 1) -> object:
    """What the stage says of one flow; None: nothing."""
    (row,) = seen(stage.apply([a_batch(record or {"octetDeltaCount": 1}, domain=domain)], context))
    return row.get("samplingRate")


def told(*records: Record, scopes: int = 1, context: Context = HERE, domain: int = 1) -> Sampling:
    """A stage that saw options data."""
    stage = Sampling()
    stage.apply([a_batch(*records, scopes=scopes, domain=domain)], context)
    return stage


SAYS: list[tuple[Record, float | None]] = [
    ({"samplingInterval": 100}, 100.0),
    ({"samplerRandomInterval": 1000}, 1000.0),
    ({"samplingPacketInterval": 1, "samplingPacketSpace": 999}, 1000.0),
    ({"samplingPacketInterval": 10, "samplingPacketSpace": 90}, 10.0),
    ({"samplingPacketInterval": 512}, 512.0),
    ({"samplingSize": 3, "samplingPopulation": 300}, 100.0),
    ({"samplingProbability": struct.pack("!d", 0.01)}, 100.0),
    ({"samplingFlowInterval": 1, "samplingFlowSpacing": 15}, 16.0),
    ({"samplingInterval": 0}, None),
    ({"samplingPacketInterval": 0, "samplingPacketSpace": 0}, None),
    ({"samplingSize": 0, "samplingPopulation": 300}, None),
    ({"samplingProbability": struct.pack("!d", 0.0)}, None),
    ({"samplingProbability": struct.pack("!d", float("nan"))}, None),
    ({"samplingInterval": 0, "samplerRandomInterval": 50}, 50.0),
]


@pytest.mark.parametrize(("says", "rate"), SAYS)
def test_each_way_to_say_a_rate_is_understood_in_records(says: Record, rate: float | None) -> None:
    assert rate_of(Sampling(), {"octetDeltaCount": 1, **says}) == rate


@pytest.mark.parametrize(("says", "rate"), SAYS)
def test_and_in_options_data(says: Record, rate: float | None) -> None:
    assert rate_of(told({"lineCardId": 1, **says})) == rate


def test_nokia_s_interval_of_1_and_space_of_999_is_one_in_a_thousand() -> None:
    stage = told({"selectorId": 3, "samplingPacketInterval": 1, "samplingPacketSpace": 999})
    assert rate_of(stage, {"octetDeltaCount": 1, "selectorId": 3}) == 1000.0


def test_a_record_s_own_rate_comes_before_what_options_data_say() -> None:
    stage = told({"lineCardId": 1, "samplingInterval": 100})
    assert rate_of(stage, {"octetDeltaCount": 1, "samplingInterval": 7}) == 7.0
    assert rate_of(stage, {"octetDeltaCount": 1, "samplingInterval": 0}) == 100.0


def test_each_sampler_has_its_rate() -> None:
    stage = told({"samplerId": 1, "samplerRandomInterval": 10}, {"samplerId": 2, "samplerRandomInterval": 20})
    assert rate_of(stage, {"octetDeltaCount": 1, "samplerId": 1}) == 10.0
    assert rate_of(stage, {"octetDeltaCount": 1, "samplerId": 2}) == 20.0
    assert rate_of(stage, {"octetDeltaCount": 1, "selectorId": 2}) == 20.0
    assert rate_of(stage, {"octetDeltaCount": 1, "samplerId": 3}) is None
    assert rate_of(stage) is None


def test_flows_that_name_no_sampler_have_the_rate_that_all_samplers_have() -> None:
    assert (
        rate_of(told({"samplerId": 1, "samplerRandomInterval": 10}, {"samplerId": 2, "samplerRandomInterval": 10}))
        == 10
    )


def test_ios_xr_has_a_sampler_without_its_mode() -> None:
    stage = told({"samplerId": 4, "samplerRandomInterval": 2000, "samplerName": "one-in-2000"})
    assert rate_of(stage, {"octetDeltaCount": 1, "samplerId": 4}) == 2000.0


def test_a_rate_of_the_whole_domain_holds_for_samplers_that_told_none() -> None:
    stage = told({"lineCardId": 1, "samplingInterval": 100})
    assert rate_of(stage, {"octetDeltaCount": 1, "samplerId": 9}) == 100.0


def test_a_rate_of_one_domain_is_not_that_of_another() -> None:
    stage = told({"observationDomainId": 1, "samplingInterval": 100}, domain=1)
    assert rate_of(stage, domain=1) == 100.0
    assert rate_of(stage, domain=2) is None


def test_juniper_s_scope_system_holds_for_all_domains_until_one_says_otherwise() -> None:
    stage = told({"exportingProcessId": 0, "samplingInterval": 1000}, domain=524_288)
    assert rate_of(stage, domain=524_289) == 1000.0
    stage.apply([a_batch({"observationDomainId": 7, "samplingInterval": 50}, scopes=1, domain=524_289)], HERE)
    assert rate_of(stage, domain=524_289) == 50.0


def test_v9_s_scope_system_is_the_same() -> None:
    stage = Sampling()
    layout = options(310, [(1, 4)], [(34, 4), (35, 1)])
    flows = flowset(0, template(300, (1, 4)))
    record = struct.pack("!IIB", 0, 64, 2)
    data = Netflow9().translate(
        v9(flowset(1, layout, b"\0\0"), flowset(310, record), flows, flowset(300, b"\0\0\0\x0a")), 0
    )
    for batch in decode(data):
        (batch,) = stage.apply([batch], HERE)
    assert batch.columns["samplingRate"].tolist() == [64.0]


def test_a_rate_of_an_interface_holds_for_what_came_in_by_it() -> None:
    stage = told({"ingressInterface": 7, "samplingInterval": 10}, {"ingressInterface": 8, "samplingInterval": 20})
    assert rate_of(stage, {"octetDeltaCount": 1, "ingressInterface": 8}) == 20.0
    assert rate_of(stage, {"octetDeltaCount": 1, "ingressInterface": 9}) is None


def test_templates_of_the_same_fields_have_rates_of_their_own() -> None:
    stage = told({"templateId": 300, "samplingInterval": 10}, {"templateId": 301, "samplingInterval": 20})
    flows = [messages({"octetDeltaCount": n}, template=n) for n in (301, 300, 302, 301)]
    (batch,) = decode(b"".join(flows))
    assert [row.get("samplingRate") for row in seen(stage.apply([batch], HERE))] == [20.0, 10.0, None, 20.0]


def test_a_rate_of_a_template_holds_for_its_records() -> None:
    stage = told({"templateId": 300, "samplingInterval": 10}, {"templateId": 301, "samplingInterval": 20})
    assert rate_of(stage) == 10.0


def test_options_from_another_port_of_the_same_address_count_where_the_session_told_nothing() -> None:
    stage = told({"samplerId": 1, "samplerRandomInterval": 10}, context=OTHER_PORT)
    record: Record = {"octetDeltaCount": 1, "samplerId": 1}
    assert rate_of(stage, record) == 10.0
    stage.apply([a_batch({"samplerId": 1, "samplerRandomInterval": 30}, scopes=1)], HERE)
    assert rate_of(stage, record, HERE) == 30.0
    assert rate_of(stage, record, OTHER_PORT) == 10.0


@pytest.mark.parametrize("context", [ELSEWHERE, OTHER_ORG])
def test_nothing_is_taken_from_other_exporters_or_orgs(context: Context) -> None:
    assert rate_of(told({"lineCardId": 1, "samplingInterval": 10}), context=context) is None


def test_options_data_without_a_scope_are_understood_and_no_flows() -> None:
    stage = told({"samplerId": 1, "samplerRandomInterval": 10}, scopes=0)
    assert rate_of(stage, {"octetDeltaCount": 1, "samplerId": 1}) == 10.0


def test_the_latest_rate_counts() -> None:
    stage = told({"samplerId": 1, "samplerRandomInterval": 10})
    stage.apply([a_batch({"samplerId": 1, "samplerRandomInterval": 40}, scopes=1)], HERE)
    assert rate_of(stage, {"octetDeltaCount": 1, "samplerId": 1}) == 40.0


def test_v5_says_it_in_its_header_and_zero_says_nothing() -> None:
    for sampling, rate in ((0x4000 | 10, 10.0), (0, None)):
        (batch,) = decode(Netflow5().translate(v5(v5_record(80), sampling=sampling), 0))
        (row,) = seen(Sampling().apply([batch], HERE))
        assert row.get("samplingRate") == rate


RECORD: Record = {"octetDeltaCount": 150, "packetDeltaCount": 3, "samplingInterval": 100, "reverse:octetDeltaCount": 5}


def test_counters_are_scaled_beside_the_raw_ones_and_only_on_request() -> None:
    (plain,) = seen(Sampling().apply([a_batch(RECORD)], HERE))
    assert not [name for name in plain if name.startswith("scaled")]
    (row,) = seen(Sampling(scale=True).apply([a_batch(RECORD)], HERE))
    assert {name: value for name, value in row.items() if name != "samplingRate"} == {
        "octetDeltaCount": 150,
        "packetDeltaCount": 3,
        "samplingInterval": 100,
        "reverseOctetDeltaCount": 5,
        "scaledOctetDeltaCount": 15_000,
        "scaledPacketDeltaCount": 300,
        "scaledReverseOctetDeltaCount": 500,
    }


def test_nothing_is_scaled_twice() -> None:
    stage = Sampling(scale=True)
    (once,) = stage.apply([a_batch(RECORD)], HERE)
    assert stage.apply([once], HERE) == [once]


def test_an_exporter_s_own_element_of_that_name_is_not_taken_for_the_rate() -> None:
    impostor = InformationElement(32473, 1, "samplingRate", "unsigned32")
    made = make_template(300, [(32473, 1, 4), (0, 1, 4)])
    encoder = Encoder(domain=1)
    data = encoder.templates([made], export_time=1) + encoder.records(
        made, [bytes([0, 0, 0, 9, 0, 0, 0, 5])], export_time=1
    )
    with using(registry().extended([impostor])):
        (batch,) = decode(data)
    (row,) = seen(Sampling(scale=True).apply([batch], HERE))
    assert row == {"samplingRate": 9, "octetDeltaCount": 5}
    stage = told({"lineCardId": 1, "samplingInterval": 100})
    (row,) = seen(stage.apply([batch], HERE))
    assert (row["samplingRate"], row["samplingRate_2"]) == (9, 100.0)


def test_what_has_no_rate_is_null_and_told_at_the_end() -> None:
    stage = Sampling(scale=True)
    (batch,) = stage.apply([a_batch({"octetDeltaCount": 1}, {"octetDeltaCount": 2})], HERE)
    assert batch.columns["scaledOctetDeltaCount"].tolist() == [None, None]
    stage.apply([a_batch({"octetDeltaCount": 1})], ELSEWHERE)
    note = stage.note()
    assert note is not None
    assert note.startswith("3 records have no sampling rate")
    assert "192.0.2.1 (2), 192.0.2.2 (1)" in note
    assert Sampling().note() is None


@given(st.lists(st.tuples(st.integers(0, (1 << 64) - 1), st.integers(1, 1 << 40)), min_size=1, max_size=20))
@example([(9223372036854775296, 1)])
def test_scaling_is_exact_for_whole_rates_as_far_as_64_bits_go(pairs: list[tuple[int, int]]) -> None:
    counters = np.array([counter for counter, _ in pairs], np.uint64)
    found = scaled(counters, np.array([rate for _, rate in pairs], np.float64)).tolist()
    for (counter, rate), value in zip(pairs, found, strict=True):
        product = counter * rate
        assert value == (product if product < 1 << 64 else None)


def test_what_is_remembered_is_bounded() -> None:
    known = SamplingRates(Told(limit=100))
    for port in range(200):
        batch = a_batch({"samplerId": port % 250, "samplerRandomInterval": 10}, scopes=1)
        known.learn(batch, Context("acme", f"192.0.2.{port}:1"))
    assert known.told.forgotten >= 250
    assert len(known.told.at(("acme", "192.0.2.199:1", 1))) == 1
    assert not known.told.at(("acme", "192.0.2.0:1", 1))


def test_one_exporter_cannot_take_more_than_the_bound() -> None:
    store: Told[int, int] = Told(limit=10)
    for number in range(1000):
        store.put(Context("acme", "file"), 1, number, number)
    assert store.forgotten == 990
    assert store.get(Context("acme", "file"), 1, 999) == 999
    assert store.get(Context("acme", "file"), 1, 1) is None

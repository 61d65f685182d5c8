"""Many batches are viewed, scaled and named at once as each of them would be alone."""

import io
import json
from collections.abc import Sequence

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapflow.flows.columns.batches import FlowBatch, decode
from sapflow.flows.columns.records import Context
from sapflow.flows.formats import open_writer
from sapflow.flows.meaning.names import Names
from sapflow.flows.meaning.sampling import Sampling
from sapflow.flows.meaning.stages import Stage, staged
from sapflow.flows.meaning.view import View, views
from tests.unit.flows.flows_made import EXPORTED, Record, messages, ntp, seen

HERE = Context("acme", "192.0.2.1:4739")
TIMES = st.integers(EXPORTED - 100, EXPORTED)
ELEMENTS: dict[str, st.SearchStrategy[int | str | bytes]] = {
    "sourceIPv4Address": st.sampled_from(["192.0.2.1", "0.0.0.0", "198.51.100.7"]),
    "sourceIPv6Address": st.sampled_from(["2001:db8::1", "::"]),
    "destinationIPv4Address": st.sampled_from(["192.0.2.1", "198.51.100.7"]),
    "sourceTransportPort": st.integers(0, 3),
    "udpSourcePort": st.integers(0, 3),
    "ipClassOfService": st.sampled_from([0, 3, b"\x01\x2c", b"\0\0\x07"]),
    "octetDeltaCount": st.sampled_from([0, 5, 1 << 40, b"\0\0\0\x09", b"\x01\0\0"]),
    "octetTotalCount": st.integers(0, 3),
    "packetDeltaCount": st.integers(0, 3),
    "reverse:octetDeltaCount": st.integers(0, 2),
    "responderOctets": st.integers(0, 2),
    "tcpControlBits": st.integers(0, 255),
    "initialTCPFlags": st.integers(0, 255),
    "unionTCPFlags": st.integers(0, 255),
    "flowStartMilliseconds": TIMES.map(lambda s: s * 1000 + 7),
    "flowEndMicroseconds": TIMES.map(ntp),
    "flowStartSeconds": TIMES | st.just(0),
    "flowStartDeltaMicroseconds": st.integers(0, 10**6),
    "flowEndSysUpTime": st.integers(0, 10**6),
    "systemInitTimeMilliseconds": TIMES.map(lambda s: s * 1000) | st.just(0),
    "flowDurationMilliseconds": st.integers(0, 10**4),
    "flowDurationMicroseconds": st.integers(0, 10**4),
    "observationTimeMilliseconds": TIMES.map(lambda s: s * 1000) | st.just(0),
    "observationTimeSeconds": TIMES,
    "sourceMacAddress": st.sampled_from([b"abcdef", b"abcdefgh"]),
    "samplerId": st.integers(1, 3),
    "selectorId": st.integers(1, 3),
    "samplingInterval": st.sampled_from([0, 10]),
    "samplingPacketInterval": st.integers(0, 2),
    "samplingPacketSpace": st.integers(0, 2),
    "ingressInterface": st.integers(1, 3),
    "applicationId": st.sampled_from([b"\x0d\0\0\x35", b"\x0d\x35", b"\x05"]),
    "applicationName": st.sampled_from(["", "dns"]),
    "userName": st.sampled_from(["", "ada"]),
    "App_ID": st.sampled_from(["", "ssl"]),
    "vlanId": st.integers(0, 2),
    "dot1qVlanId": st.integers(0, 2),
}


@st.composite
def flows(draw: st.DrawFn) -> bytes:
    """Records of one template."""
    names = draw(st.lists(st.sampled_from([*ELEMENTS]), min_size=1, max_size=9, unique=True))
    # An address of a flow, for else some would tell of the exporter, and be learned from. Values are of one length.
    first = {name: draw(ELEMENTS[name]) for name in dict.fromkeys([*names, "destinationIPv4Address"])}
    records: list[Record] = [first]
    for _ in range(draw(st.integers(0, 2))):
        others = {name: draw(ELEMENTS[name]) for name in first}
        records.append({name: value if _alike(value, first[name]) else first[name] for name, value in others.items()})
    number, domain = draw(st.integers(300, 305)), draw(st.integers(1, 2))
    exported = draw(st.sampled_from([0, EXPORTED, EXPORTED + 60]))
    return messages(*records, template=number, domain=domain, exported=exported)


def _alike(one: object, other: object) -> bool:
    if isinstance(one, bytes) and isinstance(other, bytes):
        return len(one) == len(other)
    return type(one) is type(other)


TELLING: Sequence[tuple[Record, int]] = (
    ({"samplerId": 1, "samplerRandomInterval": 50}, 310),
    ({"samplerId": 2, "samplerRandomInterval": 60}, 310),
    ({"ingressInterface": 1, "interfaceName": "eth1"}, 311),
    ({"applicationId": b"\x0d\0\0\x35", "applicationName": "domain"}, 312),
    ({"sourceIPv4Address": "192.0.2.1", "userName": "grace"}, 313),
    ({"meteringProcessId": 1, "systemInitTimeMilliseconds": EXPORTED * 1000 - 5_000_000}, 314),
)


def taught(told: Sequence[int]) -> list[Stage]:
    """Stages that have heard some of that, in domain 1."""
    stages: list[Stage] = [Sampling(scale=True), Names(), View(scale=True, names=True)]
    for at in told:
        record, number = TELLING[at]
        staged(decode(messages(record, scopes=1, template=number)), HERE, stages)
    return stages


def rows_of(batch: FlowBatch) -> list[tuple[int, int, int, dict[str, object]]]:
    rows = seen([batch])
    ids = batch.template_ids.tolist() or [batch.template.id] * batch.records
    domains = batch.domains.tolist() or [batch.domain] * batch.records
    return list(zip(batch.order.tolist(), domains, ids, rows, strict=True))


@given(st.lists(flows(), min_size=1, max_size=5), st.lists(st.integers(0, len(TELLING) - 1), max_size=6))
def test_batches_are_viewed_together_as_one_by_one(parts: list[bytes], told: list[int]) -> None:
    batches = decode(b"".join(parts))
    alone = [row for batch in batches for made in staged([batch], HERE, taught(told)) for row in rows_of(made)]
    (together,) = staged(batches, HERE, taught(told))
    assert rows_of(together) == sorted(alone, key=lambda row: row[0])


@given(st.lists(flows(), min_size=1, max_size=5), st.lists(st.integers(0, len(TELLING) - 1), max_size=6))
def test_batches_are_scaled_and_named_together_as_one_by_one(parts: list[bytes], told: list[int]) -> None:
    batches = decode(b"".join(parts))
    stages = taught(told)[:2]
    together = staged(batches, HERE, stages)
    assert len(together) == len(batches)
    for batch, made in zip(batches, together, strict=True):
        (alone,) = staged([batch], HERE, stages)
        assert rows_of(made) == rows_of(alone)
        assert [element.name for element in made.elements] == [element.name for element in alone.elements]


@pytest.mark.parametrize("format_", ["jsonl", "arrow"])
def test_rows_of_a_view_have_the_domain_and_template_of_their_records(format_: str) -> None:
    data = b"".join(
        messages({"octetDeltaCount": n}, {"octetDeltaCount": n}, domain=7 + n % 3, template=300 + n) for n in range(9)
    )
    out = io.BytesIO()
    writer = open_writer(format_, out, stages=[View()])
    writer.write(data, HERE)
    writer.close()
    if format_ == "jsonl":
        rows = [json.loads(line) for line in out.getvalue().splitlines()]
    else:
        rows = pa.ipc.open_stream(out.getvalue()).read_all().to_pylist()
    found = [(row["bytes"], row["_domain"], row["domain"], row["_template"]) for row in rows]
    assert found == [(n, 7 + n % 3, 7 + n % 3, 300 + n) for n in range(9) for _ in range(2)]


def test_options_data_alone_are_a_view_without_rows() -> None:
    options = decode(messages({"samplerId": 1, "samplerRandomInterval": 50}, scopes=1))
    assert views(options).records == 0
    assert [*views(options).columns] == [*views(decode(messages({"vlanId": 1}))).columns]

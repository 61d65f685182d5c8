"""What exporters have told in options data, kept for readers that begin behind it."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapflow.flows.columns.batches import decode
from sapflow.flows.columns.records import Context
from sapflow.flows.formats.pieces import pieces, weigh_text
from sapflow.flows.ipfix.session import Session
from sapflow.flows.ipfix.standing import DamagedStanding, Standing, last_told
from sapflow.flows.meaning.names import Names
from sapflow.flows.meaning.sampling import Sampling
from sapflow.flows.meaning.stages import Stage, staged
from tests.unit.flows.flows_made import Record, messages, seen

HERE = Context("acme", "192.0.2.1:4739")
ALL = 1 << 20


def interface(number: int, name: str, **options: int) -> bytes:
    return messages({"lineCardId": 1, "ingressInterface": number, "interfaceName": name}, scopes=1, **options)


def sampler(number: int, rate: int, **options: int) -> bytes:
    return messages({"samplerId": number, "samplerRandomInterval": rate}, scopes=1, template=301, **options)


def bare_sampler(number: int, rate: int, **options: int) -> bytes:
    """Without a scope, as some send it."""
    return messages({"samplerId": number, "samplingInterval": rate}, template=302, **options)


def whole_domain(rate: int, **options: int) -> bytes:
    return messages({"lineCardId": 1, "samplingInterval": rate}, scopes=1, template=303, **options)


def flow(interface: int, sampler: int, **options: int) -> bytes:
    flows: Record = {"ingressInterface": interface, "samplerId": sampler, "octetDeltaCount": 10}
    return messages(flows, template=304, **options)


def read(stages: Sequence[Stage], batches: Sequence[bytes]) -> list[dict[str, object]]:
    """The flows, as a tail with --scaled and --names has them."""
    rows = [seen(piece) for data in batches for piece in pieces(data, HERE, stages, None, weigh_text)]
    return [row for piece in rows for row in piece if "octetDeltaCount" in row]


def from_middle(batches: Sequence[bytes], position: int, standing: Standing) -> list[dict[str, object]]:
    """The flows behind a position, first given what stood there; kept on a disk in between."""
    stages: list[Stage] = [Sampling(scale=True), Names()]
    data, _, _ = Standing.unpack(standing.pack()).in_force(position)
    staged(decode(data), HERE, stages)
    return read(stages, batches[position:])


def from_start(batches: Sequence[bytes], position: int) -> list[dict[str, object]]:
    stages: list[Stage] = [Sampling(scale=True), Names()]
    read(stages, batches[:position])
    return read(stages, batches[position:])


def told_by(batches: Sequence[bytes]) -> Standing:
    standing = Standing("192.0.2.1:4739")
    for position, data in enumerate(batches, 1):
        standing.take(data, position)
    return standing


def texts(standing: Standing, position: int) -> list[str]:
    return [str(row["interfaceName"]) for row in seen(decode(standing.in_force(position)[0]))]


numbers = st.integers(1, 3)
domains = st.integers(1, 2)
options_data = st.one_of(
    st.builds(lambda n, name, domain: interface(n, name, domain=domain), numbers, st.sampled_from("abc"), domains),
    st.builds(lambda n, rate, domain: sampler(n, rate, domain=domain), numbers, st.integers(0, 3), domains),
    st.builds(lambda n, rate, domain: bare_sampler(n, rate, domain=domain), numbers, st.integers(0, 3), domains),
    st.builds(lambda rate, domain: whole_domain(rate, domain=domain), st.integers(0, 3), domains),
)
flows = st.builds(lambda i, s, domain: flow(i, s, domain=domain), numbers, numbers, domains)
logs = st.lists(st.builds(lambda told, flow: told + flow, st.just(b"") | options_data, flows), max_size=14)


@given(logs, st.data())
def test_what_stands_and_the_rest_of_the_log_read_like_the_whole_log(batches: list[bytes], data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(batches)))
    standing = told_by(batches[:position])
    assert from_middle(batches, position, standing) == from_start(batches, position)


one_way = st.one_of(
    st.builds(interface, numbers, st.sampled_from("abc")), st.builds(sampler, numbers, st.integers(0, 3))
)
one_way_logs = st.lists(
    st.builds(lambda told, flow: told + flow, st.just(b"") | one_way, st.builds(flow, numbers, numbers)), max_size=10
)


@given(one_way_logs, st.data())
def test_and_at_a_position_long_past(batches: list[bytes], data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(batches)))
    standing = told_by(batches)
    if all(len(versions) < 4 for versions in standing._records.values()):
        assert from_middle(batches, position, standing) == from_start(batches, position)


def test_what_was_told_later_is_not_in_force_yet() -> None:
    standing = told_by([interface(7, "old"), flow(7, 1), interface(7, "new")])
    assert [texts(standing, position) for position in (0, 1, 2, 3)] == [[], ["old"], ["old"], ["new"]]


def test_where_the_version_in_force_is_not_kept_any_more_the_oldest_that_is_stands_for_it() -> None:
    standing = told_by([interface(7, f"name {n}") for n in range(1, 11)])
    assert texts(Standing.unpack(standing.pack()), 2) == ["name 7"]
    assert texts(standing, 10) == ["name 10"]


def test_the_same_told_again_and_again_takes_no_room() -> None:
    once, often = told_by([interface(7, "eth0")]), told_by([interface(7, "eth0")] * 1000)
    assert len(often.pack()) == len(once.pack())
    assert (last_told(once.pack()), last_told(often.pack())) == (1, 1000)


def test_what_says_nothing_takes_nothing_back() -> None:
    standing = told_by([sampler(1, 100), interface(7, "eth0"), sampler(1, 0), interface(7, ""), sampler(2, 0)])
    rows = {name: value for row in seen(decode(standing.in_force(5)[0])) for name, value in row.items()}
    assert rows["interfaceName"] == "eth0"
    assert 100 in [row.get("samplerRandomInterval") for row in seen(decode(standing.in_force(5)[0]))]


def test_samplers_that_only_a_field_behind_the_scope_tells_apart_are_kept_apart() -> None:
    standing = told_by(
        [messages(*({"lineCardId": 1, "samplerId": n, "samplingInterval": n} for n in (1, 2)), scopes=1)]
    )
    assert standing.in_force(1)[2] == 2


def test_a_template_that_means_something_else_by_now_is_told_as_it_was() -> None:
    batches = [
        interface(7, "eth0", template=300),
        sampler(1, 100) + messages({"VRFname": "red", "ingressVRFID": 1}, scopes=1),
    ]
    standing = told_by(batches)
    data, count, records = standing.in_force(2)
    walk = Session().walk(data)
    assert (walk.fault, walk.undecodable_sets, walk.records, walk.messages) == (None, 0, records, count)
    assert {name for row in seen(decode(data)) for name in row} >= {"interfaceName", "samplerRandomInterval", "VRFname"}


def test_data_that_tell_of_flows_only_leave_nothing() -> None:
    standing = told_by(
        [flow(1, 1), messages({"sourceIPv4Address": "192.0.2.9", "octetDeltaCount": 1, "samplingInterval": 9})]
    )
    assert (len(standing), standing.in_force(2)) == (0, (b"", 0, 0))


def test_a_bound_costs_old_versions_first_and_then_what_was_told_longest_ago() -> None:
    standing = told_by([interface(n, f"name {n}") for n in (1, 2, 3, 1)] + [interface(2, "renamed")])
    before = standing._bytes
    standing.trim(before - 1, 0)
    assert (standing.forgotten, texts(standing, 5)) == (0, ["name 3", "name 1", "renamed"])
    standing.trim(standing._bytes - 1, 0)
    assert (standing.forgotten, texts(standing, 5)) == (1, ["name 1", "renamed"])
    assert standing._bytes == sum(v.size for versions in standing._records.values() for v in versions)


@given(st.lists(options_data, max_size=12), st.integers(0, 1500))
def test_what_is_given_is_never_more_than_the_bound(batches: list[bytes], most: int) -> None:
    standing = told_by(batches)
    standing.trim(most, 0)
    assert len(standing.in_force(len(batches))[0]) <= most
    again = Standing.unpack(standing.pack())
    assert again._bytes == standing._bytes <= most
    assert again.in_force(3) == standing.in_force(3)


def test_versions_that_nobody_can_ask_for_are_let_go() -> None:
    standing = told_by([interface(7, name) for name in "abc"])
    standing.trim(ALL, first_position=3)
    assert [len(versions) for versions in standing._records.values()] == [2]
    assert (texts(standing, 2), texts(standing, 3)) == (["b"], ["c"])


@given(st.data())
def test_one_that_is_damaged_is_refused(data: st.DataObject) -> None:
    packed = bytearray(told_by([interface(7, "eth0"), sampler(1, 10)]).pack())
    at = data.draw(st.integers(0, len(packed) - 1))
    packed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DamagedStanding):
        Standing.unpack(bytes(packed))
    with pytest.raises(DamagedStanding):
        Standing.unpack(bytes(packed[:at]))


def test_a_walk_says_whether_a_batch_may_tell() -> None:
    assert Session().walk(interface(7, "eth0")).may_tell
    assert Session().walk(bare_sampler(1, 10)).may_tell
    assert not Session().walk(flow(1, 1)).may_tell

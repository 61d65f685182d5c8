"""Consumer groups that several nodes share: who may read, who may not any more, and what is read back by whom."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError

from phloem.engine.groups import Beat, Change, Commit, Declined, Group, Leave, Remove, Reset, Take
from phloem.engine.kafka import group_log, group_state
from phloem.engine.kafka.group_log import LEASE_S, GroupLog
from phloem.engine.kafka.group_records import Loading, decode, encode, snapshot
from phloem.engine.kafka.group_state import GroupState, Proposal
from phloem.engine.kafka.log import KafkaLog
from phloem.engine.kafka.settings import KafkaSettings
from phloem.engine.layout import Place
from sapflow.entry import LogEntry
from sapflow.errors import StorageError
from tests.unit.phloem.fake_kafka import FakeKafka, FakeTopic, failure

TOPIC = "sapflow--groups"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def a_node(kafka: FakeKafka, name: str, clock: Clock | None = None) -> KafkaLog:
    """A node of the fleet, whose org `acme` has ten entries."""
    settings = KafkaSettings(servers="k:1", node=name, partitions=1, commit_timeout_s=0.2, request_timeout_s=0.2)
    log = KafkaLog(settings, kafka.clients())
    log.shared_groups._clock = clock or Clock()
    log.reopen()
    if not kafka.topics["sapflow"].partitions[0]:
        log.append([("acme", LogEntry(b"x" * 16, seq, "x", 0, 1, 2, b"")) for seq in range(1, 11)])
    return log


def take(seat: int, name: str = "billing") -> Take:
    return Take("acme", name, Place(), 2, seat)


def commit(seat: int, generation: int, position: int, state: bytes = b"") -> Commit:
    return Commit("acme", "billing", generation, Place(position), state, seat=seat)


def kinds(log: KafkaLog, *changes: Change | Leave | Beat) -> list[str]:
    return [one.kind if isinstance(one, Declined) else "made" for one in log.change_groups(changes, 1)]


def position(log: KafkaLog) -> int:
    log.shared_groups.refresh()
    group = log.group("acme", "billing")
    assert group is not None
    return group.place.position


# --- who reads ------------------------------------------------------------------------------------------------


def test_one_member_of_all_nodes_reads_and_what_it_commits_is_known_at_each() -> None:
    kafka = FakeKafka()
    one, two = a_node(kafka, "one"), a_node(kafka, "two")
    assert kinds(one, take(1), commit(1, 1, 4, b"four")) == ["made", "made"]
    assert kinds(two, take(1), commit(1, 1, 9), Remove("acme", "billing")) == ["held", "fenced", "in use"]
    assert [position(node) for node in (one, two)] == [4, 4]
    assert two.groups("acme")["billing"].state == b"four"
    assert (two.shared_groups.reader("acme", "billing"), one.shared_groups.reader("acme", "billing")) == ("one", "")
    assert kinds(one, Leave("acme", "billing", 1)) == ["made"]
    assert kinds(two, take(7)) == ["made"]
    assert kinds(one, commit(1, 1, 5)) == ["fenced"]
    assert kinds(two, commit(7, 2, 5)) == ["made"]


def test_who_is_silent_for_its_lease_is_taken_from_and_moves_nothing_when_it_wakes_up() -> None:
    kafka, clock = FakeKafka(), Clock()
    one, two = a_node(kafka, "one", clock), a_node(kafka, "two", clock)
    kinds(one, take(1), commit(1, 1, 4))
    assert kinds(two, take(1)) == ["held"]
    clock.now += LEASE_S - 1
    assert not two.shared_groups.is_free("acme", "billing")
    assert kinds(one, Beat()) == ["made"]
    two.shared_groups.refresh()
    clock.now += LEASE_S - 1
    assert kinds(two, take(1)) == ["held"]
    clock.now += 2
    two.shared_groups.refresh()
    assert two.shared_groups.is_free("acme", "billing")
    assert kinds(two, take(1)) == ["made"]
    assert kinds(one, commit(1, 1, 9), take(2)) == ["fenced", "held"]
    assert position(two) == 4


def test_a_sign_of_life_that_the_taker_did_not_know_of_keeps_the_reader() -> None:
    kafka, clock = FakeKafka(), Clock()
    one, two = a_node(kafka, "one", clock), a_node(kafka, "two", clock)
    kinds(one, take(1))
    two.shared_groups.refresh()
    clock.now += LEASE_S
    (proposal,) = (two.shared_groups._proposal(take(1), 1, {"acme": two.tail("acme")}),)
    assert proposal.heard
    kinds(one, Beat())  # comes before it
    kafka.store(TOPIC, 0, b"group", encode(proposal))
    two.shared_groups.refresh()
    assert two.shared_groups.reader("acme", "billing") == "one"


def test_nobody_is_silent_while_nobody_can_be_heard() -> None:
    kafka, clock = FakeKafka(), Clock()
    one, two = a_node(kafka, "one", clock), a_node(kafka, "two", clock)
    kinds(one, take(1))
    two.shared_groups.refresh()
    kafka.silent = True
    clock.now += LEASE_S
    with pytest.raises(StorageError, match="no Kafka broker"):
        two.shared_groups.refresh()
    kafka.silent = False
    two.shared_groups.refresh()
    assert not two.shared_groups.is_free("acme", "billing")
    clock.now += LEASE_S
    assert two.shared_groups.is_free("acme", "billing")


def test_a_node_that_was_restarted_takes_at_once_what_its_predecessor_had() -> None:
    kafka = FakeKafka()
    before = a_node(kafka, "one")
    kinds(before, take(1), commit(1, 1, 4))
    after = a_node(kafka, "one")
    after.shared_groups.refresh()
    assert after.shared_groups.is_free("acme", "billing")
    assert kinds(after, take(1), commit(1, 2, 5)) == ["made", "made"]
    # The same seat and name, and yet another.
    assert kinds(before, commit(1, 2, 9)) == ["fenced"]
    assert after.shared_groups.mine() == {1: ("acme", "billing")}
    assert before.shared_groups.mine() == {}


def test_a_reset_at_any_node_fences_who_reads_and_a_group_made_anew_is_another() -> None:
    kafka = FakeKafka()
    one, two = a_node(kafka, "one"), a_node(kafka, "two")
    kinds(one, take(1), commit(1, 1, 4))
    assert kinds(two, Reset("acme", "billing", Place(2))) == ["made"]
    assert kinds(one, commit(1, 1, 5), commit(1, 2, 5)) == ["fenced", "fenced"]
    assert kinds(two, Remove("acme", "billing"), take(3)) == ["made", "made"]
    assert kinds(one, commit(1, 1, 5)) == ["fenced"]
    assert position(one) == 0


def test_bounds_of_groups_and_their_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_state, "MAX_STATE_BYTES", 10)
    kafka = FakeKafka()
    one = a_node(kafka, "one")
    assert kinds(one, take(1), take(2, "b"), take(3, "c"), take(4, "b")) == ["made", "made", "full", "made"]
    assert kinds(one, commit(1, 1, 1, bytes(10)), commit(1, 1, 2, bytes(11)), commit(1, 1, 3, bytes(9))) == [
        "made",
        "state",
        "made",
    ]
    assert kinds(one, commit(1, 1, 11)) == ["ahead"]
    assert one.orgs_with_groups() == ["acme"]


# --- the topic ------------------------------------------------------------------------------------------------


def test_the_topic_is_made_when_a_group_is_and_is_kept_for_ever() -> None:
    kafka = FakeKafka()
    one = a_node(kafka, "one")
    one.shared_groups.refresh()
    assert one.groups("acme") == {}
    assert TOPIC not in kafka.topics
    kinds(one, take(1))
    config = kafka.topics[TOPIC].config
    assert (config["retention.ms"], config["retention.bytes"], config["cleanup.policy"]) == ("-1", "-1", "delete")
    assert len(kafka.topics[TOPIC].partitions) == 1


def test_a_snapshot_takes_the_place_of_what_came_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_log, "SNAPSHOT_BYTES", 2000)
    monkeypatch.setattr("phloem.engine.kafka.group_records.PART_BYTES", 100)
    kafka = FakeKafka()
    one, two = a_node(kafka, "one"), a_node(kafka, "two")
    kinds(one, take(1), take(2, "b"))
    two.shared_groups.refresh()
    for at in range(10):
        kinds(one, commit(1, 1, at, b"state"))
    assert one.shared_groups.counts.snapshots
    low = kafka.topics[TOPIC].low[0]
    assert low > 5
    assert len(kafka.topics[TOPIC].partitions[0]) < 8
    new = a_node(kafka, "new")
    for node in (two, new):
        node.shared_groups.refresh()
        assert node.groups("acme") == one.groups("acme")
        assert node.shared_groups.reader("acme", "billing") == "one"
    assert kinds(one, commit(1, 1, 10)) == ["made"]
    assert position(new) == position(two) == 10
    assert two.shared_groups.counts.loads == 2  # what it had not read was gone


def test_a_snapshot_that_fails_undoes_no_commit_and_is_written_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_log, "SNAPSHOT_BYTES", 2000)
    kafka = FakeKafka()
    one = a_node(kafka, "one")
    kinds(one, take(1))
    kafka.fail("forget", failure(KafkaError.REQUEST_TIMED_OUT))
    for at in [*range(10), *[10] * 10]:
        assert kinds(one, commit(1, 1, at)) == ["made"]
    assert one.shared_groups.counts.snapshots == 1
    assert position(a_node(kafka, "new")) == 10


def test_a_node_that_saw_no_group_yet_misses_none_when_the_topic_was_shortened_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(group_log, "SNAPSHOT_BYTES", 2000)
    kafka = FakeKafka()
    one, two = a_node(kafka, "one"), a_node(kafka, "two")
    two.shared_groups.refresh()
    kinds(one, take(1), take(2, "b"))
    for at in range(10):
        kinds(one, commit(1, 1, at))
    assert one.shared_groups.counts.snapshots
    two.shared_groups.refresh()
    assert two.groups("acme") == one.groups("acme")


def test_a_topic_that_librdkafka_has_lost_sight_of_is_not_taken_for_gone() -> None:
    kafka = FakeKafka()
    one = a_node(kafka, "one")
    kinds(one, take(1), commit(1, 1, 4))
    kafka.fail("watermarks", failure(KafkaError._UNKNOWN_PARTITION))
    one.shared_groups.refresh()
    kafka.fail("watermarks", *[failure(KafkaError._UNKNOWN_PARTITION)] * 100)
    with pytest.raises(StorageError, match="cannot be read"):
        one.shared_groups.refresh()
    kafka.faults.clear()
    kafka.fail("watermarks", failure(KafkaError._UNKNOWN_PARTITION))
    kafka.fail("topic", failure(KafkaError._TRANSPORT))
    with pytest.raises(StorageError, match="no Kafka broker"):
        one.shared_groups.refresh()
    assert position(one) == 4
    assert one.shared_groups.counts.loads == 1


def test_a_topic_that_was_cut_or_says_not_what_came_before_is_not_believed() -> None:
    kafka = FakeKafka()
    one = a_node(kafka, "one")
    kinds(one, take(1), commit(1, 1, 4), commit(1, 1, 5))
    kafka.topics[TOPIC].low[0] = 1
    del kafka.topics[TOPIC].partitions[0][0]
    with pytest.raises(StorageError, match="says nowhere what came before"):
        a_node(kafka, "new").shared_groups.refresh()
    kafka.topics[TOPIC] = FakeTopic([[]])
    with pytest.raises(StorageError, match="it was cut"):
        one.shared_groups.refresh()
    one.shared_groups.refresh()
    assert one.groups("acme") == {}
    assert kinds(one, take(2)) == ["made"]


def test_damage_costs_one_record_and_a_newer_sapflow_is_not_guessed_at() -> None:
    kafka = FakeKafka()
    one = a_node(kafka, "one")
    kinds(one, take(1))
    kafka.store(TOPIC, 0, b"group", b"1 00000000 {}")
    kafka.store(TOPIC, 0, b"group", b"")
    assert kinds(one, commit(1, 1, 4)) == ["made"]
    assert one.counts()["groups_damaged"] == 2
    kafka.store(TOPIC, 0, b"group", b"2" + encode(Proposal("x/1", 1, Beat(), 1))[1:])
    with pytest.raises(StorageError, match="of version 2"):
        one.shared_groups.refresh()


def test_what_is_not_known_to_be_stored_is_said_so_and_may_be_made_again() -> None:
    kafka = FakeKafka()
    one = a_node(kafka, "one")
    kinds(one, take(1))
    kafka.reports.append(KafkaError(KafkaError.NOT_ENOUGH_REPLICAS))
    with pytest.raises(StorageError, match="cannot be written"):
        kinds(one, commit(1, 1, 4))
    assert kinds(one, commit(1, 1, 4)) == ["made"]
    # Kafka stores after all what it had not said to be stored.
    kafka.store(TOPIC, 0, b"group", kafka.topics[TOPIC].partitions[0][-1].body)
    kafka.store(TOPIC, 0, b"group", encode(Proposal(one.shared_groups.node, 2, commit(1, 1, 2), 1, 1, 11)))
    assert position(one) == 4


def test_groups_that_were_never_read_are_not_taken_for_none() -> None:
    with pytest.raises(StorageError, match="not read from Kafka yet"):
        a_node(FakeKafka(), "one").groups("acme")


def test_a_snapshot_that_is_not_whole_or_too_old_waits_for_another() -> None:
    state = GroupState()
    proposals = [Proposal("a/1", number, take(number, f"g{number}"), 1, 1, 11) for number in range(1, 3)]
    for at, proposal in enumerate(proposals, 5):
        state.apply(at, proposal)
    loading = Loading(after=6)
    (part,) = snapshot(state, "s")
    assert decode(encode(part)) == part
    loading.take(7, part.__class__("old", 5, 0, 1))
    loading.take(8, part.__class__("half", 6, 0, 2))
    loading.take(9, Proposal("a/1", 3, Leave("acme", "g1", 1), 1))
    assert loading.state is None
    loading.take(10, part)
    assert loading.state is not None
    assert loading.state.through == 10
    standing = loading.state.get("acme", "g1")
    assert standing is not None
    assert standing.node == ""
    assert isinstance(standing.group, Group)


def test_nodes_that_were_not_heard_of_for_long_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_state, "MAX_NODES", 2)
    state = GroupState()
    for number in range(1, 5):
        state.apply(number, Proposal(f"n{number}/x", 1, Beat(), 1))
    assert list(state.signs) == ["n3/x", "n4/x"]
    assert state.heard_of("n1/x") == 0


def test_a_closed_log_lets_go_of_its_reader() -> None:
    kafka = FakeKafka()
    one = a_node(kafka, "one")
    kinds(one, take(1))
    one.interrupt()
    one.close()
    assert isinstance(one.shared_groups, GroupLog)
    assert all(consumer.closed for consumer in kafka.consumers)

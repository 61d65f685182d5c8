"""What exporters told in options data, with Kafka as the log and without Kafka: kept beside it by whoever folds."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError

from phloem.engine import options
from phloem.engine.kafka import options_fold, options_log
from phloem.engine.kafka.log import KafkaLog
from phloem.engine.kafka.names import Place
from phloem.engine.kafka.options_fold import OptionsFold, Row, key_of, owner_of, packed_in, row_of
from phloem.engine.kafka.settings import KafkaSettings
from phloem.engine.options import OptionsBounds
from sapflow.entry import LogEntry, decode_entry
from sapflow.errors import StorageError
from sapflow.flows.columns.batches import decode
from sapflow.flows.ipfix.standing import Standing
from tests.unit.flows.flows_made import messages, seen
from tests.unit.phloem.fake_kafka import FakeKafka, FakeMessage, FakeTopic

A, B = b"a" * 16, b"b" * 16
ORGS = frozenset({"acme", "globex"})
TOPIC = "sapflow--options"
FLOW = messages({"ingressInterface": 7, "octetDeltaCount": 1})


def interface(number: int, name: str) -> bytes:
    return messages({"ingressInterface": number, "interfaceName": name}, scopes=1)


def a_node(kafka: FakeKafka, node: str = "phloem-1", **settings: object) -> KafkaLog:
    given = {"servers": "k:1", "node": node, "partitions": 1, "commit_timeout_s": 0.2, "request_timeout_s": 0.2}
    log = KafkaLog(KafkaSettings(**{**given, **settings}), kafka.clients())  # type: ignore[arg-type]
    log.reopen()
    return log


def store(
    log: KafkaLog, stream: bytes, seq: int, payload: bytes = FLOW, *, tells: bool | None = None, org: str = "acme"
) -> int:
    """An entry, which tells something when it is no flow: its position."""
    tells = payload is not FLOW if tells is None else tells
    entry = LogEntry(stream, seq, f"192.0.2.1:{stream[0]}", 7, 2, 1, payload, tells=tells)
    [outcome] = log.append([(org, entry)])
    assert outcome.kind == "stored"
    return outcome.position


def keep(log: KafkaLog, rounds: int = 2, orgs: frozenset[str] = ORGS) -> None:
    """In the first round a node only looks whether another does it."""
    for _ in range(rounds):
        list(log.shared_ledger.keep(orgs))


def names(log: KafkaLog, stream: bytes = A, position: int = 1 << 40, org: str = "acme") -> list[str]:
    told = log.told(org, stream, position)
    return [] if told is None else [str(row["interfaceName"]) for row in seen(decode(decode_entry(told).payload))]


def rows(kafka: FakeKafka) -> list[FakeMessage]:
    return kafka.topics[TOPIC].partitions[0] if TOPIC in kafka.topics else []


def compact(kafka: FakeKafka, topic: str = TOPIC, *, tombstones: bool = False) -> None:
    """As Kafka's log cleaner does: of each key the last record stays, where it was."""
    stored = kafka.topics[topic].partitions[0]
    last = {message.key(): message for message in stored}
    end = stored[-1:]  # no broker's log ends earlier for it
    stored[:] = [one for one in stored if last[one.key()] is one and (one.body or not tombstones or one in end)]


@pytest.mark.parametrize("is_folded", [True, False])
def test_what_was_told_is_there_for_readers_that_begin_behind_it_at_any_node(is_folded: bool) -> None:
    kafka = FakeKafka()
    log = a_node(kafka)
    store(log, A, 1, interface(7, "eth0"))
    store(log, B, 1, interface(7, "other"))
    store(log, A, 2)
    store(log, A, 3, interface(7, "renamed"))
    store(log, A, 1, interface(7, "foreign"), org="globex")
    if is_folded:
        keep(log)
        assert len(rows(kafka)) == 3
    for node in (log, a_node(kafka, "phloem-2")):
        assert node.told_streams("acme") == [B, A]
        assert [names(node, A, position) for position in range(5)] == [[], ["eth0"], ["eth0"], ["eth0"], ["renamed"]]
        assert (names(node, B, 4), names(node, A, org="globex")) == (["other"], ["foreign"])
        assert (node.told_streams("nobody"), node.told("nobody", A, 9)) == ([], None)
        told = node.told("acme", A, 4)
        assert told is not None
        entry = decode_entry(told)
        assert (entry.stream, entry.seq, entry.exporter, entry.messages, entry.records) == (A, 0, "192.0.2.1:97", 2, 1)
    assert len(rows(kafka)) == 3 * is_folded, "who only reads writes nothing"


def test_where_nothing_is_told_nothing_is_asked_for_or_written() -> None:
    kafka = FakeKafka()
    log = a_node(kafka)
    store(log, A, 1)
    keep(log)
    assert TOPIC not in kafka.topics
    assert log.told_streams("acme") == []


def test_an_entry_of_before_there_was_the_header_is_not_looked_at() -> None:
    kafka = FakeKafka()
    log = a_node(kafka)
    store(log, A, 1, interface(7, "eth0"), tells=False)
    keep(log)
    assert log.told_streams("acme") == []
    store(log, A, 2, interface(8, "eth1"))
    assert names(log) == ["eth1"]


def test_it_outlives_the_entries_that_told_it_and_the_node() -> None:
    kafka = FakeKafka()
    log = a_node(kafka)
    store(log, A, 1, interface(7, "eth0"))
    store(log, A, 2)
    keep(log)
    log._topics.forget_before(Place("sapflow", 0), 1)
    store(log, A, 3, interface(8, "eth1"))
    other = a_node(kafka, "phloem-2")
    assert names(other, position=2) == ["eth0"]
    assert names(other) == ["eth0", "eth1"]


def test_what_two_nodes_stored_of_a_stream_is_told_once_and_an_old_name_does_not_come_back() -> None:
    kafka = FakeKafka()
    one, two = a_node(kafka), a_node(kafka, "phloem-2")
    for node in (one, two):
        store(node, A, 1, interface(7, "eth0"))
        store(node, A, 2, interface(7, "renamed"))
    store(two, A, 3)
    assert [names(one, position=position) for position in (1, 2, 3, 9)] == [["eth0"], *[["renamed"]] * 3]
    keep(two)
    assert [names(one, position=position) for position in (1, 2, 3, 9)] == [["eth0"], *[["renamed"]] * 3]


def test_a_node_that_takes_over_folds_on_what_the_one_before_left() -> None:
    kafka = FakeKafka()
    one = a_node(kafka)
    for seq in range(1, 4):
        store(one, A, seq, interface(seq, f"eth{seq}"))
    keep(one)
    store(one, A, 4, interface(4, "eth4"))
    store(one, B, 1, interface(1, "other"))
    two = a_node(kafka, "phloem-2")
    keep(two)
    assert two.counts()["options_folded"] == 2
    compact(kafka)
    for node in (one, two, a_node(kafka, "phloem-3")):
        assert (names(node), names(node, B)) == (["eth1", "eth2", "eth3", "eth4"], ["other"])
        assert node.told_streams("acme") == [A, B]


def test_a_node_that_dies_between_rows_and_checkpoint_has_lost_and_doubled_nothing() -> None:
    kafka = FakeKafka()
    one = a_node(kafka)
    store(one, A, 1, interface(7, "eth0"))
    store(one, A, 2, interface(7, "renamed"))
    keep(one, 1)
    steps = one.shared_ledger.keep(ORGS)
    while not rows(kafka):
        next(steps)
    del steps
    assert kafka.topics["sapflow--ledger"].partitions[0] == []
    two = a_node(kafka, "phloem-2")
    keep(two)
    assert two.counts()["options_folded"] == 0, "its row says that they are in it"
    assert [names(two, position=position) for position in range(3)] == [[], ["eth0"], ["renamed"]]


def test_rows_that_cannot_be_written_keep_back_the_checkpoint_and_are_written_the_next_time() -> None:
    kafka = FakeKafka()
    log = a_node(kafka)
    store(log, A, 1, interface(7, "eth0"))
    keep(log, 1)
    kafka.reports.append(KafkaError(KafkaError.NOT_ENOUGH_REPLICAS))
    with pytest.raises(StorageError, match="cannot be written"):
        keep(log, 1)
    assert (rows(kafka), kafka.topics["sapflow--ledger"].partitions[0]) == ([], [])
    keep(log, 1)
    assert (len(rows(kafka)), log.counts()["ledger_checkpoints"]) == (1, 1)


def test_what_is_stored_while_rows_are_written_is_not_passed_over_by_the_checkpoint() -> None:
    kafka = FakeKafka()
    log = a_node(kafka)
    store(log, A, 1, interface(1, "eth1"))
    keep(log, 1)
    stored = 1
    for _ in log.shared_ledger.keep(ORGS):
        if stored < 6:
            stored += 1
            store(log, A, stored, interface(stored, f"eth{stored}"))
            log.ledger("acme")  # which counts up to the end
    assert stored == 6
    assert log.counts()["ledger_checkpoints"] == 1
    for node in (log, a_node(kafka, "phloem-2")):
        assert names(node) == [f"eth{number}" for number in range(1, 7)]


def test_a_row_that_another_node_wrote_anew_is_found_though_the_old_one_is_compacted() -> None:
    kafka = FakeKafka()
    one, two = a_node(kafka), a_node(kafka, "phloem-2")
    store(one, A, 1, interface(1, "eth1"))
    keep(one)
    assert names(two) == ["eth1"]
    store(one, A, 2, interface(2, "eth2"))
    keep(one)
    compact(kafka)
    held = two.shared_ledger._held[Place("sapflow", 0)]
    assert two.told("acme", A, 1) is not None, "asked for at a place that it knows, it does not look for news first"
    assert held.options.rows[b"acme", A].told == 2
    assert names(two) == ["eth1", "eth2"]
    assert two.counts()["options_unreadable"] == 0


def test_a_row_that_a_paused_node_overwrites_with_an_older_one_is_written_again() -> None:
    kafka = FakeKafka()
    one = a_node(kafka)
    store(one, A, 1, interface(1, "eth1"))
    keep(one)
    [old] = rows(kafka)
    store(one, A, 2, interface(2, "eth2"))
    keep(one)
    kafka.store(TOPIC, 0, old.key(), old.value())
    assert names(a_node(kafka, "new")) == ["eth1", "eth2"]
    store(one, B, 1, interface(1, "other"))
    keep(one)
    compact(kafka)
    assert names(a_node(kafka, "newer")) == ["eth1", "eth2"]


@pytest.mark.parametrize("grown", [1, 20])
def test_rows_of_a_topic_that_was_made_anew_are_another_log_s(grown: int) -> None:
    kafka = FakeKafka()
    log = a_node(kafka)
    for seq in range(1, 6):
        store(log, A, seq, interface(seq, f"old{seq}"))
    keep(log)
    kafka.topics["sapflow"] = FakeTopic([[]], {"max.message.bytes": "9000000"})
    new = a_node(kafka, "phloem-2")
    for seq in range(1, grown + 1):
        store(new, A, seq, interface(1, f"new{seq}"))
    for _ in range(2):
        for node in (log, new, a_node(kafka, "phloem-3")):
            assert names(node) == [f"new{grown}"]
        keep(new)
        compact(kafka)


def test_rows_ahead_of_a_log_that_was_cut_are_forgotten_also_by_who_comes_later() -> None:
    kafka = FakeKafka()
    log = a_node(kafka)
    store(log, B, 1, interface(1, "kept"))
    for seq in range(1, 6):
        store(log, A, seq, interface(seq, f"old{seq}"))
    keep(log)
    del kafka.topics["sapflow"].partitions[0][2:]
    new = a_node(kafka, "phloem-2")
    store(new, A, 2, interface(9, "new"))
    keep(new)
    for seq in range(3, 9):
        store(new, A, seq)
    for node in (new, log, a_node(kafka, "phloem-3")):
        assert names(node) == ["old1", "new"]
        assert names(node, B) == ["kept"]


def test_a_topic_of_rows_that_was_deleted_is_made_again_and_what_is_told_then_is_kept() -> None:
    kafka = FakeKafka()
    log = a_node(kafka)
    for seq in range(1, 4):
        store(log, A, seq, interface(seq, f"eth{seq}"))
        keep(log)
    kafka.topics[TOPIC] = FakeTopic([[]])
    store(log, A, 4, interface(4, "eth4"))
    keep(log)
    assert (names(log), names(a_node(kafka, "new"))) == (["eth4"], ["eth4"])


def test_a_stream_s_bound_costs_what_it_told_longest_ago_and_is_counted() -> None:
    kafka = FakeKafka()
    log = a_node(kafka, options=OptionsBounds(bytes_per_stream=400, bytes_per_org=4000))
    for seq in range(1, 11):
        store(log, A, seq, interface(seq, f"interface {seq}"))
    before = names(log)
    keep(log)
    assert before == names(log)
    assert (before[-1], log.counts()["options_forgotten"]) == ("interface 10", 10 - len(before))
    assert 2 <= len(before) < 10


@pytest.mark.parametrize("bound", ["bytes of an org", "rows"])
def test_a_bound_costs_the_streams_that_were_not_heard_of_for_longest(
    bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka = FakeKafka()
    most_bytes = 2000 if bound == "bytes of an org" else 1 << 20
    if bound == "rows":
        monkeypatch.setattr(options_fold, "MAX_ROWS", 16)
    log = a_node(kafka, options=OptionsBounds(bytes_per_stream=400, bytes_per_org=most_bytes))
    streams = [bytes([number]) * 16 for number in range(1, 41)]
    for number, stream in enumerate(streams):
        store(log, stream, 1, interface(7, "eth0"))
        if number:
            store(log, streams[0], number + 1)
        for at, message in enumerate(kafka.topics["sapflow"].partitions[0]):
            message.stored_ms = at
        keep(log, 1 if number else 2)
    left = log.told_streams("acme")
    # The first told longest ago, and is heard of all the time.
    assert left[0] == streams[0]
    assert left[1:] == streams[-len(left) + 1 :]
    assert log.counts()["options_streams_forgotten"] == 40 - len(left)
    compact(kafka, tombstones=True)
    assert a_node(kafka, "new").told_streams("acme") == left
    size = sum(len(message.body or b"") for message in rows(kafka))
    assert 0 < size <= most_bytes
    assert len(left) <= 16 or bound != "rows"


def test_of_very_many_of_a_stream_that_come_at_once_the_newest_count() -> None:
    kafka = FakeKafka()
    log = a_node(kafka)
    for seq in range(1, options.MAX_ENTRIES + 6):
        store(log, A, seq, interface(1, "first") if seq == 1 else interface(2, f"name {seq}"))
    keep(log)
    assert names(log) == [f"name {options.MAX_ENTRIES + 5}"]
    assert (log.counts()["options_skipped"], log.counts()["options_folded"]) == (5, options.MAX_ENTRIES)


def test_so_many_wait_at_most_whoever_folds_or_does_not() -> None:
    fold = OptionsFold(Place("sapflow", 0), "")
    dropped = sum(
        fold.note(b"acme", position.to_bytes(16, "big"), position)
        for position in range(1, options_fold.MAX_WAITING + 4)
    )
    assert (fold.waits, dropped, len(fold.due())) == (options_fold.MAX_WAITING, 3, options_fold.MAX_WAITING)
    assert fold.streams(b"acme")[0] == (4).to_bytes(16, "big")


def test_steps_are_bounded_and_the_next_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options_log, "STEP_READS", 4)
    kafka = FakeKafka()
    log = a_node(kafka)
    for number in range(1, 8):
        store(log, bytes([number]) * 16, 1, interface(7, "eth0"))
    keep(log, 1)
    written = []
    for _ in log.shared_ledger.keep(ORGS):
        written.append(len(rows(kafka)))
    assert written == [0, 2, 4, 6, 7, 7]
    assert len(log.told_streams("acme")) == 7


def test_damage_costs_its_row_or_its_entry_only() -> None:
    kafka = FakeKafka()
    log = a_node(kafka)
    for stream in (A, B):
        store(log, stream, 1, interface(7, "eth0"))
    keep(log)
    rows(kafka)[0].body = (rows(kafka)[0].body or b"")[:-1] + b"X"
    kafka.store(TOPIC, 0, key_of(Place("sapflow", 0), (b"acme", b"c" * 16)), b"poison")
    kafka.store(TOPIC, 0, b"poison", b"poison")
    kafka.store(TOPIC, 0, None, None)
    store(log, B, 2, b"\x00\x0a\x00\x18 no message at all")
    other = a_node(kafka, "phloem-2")
    assert (names(other, A), names(other, B)) == ([], ["eth0"])
    store(log, A, 2, interface(8, "eth1"))
    keep(other)
    for node in (other, a_node(kafka, "phloem-3")):
        assert (names(node, A), names(node, B)) == (["eth1"], ["eth0"])
    assert other.counts()["options_unreadable"] == 2


def test_a_topic_for_each_org_has_its_rows_in_the_same_topic() -> None:
    kafka = FakeKafka()
    log = a_node(kafka, topic_per_org=True, partitions=3)
    for org in sorted(ORGS):
        store(log, A, 1, interface(7, org), org=org)
    keep(log)
    other = a_node(kafka, "phloem-2", topic_per_org=True, partitions=3)
    assert [names(other, org=org) for org in sorted(ORGS)] == [["acme"], ["globex"]]
    assert sum(map(len, kafka.topics[TOPIC].partitions)) == 2
    assert other.counts()["options_folded"] == 0


def test_a_row_s_key_and_value_say_whose_it_is() -> None:
    place = Place("sapflow", 3)
    for owner in ((b"acme", A), (b"a/c//", b"/" * 16)):
        assert owner_of(place, key_of(place, owner)) == owner
        assert owner_of(Place("sapflow", 30), key_of(place, owner)) is None
    packed = Standing("192.0.2.1:9", 5).pack()
    assert packed_in("id", row_of("id", packed)) == packed
    assert packed_in("i", row_of("id", packed)) is packed_in("id", b"") is None
    fold = OptionsFold(place, "id")
    fold.hear(key_of(place, (b"acme", A)), row_of("id", packed), 7)
    assert fold.rows == {(b"acme", A): Row(5, 7, len(row_of("id", packed)))}


def test_a_node_that_ends_does_not_go_on_to_hear_rows() -> None:
    kafka = FakeKafka()
    log = a_node(kafka)
    store(log, A, 1, interface(7, "eth0"))
    keep(log)
    assert log.told_streams("acme") == [A]
    log.interrupt()
    with pytest.raises(StorageError, match="this process ends; what exporters told"):
        log.told_streams("acme")

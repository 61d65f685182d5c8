"""The ledger on Kafka without Kafka: whoever folds, takes over, dies or comes to another log says what is so."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError

from phloem.engine.kafka import ledger_count, ledger_fold, ledger_log, ledger_records
from phloem.engine.kafka.log import KafkaLog
from phloem.engine.kafka.names import Place
from phloem.engine.kafka.settings import KafkaSettings
from sapflow.entry import LogEntry
from sapflow.errors import StorageError
from sapflow.ledger import Backlog, OrgLedger
from sapflow.link.account import Account
from tests.unit.phloem.fake_kafka import FakeKafka, FakeMessage, FakeTopic, failure

TOPIC = "sapflow--ledger"
ORGS = frozenset({"acme", "globex"})


def an_entry(seq: int, account: Account | None = None, *, stream: int = 1, records: int = 2) -> LogEntry:
    told = account.encode(records) if account is not None else b""
    return LogEntry(bytes([stream]) * 16, seq, "192.0.2.1:9", 7, 1, records, b"payload", told)


def a_node(kafka: FakeKafka, node: str = "phloem-1", **settings: object) -> KafkaLog:
    given = {"servers": "k:1", "node": node, "partitions": 1, "commit_timeout_s": 0.2, "request_timeout_s": 0.2}
    log = KafkaLog(KafkaSettings(**{**given, **settings}), kafka.clients())  # type: ignore[arg-type]
    log.reopen()
    return log


def store(log: KafkaLog, *entries: LogEntry, org: str = "acme") -> None:
    log.append([(org, entry) for entry in entries])


def keep(log: KafkaLog, rounds: int = 2) -> None:
    """In the first round a node only looks whether another does it."""
    for _ in range(rounds):
        list(log.shared_ledger.keep(ORGS))


def checkpoints(kafka: FakeKafka) -> list[ledger_records.Head]:
    stored = kafka.topics[TOPIC].partitions[0] if TOPIC in kafka.topics else []
    return [ledger_records.decode(message.body or b"")[0] for message in stored]


def figures(found: OrgLedger) -> tuple[int, int, int, int]:
    return found.total.batches, found.total.stored, found.kept, found.streams


def test_what_two_nodes_stored_of_a_stream_is_counted_once() -> None:
    kafka = FakeKafka()
    one, two = a_node(kafka), a_node(kafka, "phloem-2")
    lossy = an_entry(2, Account(received=3, exported=5, lost=2, refused={"spool_full": 1}))
    store(one, an_entry(1), lossy)
    store(two, an_entry(1), lossy, an_entry(3))
    store(two, an_entry(1), org="globex")
    for node in (one, two):
        found = node.ledger("acme", most_rows=9)
        assert figures(found) == (3, 6, 6, 1)
        assert found.total.account == Account(received=7, exported=9, lost=2, refused={"spool_full": 1})
        assert (found.closes, found.begun, found.behind) == (True, "", 0)
        assert [(row.stored, row.exporter) for row in found.rows] == [(6, "192.0.2.1:9")]
        assert figures(node.ledger("globex")) == (1, 2, 2, 1)
    assert figures(one.ledger("nobody")) == (0, 0, 0, 0)


def test_c24_a_node_that_takes_over_goes_on_from_the_checkpoint() -> None:
    kafka = FakeKafka()
    one = a_node(kafka)
    store(one, *map(an_entry, range(1, 6)))
    keep(one)
    assert [head.through for head in checkpoints(kafka)] == [5]
    store(one, an_entry(6))
    two = a_node(kafka, "phloem-2")
    assert figures(two.ledger("acme")) == (6, 12, 12, 1)
    assert two.counts()["ledger_folded_entries"] == 1
    keep(two)
    assert [head.through for head in checkpoints(kafka)] == [5, 6]
    keep(two)
    assert len(checkpoints(kafka)) == 2, "there is nothing new"


def test_of_two_nodes_with_orgs_in_one_partition_one_folds_it_and_the_other_when_that_one_dies() -> None:
    kafka = FakeKafka()
    one, two = a_node(kafka), a_node(kafka, "phloem-2")
    for seq in range(1, 9):
        store(one, an_entry(seq))
        keep(one, 1)
        keep(two, 1)
    heads = checkpoints(kafka)
    assert {head.node for head in heads} == {heads[0].node}
    assert [head.through for head in heads] == sorted({head.through for head in heads})
    other = two if heads[0].node == "phloem-1" else one
    store(other, *(an_entry(seq) for seq in range(1, 10)))
    keep(other)
    assert checkpoints(kafka)[-1].node != heads[0].node
    assert figures(other.ledger("acme")) == (9, 18, 18, 1)


@pytest.mark.parametrize("grown", [1, 20])
def test_a_topic_that_was_made_anew_is_noticed_also_when_it_has_grown_past_the_checkpoint(grown: int) -> None:
    kafka = FakeKafka()
    log = a_node(kafka)
    store(log, *map(an_entry, range(1, 6)))
    keep(log)
    kafka.topics["sapflow"] = FakeTopic([[]], {"max.message.bytes": "9000000"})
    new = a_node(kafka, "phloem-2")
    store(new, *(an_entry(seq, stream=2) for seq in range(1, grown + 1)))
    for node in (log, new, a_node(kafka, "phloem-3")):
        found = node.ledger("acme")
        assert figures(found) == (grown, 2 * grown, 2 * grown, 1)
        assert found.begun == "the topic was made anew, so it begins anew"
        assert found.closes
        assert node.counts()["ledger_begun_anew"] == 1
    keep(new)
    assert figures(a_node(kafka, "phloem-4").ledger("acme")) == (grown, 2 * grown, 2 * grown, 1)


def test_a_log_that_was_cut_is_noticed() -> None:
    kafka = FakeKafka()
    log = a_node(kafka)
    store(log, *map(an_entry, range(1, 6)))
    keep(log)
    del kafka.topics["sapflow"].partitions[0][3:]
    for node in (log, a_node(kafka, "phloem-2")):
        found = node.ledger("acme")
        assert (figures(found), found.begun) == ((3, 6, 6, 1), "the log was cut, so it begins anew")


def test_what_was_removed_before_it_was_counted_is_told_as_not_known() -> None:
    kafka = FakeKafka()
    log = a_node(kafka)
    store(log, *map(an_entry, range(1, 4)))
    keep(log)
    store(log, *map(an_entry, range(4, 9)))
    log._topics.forget_before(Place("sapflow", 0), 6)
    for node in (log, a_node(kafka, "phloem-2")):
        found = node.ledger("acme")
        assert figures(found) == (5, 10, 4, 1)
        assert (found.total.unknown_batches, found.removed, found.closes) == (3, 6, True)
        assert found.begun == "retention removed what came before position 7 before it was counted"
    kafka.topics[TOPIC].partitions[0].clear()
    found = a_node(kafka, "phloem-3").ledger("acme")
    assert (figures(found), found.total.unknown_batches, found.removed) == ((2, 4, 4, 1), 6, 0)
    assert "before position 7 when it was first counted" in found.begun


def test_c23_what_is_no_entry_is_left_out_and_counted_and_its_stream_lacks_it() -> None:
    kafka = FakeKafka()
    log = a_node(kafka)
    store(log, an_entry(1), an_entry(2))
    stored = kafka.topics["sapflow"].partitions[0]
    stored[1] = FakeMessage(1, b"acme", (stored[1].body or b"")[:-1] + b"X")
    for key, value in ((None, b"poison"), (b"acme", None), (b"\xff", b"poison")):
        kafka.store("sapflow", 0, key, value)
    store(log, an_entry(3))
    found = log.ledger("acme")
    assert figures(found) == (2, 4, 4, 1)
    assert found.differences() == {"missing_batches": 1}


@pytest.mark.parametrize("fault", ["first", "second", "damaged"])
def test_a_checkpoint_that_is_not_whole_or_damaged_costs_nothing(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_records, "PART_BYTES", 100)
    kafka = FakeKafka()
    log = a_node(kafka)
    for seq in range(1, 4):
        store(log, *(an_entry(seq, stream=stream) for stream in range(1, 9)))
        keep(log)
    stored = kafka.topics[TOPIC].partitions[0]
    parts = checkpoints(kafka)[-1].parts
    assert parts > 2
    if fault == "damaged":
        stored[-1].body = (stored[-1].body or b"")[:-1] + b"X"
    else:
        del stored[-parts + (fault == "second") :]
    other = a_node(kafka, "phloem-2")
    assert figures(other.ledger("acme")) == (24, 48, 48, 8)
    assert other.counts()["ledger_folded_entries"] == 8, "from the checkpoint before"


def test_a_checkpoint_that_cannot_be_written_is_written_the_next_time() -> None:
    kafka = FakeKafka()
    log = a_node(kafka)
    store(log, an_entry(1))
    keep(log, 1)
    kafka.reports.append(KafkaError(KafkaError.NOT_ENOUGH_REPLICAS))
    with pytest.raises(StorageError, match="cannot be written"):
        keep(log, 1)
    assert checkpoints(kafka) == []
    keep(log, 1)
    assert [head.through for head in checkpoints(kafka)] == [1]
    kafka.fail("describe", failure(KafkaError._TRANSPORT))
    with pytest.raises(StorageError, match="no Kafka broker"):
        log.ledger("acme")
    assert log.ledger("acme").closes


def a_long_log(kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch) -> KafkaLog:
    """Two orgs, three batches of a stream each in turn, with points after each few and repeats."""
    monkeypatch.setattr(ledger_fold, "LEAST_BYTES", 500)
    monkeypatch.setattr(ledger_fold, "MAX_POINTS", 8)
    one, two = a_node(kafka), a_node(kafka, "phloem-2")
    for seq in range(1, 40):
        for org in ("acme", "globex"):
            store(one, an_entry(seq), org=org)
        if seq % 7 == 0:
            store(two, *(an_entry(again) for again in range(seq - 2, seq + 1)))
            two.forget("acme")
    return one


def left(log: KafkaLog, position: int) -> int:
    """Batches of acme's that a reader from the beginning is given behind a position."""
    found, seen = 0, set()
    for at, data in log.stretch("acme", 0, max_bytes=1 << 20, max_entries=1000).entries:
        if data[8:32] not in seen:
            found += at > position
        seen.add(data[8:32])
    return found


def test_what_is_left_to_read_behind_any_position_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    kafka = FakeKafka()
    log = a_long_log(kafka, monkeypatch)
    end = log.last_position("acme")
    for position in range(end + 3):
        batches = left(log, position)
        assert log.backlog("acme", position) == Backlog(min(position, end), batches, 2 * batches)


def test_what_retention_has_removed_is_counted_as_removed_and_as_read(monkeypatch: pytest.MonkeyPatch) -> None:
    kafka = FakeKafka()
    log = a_long_log(kafka, monkeypatch)
    keep(log)
    before = {position: left(log, position) for position in range(log.last_position("acme"))}
    for low in (5, 23, 60):
        log._topics.forget_before(Place("sapflow", 0), low)
        keep(log)
        found = log.ledger("acme")
        assert (found.kept, found.removed, found.closes) == (2 * before[low], 78 - 2 * before[low], True)
        assert log.backlog("acme", 2) == Backlog(low, before[low], 2 * before[low])
        assert figures(a_node(kafka, "new").ledger("acme")) == figures(found)


def test_what_takes_too_long_to_count_is_told_as_not_certain(monkeypatch: pytest.MonkeyPatch) -> None:
    kafka = FakeKafka()
    log = a_node(kafka)
    store(log, *map(an_entry, range(1, 11)))
    monkeypatch.setattr(ledger_count, "COUNT_S", -1.0)
    assert log.backlog("acme", 4) == Backlog(4, 0, 0, uncertain=20)
    log._topics.forget_before(Place("sapflow", 0), 4)
    found = log.ledger("acme")
    assert (found.kept, found.removed, found.uncertain, found.closes) == (0, 0, 20, True)


def test_what_takes_too_long_to_fold_is_told_as_not_counted_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    kafka = FakeKafka()
    log = a_node(kafka)
    store(log, *map(an_entry, range(1, 11)))
    monkeypatch.setattr(ledger_log, "CATCH_UP_S", -1.0)
    found = log.ledger("acme")
    assert (found.behind, found.total.stored, found.closes) == (10, 0, True)
    keep(log)
    assert log.ledger("acme").behind == 0


def test_only_so_much_is_held_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_log, "MAX_HELD", 4)
    kafka = FakeKafka()
    log = a_node(kafka, topic_per_org=True)
    orgs = [f"org{number}" for number in range(5)]
    for org in orgs:
        store(log, an_entry(1), org=org)
    list(log.shared_ledger.keep(frozenset(orgs)))
    assert len(log.shared_ledger._held) == 2
    for org in orgs:
        assert figures(log.ledger(org)) == (1, 2, 2, 1)
    assert log.counts()["ledger_folded_entries"] == 5, "what was let go of is in the ledger's topic"


def test_a_process_that_ends_folds_no_more() -> None:
    kafka = FakeKafka()
    log = a_node(kafka)
    store(log, an_entry(1))
    log.interrupt()
    with pytest.raises(StorageError, match="this process ends"):
        keep(log)

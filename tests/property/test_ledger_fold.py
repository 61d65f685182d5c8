"""The ledger of a partition, folded in any goes, by any nodes, with any repeats: the same as from its beginning."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from attrs import frozen
from hypothesis import given as given_by
from hypothesis import settings
from hypothesis import strategies as st

from phloem.engine.kafka.ledger_fold import Fold
from phloem.engine.kafka.ledger_records import Loading, encode, key_of
from phloem.engine.kafka.names import Place
from sapflow.entry import LogEntry
from sapflow.ledger import OrgLedger
from sapflow.link.account import Account

PLACE = Place("fleet", 3)
ORGS = (b"acme", b"globex")
STREAMS = [bytes([number]) * 16 for number in range(5)]
TOPIC = "an id"


@frozen
class Stored:
    """What stands at the next position: an entry of an org, or something else."""

    org: bytes
    entry: LogEntry | None


@st.composite
def partitions(draw: st.DrawFn, *, whole: bool = True) -> list[Stored]:
    """Streams of two orgs, mixed, and what two nodes do to them: stretches that stand there again."""
    found: list[Stored] = []
    next_seq: dict[tuple[bytes, bytes], int] = {}
    for _ in range(draw(st.integers(0, 60))):
        org, stream = draw(st.sampled_from(ORGS)), draw(st.sampled_from(STREAMS))
        seq = next_seq.get((org, stream), 1)
        what = draw(st.sampled_from(["next", "next", "next", "again", "gap", "other"]))
        if what == "other":
            found.append(Stored(org, None))
            continue
        if what == "gap" and not whole:
            seq += draw(st.integers(1, 3))
        first = max(1, seq - draw(st.integers(0, 3))) if what == "again" else seq
        for number in range(first, seq + 1):
            found.append(Stored(org, an_entry(stream, number)))
        next_seq[org, stream] = seq + 1
    return found


def an_entry(stream: bytes, seq: int) -> LogEntry:
    """The same for the same number, as every sender has it."""
    random_ = random.Random(stream[0] << 16 | seq)
    records, refused, lost = random_.randrange(9), random_.randrange(3), random_.randrange(2)
    account = Account(
        received=records + refused,
        exported=records + refused + lost,
        lost=lost,
        refused={"unreadable": refused} if refused else {},
    )
    return LogEntry(stream, seq, f"192.0.2.{stream[0]}:9", 7, 1, records, b"", account.encode(records))


def fold_all(fold: Fold, log: list[Stored], through: int | None = None) -> Fold:
    """Fold on from where a fold is; position 1 is the first of the log."""
    for position in range(fold.through + 1, (len(log) if through is None else through) + 1):
        stored = log[position - 1]
        if stored.entry is None:
            fold.pass_over(position, 100)
        else:
            fold.take(stored.org, position, stored.entry, 100, position * 1_000_000)
    return fold


def told(fold: Fold) -> dict[bytes, tuple[OrgLedger, list[dict[str, object]]]]:
    """All that it says."""
    found = {}
    for org in ORGS:
        total, streams = fold.folded(org)
        rows = list(fold.streams(org))
        for row in rows:
            total.add(row)
        counted = fold.around(org, fold.through)[1]
        ledger = OrgLedger(org.decode(), total, streams + len(rows), counted.records)
        found[org] = ledger, [row.as_json() for row in rows]
    return found


def model(log: list[Stored], org: bytes) -> tuple[int, int, int, int, int]:
    """Entries, records, refused, lost, missing, by the rule that readers have."""
    marks: dict[bytes, int] = {}
    entries = records = refused = lost = missing = 0
    for stored in log:
        entry = stored.entry
        if entry is None or stored.org != org or entry.seq <= marks.get(entry.stream, 0):
            continue
        missing += entry.seq - marks.get(entry.stream, 0) - 1
        marks[entry.stream] = entry.seq
        entries += 1
        records += entry.records
        random_ = random.Random(entry.stream[0] << 16 | entry.seq)
        random_.randrange(9)
        refused += random_.randrange(3)
        lost += random_.randrange(2)
    return entries, records, refused, lost, missing


def through_a_checkpoint(fold: Fold, slot: int = 0) -> Fold:
    loading = Loading(PLACE)
    for index, part in enumerate(encode(fold, "name", "phloem-1")):
        loading.take(key_of(PLACE, slot, index), part)
    found = loading.found(fold.topic_id, fold.through).fold
    assert found is not None
    return with_bounds(found, fold)


def with_bounds(fold: Fold, like: Fold) -> Fold:
    fold.silent_us, fold.max_streams = like.silent_us, like.max_streams
    return fold


@given_by(partitions(whole=False))
def test_each_entry_counts_once_as_readers_have_it(log: list[Stored]) -> None:
    fold = fold_all(Fold(topic_id=TOPIC), log)
    for org, (ledger, _) in told(fold).items():
        total = ledger.total
        refused = sum(total.account.refused.values())
        found = (total.batches, total.stored, refused, total.account.lost, total.missing_batches)
        assert found == model(log, org)
        assert ledger.kept == total.stored
        assert set(ledger.differences()) <= {"missing_batches"}
    assert fold.through == len(log)


@given_by(partitions(whole=False), st.lists(st.integers(0, 200)), st.integers(1, 6), st.integers(1, 100))
def test_any_split_into_checkpoints_is_the_same_as_from_the_beginning(
    log: list[Stored], stops: list[int], max_streams: int, silent_s: int
) -> None:
    bounds = {"topic_id": TOPIC, "silent_us": silent_s * 1_000_000, "max_streams": max_streams}
    whole = fold_all(Fold(**bounds), log)  # type: ignore[arg-type]
    fold = Fold(**bounds)  # type: ignore[arg-type]
    for stop in sorted(stops):
        fold = through_a_checkpoint(fold_all(fold, log, min(stop, len(log))))
    fold = fold_all(fold, log)
    assert told(fold) == told(whole)
    assert list(encode(fold, "n", "n")) == list(encode(whole, "n", "n")), "whoever folds on has the same before them"


@given_by(partitions(), st.integers(1, 4), st.integers(1, 50))
def test_what_has_no_row_any_more_is_in_the_sum_and_still_counts_once(
    log: list[Stored], max_streams: int, silent_s: int
) -> None:
    fold = fold_all(Fold(topic_id=TOPIC, silent_us=silent_s * 1_000_000, max_streams=max_streams), log)
    fold.settle()
    assert len(fold.rows) <= max_streams
    for org, (ledger, _) in told(fold).items():
        assert (ledger.total.batches, ledger.total.stored) == model(log, org)[:2]
        assert ledger.closes, ledger.differences()


@settings(max_examples=200)
@given_by(partitions(), st.data())
def test_a_checkpoint_is_whole_or_is_not_there_whoever_dies_or_writes_with_it(
    log: list[Stored], data: st.DataObject
) -> None:
    """Nodes fold at their own pace and write, each where it believes the next one goes; each may die amid its parts,
    or sleep amid them and wake later. Whoever takes up what is there comes to the truth."""
    topic: dict[bytes, bytes] = {}
    """As it is when Kafka has compacted it."""
    asleep: list[Callable[[], None]] = []

    def load() -> tuple[Fold, int]:
        loading = Loading(PLACE)
        for key, value in topic.items():
            loading.take(key, value)
        found = loading.found(TOPIC, len(log))
        assert not found.is_ahead
        return found.fold or Fold(topic_id=TOPIC), found.slot

    for number in range(data.draw(st.integers(1, 5))):
        fold, slot = load()
        fold_all(fold, log, data.draw(st.integers(fold.through, len(log))))
        parts = in_small_parts(fold, str(number))
        done = data.draw(st.integers(0, len(parts)))

        def write(first: int, last: int, parts: list[bytes] = parts, slot: int = slot) -> None:
            for index in range(first, last):
                key = key_of(PLACE, slot, index)
                topic.pop(key, None)
                topic[key] = parts[index]

        write(0, done)
        asleep.append(partial(write, done, len(parts)))
        if data.draw(st.booleans()):
            asleep.pop(data.draw(st.integers(0, len(asleep) - 1)))()
    fold, _ = load()
    assert told(fold_all(fold, log)) == told(fold_all(Fold(topic_id=TOPIC), log))


def in_small_parts(fold: Fold, name: str) -> list[bytes]:
    from phloem.engine.kafka import ledger_records

    before, ledger_records.PART_BYTES = ledger_records.PART_BYTES, 200
    try:
        return list(encode(fold, name, "phloem-1"))
    finally:
        ledger_records.PART_BYTES = before


@given_by(partitions(), st.data())
def test_what_was_removed_before_it_was_counted_is_not_known_and_nothing_is_called_missing(
    log: list[Stored], data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, len(log)))
    low = data.draw(st.integers(first, len(log)))
    fold = fold_all(Fold(topic_id=TOPIC), log, first)
    if low > first:
        fold.skip(low, "removed")
    fold_all(fold, log)
    kept = log[:first] + log[low:]
    for org, (ledger, _) in told(fold).items():
        entries, records, *_, missing = model(kept, org)
        assert (ledger.total.batches, ledger.total.stored) == (entries, records)
        assert ledger.total.unknown_batches == missing
        assert ledger.closes, ledger.differences()


@given_by(partitions(whole=False), st.integers(1, 400), st.integers(0, 70))
def test_points_say_how_much_stands_before_them(log: list[Stored], point_bytes: int, position: int) -> None:
    fold = fold_all(Fold(topic_id=TOPIC, point_bytes=point_bytes), log)
    position = min(position, len(log))
    for org in ORGS:
        for point in fold.around(org, position):
            assert model(log[: point.position], org)[:2] == (point.entries, point.records)
        below, above = fold.around(org, position)
        assert below.position <= position <= above.position
    repeated = [at for at in range(1, len(log) + 1) if fold.was_repeated(at)]
    once = [stored for at, stored in enumerate(log, 1) if at not in repeated and stored.entry is not None]
    assert sum(one.org == ORGS[0] for one in once) == model(log, ORGS[0])[0]

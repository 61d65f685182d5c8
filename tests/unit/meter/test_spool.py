"""The spool on disk: found again, bounded, damage told and costing no more than itself."""

from pathlib import Path

import lmdb
import pytest

from meter.batching import Draft
from meter.keeping import Keeping
from meter.keeping_settings import KeepingSettings
from meter.spool import MIN_BYTES, Spool, SpoolFull
from meter.spool_writing import KEY
from meter.spooled import DAMAGED, Changes, Put, StreamRecord
from meter.spooling import random_id
from phloem.engine.embedded import EmbeddedLog
from sapflow.entry import LogEntry
from sapflow.errors import ConfigurationError, StorageError
from sapflow.link import Batch, StreamId
from sapflow.link.account import NOTHING, Account, decode_account

SIZE = 16 << 20


def written(keeping: Keeping) -> list[Batch]:
    """One transaction: what may go to the link by it."""
    changes = keeping.collect()
    return [offer.batch for offer in keeping.applied(changes, keeping.spool.write(changes))]


def a_keeping(path: Path, **settings: object) -> Keeping:
    return Keeping(Spool.open(path, spool_bytes=SIZE), KeepingSettings(**settings), random_id)  # type: ignore[arg-type]


def put(keeping: Keeping, count: int, *, exporter: str = "x", droppable: bool = False, size: int = 5000) -> StreamId:
    lane = keeping.lane("acme", exporter, droppable=droppable)
    streams = [keeping.put(lane, Draft(1, 2, bytes([n % 256]) * size), 1000 + n) for n in range(count)]
    assert streams[-1] is not None
    return streams[-1].id


def flip(path: Path, stream: StreamId, seq: int) -> None:
    """One bit of a stored batch."""
    with lmdb.open(str(path), max_dbs=3, map_size=SIZE) as env, env.begin(write=True) as txn:
        batches = env.open_db(b"batches", txn=txn)
        value = bytearray(txn.get(KEY.pack(stream, seq), db=batches))
        value[-7] ^= 4
        txn.put(KEY.pack(stream, seq), bytes(value), db=batches)


def all_of_it(keeping: Keeping, told: list[Batch] | None = None) -> list[tuple[StreamId, int]]:
    """Whatever is offered is acknowledged, until nothing is held; `told` are batches that hold but an account."""
    arrived = []
    for _ in range(1000):
        changes = keeping.collect()
        for offer in keeping.applied(changes, keeping.spool.write(changes)):
            if offer.batch.payload:
                arrived.append((offer.stream.id, offer.batch.seq))
            elif told is not None:
                told.append(offer.batch)
            keeping.acknowledged(offer.stream.id, offer.batch)
        if not keeping.streams and not changes:
            break
    return arrived


def test_what_is_in_the_spool_is_found_again_with_its_numbers(tmp_path: Path) -> None:
    keeping = a_keeping(tmp_path)
    stream = put(keeping, 5)
    first = written(keeping)
    keeping.acknowledged(stream, first[0])
    written(keeping)
    keeping.spool.close()
    again = a_keeping(tmp_path)
    assert again.spool.oldest_us == 1001
    assert [(batch.seq, batch.payload) for batch in written(again)] == [(b.seq, b.payload) for b in first[1:]]
    assert again.spool.totals.acknowledged_records == 2
    assert again.spool.totals.held_records == 8


def test_a_second_meter_over_the_same_spool_is_refused(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, spool_bytes=SIZE)
    with pytest.raises(ConfigurationError, match=r"another meter \(pid \d+\) has the spool.*meter\.spool"):
        Spool.open(tmp_path, spool_bytes=SIZE)
    spool.close()
    Spool.open(tmp_path, spool_bytes=SIZE).close()


def test_a_directory_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"meter\.spool"):
        Spool.open(tmp_path / "file", spool_bytes=SIZE)


@pytest.mark.parametrize("damaged", [1, 4, 9])
def test_a_flipped_bit_costs_its_batch_only_and_is_counted(tmp_path: Path, damaged: int) -> None:
    keeping = a_keeping(tmp_path)
    stream = put(keeping, 9)
    written(keeping)
    keeping.spool.close()
    flip(tmp_path, stream, damaged)
    again = a_keeping(tmp_path)
    told: list[Batch] = []
    arrived = all_of_it(again, told)
    assert sum((decode_account(batch.account, 0) for batch in told), NOTHING) == Account.usual(2).refusing(DAMAGED, 2)
    assert [seq for _, seq in arrived] == [seq for seq in range(1, 10) if seq != damaged]
    assert {seq for id_, seq in arrived if id_ == stream} == set(range(1, damaged))
    totals = again.spool.totals
    assert (totals.corrupt_batches, totals.corrupt_records, totals.held_batches) == (1, 2, 0)
    assert again.spool.held_bytes == 0


def test_a_stream_whose_record_is_damaged_is_given_up_and_counted_and_no_other(tmp_path: Path) -> None:
    keeping = a_keeping(tmp_path)
    bad, good = put(keeping, 3), put(keeping, 4)
    written(keeping)
    keeping.spool.close()
    with lmdb.open(str(tmp_path), max_dbs=3, map_size=SIZE) as env, env.begin(write=True) as txn:
        streams = env.open_db(b"streams", txn=txn)
        txn.put(bad, txn.get(bad, db=streams)[:-2] + b"??", db=streams)
    again = a_keeping(tmp_path)
    assert [id_ for id_, _ in all_of_it(again)] == [good] * 4
    assert (again.spool.totals.corrupt_batches, again.spool.totals.held_batches) == (3, 0)


@pytest.mark.parametrize("size", [0, 100, 5000, 40_000])
def test_a_spool_that_is_cut_off_or_no_spool_is_set_aside(tmp_path: Path, size: int) -> None:
    keeping = a_keeping(tmp_path)
    put(keeping, 20)
    written(keeping)
    keeping.spool.close()
    data = tmp_path / "data.mdb"
    data.write_bytes(b"nonsense" * (size // 8) if size != 40_000 else data.read_bytes()[:size])
    again = a_keeping(tmp_path)
    put(again, 3)
    assert len(written(again)) == 3
    assert size == 0 or len(list(tmp_path.glob("damaged-*.mdb"))) == 1


def test_the_file_stays_within_its_bytes_and_what_is_full_can_still_be_emptied(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, spool_bytes=MIN_BYTES)
    stream = random_id()
    opened = {stream: StreamRecord(stream, stream, "acme", "x", 1)}

    def fill() -> None:
        while True:
            batch = Batch(spool.records[stream].last + 1 if spool.records else 1, 1, 1, 1, bytes(60_000))
            spool.adopt(spool.write(Changes(opened=opened, put=[Put(stream, batch, False)])))

    for _ in range(3):
        with pytest.raises(SpoolFull):
            fill()
        assert (tmp_path / "data.mdb").stat().st_size <= MIN_BYTES
        assert spool.held_bytes > spool.limit_bytes, "the limit leaves room"
        # LMDB uses a page again two transactions after it was let go.
        for _ in range(2):
            spool.adopt(spool.write(Changes(acknowledged={stream: spool.records[stream].last})))
        assert spool.held_bytes == 0
    assert spool.totals.acknowledged_batches > 300


def test_a_full_spool_gives_up_the_oldest_that_was_never_offered_whole(tmp_path: Path) -> None:
    keeping = a_keeping(tmp_path, window_bytes=100_000, stream_window_bytes=100_000, segment_bytes=200_000)
    for number in range(400):
        put(keeping, 1, exporter=f"x{number % 4}", droppable=True, size=50_000)
        written(keeping)
        assert keeping.room.used_bytes <= keeping.spool.limit_bytes
    totals = keeping.spool.totals
    assert totals.dropped_batches > 100
    assert keeping.refused_batches == 0
    assert totals.taken_batches == 400 == totals.dropped_batches + totals.held_batches
    for number in range(4):
        keeping.close(keeping.lane("acme", f"x{number}", droppable=True))
    keeping.window.used_bytes = 0  # what was offered above
    keeping.window._used_by.clear()
    for stream in list(keeping.streams.values()):
        stream.loaded = stream.acknowledged
        stream.window_bytes = 0
        keeping._settle(stream)
    arrived = all_of_it(keeping)
    for stream_id in {id_ for id_, _ in arrived}:
        numbers = [seq for id_, seq in arrived if id_ == stream_id]
        assert numbers == list(range(1, len(numbers) + 1)), "no stream has a gap"
    assert len(arrived) == totals.held_batches


def test_by_choice_what_comes_to_a_full_spool_is_dropped_and_counted(tmp_path: Path) -> None:
    keeping = a_keeping(tmp_path, window_bytes=100_000, when_full="newest")
    lane = keeping.lane("acme", "x", droppable=True)
    for _ in range(400):
        keeping.put(lane, Draft(1, 2, bytes(50_000)), 1)
        written(keeping)
    totals = keeping.spool.totals
    assert totals.dropped_batches == 0
    assert totals.taken_batches + keeping.refused_batches == 400
    assert keeping.refused_records == 2 * keeping.refused_batches > 200


def test_the_number_of_streams_is_bounded(tmp_path: Path) -> None:
    keeping = a_keeping(tmp_path, window_bytes=1, max_streams=10)
    for number in range(50):
        put(keeping, 1, exporter=f"x{number}", droppable=True, size=10)
        written(keeping)
    assert len(keeping.streams) == 10
    assert not keeping.room.for_waiting("acme")
    assert keeping.spool.totals.dropped_batches == 40


def test_notes_are_kept(tmp_path: Path) -> None:
    keeping = a_keeping(tmp_path)
    keeping.note("collectors", "{}")
    written(keeping)
    keeping.spool.close()
    assert a_keeping(tmp_path).spool.note("collectors") == "{}"


def test_what_was_read_to_be_sent_is_marked_before_it_is_sent_and_never_given_up_after_a_restart(
    tmp_path: Path,
) -> None:
    keeping = a_keeping(tmp_path, window_bytes=6000)
    first = put(keeping, 2, droppable=True)
    second = put(keeping, 2, droppable=True)
    (batch,) = written(keeping)
    keeping.acknowledged(first, batch)
    (batch,) = written(keeping)
    keeping.acknowledged(first, batch)
    assert not keeping.spool.records[second].offered
    assert written(keeping)
    keeping.spool.close()
    again = a_keeping(tmp_path)
    assert again.spool.records[second].offered
    assert not again._give_up_oldest("acme")


def test_batches_for_which_there_was_no_room_come_again_in_order_before_what_came_after_them(tmp_path: Path) -> None:
    keeping = a_keeping(tmp_path, commit_bytes=12_000)
    put(keeping, 9)
    changes = keeping.collect()
    assert [p.batch.seq for p in changes.put] == [1, 2, 3]
    keeping.put_back(changes)
    assert keeping.applied(changes, keeping.spool.write(changes)) == []
    assert [batch.seq for _ in range(3) for batch in written(keeping)] == list(range(1, 10))


@pytest.mark.parametrize("damaged", [1, 4, 9])
def test_the_ledger_closes_over_a_batch_that_could_not_be_read_back(tmp_path: Path, damaged: int) -> None:
    keeping = a_keeping(tmp_path / "spool")
    stream = put(keeping, 9)
    written(keeping)
    keeping.spool.close()
    flip(tmp_path / "spool", stream, damaged)
    again = a_keeping(tmp_path / "spool")
    log = EmbeddedLog.open(tmp_path / "log")
    while again.streams:
        changes = again.collect()
        for offer in again.applied(changes, again.spool.write(changes)):
            batch = offer.batch
            counts = (batch.received_us, batch.messages, batch.records)
            entry = LogEntry(offer.stream.id, batch.seq, "x", *counts, batch.payload, batch.account)
            assert log.append([("acme", entry)])[0].kind == "stored"
            again.acknowledged(offer.stream.id, batch)
    found = log.ledger("acme")
    assert found.closes, found.differences()
    assert (found.total.stored, dict(found.total.account.refused)) == (16, {DAMAGED: 2})

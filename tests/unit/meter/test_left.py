"""A stream that was left goes on under its numbers, or as another where nothing behind it would ever be stored."""

from pathlib import Path

import trio
from trio.testing import MockClock

from meter.keeping import Keeping
from meter.keeping_settings import KeepingSettings
from meter.left import LeftStream
from meter.spool import Spool
from meter.spooling import random_id
from sapflow.link import Batch, StreamId
from tests.unit.meter.test_intake import an_intake

LEFT = StreamId(b"left" * 4)
BATCHES = tuple(Batch(seq, 1, 2, 0, b"payload %d" % seq) for seq in (4, 5))


def a_keeping(path: Path) -> Keeping:
    return Keeping(Spool.open(path, spool_bytes=8 << 20), KeepingSettings(), random_id)


def turn(keeping: Keeping) -> list[int]:
    """One transaction: the numbers that may go to the link by it."""
    changes = keeping.collect()
    return [offer.batch.seq for offer in keeping.applied(changes, keeping.spool.write(changes))]


async def test_an_uplinks_stream_goes_on_with_what_was_not_durable(autojump_clock: MockClock) -> None:
    uplink = an_intake().uplink
    stream = uplink.resume_stream("acme", "x", LeftStream(LEFT, 5, 3, BATCHES))
    assert (stream.id, [batch.seq for batch in stream.outbox]) == (LEFT, [4, 5])
    held = uplink.unacknowledged_bytes
    assert held == sum(batch.size for batch in BATCHES)
    # It may be left again at once, with no less.
    assert stream.state() == LeftStream(LEFT, 5, 3, BATCHES)
    stream.leave()
    assert (uplink.unacknowledged_bytes, len(uplink.streams), len(stream.outbox)) == (0, 0, 0)
    await trio.lowlevel.checkpoint()


async def test_where_something_is_missing_that_is_not_durable_another_stream_begins(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """What is missing is in a spool that this process does not use, or is no more."""
    left = LeftStream(LEFT, 5, 3)
    stream = an_intake().uplink.resume_stream("acme", "x", left)
    assert (stream.id != LEFT, stream.outbox.last) == (True, 0)
    keeping = a_keeping(tmp_path)
    lane = keeping.resume("acme", "x", left, 0)
    assert not lane.streams
    keeping.spool.close()


def test_what_was_not_durable_of_a_stream_without_a_spool_goes_into_the_next_ones_spool(tmp_path: Path) -> None:
    keeping = a_keeping(tmp_path)
    lane = keeping.resume("acme", "x", LeftStream(LEFT, 5, 3, BATCHES), 0)
    assert turn(keeping) == [4, 5]
    (stream,) = lane.streams
    assert (stream.id, stream.last, stream.durable) == (LEFT, 5, 5)
    keeping.spool.close()

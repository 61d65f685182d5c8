"""What stands in a log twice is given once."""

from __future__ import annotations

from phloem.engine.repeats import Repeats
from sapflow.entry import LogEntry, encode_entry

STREAMS = [bytes([number]) * 16 for number in range(4)]


def entries(*numbers: int, stream: bytes = STREAMS[0]) -> list[tuple[int, bytes]]:
    return [(at, encode_entry(LogEntry(stream, seq, "x", 1, 1, 1, b""))[0]) for at, seq in enumerate(numbers, 1)]


def test_only_what_is_above_all_before_it_is_given() -> None:
    repeats = Repeats()
    stored = entries(5, 6, 6, 5, 7, 6, 7, 8)
    assert [position for position, _ in repeats.without(stored)] == [1, 2, 5, 8]
    assert repeats.dropped == 4
    assert repeats.without(entries(1, stream=STREAMS[1])) != []


def test_a_damaged_number_is_not_believed() -> None:
    repeats = Repeats()
    (_, data) = entries(1)[0]
    for at in range(8, 32):
        damaged = bytearray(data)
        damaged[at] ^= 0x80
        assert repeats.without([(1, bytes(damaged))]) == [(1, bytes(damaged))]
    assert len(repeats.without([(1, b"short"), (2, b"")])) == 2
    assert len(repeats.without(entries(1, 2))) == 2


def test_streams_heard_of_last_are_kept_within_the_bound() -> None:
    repeats = Repeats(max_streams=2)
    for stream in STREAMS[:3]:
        assert repeats.without(entries(1, stream=stream))
    assert not repeats.without(entries(1, stream=STREAMS[2]))
    assert repeats.without(entries(1, stream=STREAMS[0]))

"""The door first; without one, the collectors last known."""

from collections import Counter

from meter.targets import COLLECTOR_RETRY_S, DOOR, DOOR_FAILURES, DOOR_RETRY_S, Targets
from meter.uplink import UplinkSettings, UplinkStream
from sapflow.link import StreamId


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def some_streams(count: int) -> list[UplinkStream]:
    return [UplinkStream(StreamId(bytes([n]) * 16), "acme", "x", UplinkSettings(hello={})) for n in range(count)]


def without_a_door(clock: Clock, collectors: int = 4) -> Targets:
    targets = Targets("door:1", clock)
    targets.heard({f"c{n}": f"10.0.0.{n}:47" for n in range(collectors)}, all_of_them=True)
    for _ in range(DOOR_FAILURES):
        targets.failed(DOOR)
    return targets


def test_a_door_that_answers_is_used_whatever_else_is_known() -> None:
    targets = Targets("door:1", Clock())
    (stream,) = some_streams(1)
    targets.heard({"c1": "10.0.0.1:47"}, all_of_them=True)
    for _ in range(DOOR_FAILURES - 1):
        targets.failed(DOOR)
    assert targets.choose(stream).name == DOOR
    targets.welcomed(DOOR)
    targets.failed(DOOR)
    assert targets.choose(stream).address == "door:1"


def test_without_a_door_streams_are_spread_over_the_collectors_last_known() -> None:
    targets = without_a_door(Clock())
    counts = Counter(targets.choose(stream).address for stream in some_streams(40))
    assert len(counts) == 4
    assert max(counts.values()) <= 13


def test_a_collector_that_fails_is_left_out_for_a_while_and_only_its_streams_move() -> None:
    clock = Clock()
    targets = without_a_door(clock)
    streams = some_streams(20)
    before = {stream.id: targets.choose(stream).name for stream in streams}
    targets.failed("c1")
    for stream in streams:
        if before[stream.id] == "c1":
            assert targets.choose(stream).name != "c1"
    clock.now += COLLECTOR_RETRY_S
    assert "c1" in {targets.choose(stream).name for stream in some_streams(40)}


def test_the_door_is_tried_again_after_a_while() -> None:
    clock = Clock()
    targets = without_a_door(clock)
    (stream,) = some_streams(1)
    assert targets.choose(stream).name != DOOR
    clock.now += DOOR_RETRY_S
    assert targets.choose(stream).name == DOOR


def test_what_is_known_is_kept_and_found_again_and_nonsense_is_left_out() -> None:
    kept: list[str] = []
    targets = Targets("door:1", Clock(), changed=kept.append)
    targets.heard({"c1": "10.0.0.1:47", "bad": "no address", "worse": 7}, all_of_them=True)
    targets.heard({"c2": "10.0.0.2:47"}, all_of_them=False)
    targets.heard("nonsense", all_of_them=True)
    targets.heard({}, all_of_them=True)
    assert len(kept) == 2
    again = Targets("door:1", Clock())
    again.remember(kept[-1])
    assert again.collectors == {"c1": "10.0.0.1:47", "c2": "10.0.0.2:47"}
    again.heard({f"n{n}": "10.0.0.1:47" for n in range(1000)}, all_of_them=False)
    assert len(again.collectors) == 256

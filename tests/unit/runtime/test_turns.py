"""Lanes take turns: in order within one, and none waits behind all that another has queued."""

from hypothesis import given
from hypothesis import strategies as st

from sapflow.runtime.turns import Turns


def test_a_quiet_lane_waits_for_one_item_of_a_busy_one() -> None:
    turns: Turns[str] = Turns()
    for number in range(5):
        turns.put(f"busy-{number}", 10, "busy")
    turns.put("quiet-0", 1, "quiet")
    assert turns.take(11) == ["busy-0", "quiet-0"]
    turns.put("quiet-1", 1, "quiet")
    assert turns.take(11) == ["busy-1", "quiet-1"]
    assert turns.take(100) == ["busy-2", "busy-3", "busy-4"]
    assert (len(turns), turns.bytes, turns.take(1)) == (0, 0, [])


@given(
    st.lists(
        st.one_of(st.tuples(st.integers(0, 3), st.integers(0, 50)), st.integers(0, 120)),
        max_size=60,
    )
)
def test_every_item_comes_once_in_its_lanes_order_and_within_a_round(steps: list[tuple[int, int] | int]) -> None:
    turns: Turns[tuple[int, int]] = Turns()
    put: dict[int, list[tuple[int, int]]] = {}
    got: dict[int, list[tuple[int, int]]] = {}
    sizes: dict[tuple[int, int], int] = {}

    def take(limit: int) -> None:
        waiting = {lane for lane in put if len(put[lane]) > len(got.get(lane, []))}
        taken = turns.take(limit)
        assert bool(taken) == bool(waiting)
        assert len(taken) <= 1 or sum(sizes[item] for item in taken) <= limit
        # Nobody has a second turn before all have had one.
        assert {item[0] for item in taken[: len(waiting)]} <= waiting
        assert len({item[0] for item in taken[: len(waiting)]}) == min(len(taken), len(waiting))
        for item in taken:
            got.setdefault(item[0], []).append(item)

    for step in steps:
        if isinstance(step, int):
            take(step)
            continue
        lane, size = step
        item = (lane, len(put.setdefault(lane, [])))
        sizes[item] = size
        put[lane].append(item)
        turns.put(item, size, lane)
    while len(turns):
        take(100)
    assert got == put
    assert turns.bytes == 0

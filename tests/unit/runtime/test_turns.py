"""Lanes take turns: in order within one, and none waits behind all that another has queued."""

from hypothesis import given
from hypothesis import strategies as st

from sapflow.runtime.turns import Turns


def test_a_quiet_lane_waits_for_nothing_of_a_busy_one() -> None:
    turns: Turns[str] = Turns()
    for number in range(6):
        turns.put(f"busy-{number}", 10, "busy")
    assert (turns.take(1), turns.has_fresh, turns.has_backlog) == (["busy-0"], False, True)
    turns.put("quiet-0", 1, "quiet")
    assert turns.take(11) == ["quiet-0", "busy-1"]
    turns.put("quiet-1", 1, "quiet")
    assert turns.take_fresh(11) == ["quiet-1"]
    assert (turns.take_fresh(11), turns.lone) == ([], 2)
    assert turns.take(100) == ["busy-2", "busy-3", "busy-4", "busy-5"]
    assert (len(turns), turns.bytes, turns.take(1)) == (0, 0, [])
    assert not turns.has_fresh
    assert not turns.has_backlog


def test_a_backlog_gets_on_however_many_others_come() -> None:
    turns: Turns[str] = Turns()
    for number in range(3):
        turns.put(f"busy-{number}", 10, "busy")
    turns.take(1)
    for number in range(2):
        for lane in range(5):
            turns.put("quiet", 1, (number, lane))
        assert turns.take(3) == ["quiet"] * 3 + [f"busy-{number + 1}"]


@given(
    st.lists(
        st.one_of(st.tuples(st.integers(0, 3), st.integers(0, 50)), st.tuples(st.booleans(), st.integers(0, 120))),
        max_size=60,
    )
)
def test_every_item_comes_once_in_its_lanes_order_and_within_a_round(
    steps: list[tuple[int, int] | tuple[bool, int]],
) -> None:
    turns: Turns[tuple[int, int]] = Turns()
    queues: dict[int, list[tuple[int, int]]] = {}
    fresh: list[int] = []
    backlog: set[int] = set()
    sizes: dict[tuple[int, int], int] = {}
    counts = [0] * 4
    got: list[list[tuple[int, int]]] = [[], [], [], []]

    def take(limit: int, only_fresh: bool) -> None:
        before, waiting = set(backlog), list(fresh)
        taken = turns.take_fresh(limit) if only_fresh else turns.take(limit)
        assert bool(taken) == bool(waiting or (before and not only_fresh))
        first = [item[0] for item in taken[: len(waiting)]]
        turned = first if not before else [lane for lane in first if lane in waiting]
        assert turned == waiting[: len(turned)], "in the order that they came in"
        if len(turned) < len(waiting):
            # The others had no room, and nobody has a second turn before them but for one of the backlog.
            assert len(taken) <= len(turned) + bool(before and not only_fresh)
        if before and not only_fresh:
            assert any(item[0] in before for item in taken)
        # All but the one of each kind that comes in any case.
        assert sum(sorted(sizes[item] for item in taken)[:-2]) <= limit
        for lane in turned:
            fresh.remove(lane)
        for item in taken:
            queues[item[0]].remove(item)
            got[item[0]].append(item)
        for lane in range(4):
            backlog.discard(lane)
            if queues.get(lane) and lane not in fresh:
                backlog.add(lane)
        assert (turns.has_fresh, turns.has_backlog) == (bool(fresh), bool(backlog))

    for what, size in steps:
        if isinstance(what, bool):
            take(size, what)
            continue
        item = (what, counts[what])
        counts[what] += 1
        sizes[item] = size
        if not queues.setdefault(what, []):
            fresh.append(what)
        queues[what].append(item)
        turns.put(item, size, what)
    while len(turns):
        take(100, only_fresh=False)
    assert got == [[(lane, number) for number in range(counts[lane])] for lane in range(4)]
    assert turns.bytes == 0

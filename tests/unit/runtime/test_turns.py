"""Lanes take turns: in order within one, and none waits behind all that another has queued."""

from hypothesis import given
from hypothesis import strategies as st

from sapflow.runtime.turns import Turns


def test_a_quiet_lane_waits_for_nothing_of_a_busy_one() -> None:
    turns: Turns[str] = Turns(10)
    for number in range(6):
        turns.put(f"busy-{number}", 10, "busy")
    assert (turns.take(1), turns.has_fresh, turns.has_backlog) == (["busy-0"], False, True)
    turns.put("quiet-0", 1, "quiet")
    assert turns.take(11) == ["quiet-0", "busy-1"]
    turns.put("quiet-1", 1, "quiet")
    assert turns.take_fresh(11) == ["quiet-1"]
    assert (turns.take_fresh(11), turns.brief) == ([], 2)
    assert turns.take(100, of_backlog_bytes=0) == ["busy-2"]
    assert turns.take(100) == ["busy-3", "busy-4", "busy-5"]
    assert (len(turns), turns.bytes, turns.take(1)) == (0, 0, [])
    assert not turns.has_fresh
    assert not turns.has_backlog


def test_a_lane_s_turn_is_so_many_bytes_and_not_one_item() -> None:
    turns: Turns[str] = Turns(10)
    for number in range(5):
        turns.put(f"small-{number}", 3, "small")
        turns.put(f"large-{number}", 12, "large")
    assert turns.take(30) == ["small-0", "small-1", "small-2", "large-0", "small-3", "small-4"]
    assert turns.take(100, of_backlog_bytes=1) == ["large-1"]
    assert turns.brief == 0


def test_who_is_alone_is_not_told_from_itself() -> None:
    turns: Turns[str] = Turns(10)
    turns.put("first", 10, "one")
    turns.take(100)
    for _ in range(3):
        turns.put("more", 10, "one")
    turns.take(1)
    assert (turns.has_backlog, turns.brief) == (True, 0)


def test_a_backlog_gets_on_however_many_others_come() -> None:
    turns: Turns[str] = Turns(10)
    for number in range(3):
        turns.put(f"busy-{number}", 10, "busy")
    turns.take(1)
    for number in range(2):
        for lane in range(5):
            turns.put("quiet", 1, (number, lane))
        assert turns.take(3) == ["quiet"] * 3 + [f"busy-{number + 1}"]


def test_a_fresh_lane_that_had_no_room_for_its_turn_is_no_backlog() -> None:
    turns: Turns[str] = Turns(10)
    turns.put("first", 8, "one")
    for number in range(2):
        turns.put(f"small-{number}", 4, "other")
    assert turns.take(12) == ["first", "small-0"]
    assert (turns.has_fresh, turns.has_backlog) == (True, False)
    assert turns.take(12) == ["small-1"]


@given(
    st.lists(
        st.one_of(st.tuples(st.integers(0, 3), st.integers(0, 50)), st.tuples(st.booleans(), st.integers(0, 120))),
        max_size=60,
    )
)
def test_every_item_comes_once_in_its_lanes_order_and_nobody_is_passed_by(
    steps: list[tuple[int, int] | tuple[bool, int]],
) -> None:
    turns: Turns[tuple[int, int]] = Turns(30)
    queues: dict[int, list[tuple[int, int]]] = {lane: [] for lane in range(4)}
    sizes: dict[tuple[int, int], int] = {}
    untouched: set[int] = set()
    """Lanes that were empty, and gave nothing since: fresh for sure."""
    counts = [0] * 4

    def take(limit: int, only_fresh: bool = False) -> list[int]:
        had_fresh, had_backlog = turns.has_fresh, turns.has_backlog
        taken = turns.take_fresh(limit) if only_fresh else turns.take(limit)
        assert bool(taken) == (had_fresh or (had_backlog and not only_fresh))
        total, largest = sum(sizes[item] for item in taken), sorted(sizes[item] for item in taken)[-2:]
        assert total <= limit + limit // 4 + sum(largest)
        lanes = [item[0] for item in taken]
        if had_fresh and untouched - set(lanes):
            assert total + 50 > limit, "who is fresh is passed by for want of room only"
        if not had_fresh and not only_fresh:
            assert not untouched
        for item in taken:
            assert queues[item[0]].pop(0) == item
        untouched.difference_update(lanes)
        assert turns.bytes == sum(sizes[item] for items in queues.values() for item in items)
        assert len(turns) == sum(map(len, queues.values()))
        assert (turns.has_fresh or turns.has_backlog) == bool(len(turns))
        return lanes

    for what, size in steps:
        if isinstance(what, bool):
            take(size, what)
            continue
        item = (what, counts[what])
        counts[what] += 1
        sizes[item] = size
        if not queues[what]:
            untouched.add(what)
        queues[what].append(item)
        turns.put(item, size, what)
    while len(turns):
        waiting = {lane for lane, items in queues.items() if items}
        served = [lane for _ in range(2 * len(waiting)) for lane in take(1)]
        assert set(served) == waiting, "nobody waits for more than a round"

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


TURN_BYTES = 30


@given(
    st.lists(
        st.one_of(st.tuples(st.integers(0, 3), st.integers(0, 50)), st.tuples(st.booleans(), st.integers(0, 120))),
        max_size=60,
    )
)
def test_every_item_comes_once_in_its_lanes_order_and_within_a_round(
    steps: list[tuple[int, int] | tuple[bool, int]],
) -> None:
    turns: Turns[tuple[int, int]] = Turns(TURN_BYTES)
    queues: dict[int, list[tuple[int, int]]] = {}
    fresh: list[int] = []
    backlog: list[int] = []
    sizes: dict[tuple[int, int], int] = {}
    counts = [0] * 4
    got: list[list[tuple[int, int]]] = [[], [], [], []]

    def a_turn_of(lane: int, taken: list[tuple[int, int]]) -> int:
        """What of `taken` is the turn of that lane: its first items, within what a turn may be."""
        size = 0
        for index, item in enumerate(taken):
            if item[0] != lane or (index and size + sizes[item] > TURN_BYTES):
                return index
            size += sizes[item]
        return len(taken)

    def take(limit: int, only_fresh: bool) -> None:
        due = [(lane, True) for lane in fresh] + [(lane, False) for lane in backlog if not only_fresh]
        taken = turns.take_fresh(limit) if only_fresh else turns.take(limit)
        assert bool(taken) == bool(due)
        rest, guaranteed, turned = list(taken), 0, []
        while rest:
            lane = rest[0][0]
            count = a_turn_of(lane, rest)
            turned.append(lane)
            if len(turned) == 1 or (lane in backlog and not set(turned[:-1]) & set(backlog)):
                guaranteed += max(TURN_BYTES, sizes[rest[0]])
            rest = rest[count:]
        # In the order that they waited in; who of the fresh had no room is passed by for one turn of the backlog.
        had = [lane for lane in turned[: len(due)] if (lane, True) in due]
        assert had == [lane for lane, is_fresh in due if is_fresh][: len(had)]
        if backlog and not only_fresh:
            assert any(lane in backlog for lane in turned)
            assert len(had) == len(fresh) or len(turned) == len(had) + 1
        elif len(had) < len(fresh):
            assert turned == had
        assert sum(sizes[item] for item in taken) <= limit + guaranteed
        for item in taken:
            assert queues[item[0]].pop(0) == item
            got[item[0]].append(item)
        for lane in had:
            fresh.remove(lane)
        for lane in turned:
            if lane in backlog:
                backlog.remove(lane)
            if queues[lane] and lane not in fresh:
                backlog.append(lane)
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

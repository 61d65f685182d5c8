"""Rebalancing: what moves, and that it comes to rest, from any state, with noise, and with several balancers."""

import random
from collections import Counter
from collections.abc import Iterable

from attrs import define, evolve, field
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.rebalancing import CollectorLoad, Move, Rebalancing, RebalancingSettings, StreamLoad

MB = 1e6
ONE_ROUND = RebalancingSettings()


def a_stream(number: int, collector: str, rate: float = MB, *, org: str = "", movable: bool = True) -> StreamLoad:
    return StreamLoad(number.to_bytes(16, "big"), org or f"org{number}", collector, rate, movable)


def loads_of(streams: list[StreamLoad], names: list[str], **unfit: str) -> list[CollectorLoad]:
    rates: Counter[str] = Counter()
    for stream in streams:
        rates[stream.collector] += stream.rate  # type: ignore[assignment]
    return [CollectorLoad(name, rates[name], unfit.get(name, "")) for name in names]


def a_rebalancing(**changes: float) -> Rebalancing:
    return Rebalancing(evolve(ONE_ROUND, **changes), random.Random(1).random)


def after(moves: list[Move], streams: list[StreamLoad]) -> list[StreamLoad]:
    where = {move.stream: move.destination for move in moves}
    return [evolve(stream, collector=where.get(stream.id, stream.collector)) for stream in streams]


def ratio(streams: list[StreamLoad], names: list[str]) -> float:
    rates = [load.rate for load in loads_of(streams, names)]
    return max(rates) * len(rates) / sum(rates)


def test_one_that_came_back_empty_gets_half_of_its_part_in_the_first_round() -> None:
    names = ["c1", "c2", "c3"]
    streams = [a_stream(number, f"c{number % 2 + 1}") for number in range(60)]
    moves = a_rebalancing().decide(loads_of(streams, names), streams, 0.0)
    assert Counter(stream.collector for stream in after(moves, streams)) == {"c1": 25, "c2": 25, "c3": 10}
    assert moves[0].reason == (
        "c1 has 1.50 times the mean of 20,000,000 B/s, c3 0.00 times; this stream brings 1,000,000 B/s"
    )


def test_between_the_two_thresholds_nothing_begins_and_what_has_begun_goes_on() -> None:
    rebalancing = a_rebalancing()
    streams = [a_stream(number, "c1") for number in range(6)] + [a_stream(9 + number, "c2") for number in range(4)]
    loads = [CollectorLoad("c1", 6.0 * MB), CollectorLoad("c2", 4.0 * MB)]
    assert rebalancing.decide(loads, streams, 0.0) == []
    more = [CollectorLoad("c1", 6.5 * MB), CollectorLoad("c2", 3.5 * MB)]
    assert len(rebalancing.decide(more, streams, 1.0)) == 1
    assert len(rebalancing.decide(loads, streams, 20.0)) == 1
    assert rebalancing.active
    assert rebalancing.decide([CollectorLoad("c1", 5.2 * MB), CollectorLoad("c2", 4.8 * MB)], streams, 40.0) == []
    assert not rebalancing.active


def test_nothing_is_decided_before_reports_show_what_a_round_did() -> None:
    rebalancing = a_rebalancing()
    streams = [a_stream(number, "c1") for number in range(10)]
    loads = loads_of(streams, ["c1", "c2"])
    assert rebalancing.decide(loads, streams, 0.0)
    assert rebalancing.decide(loads, streams, 3.9) == []


def test_nothing_goes_to_one_that_is_unfit_nor_past_what_a_new_one_may_have() -> None:
    streams = [a_stream(number, "c1") for number in range(30)]
    loads = loads_of(streams, ["c1", "c2", "c3"], c2="its loop is 3.0 s late")
    loads[2] = evolve(loads[2], ramp=0.3)
    moves = a_rebalancing().decide(loads, streams, 0.0)
    assert Counter(move.destination for move in moves) == {"c3": 1}
    assert a_rebalancing().decide([*loads[:2], evolve(loads[2], ramp=0.1, rate=MB)], streams, 0.0) == []


def test_an_org_on_two_collectors_is_not_brought_onto_one() -> None:
    streams = [a_stream(1, "c1", org="acme"), a_stream(2, "c2", org="acme")]
    streams += [a_stream(3, "c1", 3 * MB, org="globex", movable=False)]
    assert a_rebalancing().decide(loads_of(streams, ["c1", "c2"]), streams, 0.0) == []
    three = a_rebalancing().decide(loads_of(streams, ["c1", "c2", "c3"]), streams, 0.0)
    assert [(move.org, move.destination) for move in three] == [("acme", "c3")]


def test_a_stream_larger_than_what_is_too_much_moves_only_when_both_ends_are_the_better_for_it() -> None:
    one = [a_stream(1, "c1", 10 * MB)]
    assert a_rebalancing().decide(loads_of(one, ["c1", "c2"]), one, 0.0) == []
    two = [*one, a_stream(2, "c1", 7 * MB)]
    assert [move.stream for move in a_rebalancing().decide(loads_of(two, ["c1", "c2"]), two, 0.0)] == [two[1].id]
    crossing = [a_stream(1, "c1", 6 * MB), a_stream(2, "c1", 5 * MB), a_stream(3, "c2", 1 * MB)]
    moves = a_rebalancing().decide(loads_of(crossing, ["c1", "c2"]), crossing, 0.0)
    assert [move.stream for move in moves] == [crossing[1].id]


def test_the_bytes_moved_in_a_minute_are_bounded() -> None:
    rebalancing = a_rebalancing(bytes_per_minute=4.5 * 60 * MB)
    streams = [a_stream(number, "c1") for number in range(40)]
    moved = 0
    for now in range(0, 121, 10):
        moves = rebalancing.decide(loads_of(streams, ["c1", "c2"]), streams, float(now))
        streams = after(moves, streams)
        moved += len(moves)
        assert moved <= 4 * (1 + now // 60)
    assert moved == 12


def test_a_meter_that_stays_is_asked_again_after_longer_and_longer_and_after_others() -> None:
    rebalancing = a_rebalancing()
    stubborn, other = a_stream(1, "c1", 2 * MB), a_stream(2, "c1", 1.5 * MB)
    rest = [a_stream(3, "c1", 3 * MB, movable=False)]
    asked = []
    for now in range(300):
        moves = rebalancing.decide(loads_of([stubborn, *rest], ["c1", "c2"]), [stubborn, *rest], float(now))
        asked += [now for _ in moves]
    assert asked == [0, 15, 45, 90, 150, 225]
    streams = [stubborn, other, *rest]
    assert next(one.stream for one in rebalancing.decide(loads_of(streams, ["c1", "c2"]), streams, 400.0)) == other.id


def test_a_stream_whose_new_collector_died_does_not_rest_where_it_was_placed_anew() -> None:
    rebalancing = a_rebalancing()
    streams = [a_stream(number, "c1") for number in range(10)]
    moves = rebalancing.decide(loads_of(streams, ["c1", "c2", "c3"]), streams, 0.0)
    gone = {move.stream for move in moves if move.destination == "c2"}
    assert gone
    elsewhere = [evolve(one, collector="c3") if one.id in gone else one for one in after(moves, streams)]
    assert all(rebalancing.rests(one, 30.0) for one in after(moves, streams) if one.collector != "c1")
    assert not any(rebalancing.rests(one, 30.0) for one in elsewhere if one.id in gone)


def test_while_all_have_little_nothing_is_moved() -> None:
    streams = [a_stream(number, "c1", 1000.0) for number in range(10)]
    assert a_rebalancing().decide(loads_of(streams, ["c1", "c2"]), streams, 0.0) == []


# --- many rounds ----------------------------------------------------------------------------------------------------

RATES = st.floats(min_value=1e5, max_value=2e7)


@define
class World:
    """Streams on collectors as they really are, and what balancers see of them: late, and with noise."""

    names: list[str]
    streams: dict[bytes, StreamLoad]
    owner: dict[bytes, int]
    balancers: list[Rebalancing]
    dice: random.Random
    noise: float = 0.0
    stale_s: int = 0
    moved: list[tuple[float, Move]] = field(factory=list)
    _past: list[dict[bytes, str]] = field(factory=list)

    def run(self, seconds: int) -> None:
        for now in range(seconds):
            self._past.append({one.id: one.collector for one in self.streams.values()})
            for number in self.dice.sample(range(len(self.balancers)), len(self.balancers)):
                self._step(number, float(now))

    def _step(self, number: int, now: float) -> None:
        where = self._past[max(0, len(self._past) - 1 - self.dice.randint(0, self.stale_s))]
        noise, dice, owner = self.noise, self.dice, self.owner
        seen = [
            StreamLoad(
                one.id, one.org, where[one.id], one.rate * dice.uniform(1 - noise, 1 + noise), owner[one.id] == number
            )
            for one in self.streams.values()
        ]
        loads = loads_of(seen, self.names)
        for move in self.balancers[number].decide(loads, seen, now, balancers=len(self.balancers)):
            self.moved.append((now, move))
            self.streams[move.stream] = evolve(self.streams[move.stream], collector=move.destination)

    @property
    def ratio(self) -> float:
        return ratio(list(self.streams.values()), self.names)

    @property
    def largest_in_means(self) -> float:
        """The largest stream in multiples of the mean load: nothing can be evened out finer than that."""
        rates = [one.rate for one in self.streams.values()]
        return max(rates) * len(self.names) / sum(rates)

    def check_cooldown(self) -> None:
        last: dict[bytes, float] = {}
        for at, move in self.moved:
            assert at - last.get(move.stream, -1e9) >= ONE_ROUND.cooldown_s, (at, move)
            last[move.stream] = at


def a_world(
    rates: list[float], places: list[int], collectors: int, seed: int, *, balancers: int = 1, noise: float = 0.0
) -> World:
    names = [f"c{number}" for number in range(collectors)]
    streams = [
        a_stream(number, names[place % collectors], rate, org=f"org{number % 5}")
        for number, (rate, place) in enumerate(zip(rates, places, strict=False))
    ]
    dice = random.Random(seed)
    return World(
        names,
        {one.id: one for one in streams},
        {one.id: dice.randrange(balancers) for one in streams},
        [Rebalancing(ONE_ROUND, random.Random(seed + number).random) for number in range(balancers)],
        dice,
        noise,
        stale_s=3 if balancers > 1 else 0,
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(RATES, min_size=4, max_size=120),
    st.lists(st.integers(0, 7), min_size=120, max_size=120),
    st.integers(2, 8),
    st.integers(0, 1000),
)
def test_from_any_state_and_any_weights_it_comes_to_rest(
    rates: list[float], places: list[int], collectors: int, seed: int
) -> None:
    world = a_world(rates, places, collectors, seed)
    before = world.ratio
    world.run(120)
    settled = len(world.moved)
    world.run(120)
    assert world.ratio <= max(before, 1.0) + 1e-9
    assert len(world.moved) <= len(rates)
    assert len(world.moved) == settled
    # A mean's part, or as far as the grain of the streams and the width of orgs allow.
    assert world.ratio <= max(1.25, 1 + world.largest_in_means) + 1e-9
    world.check_cooldown()


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 8), st.integers(1, 4), st.integers(0, 10_000), st.sampled_from([0.0, 0.2, 0.5]))
def test_half_a_minute_after_a_join_all_have_their_part_though_reports_are_late_and_noisy(
    collectors: int, balancers: int, seed: int, noise: float
) -> None:
    dice = random.Random(seed)
    rates = [dice.uniform(0.2, 1.8) * MB for _ in range(30 * collectors)]
    places = [dice.randrange(collectors - 1) for _ in rates]
    world = a_world(rates, places, collectors, seed, balancers=balancers, noise=noise)
    world.run(31)
    assert world.ratio <= 1.25
    settled = len(world.moved)
    world.run(200)
    assert world.ratio <= 1.25
    assert len(world.moved) - settled <= len(rates) // 10
    world.check_cooldown()


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 5), st.integers(0, 10_000))
def test_balancers_that_do_not_know_of_each_other_come_to_rest_too(collectors: int, seed: int) -> None:
    """Each believes to be alone, and moves all that is too much."""
    dice = random.Random(seed)
    rates = [dice.uniform(0.5, 1.5) * MB for _ in range(50 * collectors)]
    world = a_world(rates, [0] * len(rates), collectors, seed, balancers=2)
    world.balancers = [_Alone(ONE_ROUND, random.Random(seed + n).random) for n in range(2)]
    world.run(60)
    assert world.ratio <= 1.25
    assert len(world.moved) <= len(rates)
    settled = len(world.moved)
    world.run(120)
    assert len(world.moved) == settled
    world.check_cooldown()


class _Alone(Rebalancing):
    def decide(
        self, collectors: Iterable[CollectorLoad], streams: Iterable[StreamLoad], now: float, *, balancers: int = 1
    ) -> list[Move]:
        return super().decide(collectors, streams, now)

"""What the coordinator in ZooKeeper rests on: nodes' names, who claims what, and for how long a claim is acted on."""

import random
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from sapflow.cluster.acting import Acting
from sapflow.cluster.growth import Growth
from sapflow.cluster.handover import OFFER_S
from sapflow.cluster.paths import Paths, decode, encode
from sapflow.cluster.reconciler import PATIENCE_S, Reconciler
from sapflow.cluster.shares import IDLE_BYTES_PER_S, MEASURE_S, Shares, Told, told_in

PATHS = Paths("test")


def orgs(number: int) -> list[str]:
    return [f"org-{index}" for index in range(number)]


# Names.


@given(st.text(), st.text())
def test_two_names_are_never_one_node(one: str, other: str) -> None:
    assert decode(encode(one)) == one
    assert (encode(one) == encode(other)) == (one == other)
    assert "/" not in encode(one)
    assert encode(one) not in ("", ".", "..")


def test_names_that_others_confuse_stay_apart() -> None:
    names = ["a.b", "a_b", "a-b", "a/b", "a%2Fb", "a%2fb", "A.B", ".", "..", "", "%", "\x00", "\ud800", "é", "e\u0301"]
    names += ["x" * 249, "x" * 250, "." * 249]
    assert len({encode(name) for name in names}) == len(names)
    assert len({PATHS.claim(name) for name in names} | {PATHS.peg(name) for name in names}) == 2 * len(names)


@pytest.mark.parametrize("node", ["a b", "a%2fb", "a.b", "%FF", "%zz", "%41"])
def test_a_node_that_is_no_names_is_nobodys(node: str) -> None:
    assert decode(node) is None


# What to claim.


def a_reconciler(name: str = "p1", max_bytes: int = 900_000) -> Reconciler:
    return Reconciler(name, 10, random.Random(1), max_bytes)


def told(wanted: int = 0, held: int = 0, weight: float | None = None, **more: Any) -> Told:
    return Told(wanted, held, held * IDLE_BYTES_PER_S if weight is None else weight, **more)


def claim_all(reconciler: Reconciler, now: float = 0.0, budget: int = 1000) -> None:
    for org in reconciler.plan(budget, now).claim:
        reconciler.own(org, now)


def test_a_member_claims_its_share_and_a_tenth_of_what_all_want() -> None:
    reconciler = a_reconciler()
    reconciler.wanted |= set(orgs(100))
    reconciler.hear({"p2": None}, {}, 0)
    assert len(reconciler.plan(1000, 0).claim) == 55
    reconciler.hear({"p2": told(wanted=300)}, {}, 0)
    assert len(reconciler.plan(1000, 0).claim) == 100, "another wants 300: a share is 150"
    reconciler.hear({"p2": None, "p3": None, "p4": None}, {}, 0)
    assert len(reconciler.plan(1000, 0).claim) == 27


def test_alone_it_claims_everything_at_its_pace() -> None:
    reconciler = a_reconciler()
    reconciler.wanted |= set(orgs(100))
    reconciler.hear({}, {}, 0)
    plan = reconciler.plan(30, 0)
    assert (len(plan.claim), plan.more) == (30, True)
    for org in plan.claim:
        reconciler.own(org, 0)
    plan = reconciler.plan(70, 0)
    assert (len(plan.claim), plan.more) == (70, False)
    assert reconciler.plan(0, 0).claim == ()


def test_an_org_that_brings_much_counts_for_many() -> None:
    reconciler = a_reconciler()
    reconciler.wanted |= set(orgs(40))
    for org in orgs(10):
        reconciler.own(org, 0)
    reconciler.hear({"p2": told(wanted=40)}, {"org-0": 1e6}, MEASURE_S)
    assert reconciler.plan(1000, MEASURE_S).claim == (), "its share is one elephant"
    reconciler.hear({"p2": told(wanted=40, held=1, weight=1e6)}, {"org-0": 1e3}, MEASURE_S)
    assert len(reconciler.plan(1000, MEASURE_S).claim) > 20


def test_orgs_claimed_moments_ago_weigh_what_the_typical_one_does_until_measured() -> None:
    shares = Shares()
    mine = {"a", "b"}
    for org in mine:
        shares.claimed(org, 0)
    peers: dict[str, Told | None] = {"p2": told(wanted=5, held=3, weight=90_000.0, typical=4000.0)}
    shares.measure({}, mine, 4, peers, 1)
    assert (shares.of("a"), shares.weight) == (4000.0, 8000.0)
    shares.measure({"a": 500.0}, mine, 4, peers, 2)
    assert shares.of("a") == 1500.0
    shares.measure({"a": 500.0}, mine, 4, peers, 31)
    assert (shares.of("b"), shares.weight) == (IDLE_BYTES_PER_S, 2500.0)


def test_work_stays_where_it_was_when_a_session_begins_anew() -> None:
    reconciler = a_reconciler()
    reconciler.wanted |= set(orgs(20))
    reconciler.hear({"p2": told(wanted=20, held=10)}, {}, 0)
    claim_all(reconciler)
    had = set(reconciler.mine)
    reconciler.disown_all()
    reconciler.claimed.clear()
    reconciler.hear({"p2": told(wanted=20)}, {}, 1)
    claim_all(reconciler, 1)
    assert reconciler.mine >= had


def test_what_nobody_else_wants_is_claimed_after_a_whole_round_of_patience() -> None:
    reconciler = a_reconciler()
    reconciler.wanted |= set(orgs(10))
    reconciler.hear({"p2": told(wanted=5)}, {}, 0)
    claim_all(reconciler, 0)
    assert len(reconciler.mine) == 5
    claim_all(reconciler, PATIENCE_S - 1)
    assert len(reconciler.mine) == 5
    claim_all(reconciler, PATIENCE_S)
    assert len(reconciler.mine) == 10


def test_the_claims_of_a_session_fit_in_one_transaction() -> None:
    reconciler = a_reconciler(max_bytes=10 * 15)
    reconciler.wanted |= set(orgs(10))
    reconciler.wanted |= {"much-longer-than-the-others"}
    reconciler.hear({}, {}, 0)
    plan = reconciler.plan(100, 0)
    assert plan.full
    for org in plan.claim:
        reconciler.own(org, 0)
    assert 100 < reconciler.mine_bytes <= 150
    assert reconciler.plan(100, 0).claim == ()
    reconciler.disown(plan.claim[0])
    assert reconciler.mine_bytes <= 135


def test_a_pegged_org_is_its_members_alone_and_beyond_its_share() -> None:
    reconciler = a_reconciler()
    reconciler.wanted |= {"a", "b", "c", "d", "e"}
    reconciler.hear({"p2": None}, {}, 0)
    reconciler.own("d", 0)
    reconciler.pegs = {"a": "p1", "b": "p1", "c": "p2", "d": "p2", "unwanted": "p1"}
    plan = reconciler.plan(100, 0)
    assert {"a", "b"} <= set(plan.claim)
    assert "c" not in plan.claim
    assert plan.release == (), "not before p2 works on it"
    assert reconciler.handover.told() == {"d": "p2"}


def test_a_peg_blocks_nobody_where_its_member_is_not_there_or_does_not_want_the_org() -> None:
    reconciler = a_reconciler()
    reconciler.wanted |= {"a", "b"}
    reconciler.pegs = {"a": "gone", "b": "p2"}
    reconciler.hear({"p2": told(wanted=0)}, {}, 0)
    assert reconciler.plan(100, 0).claim == ("a",)
    reconciler.own("a", 0)
    assert reconciler.plan(100, PATIENCE_S).claim == ("b",), "p2 had its time"


# Handing over.


def an_owner(number: int = 20) -> Reconciler:
    owner = a_reconciler()
    for org in orgs(number):
        owner.wanted.add(org)
        owner.own(org, 0)
    return owner


def offered(owner: Reconciler, peers: dict[str, Told | None], rates: dict[str, float] | None = None) -> dict[str, str]:
    owner.hear(peers, rates or {}, MEASURE_S)
    owner.plan(100, MEASURE_S)
    return owner.handover.told()


def test_one_that_has_too_much_offers_as_much_as_another_lacks() -> None:
    assert offered(an_owner(), {"p2": None}) == {}, "p2 has told nothing yet"
    assert offered(an_owner(), {"p2": told(wanted=20, held=12)}) == {}, "even enough"
    assert offered(an_owner(), {"p2": told(wanted=0)}) == {}, "p2 wants none"
    found = offered(an_owner(), {"p2": told(wanted=20)})
    assert len(found) == 9, "down to its own limit of 11"
    assert set(found.values()) == {"p2"}
    both = offered(an_owner(), {"p2": told(wanted=20), "p3": told(wanted=20)})
    assert sorted(map([*both.values()].count, ("p2", "p3"))) == [6, 7]


def test_by_weight_the_small_ones_leave_the_elephant_alone() -> None:
    owner = an_owner(5)
    found = offered(owner, {"p2": told(wanted=6)}, {"org-0": 1e6})
    assert set(found) == {"org-1", "org-2", "org-3", "org-4"}


def test_an_org_is_not_moved_where_that_makes_it_worse() -> None:
    assert offered(an_owner(1), {"p2": told(wanted=1)}) == {}
    pair = {"org-0": 8e6, "org-1": 7e6}
    assert offered(an_owner(2), {"p2": told(wanted=3, held=1, weight=5e6)}, pair) == {"org-1": "p2"}
    assert offered(an_owner(2), {"p2": told(wanted=3, held=1, weight=9e6)}, pair) == {}


def test_the_old_owner_lets_go_only_when_the_new_one_works_and_nobody_else_takes_it_in_between() -> None:
    owner, taker, third = an_owner(4), a_reconciler("p2"), a_reconciler("p3")
    others = {"p2": told(wanted=4), "p3": told(wanted=4, held=4)}
    (org, *_) = offered(owner, others)
    for one in (taker, third):
        one.wanted |= set(orgs(4))
        one.claimed |= set(orgs(4))
        one.hear({"p1": told_in(owner.tell(lambda _: True))}, {}, 1)
    assert org in taker.incoming
    assert third.incoming == frozenset()
    assert told_in(taker.tell(lambda _: False)) == told(wanted=4), "not begun"
    assert owner.plan(0, 1).release == ()
    owner.hear(others | {"p2": told_in(taker.tell(lambda _: True))}, {}, 2)
    assert org in owner.plan(0, 2).release
    owner.disown(org)
    for one in (owner, taker, third):
        one.claimed.discard(org)
    assert org not in owner.plan(100, 2).claim
    assert org not in third.plan(100, 2).claim
    assert org in taker.plan(100, 2).claim
    assert org in owner.handover.told(), "until it is claimed, so that the taker goes on"
    taker.own(org, 3)
    assert org not in taker.incoming
    owner.hear(others | {"p2": told_in(taker.tell(lambda _: True))}, {}, 3)
    owner.plan(0, 3)
    assert org not in owner.handover.told()


def test_what_is_offered_beyond_its_share_is_not_taken_but_for_its_pegs() -> None:
    taker = a_reconciler("p3")
    taker.wanted |= set(orgs(20))
    taker.claimed |= set(orgs(20))
    names = sorted(orgs(20))
    one = told(wanted=20, held=10, offers=dict.fromkeys(names[:7], "p3"))
    two = told(wanted=20, held=10, offers=dict.fromkeys(names[7:14], "p3"))
    taker.hear({"p1": one, "p2": two}, {}, 0)
    assert taker.incoming == set(names[:7])
    taker.pegs = {names[13]: "p3"}
    taker.hear({"p1": one, "p2": two}, {}, 1)
    assert taker.incoming == {*names[:7], names[13]}


def test_an_offer_that_nobody_takes_changes_nothing_and_is_withdrawn() -> None:
    owner = an_owner()
    peers: dict[str, Told | None] = {"p2": told(wanted=20)}
    before = set(offered(owner, peers))
    owner.hear(peers, {}, MEASURE_S + OFFER_S)
    owner.plan(0, MEASURE_S + OFFER_S)
    assert owner.mine == set(orgs(20))
    assert not before & set(owner.handover.told()), "others have their turn"
    owner.hear({}, {}, MEASURE_S + OFFER_S + 1)
    owner.plan(0, MEASURE_S + OFFER_S + 1)
    assert owner.handover.told() == {}, "whom they were offered to is no more"


@given(st.integers(2, 5), st.integers(0, 60), st.integers(0, 1 << 30))
def test_one_that_leaves_hands_over_all_it_has_and_is_worked_on_throughout(
    members: int, number: int, seed: int
) -> None:
    rng = random.Random(seed)
    names = [f"p{index}" for index in range(members)]
    everyone = {name: Reconciler(name, 10, random.Random(rng.random())) for name in names}
    leaver = everyone["p0"]
    reports: dict[str, Told | None] = {}
    for one in everyone.values():
        one.wanted |= set(orgs(number))
        one.pegs = {"org-0": "p0"}
    worked_on: set[str] = set()
    for tick in range(140):
        leaver.is_leaving = tick >= 80
        for name in rng.sample(names, members):
            mine = everyone[name]
            mine.claimed = set().union(*(other.mine for other in everyone.values()))
            mine.hear({other: reports.get(other) for other in names if other != name}, {}, tick)
            plan = mine.plan(10, tick)
            for org in plan.release:
                mine.disown(org)
            for org in plan.claim:
                mine.own(org, tick)
            reports[name] = told_in(mine.tell(lambda _: True))
        working = {org for one in everyone.values() for org in one.mine | one.incoming}
        assert worked_on <= working
        worked_on = working
    assert leaver.has_left
    assert sorted(org for one in everyone.values() for org in one.mine) == sorted(orgs(number))


@pytest.mark.parametrize(
    "claims",
    [
        None,
        7,
        {},
        {"wanted": 1},
        {"wanted": "x", "held": 0, "weight": 0, "typical": 1e3, "offers": {}, "taking": []},
        {"wanted": 1, "held": 0, "weight": float("nan"), "typical": 1e3, "offers": {}, "taking": []},
        {"wanted": 1, "held": 0, "weight": 0, "typical": 1e3, "offers": [], "taking": []},
        {"wanted": 1, "held": 0, "weight": 0, "typical": 1e3, "offers": {}, "taking": None},
        {"wanted": 1, "held": 0, "weight": 0, "typical": 0, "offers": {}, "taking": []},
        {"wanted": 1e400, "held": 0, "weight": 0, "typical": 1e3, "offers": {}, "taking": []},
    ],
)
def test_a_report_that_is_not_understood_tells_nothing(claims: object) -> None:
    assert told_in({"claims": claims}) is None


@given(st.integers(1, 6), st.integers(0, 60), st.integers(0, 1 << 30), st.booleans())
def test_members_end_with_every_org_claimed_once_worked_on_throughout_and_evenly(
    members: int, number: int, seed: int, all_start: bool
) -> None:
    rng = random.Random(seed)
    names = [f"p{index}" for index in range(members)]
    everyone = {name: Reconciler(name, 10, random.Random(rng.random())) for name in names}
    reports: dict[str, Told | None] = {}
    present: list[str] = []
    worked_on: set[str] = set()
    for tick in range(150 + 40 * members):
        while len(present) < members and (all_start or tick == 40 * len(present)):
            present.append(names[len(present)])
            everyone[present[-1]].wanted |= set(orgs(number))
        for name in rng.sample(present, len(present)):
            mine = everyone[name]
            mine.claimed = set().union(*(everyone[other].mine for other in present))
            mine.hear({other: reports.get(other) for other in present if other != name}, {}, tick)
            plan = mine.plan(10, tick)
            for org in plan.release:
                mine.disown(org)
            for org in plan.claim:
                mine.own(org, tick)
            reports[name] = told_in(mine.tell(lambda _: True))
        working = {org for name in present for org in everyone[name].mine | everyone[name].incoming}
        assert worked_on <= working, "a hand-off leaves no org without a worker"
        worked_on = working
    claims = [org for name in present for org in everyone[name].mine]
    assert sorted(claims) == sorted(orgs(number))
    sizes = [len(everyone[name].mine) for name in present]
    assert max(sizes) <= max(1.25 * number / members, min(sizes) + 1) + 1, sizes


# Operations beside changes.


def test_operations_that_outgrow_changes_for_ten_seconds_are_an_alarm_and_its_end_is_told() -> None:
    growth = Growth()
    told_at = [second for second in range(40) if growth.note(60 * min(second, 20), 10 * second, second)]
    assert told_at == [10, 25]
    assert not growth.is_alarming


def test_few_operations_or_as_many_as_changes_or_a_short_burst_are_none() -> None:
    for operations, changes in ((9, 0), (300, 100)):
        growth = Growth()
        assert not any(growth.note(operations * second, changes * second, second) for second in range(60))
    growth = Growth()
    assert not any(growth.note(1000 * (second > 5), 40 * second, second) for second in range(9))


# The clock.


async def test_acting_ends_in_time_though_nobody_looks(autojump_clock: MockClock) -> None:
    ended: list[float] = []
    acting = Acting(lambda _reason: ended.append(trio.current_time()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(acting.run)
        await trio.sleep(1)
        acting.stop()
        for _ in range(2):
            start = trio.current_time()
            acting.alive(start, 6.0)
            await trio.sleep(2)
            acting.alive(start + 2, 6.0)
            await trio.sleep(5)
            assert ended.pop() == pytest.approx(start + 6)
        acting.alive(trio.current_time(), 6.0)
        acting.stop()
        await trio.sleep(5)
        assert ended == []
        nursery.cancel_scope.cancel()


async def test_acting_ends_at_two_thirds_of_the_timeout_for_whoever_looks_first(autojump_clock: MockClock) -> None:
    reasons: list[str] = []
    acting = Acting(reasons.append)
    assert not acting.is_on()
    start = trio.current_time()
    assert acting.alive(start, 6.0)
    await trio.sleep(1)
    assert not acting.alive(start + 0.5, 6.0), "already"
    await trio.sleep(3.4)
    assert acting.is_on()
    await trio.sleep(0.2)
    assert not acting.is_on()
    assert len(reasons) == 1
    assert not acting.alive(start + 0.5, 6.0), "an answer that comes so late says nothing of now"
    assert not acting.is_on()

"""Placement: by load, reserved and reported; a reason with every decision."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from balancer.placement import DISTRUSTED_S, Decision, Placement, PlacementSettings, Refusal, Report


def a_report(rate: float = 0.0, *, lag: float = 0.0, held: int = 0) -> Report:
    return Report(rate, lag, held, 100)


def a_fleet(*rates: float, now: float = 0.0) -> Placement:
    placement = Placement()
    placement.members([f"c{number}" for number in range(len(rates))], now)
    for number, rate in enumerate(rates):
        placement.report(f"c{number}", a_report(rate), now)
    return placement


def chosen(decision: Decision | Refusal) -> str:
    assert isinstance(decision, Decision), decision
    return decision.collector


def test_the_least_loaded_collector_is_chosen_and_the_reason_says_so() -> None:
    decision = a_fleet(5e6, 1e6, 3e6).place("s", "acme", 0.0)
    assert decision == Decision("c1", "least load: 1,000,000 B/s of 3 eligible")


@given(st.integers(2, 8), st.integers(50, 300))
def test_a_thousand_placements_between_two_reports_spread_evenly(collectors: int, streams: int) -> None:
    placement = a_fleet(*[0.0] * collectors)
    counts = Counter(chosen(placement.place(number, f"org{number % 7}", 0.0)) for number in range(streams))
    assert max(counts.values()) <= -(-streams // collectors) + 2


def test_one_orgs_streams_never_all_go_to_one_collector() -> None:
    placement = a_fleet(0.0, 200_000.0)
    assert {chosen(placement.place(number, "acme", 0.0)) for number in range(40)} == {"c0", "c1"}


def test_a_collector_without_a_report_counts_as_average_and_not_as_empty() -> None:
    placement = a_fleet(4e6, 6e6)
    placement.members(["c0", "c1", "new"], 0.0)
    assert chosen(placement.place("s", "acme", 0.0)) == "c0"


def test_what_is_silent_late_or_full_is_not_eligible_and_it_is_said_why() -> None:
    placement = a_fleet(0.0, 0.0, 0.0)
    placement.report("c0", a_report(lag=3.0), 7.0)
    placement.report("c1", a_report(held=95), 7.0)
    refusal = placement.place("s", "acme", 7.0)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "c0: its loop is 3.0 s late; c1: its budget is nearly full; c2: no report for 7 s"


def test_one_that_failed_is_left_out_for_a_moment() -> None:
    placement = a_fleet(0.0, 9e6)
    placement.failed("c0", 0.0)
    assert chosen(placement.place("s", "acme", 0.5)) == "c1"
    assert chosen(placement.place("s", "acme", 1.5)) == "c0"


def test_a_reservation_fades_and_ends_with_what_it_was_for() -> None:
    placement = a_fleet(0.0)
    placement.place("s", "acme", 0.0)
    assert placement.loads(0.0)["c0"] > placement.loads(4.0)["c0"] > 0
    placement.released("s")
    assert placement.loads(4.0)["c0"] == 0


def test_a_wanted_collector_is_taken_when_it_is_fit() -> None:
    placement = a_fleet(8e6, 9e6)
    assert chosen(placement.place("s", "acme", 0.0, want="c1")) == "c1"
    assert chosen(placement.place("s", "acme", 0.0, want="gone")) == "c0"
    assert chosen(placement.place("s", "acme", 0.0, exclude=["c0"])) == "c1"


def test_who_leaves_a_collector_that_says_it_has_nothing_is_taken_where_it_wants_to_go() -> None:
    """It is tried again, and still lies: the others have one and a half times the mean of all."""
    placement = a_fleet(0.0, 9e6, 9e6)
    assert chosen(placement.place("before", "acme", 0.0, want="c1")) == "c0"
    placement.idle("c0", 10.0, "nothing acknowledged")
    for now in (11.0, 10.0 + DISTRUSTED_S - 1.0):
        placement.report("c0", Report(0.0, 0.0, 0, 100), now)
        placement.report("c1", Report(9e6, 0.0, 0, 100), now)
        placement.report("c2", Report(9e6, 0.0, 0, 100), now)
        assert chosen(placement.place("s", "acme", now, want="c1")) == "c1"
        assert chosen(placement.place("s", "acme", now, want="c0")) == "c0"
    now = 10.0 + DISTRUSTED_S + 1.0
    for name, rate in (("c0", 0.0), ("c1", 9e6), ("c2", 9e6)):
        placement.report(name, Report(rate, 0.0, 0, 100), now)
    assert chosen(placement.place("s", "globex", now, want="c1")) == "c0"


def test_without_collectors_the_placement_is_refused() -> None:
    assert Placement().place("s", "acme", 0.0) == Refusal("no collectors")


def test_hints_that_lie_bring_no_collector_past_its_part() -> None:
    """All links of one org say that they want the same collector."""
    placement = a_fleet(1e6, 1e6, 1e6, 1e6)
    for number in range(2000):
        placement.place(number, "acme", 0.0, want="c3")
    loads = placement.loads(0.0)
    assert max(loads.values()) <= 1.3 * sum(loads.values()) / 4


def test_an_org_that_is_on_one_collector_goes_to_another_next_however_loaded() -> None:
    placement = a_fleet(0.0, 9e6, 8e6)
    assert chosen(placement.place("s1", "acme", 0.0)) == "c0"
    decision = placement.place("s2", "acme", 0.0)
    assert decision == Decision("c2", "least load: 8,000,000 B/s of 3 eligible but c0, where all of acme is")
    assert chosen(placement.place("s3", "acme", 0.0)) == "c0"


def test_the_width_counts_streams_that_other_balancers_placed() -> None:
    placement = a_fleet(0.0, 9e6)
    placement.seen({"acme": {"c0"}})
    assert chosen(placement.place("s", "acme", 0.0)) == "c1"
    placement.seen({"acme": {"c0", "c1"}})
    assert chosen(placement.place("s2", "acme", 0.0)) == "c0"


def test_a_small_org_is_on_two_collectors_and_one_that_is_most_of_the_load_on_all() -> None:
    """What ails one org is to ail few collectors; what one org's load needs it has."""
    placement = a_fleet(*[0.0] * 8)
    for number in range(400):
        placement.place(("large", number), "large", 0.0)
    orgs = [f"org{number}" for number in range(20)]
    for number in range(10):
        for org in orgs:
            placement.place((org, number), org, 0.0)
    assert len(placement.reserved.of_org("large")) == 8
    widths = [len(placement.reserved.of_org(org)) for org in orgs]
    assert min(widths) >= 2
    assert sum(widths) / len(widths) <= 4
    loads = placement.loads(0.0).values()
    assert max(loads) <= 1.25 * sum(loads) / len(loads)


def test_an_org_whose_collectors_are_all_above_the_mean_is_not_kept_on_them() -> None:
    placement = a_fleet(9e6, 9e6, 1e6, 1e6)
    placement.seen({"acme": {"c0", "c1"}})
    placement.place("other", "globex", 0.0)
    decision = placement.place("s", "acme", 0.0)
    assert chosen(decision) in {"c2", "c3"}
    placement = a_fleet(3e6, 4e6, 1e6, 9e6)
    placement.seen({"acme": {"c0", "c1"}})
    placement.place("other", "globex", 0.0)
    decision = placement.place("s", "acme", 0.0)
    assert decision == Decision("c0", "least load: 3,000,000 B/s of 4 eligible, of the 2 where acme is")


def test_a_new_collector_gets_a_part_that_grows_and_never_all_at_once() -> None:
    placement = a_fleet(1e6, 1e6)
    placement.members(["c0", "c1", "new"], 100.0)
    for name, rate in (("c0", 1e6), ("c1", 1e6), ("new", 0.0)):
        placement.report(name, a_report(rate), 100.0)
    counts = Counter(chosen(placement.place(number, f"org{number}", 100.0)) for number in range(100))
    assert 1 <= counts["new"] < 25
    for name, rate in (("c0", 1.5e6), ("c1", 1.5e6), ("new", 0.1e6)):
        placement.report(name, a_report(rate), 111.0)
    counts = Counter(chosen(placement.place(number, f"org{number}", 111.0)) for number in range(200, 300))
    assert counts["new"] > 80


def test_a_balancer_that_was_just_started_takes_nobody_for_new_who_says_since_when_it_is_there() -> None:
    placement = Placement()
    placement.members(["c0", "c1"], 500.0)
    placement.report("c0", Report(1e6, 0.0, 0, 100, up_s=3600.0), 500.0)
    placement.report("c1", Report(1e6, 0.0, 0, 100, up_s=1.0), 500.0)
    assert {load.name: round(load.ramp, 2) for load in placement.measured(500.0)} == {"c0": 1.0, "c1": 0.1}


def test_a_stream_that_comes_again_is_placed_by_what_it_brought() -> None:
    placement = a_fleet(0.0, 4e6)
    placement.rates.note("big", "acme", 5e6)
    placement.place("big", "acme", 0.0)
    assert placement.loads(0.0)["c0"] == 5e6
    placement.place("other", "acme", 0.0)
    assert placement.loads(0.0) == {"c0": 5e6, "c1": 9e6}


def test_of_many_collectors_the_better_of_two_at_random_is_taken() -> None:
    placement = a_fleet(*[1e6] * 20)
    placement.dice = random.Random(4)
    counts = Counter(chosen(placement.place(number, f"org{number}", 0.0)) for number in range(2000))
    assert len(counts) == 20
    assert max(counts.values()) <= 1.25 * 2000 / 20
    assert "two of them compared" in placement.place("s", "acme", 0.0).reason


def test_links_are_admitted_at_a_rate_and_the_rest_are_told_why_they_wait() -> None:
    placement = a_fleet(0.0, 0.0)
    placement.settings = PlacementSettings(links_per_s=100.0)
    placed = [placement.place(number, f"org{number}", 1.0, is_link=True) for number in range(500)]
    assert sum(isinstance(one, Decision) for one in placed) == 100
    assert placed[-1] == Refusal("c0: it takes 100 links/s; c1: it takes 100 links/s")
    more = [placement.place(number, f"org{number}", 1.1, is_link=True) for number in range(500, 600)]
    assert 18 <= sum(isinstance(one, Decision) for one in more) <= 22
    assert isinstance(placement.place("stream", "acme", 1.1), Decision)


def test_a_collector_that_says_it_is_idle_has_at_least_what_is_sent_there() -> None:
    placement = a_fleet(0.0, 5e6)
    placement.sent("c0", 8e6)
    assert chosen(placement.place("s", "acme", 0.0)) == "c1"
    assert [load.rate for load in placement.measured(0.0)] == [8e6, 5e6]


def test_a_load_that_is_no_number_counts_as_what_is_sent_there() -> None:
    placement = a_fleet(0.0, 5e6, 6e6)
    for lie in (float("nan"), float("inf"), -1e300):
        placement.report("c0", a_report(lie), 0.0)
        assert placement.loads(0.0) == {"c0": 0.0, "c1": 5e6, "c2": 6e6}
    placement.sent("c0", 7e6)
    assert placement.loads(0.0)["c0"] == 7e6


def test_when_all_reports_stop_it_is_the_reports_and_not_the_collectors() -> None:
    placement = a_fleet(1e6, 1e6)
    assert isinstance(placement.place("s", "acme", 100.0), Decision)
    assert placement.measured(100.0) == []
    placement.idle("c0", 120.0, "no sign of work")
    assert chosen(placement.place("s2", "globex", 100.0)) == "c1"


def test_one_without_a_sign_of_work_is_left_out_and_then_taken_for_new() -> None:
    placement = a_fleet(0.0, 5e6)
    placement.idle("c0", 30.0, "nothing acknowledged for 6 s while others do")
    assert placement.unfit(1.0) == {"c0": "nothing acknowledged for 6 s while others do"}
    assert chosen(placement.place("s", "acme", 1.0)) == "c1"
    placement.report("c0", a_report(), 31.0)
    assert [load.ramp for load in placement.measured(31.0)] == [0.1]


def test_ten_thousand_placements_cost_the_same_each() -> None:
    placement = a_fleet(0.0, 0.0, 0.0)
    for number in range(10_000):
        placement.place(number, f"org{number % 50}", number / 1000)
    for number in range(0, 10_000, 2):
        placement.released(number)
    assert len(placement.reserved) == 5000
    for name in ("c0", "c1", "c2"):
        left = [(one.rate, one.at) for one in placement.reserved._promises.values() if one.collector == name]
        exact = sum(rate * (1 - (10.0 - at) / 30.0) for rate, at in left)
        assert abs(placement.reserved.left(name, 10.0) - exact) < 1e-3 * exact
    assert placement.reserved.left("c0", 60.0) == 0.0

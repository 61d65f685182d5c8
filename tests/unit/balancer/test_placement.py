"""Placement: by load, reserved and reported; a reason with every decision."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from balancer.placement import Decision, Placement, Refusal, Report


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
    placement = a_fleet(0.0, 9e6)
    assert chosen(placement.place("s", "acme", 0.0, want="c1")) == "c1"
    assert chosen(placement.place("s", "acme", 0.0, want="gone")) == "c0"
    assert chosen(placement.place("s", "acme", 0.0, exclude=["c0"])) == "c1"


def test_without_collectors_the_placement_is_refused() -> None:
    assert Placement().place("s", "acme", 0.0) == Refusal("no collectors")

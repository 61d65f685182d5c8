"""Whole processes are drained in virtual time, with all that they have: nothing is lost, and what they say is so."""

import pytest
from tools.simulate import Scenario, simulate
from tools.simulate.faults import Plan
from tools.simulate.fleet import Size
from tools.simulate.run import Outcome

ONE_AFTER_THE_OTHER = Plan(kinds=("drain",), every_s=(6.0, 8.0))


def outcome_of(seed: int, plan: Plan, faults_s: float, balancers: int) -> Outcome:
    size = Size(balancers=balancers, collectors=3, meters=4, exporters=2, interval_s=0.2)
    return simulate(Scenario(seed, size, plan, faults_s=faults_s))


@pytest.mark.parametrize("seed", range(3))
def test_whoever_is_drained_hands_on_everything_says_so_and_loses_nothing(seed: int) -> None:
    """One balancer: of two, with no door in common, each waits for meters that can come back to none but itself."""
    outcome = outcome_of(seed, ONE_AFTER_THE_OTHER, 40.0, balancers=1)
    assert not outcome.wrong, outcome.wrong
    assert outcome.drains
    assert all(all(clean) for clean in outcome.drains.values()), outcome.drains
    assert outcome.acknowledged_records > 1000
    assert outcome.exported_records > 1000


@pytest.mark.parametrize("seed", range(4))
def test_drains_of_several_at_a_time_and_in_the_midst_of_faults_lose_nothing_clean_or_not(seed: int) -> None:
    plan = Plan(kinds=("drain", "drain", "kill", "cut", "slow", "disk"), often=2.0)
    outcome = outcome_of(seed, plan, 8.0, balancers=2)
    assert not outcome.wrong, outcome.wrong
    assert outcome.drains

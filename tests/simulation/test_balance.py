"""Half a minute after collectors died and came back, none has more than its part (promise 6)."""

import pytest
from tools.simulate import Scenario, simulate
from tools.simulate.faults import Plan
from tools.simulate.fleet import Size

FLEET = Size(balancers=2, collectors=4, meters=60, spooled=0, exporters=6, orgs=5, readers=0)


@pytest.mark.parametrize("seed", [1, 2])
def test_half_a_minute_after_deaths_the_load_is_even_again(seed: int) -> None:
    scenario = Scenario(seed, FLEET, Plan(kinds=("kill", "power")), faults_s=10.0, balance=1.25)
    outcome = simulate(scenario)
    assert not outcome.wrong, outcome.wrong[:3]
    assert outcome.balance is not None

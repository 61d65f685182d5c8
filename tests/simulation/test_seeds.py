"""200 fleets, each drawn from its seed with its faults, and what must hold in all of them."""

import pytest
from tools.simulate import Scenario, simulate
from tools.simulate.run import replay

SEEDS, IN_ONE = 200, 10


@pytest.mark.parametrize("first", range(0, SEEDS, IN_ONE))
def test_a_fleet_that_is_hurt_keeps_its_promises_and_settles_once_it_is_mended(first: int) -> None:
    for seed in range(first, first + IN_ONE):
        outcome = simulate(Scenario.drawn(seed))
        assert not outcome.wrong, f"{outcome.wrong[:3]}\nreplay: {replay(seed)}"
        assert outcome.acknowledged_records, f"nothing was sent\nreplay: {replay(seed)}"

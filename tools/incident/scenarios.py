"""All incidents that can be played, by name."""

from __future__ import annotations

from tools.incident import grey_failure, july_31, leak, poison_org, rolling_restart, watch_storm
from tools.incident.scenario import Scenario

SCENARIOS: dict[str, Scenario] = {
    module.SCENARIO.name: module.SCENARIO
    for module in (july_31, leak, watch_storm, rolling_restart, poison_org, grey_failure)
}

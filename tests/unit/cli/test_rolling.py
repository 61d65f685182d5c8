"""What a rolling restart waits for between two processes, and what it says when it stops."""

from typing import Any

import pytest

from sapflow.cli import rolling
from sapflow.cli.rolling import Roll, order_of, unevenness, unsettled
from sapflow.errors import SapflowError

NAMES = ("collector-1", "collector-2", "phloem-1", "balancer")


def statuses(*rates: float, links: int = 2, known: int = 2) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {
        f"collector-{number}": {"role": "collector", "gauges": {"bytes_per_s": rate}}
        for number, rate in enumerate(rates, 1)
    }
    found["phloem-1"] = {"role": "phloem", "counts": {"link": {"links": links}}}
    found["balancer"] = {"role": "balancer", "loads": {f"collector-{number}": 0 for number in range(1, known + 1)}}
    return found


def test_collectors_come_first_and_balancers_last_those_that_were_drained_among_them() -> None:
    control = dict.fromkeys(("balancer", "collector-1", "phloem-1"), "http://…")
    assert order_of({"control": control, "drained": ["collector-2"]}) == list(NAMES)


def test_next_to_no_load_is_even_and_else_the_most_loaded_counts() -> None:
    assert unevenness(statuses(9_000.0, 0.0)) == 1.0
    assert unevenness(statuses(300_000.0, 100_000.0)) == 1.5


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (statuses(100_000.0, 100_000.0), ""),
        (
            statuses(100_000.0, 100_000.0) | {"collector-2": {"error": "refused"}},
            "collector-2 does not answer: refused",
        ),
        (statuses(100_000.0, 100_000.0, links=1), "phloem-1 has 1 of 2 links to collectors"),
        (statuses(100_000.0, 100_000.0, known=1), "balancer does not know of collector-2"),
        (statuses(200_000.0, 0.0), "one collector has 2.00 times the mean of all, and 1.25 is the most"),
    ],
)
def test_a_fleet_is_settled_when_all_answer_know_each_other_and_have_their_parts(
    found: dict[str, dict[str, Any]], why: str
) -> None:
    assert unsettled(found, 1.25) == why


class Fleet:
    """Answers as a fleet does; `fails` is what cannot be restarted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, found: dict[str, dict[str, Any]], fails: str = "") -> None:
        self.asked: list[str] = []
        self.said: list[str] = []
        self._fails = fails
        monkeypatch.setattr(rolling, "read_fleet", lambda data: {})
        monkeypatch.setattr(rolling, "read_status", lambda fleet: found)
        monkeypatch.setattr(rolling, "ask_fleet", self._ask)
        monkeypatch.setattr(rolling, "LOOK_S", 0.001)

    def _ask(self, data: str, action: str, name: str, within_s: float | None) -> dict[str, Any]:
        if name == self._fails:
            raise SapflowError(f"{name} was drained and did not start again")
        self.asked.append(name)
        return {"name": name, "restarted": True, "pid": 1, "clean": True, "seconds": 0.1}

    def roll(self) -> None:
        Roll("data", None, 0.05, lambda step: self.said.append(step["event"])).run(NAMES)


def test_one_after_the_other_and_each_step_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(monkeypatch, statuses(1.0, 1.0))
    fleet.roll()
    assert fleet.asked == list(NAMES)
    assert fleet.said == ["restarting", "restarted", "settled"] * 4 + ["done"]


def test_a_failure_stops_the_roll_and_says_what_is_in_what_state(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(monkeypatch, statuses(1.0, 1.0), fails="phloem-1")
    with pytest.raises(SapflowError) as caught:
        fleet.roll()
    assert str(caught.value) == (
        "phloem-1 was drained and did not start again. The roll has stopped at phloem-1; "
        "restarted: collector-1, collector-2; as they were: balancer"
    )
    assert fleet.asked == ["collector-1", "collector-2"]


def test_a_fleet_that_does_not_settle_stops_the_roll(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(monkeypatch, statuses(1.0, 1.0, known=1))
    with pytest.raises(
        SapflowError, match=r"after 0\.05 s balancer does not know of collector-2\. The roll has stopped"
    ):
        fleet.roll()
    assert fleet.asked == ["collector-1"]


def test_what_was_uneven_before_may_be_as_uneven_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(monkeypatch, statuses(200_000.0, 0.0))
    fleet.roll()
    assert fleet.asked == list(NAMES)

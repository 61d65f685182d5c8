"""What `sapflow top` shows and alarms of, from readings made up here."""

from typing import Any

import pytest
from rich.console import Console

from sapflow.cli.top_view import Reading, Top, flow_of


def a_collector(taken: int, given: int, **gauges: float) -> dict[str, Any]:
    figures = {"cpu": 0.1, "rss_bytes": 1 << 20, "lag_s": 0.0, "held_bytes": 0, "budget_bytes": 100, **gauges}
    its = {"streams": 2, "held_bytes": 0, "durable": 1, "live": 0}
    flow = {"in": {"bytes": taken}, "out": {"bytes": given}}
    return {
        "name": "collector-1",
        "role": "collector",
        "flow": {"endpoint": flow},
        "counts": {},
        "gauges": figures,
        "ratio": {"measured": None, "expected": 1.0},
        "orgs": {"acme": {**flow, **its}, "globex": {**flow, **its}},
    }


def at(second: float, status: dict[str, Any]) -> Reading:
    return Reading(second, {"collector-1": status})


def shown(top: Top, before: Reading, now: Reading) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(top.view(before, now))
    return capture.get()


def test_a_flow_is_what_grew_a_second_and_starts_anew_with_its_process() -> None:
    flow = flow_of(a_collector(1_000_000, 2_000_000), a_collector(3_000_000, 6_000_000), 2.0)
    assert (flow.in_per_s, flow.out_per_s, flow.ratio) == (1e6, 2e6, 2.0)
    anew = flow_of(a_collector(9_000_000, 9_000_000), a_collector(500_000, 500_000), 1.0)
    assert (anew.in_per_s, anew.ratio) == (5e5, 1.0)
    assert flow_of(a_collector(0, 0), a_collector(10, 100), 1.0).ratio is None


def test_a_ratio_is_an_alarm_when_the_collectors_own_monitor_says_so_and_by_no_other_measure() -> None:
    """Which of readings that are apart is chance is decided in one place."""
    before, taken, given = at(0, a_collector(0, 0)), 1_000_000, 4_000_000
    calm = at(1, a_collector(taken, given, flow_alarm=0, flow_out_in=4.0))
    assert "no alarms" in shown(Top(), before, calm)
    alarmed = at(1, a_collector(taken, given, flow_alarm=1, flow_out_in=4.0))
    assert "collector-1: out/in is 4.00 for about ten seconds, and should be 1.00" in shown(Top(), before, alarmed)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (Reading(1, {"collector-1": {"error": "refused"}}), "collector-1: does not answer: refused"),
        (Reading(1, {}, ("collector-2",)), "collector-2: drained; 'sapflow restart collector-2' starts it"),
        (at(1, a_collector(0, 0, held_bytes=95)), "collector-1: holds 95% of its budget"),
        (at(1, a_collector(0, 0, coordinator_alarm=1)), "collector-1: asks the coordinator more often"),
        (at(1, {**a_collector(0, 0), "counts": {"udp": {"kernel_drops": 7}}}), "collector-1: 7 datagrams dropped"),
        (at(1, a_collector(0, 0)), "no alarms"),
    ],
)
def test_what_somebody_should_look_at_is_said(now: Reading, said: str) -> None:
    assert said in shown(Top(), at(0, a_collector(0, 0)), now)


def test_a_group_that_several_nodes_know_is_one_row_however_much_of_its_lag_is_known() -> None:
    lag = {"positions": 1234, "entries": None, "records": None, "bytes": None}
    group = {"org": "acme", "group": "exit.lake", "members": 0, "position": 7, "lag": lag, "gap": None}
    one, other = ({**a_collector(0, 0), "groups": [{**group, "members": members}]} for members in (0, 1))
    now = Reading(1, {"phloem-1": one, "phloem-2": other})
    (row,) = [line for line in shown(Top(), now, now).splitlines() if "exit.lake" in line]
    assert row.split() == ["acme", "exit.lake", "1", "7", "<=1,234", "-"]


def test_of_one_org_no_other_is_shown() -> None:
    readings = at(0, a_collector(0, 0)), at(1, a_collector(2_000_000, 2_000_000))
    assert "globex" in shown(Top(), *readings)
    of_one = shown(Top("acme"), *readings)
    assert "acme" in of_one
    assert "globex" not in of_one

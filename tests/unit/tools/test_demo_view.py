"""What the demo says of processes that die and come back."""

from typing import Any

from rich.console import Console
from tools.demo_view import Shares, View
from tools.loadgen import Ledger


def a_status(bytes_in: int) -> dict[str, Any]:
    return {
        "flow": {"link": {"in": {"bytes": bytes_in}}, "link_door": {"in": {"bytes": bytes_in}}},
        "gauges": {"cpu": 0.1, "rss_bytes": 1 << 20, "held_bytes": 0},
        "ratio": {"measured": 1.0, "expected": None},
    }


def test_shares_are_kept_apart_by_phase_and_a_restarted_collector_counts_from_nothing() -> None:
    shares = Shares()
    shares.read({"collector-1": a_status(100), "collector-2": a_status(300), "balancer": a_status(9999)})
    shares.phase = "during"
    shares.read({"collector-1": {"error": "down"}, "collector-2": a_status(400)})
    shares.phase = "after"
    shares.read({"collector-1": a_status(50), "collector-2": a_status(550)})
    assert shares.lines() == [
        "share of bytes until a collector died: collector-1 25%, collector-2 75%",
        "share of bytes until it was back: collector-1 0%, collector-2 100%",
        "share of bytes from then on: collector-1 25%, collector-2 75%",
    ]


def test_the_view_has_a_row_a_process_and_the_orgs_with_one_that_is_down_said_so() -> None:
    ledger = Ledger(sent_records=10, acknowledged_records=4, acknowledged={"acme": {b"s": 3}})
    view = View(ledger, meters=7)
    view.read({"balancer": a_status(0), "collector-1": {"error": "refused"}})
    console = Console(record=True, width=100, quiet=True)
    with console.capture() as shown:
        console.quiet = False
        console.print(view.table())
    for expected in ("balancer", "down", "7 meters: 10 records sent, 6 not yet durable", "acme"):
        assert expected in shown.get()
    assert "collector-1 down" in view.line(5)
    assert "\n" not in view.line(5)

"""Balance: max/mean of bytes/s over three collectors, half a minute after one was killed and came back.

Long-lived streams of meters and exporters; with rebalancing, and with placement alone.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import trio

from tools.fleet import Fleet, running
from tools.loadgen import Ledger, load

COLLECTORS = 3
SENDERS = 72
INTERVAL_S = 0.5
RECORDS = 100
STEADY_S = 12.0
AFTER_S = 30.0
READINGS = 5
PROMISE = 1.25
OFF = "[balancer]\nrebalance_start = 1000.0\n"


def run() -> list[dict[str, Any]]:
    """One row a kind of sender, with and without rebalancing."""
    return [
        _killed_and_back(exporters, rebalancing)
        for exporters in (0, SENDERS // 2, SENDERS)
        for rebalancing in (True, False)
    ]


def _killed_and_back(exporters: int, rebalancing: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="sapflow-bench-") as directory:
        config = Path(directory) / "fleet.toml"
        config.write_text("" if rebalancing else OFF)
        with running(Path(directory) / "data", collectors=COLLECTORS, config=config) as fleet:
            found = trio.run(partial(_scenario, fleet, exporters))
            moves = fleet.status()["balancer"]["counts"]["moves"]
    return {
        "meters": SENDERS - exporters,
        "exporters": exporters,
        "rebalancing": "on" if rebalancing else "off",
        **found,
        "streams moved": moves["exporters_moved"] + moves["meters_moved"],
    }


async def _scenario(fleet: Fleet, exporters: int) -> dict[str, Any]:
    ledger, stop = Ledger(), trio.Event()
    tokens = {f"org-{number}": fleet.token(f"org-{number}") for number in range(4)}
    await trio.sleep(1.5)  # collectors read the org table once a second
    senders = partial(load, fleet.doors["link"], tokens, ledger, stop, interval_s=INTERVAL_S, records=RECORDS, ramp_s=2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            partial(senders, meters=SENDERS - exporters, exporters=exporters, exporter_door=fleet.doors["ipfix_tcp"])
        )
        await trio.sleep(STEADY_S)
        before = _ratio(fleet)
        fleet.kill("collector-2")
        began, within = trio.current_time(), ""
        while trio.current_time() < began + AFTER_S:
            await trio.sleep(1.0)
            if not within and _back(fleet) and _ratio(fleet) <= PROMISE:
                within = f"{trio.current_time() - began:.0f}"
        after = []
        for _ in range(READINGS):
            after.append(_ratio(fleet))
            await trio.sleep(1.0)
        stop.set()
    return {
        "before": f"{before:.2f}",
        f"{AFTER_S:g} s after": f"{sum(after) / len(after):.2f}",
        f"seconds to {PROMISE:g}": within or "-",
        "not acknowledged": ledger.sent_records - ledger.acknowledged_records,
    }


def _rates(fleet: Fleet) -> list[float]:
    status = fleet.status()
    names = [name for name in status if name.startswith("collector")]
    return [float(status[name].get("gauges", {}).get("bytes_per_s", 0.0)) for name in names]


def _back(fleet: Fleet) -> bool:
    return min(_rates(fleet)) > 0


def _ratio(fleet: Fleet) -> float:
    rates = _rates(fleet)
    return max(rates) * len(rates) / max(sum(rates), 1.0)

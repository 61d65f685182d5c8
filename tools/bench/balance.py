"""Balance: max/mean of bytes/s over three collectors, half a minute after one joined, one died, or one org surged.

Long-lived streams of meters and exporters. Meters also as they came before there was a balancer: through HAProxy by
least connections, and by DNS that each org's resolver keeps.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import trio
from attrs import frozen

from tools.bench.doors import CachedDns, collectors, haproxy
from tools.fleet import Fleet, running
from tools.loadgen import Ledger, Pace, Reach, load

COLLECTORS = 3
SENDERS = 72
ORGS = 4
INTERVAL_S = 0.5
RECORDS = 100
SURGE = 6
STEADY_S = 12.0
AFTER_S = 30.0
READINGS = 5
PROMISE = 1.25
SURGING = "org-0"
VICTIM = "collector-2"
OFF = "[balancer]\nrebalance_start = 1000.0\n"
COMMAND_TIMEOUT_S = 60.0


@frozen
class Case:
    """What happens, to senders that came through what."""

    happens: str
    through: str
    exporters: int = 0


CASES = (
    *(
        Case(*both)
        for both in product(("a join", "a death", "a surge"), ("sapflow", "HAProxy leastconn", "cached DNS"))
    ),
    *(Case("a death", through, some) for some in (SENDERS // 2, SENDERS) for through in ("sapflow", "no rebalancing")),
)


def run() -> list[dict[str, Any]]:
    """One row a case."""
    return [_case(case) for case in CASES]


def _case(case: Case) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="sapflow-bench-") as directory:
        config = Path(directory) / "fleet.toml"
        config.write_text("" if case.through == "sapflow" else OFF)
        with (
            running(Path(directory) / "data", collectors=COLLECTORS, config=config) as fleet,
            _door(case.through, fleet) as door,
        ):
            found = trio.run(partial(_scenario, fleet, door, case))
            moves = fleet.status()["balancer"]["counts"]["moves"]
    moved = moves["exporters_moved"] + moves["meters_moved"]
    return {"after": case.happens, "through": case.through, "exporters": case.exporters, **found, "moved": moved}


@contextmanager
def _door(through: str, fleet: Fleet) -> Iterator[str | Reach]:
    match through:
        case "HAProxy leastconn":
            with haproxy(collectors(fleet)) as address:
                yield address
        case "cached DNS":
            yield CachedDns(list(collectors(fleet).values())).reach
        case _:
            yield fleet.doors["link"]


async def _scenario(fleet: Fleet, door: str | Reach, case: Case) -> dict[str, Any]:
    ledger, stop = Ledger(), trio.Event()
    tokens = {f"org-{number}": fleet.token(f"org-{number}") for number in range(ORGS)}
    surging = Pace(INTERVAL_S, RECORDS)
    if case.happens == "a join":
        await _command(fleet, "drain", VICTIM)
    await trio.sleep(1.5)  # collectors read the org table once a second
    senders = partial(
        load, door, tokens, ledger, stop, interval_s=INTERVAL_S, records=RECORDS, ramp_s=2, paces={SURGING: surging}
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            partial(
                senders,
                meters=SENDERS - case.exporters,
                exporters=case.exporters,
                exporter_door=fleet.doors["ipfix_tcp"],
            )
        )
        await trio.sleep(STEADY_S)
        before = _ratio(fleet)
        began = trio.current_time()
        match case.happens:
            case "a join":
                nursery.start_soon(_command, fleet, "restart", VICTIM)
            case "a death":
                fleet.kill(VICTIM)
            case _:
                surging.records = RECORDS * SURGE
        uneven_until = began
        while trio.current_time() < began + AFTER_S:
            await trio.sleep(1.0)
            rates = _rates(fleet)
            if len(rates) < COLLECTORS or min(rates) == 0 or _even(rates) > PROMISE:
                uneven_until = trio.current_time()
        after = []
        for _ in range(READINGS):
            after.append(_ratio(fleet))
            await trio.sleep(1.0)
        stop.set()
    mean = sum(after) / len(after)
    return {
        "before": f"{before:.2f}",
        f"{AFTER_S:g} s after": f"{mean:.2f}",
        f"above {PROMISE:g} for, s": f"{uneven_until - began:.0f}" if mean <= PROMISE else "-",
        "not acknowledged": ledger.sent_records - ledger.acknowledged_records,
    }


async def _command(fleet: Fleet, *words: str) -> None:
    with trio.fail_after(COMMAND_TIMEOUT_S):
        await trio.run_process(
            [sys.executable, "-m", "sapflow", *words, "--data", str(fleet.data)], stdout=subprocess.DEVNULL
        )


def _ratio(fleet: Fleet) -> float:
    return _even(_rates(fleet))


def _rates(fleet: Fleet) -> list[float]:
    status = fleet.status()
    names = [name for name in status if name.startswith("collector") and "error" not in status[name]]
    return [float(status[name].get("gauges", {}).get("bytes_per_s", 0.0)) for name in names]


def _even(rates: list[float]) -> float:
    return max(rates) * len(rates) / max(sum(rates), 1.0)

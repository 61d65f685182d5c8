"""From a meter's batch to its acknowledgement, when it is durable, beside Kafka with and without syncing each.

The same messages at the same rate: batches of 1,000 records (56 kB) of many meters to us, as messages to Kafka. Ours
are synced to disk before they are acknowledged, and so are Kafka's with flush.messages=1; with its defaults it
acknowledges what one machine's loss of power takes away.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import trio

from sapflow.flows.reference import reference_template
from tools.bench import rival_log
from tools.fleet import Fleet, running
from tools.loadgen import Ledger, load
from tools.peers import find

RECORDS = 1_000
METERS = 50
SECONDS = 20.0
RATES = (0.1e6, 1e6)
"""Records per second; the second is about half of what the fleet takes here with the generator on the same cores."""


def run() -> list[dict[str, Any]]:
    """Rows for each rate: ours, then Kafka's."""
    rows = []
    for rate in RATES:
        rows.append(_row("sapflow, synced", rate, _ours(rate), "yes"))
        if find("kafka") is not None:
            size = RECORDS * reference_template().record_bytes
            kafka = partial(rival_log.latencies, rate / RECORDS, size, SECONDS)
            rows.append(_row("Kafka, flush.messages=1", rate, kafka({"log.flush.interval.messages": "1"}), "yes"))
            rows.append(_row("Kafka, its defaults", rate, kafka({}), "no"))
    return rows


def _row(what: str, rate: float, seconds: list[float], survives: str) -> dict[str, Any]:
    found = sorted(seconds)

    def quantile(q: float) -> float:
        return round(1e3 * found[min(len(found) - 1, int(len(found) * q))], 1)

    return {
        "what": what,
        "M records/s": rate / 1e6,
        "p50 ms": quantile(0.5),
        "p99 ms": quantile(0.99),
        "p99.9 ms": quantile(0.999),
        "survives a loss of power": survives,
    }


def _ours(rate: float) -> list[float]:
    with (
        tempfile.TemporaryDirectory(prefix="sapflow-bench-", dir=".") as directory,
        running(Path(directory).absolute(), collectors=1) as fleet,
    ):
        return trio.run(partial(_send, fleet, rate))


async def _send(fleet: Fleet, rate: float) -> list[float]:
    tokens = {f"load-{number}": fleet.token(f"load-{number}") for number in range(3)}
    ledger, stop = Ledger(), trio.Event()
    await trio.sleep(1.5)  # collectors read the org table once a second
    async with trio.open_nursery() as nursery:
        sending = partial(load, meters=METERS, interval_s=METERS * RECORDS / rate, records=RECORDS, ramp_s=1.0)
        nursery.start_soon(partial(sending, fleet.doors["link"], tokens, ledger, stop))
        await trio.sleep(3.0)
        ledger.latencies_s.clear()
        await trio.sleep(SECONDS)
        stop.set()
    return ledger.latencies_s

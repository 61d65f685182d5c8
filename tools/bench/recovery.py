"""From kill -9 to the first answer: a Phloem node under load with many orgs or much data, beside Kafka.

Ours is counted from the kill, so the supervisor's start is in it; Kafka's from the exec of its new process. An answer
is a stored batch that a consumer has been given.
"""

from __future__ import annotations

import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import trio

from phloem.engine.embedded import EmbeddedLog
from sapflow.client import subscribe
from sapflow.entry import LogEntry
from sapflow.errors import SapflowError
from tools.bench import rival_log
from tools.fleet import Fleet, running
from tools.loadgen import Ledger, load
from tools.peers import find

ORGS = (1, 1_000, 10_000, 100_000)
ORG_BYTES = 2_000
LARGE_BYTES = 10 << 30
TOPICS = (1, 1_000)
KILLS = 5
APART_S = 5.0
METERS = 20
TIMEOUT_S = 60.0
GROUP_BYTES = 8 << 20


def run() -> list[dict[str, Any]]:
    """Medians and the worst of several kills."""
    rows = [_ours(orgs, orgs * ORG_BYTES) for orgs in ORGS]
    rows.append(_ours(1_000, LARGE_BYTES))
    if find("kafka") is not None:
        rows += [_row(f"Kafka, {topics:,} topics", rival_log.recovery(topics, KILLS)) for topics in TOPICS]
    return rows


def _row(what: str, seconds: list[float]) -> dict[str, Any]:
    return {
        "what": what,
        "kills": len(seconds),
        "median s": round(sorted(seconds)[len(seconds) // 2], 3),
        "worst s": round(max(seconds), 3),
        "goal": "< 1" if what.startswith("sapflow") else "-",
    }


def _ours(orgs: int, size: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="sapflow-bench-", dir=".") as directory:
        data = Path(directory).absolute()
        _fill(data / "log", orgs, size)
        with running(data, collectors=1) as fleet:
            seconds = trio.run(partial(_kills, fleet))
    what = f"{size / 2**30:.0f} GiB" if size >= 1 << 30 else f"{size / 1e6:.1f} MB"
    return _row(f"sapflow, {orgs:,} orgs, {what}", seconds)


def _fill(path: Path, orgs: int, size: int) -> None:
    """A log of so many orgs and bytes."""
    log = EmbeddedLog.open(path)
    each = min(size // orgs, 64 << 10)
    payload = os.urandom(each)
    seq = 0
    left = size
    while left > 0:
        seq += 1
        for first in range(0, orgs, step := max(1, GROUP_BYTES // each)):
            group = range(first, min(orgs, first + step))
            log.append([(f"org-{n}", LogEntry(bytes(16), seq, "x", seq, 1, 1, payload)) for n in group])
            left -= len(group) * each
            if left <= 0:
                break
    log.close()


async def _kills(fleet: Fleet) -> list[float]:
    """Kill under load, several times: seconds to the first answer."""
    tokens = {f"load-{number}": fleet.token(f"load-{number}") for number in range(3)}
    stop, seconds = trio.Event(), []
    await trio.sleep(1.5)  # collectors read the org table once a second
    async with trio.open_nursery() as nursery:
        sending = partial(load, meters=METERS, interval_s=0.1, records=200)
        nursery.start_soon(partial(sending, fleet.doors["link"], tokens, Ledger(), stop))
        for _ in range(KILLS):
            await trio.sleep(APART_S)
            fleet.kill("phloem-1")
            began = time.perf_counter()
            with trio.fail_after(TIMEOUT_S):
                await _answer(fleet)
            seconds.append(time.perf_counter() - began)
        stop.set()
    return seconds


async def _answer(fleet: Fleet) -> None:
    while True:
        try:
            url = f"link://{fleet.doors['consume']}"
            async with subscribe(url, "org-0", fleet.fleet_token(), at="earliest") as batches:
                async for _ in batches:
                    return
        except SapflowError:
            await trio.sleep(0.005)

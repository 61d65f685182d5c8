"""Ten times the load that the log takes, for ten minutes, each process held to 256 MB by a cgroup.

Exporters of one org push as fast as TCP lets them; meters of other orgs send a batch every 100 ms, and how long theirs
take until they are durable is measured idle, and then beside the overload. Needs root, and a writable memory cgroup.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import trio
from attrs import frozen

from tools.bench.stalled import export, rss
from tools.fleet import Fleet, running
from tools.loadgen import Ledger, load

SECONDS = 600.0
RESTED_S, RESTS = 60.0, (2.0, 8.0, 30.0)
"""And with each `phloem.backlog_rest`."""
IDLE_S = 20.0
LIMIT_BYTES = 256_000_000
BUDGET_BYTES = 64 << 20
EXPORTERS = 10
METERS = 9
CGROUP = Path("/sys/fs/cgroup/memory")
CONFIG = f"""
[balancer]
budget_bytes = {BUDGET_BYTES}
[collector]
budget_bytes = {BUDGET_BYTES}
[phloem]
budget_bytes = {BUDGET_BYTES}
retention_bytes_per_org = {1 << 30}
retention_interval_s = 2.0
"""


@frozen
class Measured:
    """What an overload did."""

    most_rss: dict[str, int]
    """Of each process, in bytes."""
    killed: dict[str, int]
    """How often each was killed for its memory."""
    idle: dict[str, float]
    """Seconds until durable of the other orgs, by quantile …"""
    busy: dict[str, float]
    """… and beside the overload."""
    stored: float
    """Records a second, beside it, of all orgs."""


def run() -> list[dict[str, Any]]:
    """One row a process, and one for the other orgs' latency; of those one for each rest as well."""
    found = measure(SECONDS)
    rows = [
        {
            "what": name,
            "most RSS, MiB": round(size / 2**20),
            "limit, MiB": round(LIMIT_BYTES / 2**20),
            "killed for it": found.killed[name],
        }
        for name, size in found.most_rss.items()
    ]
    lines = [_told("", found), *(_told(f", backlog_rest = {rest:g}", rested(rest)) for rest in RESTS)]
    return [*rows, *({"what": line, **dict.fromkeys(list(rows[0])[1:], "-")} for line in lines)]


def rested(rest: float) -> Measured:
    """A shorter overload, with a rest from the backlog."""
    return measure(RESTED_S, settings=f"backlog_rest = {rest}")


def _told(how: str, found: Measured) -> str:
    quantiles = [f"{name} {found.idle[name] * 1e3:.0f} -> {found.busy[name] * 1e3:.0f} ms" for name in ("p50", "p99")]
    return f"other orgs{how}, idle -> overload: {', '.join(quantiles)}; {found.stored / 1e6:.2f} M records/s stored"


def measure(seconds: float, idle_s: float = IDLE_S, *, settings: str = "") -> Measured:
    """Overload a fleet for so long, after it was idle but for the other orgs; `settings` are more of Phloem."""
    with tempfile.TemporaryDirectory(prefix="sapflow-bench-", dir=".") as directory:
        config = Path(directory).absolute() / "fleet.toml"
        config.write_text(CONFIG + settings)
        with running(config.parent / "data", collectors=2, config=config) as fleet, _limited(fleet) as groups:
            idle, busy, most, stored = trio.run(partial(_overload, fleet, seconds, idle_s))
            return Measured(most, {name: _oom_kills(group) for name, group in groups.items()}, idle, busy, stored)


@contextmanager
def _limited(fleet: Fleet) -> Iterator[dict[str, Path]]:
    """Each process in a memory cgroup of its own."""
    groups = {}
    try:
        for name, pid in fleet.processes().items():
            groups[name] = group = CGROUP / f"sapflow-bench-{pid}"
            group.mkdir()
            (group / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
            (group / "cgroup.procs").write_text(str(pid))
        yield groups
    finally:
        for group in groups.values():
            for pid in (group / "cgroup.procs").read_text().split():
                (CGROUP / "cgroup.procs").write_text(pid)
            group.rmdir()


def _oom_kills(group: Path) -> int:
    return int((group / "memory.oom_control").read_text().split()[-1])


async def _overload(
    fleet: Fleet, seconds: float, idle_s: float
) -> tuple[dict[str, float], dict[str, float], dict[str, int], float]:
    """Latencies of other orgs idle and busy, the most memory of each process, and records stored in a second."""
    tokens = {f"load-{number}": fleet.token(f"load-{number}") for number in range(3)}
    ledger, stop = Ledger(), trio.Event()
    most: dict[str, int] = {}
    await trio.sleep(1.5)  # collectors read the org table once a second
    async with trio.open_nursery() as nursery:
        sending = partial(load, meters=METERS, interval_s=0.1, records=24)
        nursery.start_soon(partial(sending, fleet.doors["link"], tokens, ledger, stop))
        await trio.sleep(idle_s)
        idle = ledger.quantiles()
        with _pushing(fleet.doors["ipfix_tcp"]):
            await trio.sleep(2.0)
            ledger.latencies_s.clear()
            before, until = _stored(fleet), time.monotonic() + seconds
            while time.monotonic() < until:
                await trio.sleep(0.5)
                for name, pid in fleet.processes().items():
                    most[name] = max(most.get(name, 0), rss(pid))
            busy, stored = ledger.quantiles(), (_stored(fleet) - before) / seconds
        stop.set()
    return idle, busy, most, stored


def _stored(fleet: Fleet) -> int:
    counted: int = fleet.status()["phloem-1"]["counts"]["commit"]["stored_records"]
    return counted


@contextmanager
def _pushing(address: str) -> Iterator[None]:
    """Exporters in a process of their own: beside the meters whose latency is measured they would hold them up."""
    spawn = get_context("spawn")
    stop = spawn.Event()
    process = spawn.Process(target=_push, args=(address, stop))
    process.start()
    try:
        yield
    finally:
        stop.set()
        process.join()


def _push(address: str, stop: Event) -> None:
    exporters = [threading.Thread(target=export, args=(address, stop)) for _ in range(EXPORTERS)]
    for exporter in exporters:
        exporter.start()
    for exporter in exporters:
        exporter.join()

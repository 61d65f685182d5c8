"""Memory of each process while a consumer is stalled for a minute at full load, beside its budget + 64 MiB."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import trio

from sapflow.client import subscribe
from sapflow.flows.reference import reference_work
from tools.fleet import Fleet, running

SECONDS = 60
EXPORTERS = 2
BUDGET_BYTES = 64 << 20
SLACK_BYTES = 64 << 20
CONFIG = f"""
[collector]
budget_bytes = {BUDGET_BYTES}
[phloem]
budget_bytes = {BUDGET_BYTES}
retention_bytes_per_org = {2 << 30}
retention_interval_s = 2.0
"""


def run() -> list[dict[str, Any]]:
    """One row a process: the most it held."""
    with tempfile.TemporaryDirectory(prefix="sapflow-bench-", dir=".") as directory:
        config = Path(directory).absolute() / "fleet.toml"
        config.write_text(CONFIG)
        with running(config.parent / "data", collectors=1, config=config) as fleet:
            most = trio.run(partial(_stall, fleet))
            stored = fleet.status()["phloem-1"]["counts"]["commit"]["stored_records"]
    return [
        {
            "process": name,
            "most RSS, MiB": round(size / 2**20),
            "budget + 64 MiB": round((BUDGET_BYTES + SLACK_BYTES) / 2**20),
            "load, M records/s": round(stored / SECONDS / 1e6, 2),
        }
        for name, size in most.items()
    ]


class Stop(Protocol):
    """An event of threads, or of processes."""

    def is_set(self) -> bool: ...


async def _stall(fleet: Fleet) -> dict[str, int]:
    """A consumer that never reads, exporters that never pause."""
    stop = threading.Event()
    most: dict[str, int] = {}
    url = f"link://{fleet.doors['consume']}"
    async with subscribe(url, "default", fleet.fleet_token(), at="earliest"):
        exporters = [threading.Thread(target=export, args=(fleet.doors["ipfix_tcp"], stop)) for _ in range(EXPORTERS)]
        for exporter in exporters:
            exporter.start()
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            await trio.sleep(0.5)
            for name, pid in fleet.processes().items():
                most[name] = max(most.get(name, 0), rss(pid))
        stop.set()
        for exporter in exporters:
            await trio.to_thread.run_sync(exporter.join)
    return most


def export(address: str, stop: Stop) -> None:
    """Push the reference work into the exporter door until `stop`."""
    host, port = address.split(":")
    work = reference_work(2000)
    with socket.create_connection((host, int(port))) as connection:
        while not stop.is_set():
            connection.sendall(work)


def rss(pid: int) -> int:
    """What a process holds of its own, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        # Pages of the log's file that the kernel may drop at any moment are not this process's memory.
        if line.startswith("RssAnon"):
            return int(line.split()[1]) << 10
    return 0

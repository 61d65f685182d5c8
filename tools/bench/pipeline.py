"""The reference work from plain exporters through balancer, collector and Phloem, until all of it is durable.

Beside it goflow2 (decode and produce to /dev/null, and to Kafka; by UDP, the only transport it has), in CPU seconds per
million records that it took. The figures of our three processes are their own; the generator shares the two cores.
"""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from sapflow.flows.reference import reference_work
from tools.bench import rivals
from tools.fleet import Fleet, running
from tools.peers import find

RECORDS = 480_000
REPEATS = 10
TIMEOUT_S = 120


def run() -> list[dict[str, Any]]:
    """One row for sapflow with one exporter and one with four; one for the peer."""
    rows = [_ours(exporters) for exporters in (1, 4)]
    theirs = [rivals.goflow2()] if find("goflow2") is not None else []
    if theirs and find("kafka") is not None:
        theirs.append(rivals.goflow2(into_kafka=True))
    for row in rows:
        row["goflow2 / ours, CPU"] = " and ".join(
            f"{peer['CPU s / M records'] / row['CPU s / M records']:.1f}" for peer in theirs
        )
    return [*rows, *({**peer, "goflow2 / ours, CPU": "-"} for peer in theirs)]


def _cpu(fleet: Fleet) -> dict[str, float]:
    return {name: status["gauges"]["cpu_seconds"] for name, status in fleet.status().items()}


def _ours(exporters: int) -> dict[str, Any]:
    work = reference_work()
    total = RECORDS * REPEATS
    with (
        tempfile.TemporaryDirectory(prefix="sapflow-bench-", dir=".") as directory,
        running(Path(directory).absolute(), collectors=1) as fleet,
    ):
        host, port = fleet.doors["ipfix_tcp"].split(":")
        before, began = _cpu(fleet), time.perf_counter()
        threads = [
            threading.Thread(target=_export, args=(host, int(port), work, REPEATS // exporters))
            for _ in range(exporters)
        ]
        total = RECORDS * (REPEATS // exporters) * exporters
        for thread in threads:
            thread.start()
        while _stored(fleet) < total:
            assert time.perf_counter() - began < TIMEOUT_S, f"{_stored(fleet):,} of {total:,} records are stored"
            time.sleep(0.05)
        took = time.perf_counter() - began
        after = _cpu(fleet)
        for thread in threads:
            thread.join()
    used = {name: (after[name] - before[name]) / (total / 1e6) for name in before}
    return {
        "what": f"sapflow, {exporters} exporter{'s' if exporters > 1 else ''}, durable",
        "M records/s": round(total / took / 1e6, 2),
        "CPU s / M records": round(sum(used.values()), 3),
        "of which": ", ".join(f"{name} {value:.2f}" for name, value in used.items()),
    }


def _stored(fleet: Fleet) -> int:
    found: int = fleet.status()["phloem-1"]["counts"]["commit"]["stored_records"]
    return found


def _export(host: str, port: int, work: bytes, repeats: int) -> None:
    with socket.create_connection((host, port)) as connection:
        for _ in range(repeats):
            connection.sendall(work)

"""The reference work from plain exporters through balancer, collector and Phloem, until all of it is durable.

Beside it goflow2 (decode and produce to /dev/null, by UDP, the only transport it has), in CPU seconds per million
records that it took. The figures of our three processes are their own; the generator shares the two cores.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from sapflow.flows.reference import reference_work
from tools.fleet import Fleet, running
from tools.peers import find

RECORDS = 480_000
REPEATS = 10
TIMEOUT_S = 120
PEER_MESSAGES = 4000
PEER_PAUSE_S = 0.0005


def run() -> list[dict[str, Any]]:
    """One row for sapflow with one exporter and one with four; one for the peer."""
    rows = [_ours(exporters) for exporters in (1, 4)]
    if find("goflow2") is not None:
        peer = _goflow2()
        for row in rows:
            row["peer / ours, CPU"] = round(peer["CPU s / M records"] / row["CPU s / M records"], 1)
        rows.append(peer)
    return rows


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
        "peer / ours, CPU": "-",
    }


def _stored(fleet: Fleet) -> int:
    found: int = fleet.status()["phloem-1"]["counts"]["commit"]["stored_records"]
    return found


def _export(host: str, port: int, work: bytes, repeats: int) -> None:
    with socket.create_connection((host, port)) as connection:
        for _ in range(repeats):
            connection.sendall(work)


def _goflow2() -> dict[str, Any]:
    program = find("goflow2")
    assert program is not None
    port, control = _free_port(socket.SOCK_DGRAM), _free_port(socket.SOCK_STREAM)
    command = [program, "-listen", f"netflow://127.0.0.1:{port}", "-addr", f"127.0.0.1:{control}"]
    command += ["-format", "bin", "-transport", "file", "-transport.file", os.devnull, "-loglevel", "error"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(control)
        before = _process_cpu(process.pid)
        began = time.perf_counter()
        _datagrams(port, reference_work(PEER_MESSAGES))
        taken = _settled(control)
        took = time.perf_counter() - began
        used = _process_cpu(process.pid) - before
    finally:
        process.terminate()
        process.wait(10)
    records = taken * 24
    return {
        "what": f"goflow2, decode + protobuf to /dev/null ({taken / PEER_MESSAGES:.0%} of datagrams taken)",
        "M records/s": round(records / took / 1e6, 2),
        "CPU s / M records": round(used / (records / 1e6), 3),
        "of which": "not durable",
        "peer / ours, CPU": "-",
    }


def _datagrams(port: int, work: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(("127.0.0.1", port))
        at = 0
        while at < len(work):
            length = int.from_bytes(work[at + 2 : at + 4], "big")
            sender.send(work[at : at + length])
            at += length
            time.sleep(PEER_PAUSE_S)


def _metrics(control: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{control}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    found = re.findall(r"^goflow2_flow_process_nf_total\{[^}]*\} ([0-9.e+]+)$", text, re.MULTILINE)
    return int(sum(float(value) for value in found))


def _settled(control: int) -> int:
    before = -1
    while (now := _metrics(control)) != before:
        before = now
        time.sleep(0.5)
    return now


def _wait_for(port: int) -> None:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError("goflow2 did not start within 10 s")


def _process_cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
        return found

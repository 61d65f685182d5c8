"""Other collectors, given the same work by UDP: how much CPU each takes for a million records.

All are sent the same datagrams at the same pace, slow enough that little is lost; what each took is its own count.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sapflow.flows.reference import reference_work
from tools.peers import find, kafka

MESSAGES = 4000
RECORDS_PER_MESSAGE = 24
PAUSE_S = 0.0005
START_TIMEOUT_S = 10.0
TOPIC = "flows"


def goflow2_decode() -> dict[str, Any]:
    """goflow2, decode alone: it makes no flows of what it decoded, and a short line of text for each datagram."""
    return goflow2(makes=("decode alone", "-produce", "raw", "-format", "text"))


def goflow2(
    *, into_kafka: bool = False, makes: tuple[str, ...] = ("decode + protobuf", "-format", "bin")
) -> dict[str, Any]:
    """goflow2, decode and protobuf: to /dev/null, or to a Kafka broker of its own (whose CPU is not counted)."""
    what, *options = makes
    program = find("goflow2")
    assert program is not None
    port, control = free_port(socket.SOCK_DGRAM), free_port(socket.SOCK_STREAM)
    command = [program, "-listen", f"netflow://127.0.0.1:{port}", "-addr", f"127.0.0.1:{control}"]
    command += [*options, "-loglevel", "error"]
    with ExitStack() as stack:
        if into_kafka:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sapflow-bench-")))
            broker = stack.enter_context(kafka.broker(directory))
            command += ["-transport", "kafka", "-transport.kafka.brokers", broker.address]
            command += ["-transport.kafka.topic", TOPIC]
        else:
            command += ["-transport", "file", "-transport.file", os.devnull]
        found = _measured(command, port, lambda: await_port(control), lambda: _settled(lambda: _goflow2_took(control)))
    where = "Kafka" if into_kafka else "/dev/null"
    return {"what": f"goflow2, {what} to {where} ({found['taken']:.0%} of datagrams taken)", **found["row"]}


def nfcapd() -> dict[str, Any]:
    """nfdump's collector, to a file that is not synced."""
    program = find("nfcapd")
    assert program is not None
    port = free_port(socket.SOCK_DGRAM)
    with tempfile.TemporaryDirectory(prefix="sapflow-bench-") as directory:
        command = [program, "-w", directory, "-b", "127.0.0.1", "-p", str(port), "-t", "3600", "-B", str(16 << 20)]
        found = _measured(command, port, lambda: _await_udp(port), lambda: _all_read(port))
    return {"what": "nfcapd, to a file, not synced", **found["row"]}


def nfacctd() -> dict[str, Any]:
    """pmacct's collector, aggregating in memory."""
    program = find("nfacctd")
    assert program is not None
    port = free_port(socket.SOCK_DGRAM)
    with tempfile.TemporaryDirectory(prefix="sapflow-bench-") as directory:
        config = Path(directory) / "nfacctd.conf"
        config.write_text(
            f"daemonize: false\nnfacctd_ip: 127.0.0.1\nnfacctd_port: {port}\nplugins: memory\n"
            f"imt_path: {directory}/imt.pipe\naggregate: src_host, dst_host, src_port, dst_port, proto\n"
            f"plugin_pipe_size: 67108864\nplugin_buffer_size: 65536\nnfacctd_pipe_size: {16 << 20}\n"
        )
        found = _measured([program, "-f", str(config)], port, lambda: _await_udp(port), lambda: _all_read(port))
    return {"what": "nfacctd, memory plugin", **found["row"]}


def _measured(command: list[str], port: int, ready: Callable[[], None], taken: Callable[[], int]) -> dict[str, Any]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        ready()
        before, began = group_cpu(process.pid), time.perf_counter()
        send_paced(port, reference_work(MESSAGES))
        messages = taken()
        took = time.perf_counter() - began
        used = group_cpu(process.pid) - before
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    records = messages * RECORDS_PER_MESSAGE
    return {
        "taken": messages / MESSAGES,
        "row": {
            "M records/s": round(records / took / 1e6, 2),
            "CPU s / M records": round(used / (records / 1e6), 3),
            "of which": "not durable",
        },
    }


def send_paced(port: int, work: bytes, pause_s: float = PAUSE_S) -> None:
    """Each message of the work in a datagram."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(("127.0.0.1", port))
        at = 0
        while at < len(work):
            length = int.from_bytes(work[at + 2 : at + 4], "big")
            sender.send(work[at : at + length])
            at += length
            time.sleep(pause_s)


def _goflow2_took(control: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{control}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    found = re.findall(r"^goflow2_flow_process_nf_total\{[^}]*\} ([0-9.e+]+)$", text, re.MULTILINE)
    return int(sum(float(value) for value in found))


def _settled(count: Callable[[], int]) -> int:
    before = -1
    while (now := count()) != before:
        before = now
        time.sleep(0.5)
    return now


def _udp_sockets(port: int) -> list[list[str]]:
    lines = Path("/proc/net/udp").read_text().splitlines()[1:]
    return [line.split() for line in lines if line.split()[1].endswith(f":{port:04X}")]


def _await_udp(port: int) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while not _udp_sockets(port):
        if time.monotonic() > until:
            raise RuntimeError(f"nothing listens on UDP port {port} within {START_TIMEOUT_S:g} s")
        time.sleep(0.05)
    time.sleep(0.5)


def _all_read(port: int) -> int:
    """Until its socket is empty: the datagrams that were not dropped by the kernel."""
    while any(int(line[4].split(":")[1], 16) for line in _udp_sockets(port)):
        time.sleep(0.05)
    time.sleep(0.5)
    return MESSAGES - sum(int(line[-1]) for line in _udp_sockets(port))


def await_port(port: int) -> None:
    """Until something listens on a TCP port of this host."""
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"nothing listens on port {port} within {START_TIMEOUT_S:g} s")


def group_cpu(leader: int) -> float:
    """CPU seconds of a process and those of its session."""
    total = 0.0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        if int(fields[3]) == leader:
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def free_port(kind: socket.SocketKind) -> int:
    """A port that nobody has now."""
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
        return found

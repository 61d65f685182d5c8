"""Carrying bytes: our relay (one process, one thread) beside HAProxy with one thread and splicing, in turn.

Throughput, and what each adds to the time of a question and its answer, beside none of them.
"""

from __future__ import annotations

import multiprocessing
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import trio
from attrs import define

from balancer.carry import relay
from sapflow.runtime.dial import dial
from sapflow.runtime.serve import listen, serve
from tools.bench.rivals import await_port, free_port
from tools.peers import find

SECONDS = 2.0
ROUNDS = 5
CHUNK = bytes(1 << 20)
QUESTIONS = 2000
"""Asked and answered in a round, one after the other, over connections in turn."""
QUESTION = bytes(512)


def run() -> list[dict[str, Any]]:
    """Medians of rounds that alternate: Gbit/s with 1 and 16 connections, then delays."""
    with _backend(_drain) as sink, _relays(sink) as ports:
        rows = []
        for connections in (1, 16):
            rates = _rates(ports, connections)
            rows += [_row(name, connections, rates) for name in ports]
    with _backend(_echo) as echo, _relays(echo) as ports:
        rows += _delays({"none": echo, **ports})
    return rows


@contextmanager
def _relays(backend: int) -> Iterator[dict[str, int]]:
    """The ports of ours, and of HAProxy's if it is installed."""
    ports = {"sapflow": free_port(socket.SOCK_STREAM)}
    with ExitStack() as stack:
        stack.enter_context(_started([sys.executable, "-m", "tools.bench.relay", str(ports["sapflow"]), str(backend)]))
        await_port(ports["sapflow"])
        if find("haproxy") is not None:
            ports["haproxy"] = free_port(socket.SOCK_STREAM)
            config = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".cfg"))
            config.write(_haproxy(ports["haproxy"], backend))
            config.flush()
            stack.enter_context(_started([str(find("haproxy")), "-db", "-f", config.name]))
            await_port(ports["haproxy"])
        yield ports


def _row(name: str, connections: int, rates: dict[str, list[float]]) -> dict[str, Any]:
    middle = {who: sorted(found)[len(found) // 2] for who, found in rates.items()}
    peer = middle.get("haproxy")
    return {
        "what": f"{name}, {connections} connection{'s' if connections > 1 else ''}",
        "Gbit/s": round(middle[name], 2),
        "ratio to haproxy": round(middle[name] / peer, 2) if peer else "-",
        "p50 added, ms": "-",
        "p99 added, ms": "-",
    }


def _delays(ports: dict[str, int]) -> list[dict[str, Any]]:
    """What is added to the median, and to the 99th percentile, of a question's time: medians of rounds."""
    found: dict[str, list[list[float]]] = {name: [] for name in ports}
    for _ in range(ROUNDS):
        for name, port in ports.items():
            found[name].append(_ask(port, 16))

    def quantile(name: str, q: float) -> float:
        return median(took[int(q * len(took))] for took in found[name])

    return [
        {
            "what": f"{name}, 16 connections, questions of {len(QUESTION)} bytes",
            "Gbit/s": "-",
            "ratio to haproxy": "-",
            "p50 added, ms": round((quantile(name, 0.5) - quantile("none", 0.5)) * 1e3, 3),
            "p99 added, ms": round((quantile(name, 0.99) - quantile("none", 0.99)) * 1e3, 3),
        }
        for name in ports
        if name != "none"
    ]


def _ask(port: int, connections: int) -> list[float]:
    """Seconds until each answer was there, sorted."""
    took = []
    with ExitStack() as stack:
        asking = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(connections)]
        for one in asking:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(QUESTIONS):
            one, began = asking[number % connections], time.perf_counter()
            one.sendall(QUESTION)
            left = len(QUESTION)
            while left:
                left -= len(one.recv(left))
            took.append(time.perf_counter() - began)
    return sorted(took)


def _rates(ports: dict[str, int], connections: int) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {name: [] for name in ports}
    for _ in range(ROUNDS):
        for name, port in ports.items():
            rates[name].append(_push(port, connections))
    return rates


def _push(port: int, connections: int) -> float:
    sent = [0] * connections
    until = time.perf_counter() + SECONDS

    def one(index: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            while time.perf_counter() < until:
                sent[index] += connection.send(CHUNK)

    threads = [threading.Thread(target=one, args=(index,)) for index in range(connections)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(sent) * 8 / (time.perf_counter() - began) / 1e9


def _drain(listener: socket.socket) -> None:
    def one(connection: socket.socket) -> None:
        with connection:
            room = bytearray(1 << 20)
            while connection.recv_into(room):
                pass

    while True:
        connection, _ = listener.accept()
        threading.Thread(target=one, args=(connection,), daemon=True).start()


def _echo(listener: socket.socket) -> None:
    def one(connection: socket.socket) -> None:
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := connection.recv(1 << 16):
                connection.sendall(data)

    while True:
        connection, _ = listener.accept()
        threading.Thread(target=one, args=(connection,), daemon=True).start()


@contextmanager
def _backend(serve_all: Callable[[socket.socket], None]) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = multiprocessing.get_context("fork").Process(target=serve_all, args=(listener,), daemon=True)
        process.start()
        try:
            yield listener.getsockname()[1]
        finally:
            process.kill()
            process.join()


@contextmanager
def _started(command: list[str]) -> Iterator[None]:
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


def _haproxy(port: int, backend: int) -> str:
    return (
        "global\n  nbthread 1\n  maxconn 1000\n"
        "defaults\n  mode tcp\n  option splice-auto\n  timeout connect 2s\n  timeout client 30s\n  timeout server 30s\n"
        f"listen l\n  bind 127.0.0.1:{port}\n  server s 127.0.0.1:{backend}\n"
    )


@define
class _Counts:
    bytes_in: int = 0
    bytes_out: int = 0
    bytes_back: int = 0


async def _serve(port: int, backend: int) -> None:
    async def carry(stream: trio.SocketStream, _peer: str) -> None:
        upstream = await dial(f"127.0.0.1:{backend}", timeout_s=5.0)
        assert isinstance(upstream, trio.SocketStream)
        async with upstream:
            await relay(stream, upstream, _Counts())

    listener = await listen(f"127.0.0.1:{port}", what="the relay")
    await partial(serve, max_connections=1000, what="relay")(listener, carry)


if __name__ == "__main__":
    trio.run(_serve, int(sys.argv[1]), int(sys.argv[2]))

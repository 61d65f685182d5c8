"""A fleet's link door, and HAProxy in front of the same collectors: what `herd` and `idle` measure.

The load is many links of meters from one process without Trio: each connects, says who it is, and is served when the
collector's welcome has come back, whoever is in between.
"""

from __future__ import annotations

import math
import os
import resource
import select
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from attrs import define, field

from sapflow.link import Connection, Side
from sapflow.link.frames import Hint
from tools.bench.rivals import await_port, free_port
from tools.fleet import Fleet, running
from tools.peers import find

WINDOW = 2000
"""Links that are not served yet: no more, so that none is dropped from a full accept queue and waits for a timer."""
TIMEOUT_S = 120.0
SPARE_DESCRIPTORS = 500
_RESET = struct.pack("ii", 1, 0)


def most_connections(wanted: int, descriptors_each: int) -> int:
    """As many as a process may hold that needs so many descriptors for each, at most those wanted."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(wanted, (hard - SPARE_DESCRIPTORS) // descriptors_each)


@define
class Front:
    """Something that links go through: where, and the process that is measured."""

    name: str
    port: int
    pid: int
    token: str
    fleet: Fleet

    def rss_bytes(self) -> int:
        """Of its process."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) << 10
        raise RuntimeError(f"{self.name} is gone")

    def cpu_s(self) -> float:
        """CPU seconds of its process."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def links(self) -> float:
        """What collectors have now; without end while one is too busy to say."""
        collectors = [its for name, its in self.fleet.status().items() if name.startswith("collector")]
        if any("error" in its for its in collectors):
            return math.inf
        return float(sum(its["counts"]["link"]["links"] for its in collectors))

    def await_links(self, count: float) -> None:
        """Until collectors have at most so many."""
        until = time.monotonic() + TIMEOUT_S
        while self.links() > count:
            if time.monotonic() > until:
                raise RuntimeError(f"{self.name}: links did not end within {TIMEOUT_S:g} s")
            time.sleep(0.2)


@contextmanager
def sapflow_front(name: str, *, handoff: bool) -> Iterator[Front]:
    """A fleet of two collectors; its admission lets all in that come, as HAProxy does."""
    with tempfile.TemporaryDirectory(prefix="sapflow-bench-", dir=".") as directory:
        config = Path(directory).absolute() / "fleet.toml"
        config.write_text(
            f"[balancer]\nhandoff = {str(handoff).lower()}\nhandoff_timeout_s = 10.0\nlinks_per_s = 1e6\n"
            "max_connections = 20000\nmax_unplaced_links = 20000\n"
            "[collector]\nmax_links = 20000\nidle_timeout_s = 600.0\n"
        )
        with running(config.parent / "data", collectors=2, config=config) as fleet:
            token = fleet.token("acme")
            time.sleep(2.5)  # collectors read the org table once a second, and the balancer finds them
            port = int(fleet.doors["link"].rpartition(":")[2])
            yield Front(name, port, fleet.processes()["balancer"], token, fleet)


@contextmanager
def haproxy_front(beside: Front) -> Iterator[Front]:
    """HAProxy, one thread, least connections first, before the collectors of another front."""
    program, port = find("haproxy"), free_port(socket.SOCK_STREAM)
    assert program is not None
    members = beside.fleet.status()["balancer"]["members"]
    collectors = [member for member in members if member["role"] == "collector"]
    servers = "".join(f"  server {one['name']} {one['addresses']['link']}\n" for one in collectors)
    most = most_connections(20_000, 2)
    with ExitStack() as stack:
        config = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".cfg"))
        config.write(
            f"global\n  nbthread 1\n  maxconn {most}\n"
            f"defaults\n  mode tcp\n  maxconn {most}\n  balance leastconn\n"
            "  timeout connect 10s\n  timeout client 600s\n  timeout server 600s\n"
            f"listen l\n  bind 127.0.0.1:{port} backlog 4096\n{servers}"
        )
        config.flush()
        process = subprocess.Popen([program, "-db", "-f", config.name], start_new_session=True)
        stack.callback(process.wait, 10)
        stack.callback(process.terminate)
        await_port(port)
        yield Front("haproxy", port, process.pid, beside.token, beside.fleet)


@define
class Herd:
    """Links that were opened, and how long each took until it was served."""

    sockets: list[socket.socket] = field(factory=list)
    took_s: list[float] = field(factory=list)
    seconds: float = 0.0

    def quantile(self, q: float) -> float:
        """Seconds until served."""
        return sorted(self.took_s)[min(len(self.took_s) - 1, int(q * len(self.took_s)))]

    def close(self) -> None:
        """All at once, without a TIME_WAIT for each."""
        for one in self.sockets:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            one.close()


def stampede(front: Front, count: int) -> Herd:
    """Open `count` links as fast as they are served. Raises RuntimeError when not all are within TIMEOUT_S."""
    herd, epoll = Herd(), select.epoll()
    waiting: dict[int, tuple[socket.socket, float]] = {}
    began, opened = time.perf_counter(), 0
    with epoll:
        while opened < count or waiting:
            if time.perf_counter() - began > TIMEOUT_S:
                raise RuntimeError(f"{front.name}: {len(herd.took_s)} of {count} links served within {TIMEOUT_S:g} s")
            for _ in range(min(50, count - opened, WINDOW - len(waiting))):
                one = _open(front, opened)
                epoll.register(one.fileno(), select.EPOLLIN)
                waiting[one.fileno()] = one, time.perf_counter()
                herd.sockets.append(one)
                opened += 1
            for descriptor, _ in epoll.poll(0.0 if opened < count and len(waiting) < WINDOW else 1.0):
                one, since = waiting.pop(descriptor)
                if not one.recv(4096):
                    raise RuntimeError(f"{front.name} closed a link")
                herd.took_s.append(time.perf_counter() - since)
                epoll.unregister(descriptor)
    herd.seconds = time.perf_counter() - began
    return herd


def _open(front: Front, number: int) -> socket.socket:
    one = socket.create_connection(("127.0.0.1", front.port), timeout=TIMEOUT_S)
    name = f"meter-{number}"
    one.sendall(Connection(Side.CLIENT).hello(Hint("acme", name), role="meter", name=name, token=front.token))
    return one

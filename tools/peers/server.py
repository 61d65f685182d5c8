"""A peer that is a server: a process with a port and a directory, which can be killed, paused and started again.

What it logs goes to `NAME.log` in its directory, appended to over restarts. Its port stays its own from the first
start to the last, so that clients find it again.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from attrs import define, field

from tools.peers.catalog import find, install_line

HOST = "127.0.0.1"
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
_POLL_S = 0.03
_TAIL_BYTES = 4_000


class ServerFailed(Exception):
    """A peer could not be started, or did not answer in time; the message ends with what it logged."""


@define
class Server:
    """One server, on a loopback port."""

    name: str
    port: int
    directory: Path
    _command: tuple[str, ...] = field(repr=False)
    _is_ready: Callable[[int], bool] = field(repr=False)
    """Asked with the port, again and again; an OSError means not yet."""
    _process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Where it listens: host:port."""
        return f"{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """Its process id; of the last process, when it was killed or stopped."""
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether its process is alive; a paused one is."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> Path:
        """What it has logged, over all starts."""
        return self.directory / f"{self.name}.log"

    def start(self, *, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Start it, on the same directory and port as before if there was a before, and wait until it answers.

        Raises ServerFailed.
        """
        self.launch()
        self.await_ready(timeout_s=timeout_s)

    def launch(self) -> None:
        """Start it without waiting: servers that form a cluster become ready only together."""
        assert not self.is_running, f"{self.name} is already running"
        if not is_free(self.port):
            raise ServerFailed(f"{self.name} was not started: another process has {self.address}")
        with self.log.open("ab") as log:
            # A group of its own, so that Ctrl-C reaches whoever started it, who then stops it.
            self._process = subprocess.Popen(
                self._command, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )

    def await_ready(self, *, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until it answers; one that does not in time is killed. Raises ServerFailed."""
        until = time.monotonic() + timeout_s
        while not self._answers():
            if not self.is_running:
                raise ServerFailed(f"{self.name} ended before it answered on {self.address}:\n{self._tail()}")
            if time.monotonic() > until:
                self.kill()
                raise ServerFailed(f"{self.name} did not answer on {self.address} in {timeout_s:g} s:\n{self._tail()}")
            time.sleep(_POLL_S)

    def kill(self) -> None:
        """kill -9, paused or not; when this returns its port is free again."""
        if self.is_running:
            self._send(signal.SIGKILL)
            self._wait(None)

    def pause(self) -> None:
        """SIGSTOP: connections stay open, and nothing answers, from when this returns."""
        self._send(signal.SIGSTOP)
        assert self._process is not None
        # A signal is under way for a moment: on another core a thread may answer meanwhile.
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """SIGCONT."""
        self._send(signal.SIGCONT)

    def stop(self, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End it in order, paused or not; kill it when it takes too long. Nothing, when it is not running."""
        if not self.is_running:
            return
        self.resume()
        self._send(signal.SIGTERM)
        try:
            self._wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def _send(self, number: signal.Signals) -> None:
        assert self._process is not None, f"{self.name} was never started"
        self._process.send_signal(number)

    def _wait(self, timeout_s: float | None) -> None:
        assert self._process is not None
        self._process.wait(timeout_s)

    def _answers(self) -> bool:
        try:
            return self._is_ready(self.port)
        except OSError:
            return False

    def _tail(self) -> str:
        return self.log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")


@contextmanager
def running(*servers: Server) -> Iterator[None]:
    """Start servers together and wait until each answers; at the end stop, or kill, what still runs."""
    try:
        for server in servers:
            server.launch()
        for server in servers:
            server.await_ready()
        yield
    finally:
        # Of several none is stopped in order: the last ones would wait for a quorum that is gone.
        end = Server.stop if len(servers) == 1 else Server.kill
        for server in servers:
            end(server)


def free_port() -> int:
    """A port that nothing listens on now; see `free_ports`."""
    (found,) = free_ports(1)
    return found


def free_ports(count: int) -> tuple[int, ...]:
    """Different ports that nothing listens on now, below those that the system gives to outgoing connections.

    From that range a client that dials a killed server again and again is sooner or later given the server's own
    port: it connects to itself, and the server cannot come back. Raises ServerFailed.
    """
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    # Not the shared generator, which hypothesis and tests seed: every worker would choose the same ports.
    choose = random.SystemRandom()
    tried = choose.sample(range(10_000, max(low, 20_000)), 100 + count)
    found = tuple(port for port in tried if is_free(port))[:count]
    if len(found) < count:
        raise ServerFailed(f"no {count} free ports were found in {len(tried)} tries")
    return found


def is_free(port: int) -> bool:
    """Whether a server could listen on a loopback port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def java(libs: Path, main: str, *arguments: str, options: tuple[str, ...]) -> tuple[str, ...]:
    """The command of a Java program that logs to stderr through slf4j-simple."""
    log = ("-Dorg.slf4j.simpleLogger.showDateTime=true", "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS")
    return ("java", *options, *log, "-Djava.awt.headless=true", "-cp", f"{libs}/*", main, *arguments)


def libs(name: str) -> Path:
    """Where an installed Java peer's jars are. Raises ServerFailed, with the install line, when they are not there."""
    found = find(name)
    if found is None:
        raise ServerFailed(f"{name} is not installed: {install_line(name)}")
    return Path(found)


def properties_file(settings: Mapping[str, str]) -> str:
    """Settings as both servers read them."""
    return "".join(f"{key}={value}\n" for key, value in settings.items())

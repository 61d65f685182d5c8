"""softflowd over IPFIX/TCP while the balancer is restarted: one connection, and all that it numbered is stored."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from tools.fleet import Fleet, running

from sapflow.client.ledger import ledger
from sapflow.ledger import OrgLedger
from tests.interop.exporters import program
from tests.interop.recordings import sapflow
from tests.peers import needs, needs_root

METERED_PORT = 53_537
"""Where what softflowd meters goes on the loopback interface; nobody listens."""


@contextmanager
def softflowd(door: str) -> Iterator[None]:
    """It tells of flows about once a second, while they last; at its end of the rest."""
    line = [
        program("softflowd"),
        "-d",
        "-i",
        "lo",
        "-n",
        door,
        "-v",
        "10",
        "-P",
        "tcp",
        "-c",
        "none",
        "-p",
        "/dev/null",
    ]
    for timeout in ("maxlife=1", "udp=1", "general=1", "expint=1"):
        line += ["-t", timeout]
    process = subprocess.Popen([*line, f"udp and dst port {METERED_PORT}"], stderr=subprocess.DEVNULL)
    try:
        yield
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    finally:
        process.kill()
        process.wait()


def some_traffic(seconds: float) -> None:
    until = time.monotonic() + seconds
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        while time.monotonic() < until:
            for number in range(20):
                sender.sendto(bytes(40), (f"127.0.0.{2 + number}", METERED_PORT))
            time.sleep(0.05)


def the_ledger(fleet: Fleet) -> OrgLedger:
    async def ask() -> OrgLedger:
        with trio.fail_after(20):
            return await ledger(f"link://{fleet.doors['consume']}", "default", fleet.fleet_token())

    return trio.run(ask)


def counts(fleet: Fleet) -> dict[str, Any]:
    found: dict[str, Any] = fleet.status()["balancer"]["counts"]["intake"]
    return found


def until(fleet: Fleet, name: str, least: int) -> None:
    deadline = time.monotonic() + 30
    while counts(fleet)[name] < least:
        assert time.monotonic() < deadline, counts(fleet)
        some_traffic(0.2)


@needs("softflowd")
@needs_root("softflowd reads packets off an interface")
@pytest.mark.timeout(200)
def test_softflowd_keeps_its_tcp_session_over_restarts_of_the_balancer(tmp_path: Path) -> None:
    with running(tmp_path, collectors=1) as fleet:
        with softflowd(fleet.doors["ipfix_tcp"]):
            until(fleet, "records", 20)
            for _ in range(2):
                sapflow("restart", "balancer", "--data", tmp_path)
                until(fleet, "records", 20)
                assert (counts(fleet)["resumed"], counts(fleet)["sessions"]) == (1, 0)
            some_traffic(1.0)
        deadline = time.monotonic() + 30
        while counts(fleet)["exporters"] or not the_ledger(fleet).closes:
            assert time.monotonic() < deadline, the_ledger(fleet).differences()
            time.sleep(0.2)
        told = the_ledger(fleet)
    assert (told.streams, told.total.account.lost, told.total.account.repeated) == (1, 0, 0)
    assert told.total.stored >= 60

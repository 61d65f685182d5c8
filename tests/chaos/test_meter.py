"""A real meter before a real fleet, killed -9 again and again; every record counted afterwards."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from tools.fleet import Fleet, running

from meter.node import read_file
from sapflow.cli.fleet_file import read_status
from sapflow.client import subscribe
from sapflow.flows.ipfix.session import Session
from sapflow.flows.reference import reference_work

ORG = "acme"


class Meter:
    """A `sapflow meter` process over one spool, started again by `start` after `kill`."""

    def __init__(self, directory: Path, url: str, token: str, *options: str) -> None:
        self.spool = directory / "spool"
        self.drop = directory / "drop"
        self._log = directory / "meter.log"
        (directory / "token").write_text(token)
        self._command = [sys.executable, "-m", "sapflow", "meter", "--to", url, "--org", ORG]
        self._command += ["--token-file", str(directory / "token"), "--spool", str(self.spool)]
        self._command += ["--ipfix-tcp", "127.0.0.1:0", "--udp", "127.0.0.1:0", "--drop", str(self.drop), *options]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=log)
        assert self._process.stdout is not None
        assert b"ready" in self._process.stdout.readline(), self._log.read_text()[-2000:]

    def kill(self, number: int = signal.SIGKILL) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)
        self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()

    @property
    def addresses(self) -> dict[str, str]:
        found: dict[str, str] = read_file(str(self.spool))["addresses"]
        return found

    def status(self) -> dict[str, Any]:
        return read_status({"control": {"meter": f"http://{self.addresses['control']}/status"}})["meter"]

    def totals(self) -> dict[str, int]:
        found: dict[str, int] = self.status()["counts"]["spool"]
        return found

    def wait(self, until: Callable[[dict[str, Any]], bool], seconds: float = 60) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while not until(status := self.status()):
            assert time.monotonic() < deadline, status
            time.sleep(0.05)
        return status


@contextmanager
def a_meter(directory: Path, fleet: Fleet, *options: str, scheme: str = "link") -> Iterator[Meter]:
    directory.mkdir(parents=True, exist_ok=True)
    meter = Meter(directory, f"{scheme}://{fleet.doors['link']}", fleet.token(ORG), *options)
    time.sleep(1.5)  # collectors read the org table once a second
    meter.start()
    try:
        yield meter
    finally:
        meter.kill(signal.SIGTERM)


def stored(fleet: Fleet) -> dict[str, Counter[str]]:
    """What the log holds of each exporter; it is asserted to be in order, once, and readable."""
    found: dict[str, Counter[str]] = {}

    async def read() -> None:
        seen: dict[bytes, int] = {}
        url = f"link://{fleet.doors['consume']}"
        with trio.fail_after(60):
            async with subscribe(url, ORG, fleet.fleet_token(), at="earliest", follow=False) as batches:
                async for batch in batches:
                    assert batch.seq == seen.get(batch.stream, 0) + 1
                    seen[batch.stream] = batch.seq
                    walk = Session().walk(batch.payload)
                    assert (walk.fault, walk.records) == (None, batch.records)
                    counts = found.setdefault(batch.exporter, Counter())
                    counts["records"] += batch.records
                    counts["batches"] += 1
                assert not batches.repeats

    trio.run(read)
    return found


def dropped(meter: Meter, name: str, messages: int) -> None:
    """Drop a file the way it is to be done: by renaming it into place."""
    part = meter.drop / f".{name}"
    part.write_bytes(reference_work(messages))
    part.rename(meter.drop / name)


def nothing_waits(status: dict[str, Any]) -> bool:
    gauges = status["gauges"]
    return gauges["held_batches"] == 0 and gauges["pending_bytes"] == 0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with running(tmp_path_factory.mktemp("fleet")) as running_fleet:
        yield running_fleet


@pytest.mark.timeout(200)
def test_c02_a_meter_killed_again_and_again_loses_nothing_that_was_in_its_spool(fleet: Fleet, tmp_path: Path) -> None:
    """Files and a TCP exporter; what is in no spool yet may be lost. Each time a process of the fleet dies with it."""
    with a_meter(tmp_path, fleet, "--name", "killed") as meter:
        for number in range(3):
            for name in ("a", "b"):
                dropped(meter, f"{name}{number}", 4000)
            host, port = meter.addresses["ipfix_tcp"].split(":")

            async def export(host: str = host, port: str = port) -> None:
                async with await trio.open_tcp_stream(host, int(port)) as exporter:
                    with trio.move_on_after(1):
                        await exporter.send_all(reference_work(20_000))

            trio.run(export)
            meter.wait(lambda status: status["counts"]["spool"]["taken_batches"] > 20)
            meter.kill()
            fleet.kill(("collector-1", "phloem-1", "balancer")[number])
            meter.start()
        meter.wait(lambda status: len(list((meter.drop / "done").iterdir())) == 6 and nothing_waits(status))
        totals = meter.totals()
    found = stored(fleet)
    files = {name: counts["records"] for name, counts in found.items() if name.startswith("file:")}
    assert files == {f"file:{name}{number}": 4000 * 24 for name in "ab" for number in range(3)}
    assert totals["taken_records"] == totals["acknowledged_records"] == sum(c["records"] for c in found.values())
    assert totals["taken_batches"] == totals["acknowledged_batches"] == sum(c["batches"] for c in found.values())


def test_every_door_of_a_meter_leads_to_the_log_and_status_says_what_became_of_it(fleet: Fleet, tmp_path: Path) -> None:
    """UDP and a Unix socket in, a WebSocket out."""
    unix = tmp_path / "meter.sock"
    with a_meter(tmp_path, fleet, "--unix", str(unix), "--name", "doors", scheme="ws") as meter:
        host, port = meter.addresses["udp"].split(":")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.connect((host, int(port)))
            udp.send(reference_work(1)[: -len(reference_work(1, define=False))])
            for number in range(20):
                udp.send(reference_work(1, define=False, sequence=24 * number))
        with socket.socket(socket.AF_UNIX) as local:
            local.connect(str(unix))
            local.sendall(reference_work(10))
        status = meter.wait(lambda found: found["counts"]["spool"]["acknowledged_records"] >= 30 * 24)
        totals, gauges = status["counts"]["spool"], status["gauges"]
        assert totals["taken_records"] == totals["acknowledged_records"] + gauges["held_records"] == 30 * 24
        assert status["link"]["up"] == ["the door"]
        assert status["counts"]["udp"]["datagrams"] == 21
        with urllib.request.urlopen(f"http://{meter.addresses['control']}/metrics", timeout=5) as answer:
            metrics = answer.read().decode()
        assert "sapflow_meter_spool_acknowledged_records_total 720.0" in metrics
        assert "sapflow_meter_held_bytes 0.0" in metrics
        said = [sys.executable, "-m", "sapflow", "meter", "status", "--spool", str(meter.spool), "--json"]
        found = json.loads(subprocess.run(said, check=True, capture_output=True, text=True).stdout)
        assert found["counts"]["spool"]["acknowledged_records"] == 720
        exporter = f"unix:{os.getpid()}"
    assert stored(fleet)[exporter]["records"] == 240
    gone = subprocess.run(said, check=False, capture_output=True, text=True)
    assert (gone.returncode, "no meter runs" in gone.stderr) == (1, True)


def test_a_meter_says_what_is_wrong_with_how_it_was_started(tmp_path: Path) -> None:
    def started(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sapflow", "meter", "--spool", str(tmp_path / "spool"), *options]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)

    for options, code, what in (
        ((), 1, "needs a door"),
        (("--udp", "127.0.0.1:0", "--to", "http://x"), 1, "is not a link"),
        (("--udp", "127.0.0.1:0", "--token-file", "nowhere"), 1, "token file nowhere cannot be read"),
        (("--udp", "127.0.0.1:0", "--spool-bytes", "1000"), 2, "--spool-bytes"),
        (("--unix", str(tmp_path / "no" / "such")), 1, "meter.unix"),
    ):
        found = started(*options)
        assert (found.returncode, what in found.stderr) == (code, True), found.stderr


@pytest.mark.timeout(200)
def test_while_the_fleet_is_away_the_spool_fills_and_not_the_memory(tmp_path: Path) -> None:
    with running(tmp_path / "fleet") as fleet:
        token, door = fleet.token(ORG), fleet.doors["link"]
    meter = Meter(tmp_path, f"link://{door}", token, "--spool-bytes", str(96 << 20))
    meter.start()
    try:
        before = meter.status()["gauges"]["rss_bytes"]
        host, port = meter.addresses["ipfix_tcp"].split(":")
        work = reference_work(20_000)

        async def export() -> int:
            sent = 0
            async with await trio.open_tcp_stream(host, int(port)) as exporter:
                while sent < 1 << 30:
                    for at in range(0, len(work), 1 << 20):
                        with trio.move_on_after(3) as stuck:
                            await exporter.send_all(work[at : at + (1 << 20)])
                        if stuck.cancelled_caught:
                            return sent
                        sent += 1 << 20
            return sent

        sent = trio.run(export)
        status = meter.status()
        gauges = status["gauges"]
        assert 96 << 20 > sent > 32 << 20
        assert gauges["limit_bytes"] * 0.8 < gauges["held_bytes"] <= gauges["limit_bytes"]
        assert gauges["rss_bytes"] < before + (96 << 20)
        assert status["link"]["up"] == []
        assert "link://" in status["link"]["to"]
        assert "cannot be reached" in status["link"]["last_error"]
        assert (meter.spool / "data.mdb").stat().st_size <= 96 << 20
        said = [sys.executable, "-m", "sapflow", "meter", "status", "--spool", str(meter.spool)]
        lines = subprocess.run(said, check=True, capture_output=True, text=True).stdout
        assert "down" in lines
        assert "cannot be reached" in lines
    finally:
        meter.kill(signal.SIGTERM)
    shutil.rmtree(meter.spool)

"""The ledger over a real fleet whose processes are killed under load: it closes, to the record."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from tools.fleet import Fleet, running

from meter.spooled import SPOOL_FULL
from sapflow.client.ledger import ledger
from sapflow.errors import Refused, Unreachable
from sapflow.flows.ipfix.encode import make_set, make_template
from sapflow.flows.reference import reference_work
from sapflow.flows.wire import MESSAGE_HEADER, VERSION
from sapflow.ledger import OrgLedger
from tests.chaos.test_meter import ORG, Meter, a_meter, nothing_waits

PORTS = make_template(256, [(0, 7, 2), (0, 11, 2)])
DEFINITION = make_set(2, PORTS.raw)
RECORDS = 20
DATA = make_set(256, struct.pack("!HH", 1, 2) * RECORDS)
SETTLES_S = 30.0


def message(number: int, body: bytes) -> bytes:
    return MESSAGE_HEADER.pack(VERSION, MESSAGE_HEADER.size + len(body), 0, number, 1) + body


async def over_udp(fleet: Fleet, stop: trio.Event, sent: dict[str, int]) -> None:
    """One exporter whose every tenth datagram is lost; the last one is not."""
    host, port = fleet.doors["udp"].split(":")
    sock = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
    await sock.connect((host, int(port)))
    number = count = 0
    while not stop.is_set():
        count += 1
        if count % 10:
            body = DEFINITION + DATA if count % 10 == 1 else DATA
            with suppress(ConnectionRefusedError):  # nobody listens just now
                await sock.send(message(number, body))
        else:
            sent["skipped"] += RECORDS
        number += RECORDS
        with trio.move_on_after(0.005):
            await stop.wait()
    sent["udp"] = number
    while not sent["settled"]:
        # An exporter goes on: by its next number it is known what of the last ones did not come.
        await sock.send(message(number, DEFINITION))
        await trio.sleep(0.2)


async def over_tcp(fleet: Fleet, stop: trio.Event, sent: dict[str, int]) -> None:
    host, port = fleet.doors["ipfix_tcp"].split(":")
    async with await trio.open_tcp_stream(host, int(port)) as exporter:
        number = 0
        await exporter.send_all(message(0, DEFINITION))
        while not stop.is_set():
            await exporter.send_all(message(number, DATA))
            number += RECORDS
            with trio.move_on_after(0.005):
                await stop.wait()
        sent["tcp"] = number


async def asked(fleet: Fleet, org: str = "default", streams: int = 0) -> OrgLedger:
    return await ledger(f"link://{fleet.doors['consume']}", org, fleet.fleet_token(), streams=streams)


async def until(fleet: Fleet, exported: int) -> OrgLedger:
    """The ledger when all of it has arrived."""
    found = None
    with trio.move_on_after(SETTLES_S):
        while True:
            try:
                found = await asked(fleet)
            except (Unreachable, Refused):
                await trio.sleep(0.1)
                continue
            if found.total.account.exported >= exported:
                return found
            await trio.sleep(0.1)
    raise AssertionError(f"{exported:,} records were exported; {found}")


async def under_load(fleet: Fleet, victims: list[str]) -> dict[str, int]:
    """Load, a kill each second; what was sent, once all has settled."""
    sent = {"udp": 0, "tcp": 0, "skipped": 0, "settled": 0}
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(over_udp, fleet, stop, sent)
        nursery.start_soon(over_tcp, fleet, stop, sent)
        for victim in victims:
            await trio.sleep(1.0)
            await trio.to_thread.run_sync(fleet.kill, victim)
        await trio.sleep(1.0)
        stop.set()
        while not (sent["udp"] and sent["tcp"]):
            await trio.sleep(0.01)
        await until(fleet, sent["udp"] + sent["tcp"])
        sent["settled"] = 1
    return sent


@pytest.mark.timeout(120)
def test_the_ledger_closes_whichever_process_behind_the_intake_is_killed(tmp_path: Path) -> None:
    with running(tmp_path, collectors=2) as fleet:
        sent = trio.run(under_load, fleet, ["collector-1", "phloem-1", "collector-2", "phloem-1", "collector-1"])
        found = trio.run(asked, fleet)
        account = found.total.account
        assert found.closes, found.differences()
        assert account.exported == sent["udp"] + sent["tcp"] > 10_000
        assert account.lost >= sent["skipped"] > 0
        assert account.received == account.exported - account.lost
        assert found.total.stored == found.kept == account.received, "nothing was refused"
        trio.run(it_is_shown, fleet, found)
    with running(tmp_path, collectors=2) as again:
        after = trio.run(asked, again)
        assert (after.total.account, after.total.stored, after.closes) == (account, found.total.stored, True)


@pytest.mark.timeout(120)
def test_the_ledger_closes_when_the_intake_itself_is_killed(tmp_path: Path) -> None:
    """What it had read and not passed on is in no row, as the documentation says; all else adds up."""
    with running(tmp_path) as fleet:
        sent, found = trio.run(through_deaths_of_the_balancer, fleet)
        account = found.total.account
        assert found.closes, found.differences()
        assert 1_000 < account.exported <= sent["udp"]
        assert found.streams >= 3, "one each life"


async def through_deaths_of_the_balancer(fleet: Fleet) -> tuple[dict[str, int], OrgLedger]:
    sent = {"udp": 0, "skipped": 0, "settled": 0}
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(over_udp, fleet, stop, sent)
        for life in (1, 2, 3):
            with trio.fail_after(SETTLES_S):
                while (await asked(fleet)).streams < life:
                    await trio.sleep(0.1)
            await trio.sleep(2.0)
            if life < 3:
                await trio.to_thread.run_sync(fleet.kill, "balancer")
        stop.set()
        with trio.fail_after(SETTLES_S):
            while not sent["udp"] or (found := await asked(fleet)).differences():
                await trio.sleep(0.1)
        sent["settled"] = 1
    return sent, found


async def it_is_shown(fleet: Fleet, found: OrgLedger) -> None:
    """On the command line, to the fleet's owner and to the org; nobody else's."""
    token_file = fleet.data / "a.token"
    token_file.write_text(fleet.token("default"))
    fleet.token("other")
    door = f"link://{fleet.doors['consume']}"
    command = [sys.executable, "-m", "sapflow", "status", "--ledger", "default", "--data", str(fleet.data)]
    await trio.sleep(1.5)  # Phloem reads the org table once a second

    def run(*arguments: str) -> str:
        return subprocess.run([*command, *arguments], check=True, timeout=60, capture_output=True, text=True).stdout

    text = await trio.to_thread.run_sync(run)
    assert text.endswith("it closes\n")
    assert f"{found.total.account.lost:,}" in text
    told = json.loads(
        await trio.to_thread.run_sync(run, "--json", "--streams", "--position", "1", "--token-file", str(token_file))
    )
    assert 0 < told["stored"] - told["backlog"]["records"] < 10_000
    assert told["closes"]
    assert OrgLedger.from_json(told).total.account == found.total.account
    assert sum(row["stored"] for row in told["rows"]) == found.total.stored
    with pytest.raises(Refused, match="does not name that org"):
        await ledger(door, "other", token_file.read_text())
    with pytest.raises(Refused, match="no org 'nobody'"):
        await ledger(door, "nobody", fleet.fleet_token())
    with pytest.raises(Refused, match="credential not accepted"):
        await ledger(door, "default", "wrong")


def flood(meter: Meter, sequence: int, datagrams: int) -> int:
    """So many datagrams of 24 records from one socket, at a pace that a door can read: the next number."""
    host, port = meter.addresses["udp"].split(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        udp.connect((host, int(port)))
        udp.send(reference_work(1)[: -len(reference_work(1, define=False))])
        for number in range(datagrams):
            udp.send(reference_work(1, define=False, sequence=sequence + 24 * number))
            if number % 50 == 49:
                time.sleep(0.005)
        udp.send(reference_work(1, define=False, sequence=sequence + 24 * datagrams))
    return 24 * (datagrams + 1)


@pytest.mark.timeout(200)
def test_what_a_meters_full_spool_gave_up_is_told_to_the_record(tmp_path: Path) -> None:
    with (
        running(tmp_path / "fleet") as fleet,
        a_meter(tmp_path / "meter", fleet, "--spool-bytes", str(8 << 20)) as meter,
    ):
        stopped = [pid for name, pid in fleet.processes().items() if name.startswith("collector")]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        sent = flood(meter, 0, 10_000)
        meter.wait(lambda status: status["counts"]["spool"]["dropped_records"] > 0)
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        meter.wait(nothing_waits)
        time_out = time.monotonic() + SETTLES_S
        while (found := trio.run(asked, fleet, ORG)).total.account.exported < sent:
            assert time.monotonic() < time_out, found
        account = found.total.account
        assert found.closes, found.differences()
        assert account.exported == sent
        assert account.refused[SPOOL_FULL] >= meter.totals()["dropped_records"] > 1_000
        # Killed while it takes in and gives up: what it had not written is in no row, and all else adds up.
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        flood(meter, 0, 5_000)
        meter.kill()
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        meter.start()
        meter.wait(nothing_waits)
        after = trio.run(asked, fleet, ORG)
        assert after.closes, after.differences()
        assert after.total.stored > found.total.stored

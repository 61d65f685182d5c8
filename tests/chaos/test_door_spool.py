"""A real fleet whose balancer keeps what plain exporters sent in its spool, and is killed -9 again and again: what it
had kept is in the log once, by the exporters' own numbers, by the spool's, and by the ledger's."""

import os
import signal
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from attrs import define, field
from tools.chaos import Plan, run
from tools.fleet import Fleet, running

from meter.spooled import SPOOL_FULL
from sapflow.cli.fleet_file import read_fleet, read_status
from sapflow.client import subscribe
from sapflow.client.ledger import ledger
from sapflow.errors import Refused, Unreachable
from sapflow.flows.ipfix.encode import make_set, make_template
from sapflow.flows.wire import MESSAGE_HEADER, SET_HEADER, VERSION
from sapflow.ledger import OrgLedger

FLOW_ID = make_template(256, [(0, 148, 8)])
DEFINITION = make_set(2, FLOW_ID.raw)
RECORDS = 50
ORGS = {"acme": "127.0.1.1", "globex": "127.0.2.1"}
"""Orgs, and where their exporters are."""
WAIT_S = 40.0


def a_message(first: int, *, records: int = RECORDS, define: bool = False) -> bytes:
    """Records that are their own number; that of the first is the message's sequence number."""
    body = DEFINITION if define else b""
    if records:
        body += make_set(256, struct.pack(f"!{records}Q", *range(first, first + records)))
    return MESSAGE_HEADER.pack(VERSION, MESSAGE_HEADER.size + len(body), 0, first, 1) + body


@define
class Plain:
    """One exporter, which knows what it sent, and nothing of what became of it."""

    fleet: Fleet
    org: str
    transport: str
    sent: int = 0
    sessions: int = 0
    sock: socket.socket | None = field(default=None)

    def open(self) -> None:
        """A session of its own, from its org's address; UDP goes on from the same port."""
        kind = socket.SOCK_STREAM if self.transport == "ipfix_tcp" else socket.SOCK_DGRAM
        host, port = self.fleet.doors[self.transport].split(":")
        deadline = time.monotonic() + WAIT_S
        while True:
            sock = socket.socket(socket.AF_INET, kind)
            sock.bind((ORGS[self.org], 0))
            try:
                sock.connect((host, int(port)))
            except ConnectionRefusedError:
                sock.close()
                assert time.monotonic() < deadline, "the door does not open again"
                time.sleep(0.05)
                continue
            break
        self.sessions += 1
        self.sock = sock
        self._send(a_message(self.sent, records=0, define=True))

    def send(self, messages: int, records: int = RECORDS) -> None:
        for _ in range(messages):
            data = a_message(self.sent, records=records)
            self.sent += records
            try:
                self._send(data)
            except OSError:  # the door is gone: what is on its way is lost, as it is with every plain exporter
                self.close()
                self.open()

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
        self.sock = None

    def _send(self, data: bytes) -> None:
        assert self.sock is not None
        self.sock.sendall(data)


@contextmanager
def a_fleet(directory: Path, **settings: object) -> Iterator[Fleet]:
    directory.mkdir(parents=True, exist_ok=True)
    sources = ", ".join(f'{{ prefix = "{address}/32", org = "{org}" }}' for org, address in ORGS.items())
    lines = ["[balancer]", "spool = true", f"sources = [{sources}]"]
    lines += [f"{name} = {value!r}".replace("'", '"') for name, value in settings.items()]
    config = directory / "fleet.toml"
    config.write_text("\n".join(lines) + "\n")
    with running(directory / "data", config=config) as fleet:
        for org in ORGS:
            fleet.token(org)
        yield fleet


def spool(fleet: Fleet) -> dict[str, Any]:
    """The balancer's spool, as it tells of it; {} while the balancer is away."""
    control = {"balancer": read_fleet(str(fleet.data))["control"]["balancer"]}  # others may stand still
    status = read_status({"control": control})["balancer"]
    return {} if "error" in status else {**status["counts"]["spool"], **status["gauges"], **status["spool"]}


def wait(fleet: Fleet, until: Callable[[dict[str, Any]], bool], seconds: float = WAIT_S) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while not ((found := spool(fleet)) and until(found)):
        assert time.monotonic() < deadline, (found, (fleet.data / "up.log").read_text()[-3000:])
        time.sleep(0.05)
    return found


def nothing_waits(found: dict[str, Any]) -> bool:
    return not found["spool_held_records"] and not found["spool_pending_bytes"]


@contextmanager
def stopped(fleet: Fleet, role: str) -> Iterator[None]:
    """All processes of a role stand still meanwhile; those on their way back from a kill are waited for."""
    deadline = time.monotonic() + WAIT_S
    while any("error" in status for name, status in fleet.status().items() if name.startswith(role)):
        assert time.monotonic() < deadline, f"{role} does not come back"
        time.sleep(0.05)
    pids = [pid for name, pid in fleet.processes().items() if name.startswith(role)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def _ids(fleet: Fleet, org: str) -> dict[bytes, list[int]]:
    found: dict[bytes, list[int]] = {}
    seen: Counter[bytes] = Counter()
    with trio.fail_after(60):
        door = f"link://{fleet.doors['consume']}"
        async with subscribe(door, org, fleet.fleet_token(), at="earliest", follow=False) as batches:
            async for batch in batches:
                assert batch.seq == seen[batch.stream] + 1
                seen[batch.stream] = batch.seq
                found.setdefault(batch.stream, []).extend(_flow_ids(batch.payload))
            assert not batches.repeats
    return found


def _flow_ids(payload: bytes) -> list[int]:
    ids: list[int] = []
    at = 0
    while at < len(payload):
        (length,) = struct.unpack_from("!2xH", payload, at)
        set_at = at + MESSAGE_HEADER.size
        while set_at < at + length:
            number, size = SET_HEADER.unpack_from(payload, set_at)
            if number == 256:
                values = np.frombuffer(payload, ">u8", (size - SET_HEADER.size) // 8, set_at + SET_HEADER.size)
                ids += values.tolist()
            set_at += size
        at += length
    return ids


def the_log(fleet: Fleet, org: str) -> dict[bytes, list[int]]:
    """What the log holds of an org, by stream; in order, once."""
    return trio.run(_ids, fleet, org)


def the_ledger(fleet: Fleet, org: str) -> OrgLedger:
    async def ask() -> OrgLedger:
        with trio.fail_after(WAIT_S):
            while True:
                try:
                    return await ledger(f"link://{fleet.doors['consume']}", org, fleet.fleet_token())
                except (Unreachable, Refused):
                    await trio.sleep(0.1)

    return trio.run(ask)


@pytest.mark.timeout(200)
def test_all_that_the_spool_had_when_the_balancer_was_killed_is_in_the_log_once(tmp_path: Path) -> None:
    """The log is out of reach each time, so that nothing of a round can be anywhere but in the spool."""
    with a_fleet(tmp_path) as fleet:
        plain = [Plain(fleet, org, transport) for org in ORGS for transport in ("ipfix_tcp", "udp")]
        for _ in range(4):
            with stopped(fleet, "phloem"):
                for exporter in plain:
                    exporter.open()
                    exporter.send(40)
                sent = sum(exporter.sent for exporter in plain)
                found = wait(fleet, lambda found, sent=sent: found["taken_records"] == sent)  # type: ignore[misc]
                assert found["spool_held_records"] >= 40 * RECORDS * len(plain)
                assert set(found["held_by_org"]) == set(ORGS)
                fleet.kill("balancer")
            for exporter in plain:
                exporter.close()
            wait(fleet, nothing_waits)
        assert found["path"].endswith("/spool/balancer")
        for org in ORGS:
            mine = [exporter for exporter in plain if exporter.org == org]
            ids = Counter(number for numbers in the_log(fleet, org).values() for number in numbers)
            # Each of the two exporters numbers its records from 0.
            assert ids == Counter(range(mine[0].sent)) + Counter(range(mine[1].sent))
            told = the_ledger(fleet, org)
            assert told.closes, told.differences()
            assert told.total.stored == sum(exporter.sent for exporter in mine)


@pytest.mark.timeout(200)
def test_killed_under_load_the_balancer_keeps_all_that_it_took_and_nothing_is_there_twice(tmp_path: Path) -> None:
    """What was not on disk yet is lost with it; what its spool says it took is in the log, to the record."""
    with a_fleet(tmp_path) as fleet:
        plain = [Plain(fleet, org, transport) for org in ORGS for transport in ("ipfix_tcp", "udp")]
        for exporter in plain:
            exporter.open()
        for victim in ("", "collector-1", "phloem-1", ""):
            until = time.monotonic() + 2.0
            while time.monotonic() < until:
                for exporter in plain:
                    exporter.send(2)
                time.sleep(0.01)
            if victim:
                fleet.kill(victim)
            with stopped(fleet, "collector"):
                for exporter in plain:
                    exporter.send(20)
                wait(fleet, lambda found: found["spool_held_records"] > 0)
                for exporter in plain:
                    exporter.send(20)
                fleet.kill("balancer")
        for exporter in plain:
            exporter.close()
        found = wait(fleet, nothing_waits)
        stored = 0
        for org in ORGS:
            streams = the_log(fleet, org)
            for numbers in streams.values():
                assert numbers == sorted(set(numbers)), "a session's records are there once and in order"
            ids = Counter(number for numbers in streams.values() for number in numbers)
            assert max(ids.values()) <= 2, "two exporters have the same numbers"
            told = the_ledger(fleet, org)
            assert told.closes, told.differences()
            assert told.total.stored == ids.total()
            stored += ids.total()
        sent = sum(exporter.sent for exporter in plain)
        assert found["taken_records"] == found["acknowledged_records"] == stored
        # What was on its way at a kill and not read yet is not here; how much that is depends on the machine.
        assert sent * 0.2 < stored <= sent


@pytest.mark.timeout(200)
def test_what_a_full_spool_of_the_door_gave_up_is_told_to_the_record(tmp_path: Path) -> None:
    """Of UDP; TCP is not read from meanwhile, and all of it comes."""
    with a_fleet(tmp_path, spool_bytes=8 << 20, org_share=0.5) as fleet:
        udp, tcp = Plain(fleet, "acme", "udp"), Plain(fleet, "globex", "ipfix_tcp")
        with stopped(fleet, "collector"):
            udp.open()
            tcp.open()
            while not spool(fleet)["dropped_records"]:
                for _ in range(200):
                    udp.send(5, records=180)
                    time.sleep(0.002)
                assert udp.sent < 10_000_000
            held = spool(fleet)["held_by_org"]["acme"]
            assert held <= spool(fleet)["spool_limit_bytes"] // 2, "no org has more than its share"
            tcp.send(100)
            wait(fleet, lambda found: "globex" in found["held_by_org"])
        # By its next number it is known what of the last ones did not come.
        deadline = time.monotonic() + WAIT_S
        while (told := the_ledger(fleet, "acme")).total.account.exported < udp.sent:
            udp._send(a_message(udp.sent, records=0, define=True))
            assert time.monotonic() < deadline, told
            time.sleep(0.1)
        found = wait(fleet, nothing_waits)
        told = the_ledger(fleet, "acme")
        assert told.closes, told.differences()
        assert told.total.account.exported == udp.sent
        assert told.total.account.refused[SPOOL_FULL] >= found["dropped_records"] > 0
        # What it sent last may not have been read yet when nothing waited.
        deadline = time.monotonic() + WAIT_S
        while (other := the_ledger(fleet, "globex")).total.stored < tcp.sent:
            assert time.monotonic() < deadline, other
            time.sleep(0.1)
        assert other.total.stored == tcp.sent
        with suppress(OSError):
            tcp.close()
        udp.close()


@pytest.mark.timeout(200)
def test_faults_of_every_kind_cost_plain_exporters_nothing_that_the_spool_had_taken(tmp_path: Path) -> None:
    plan = Plan(kinds=("kill", "stop", "restart"), every_s=3, stop_s=2, seed=5)
    config = tmp_path / "fleet.toml"
    config.write_text("[balancer]\nspool = true\n")
    with running(tmp_path / "fleet", config=config) as fleet:
        account = trio.run(partial(run, fleet, plan, seconds=40, meters=8, orgs=2, exporters=12))
    assert any(fault in account.faults for fault in ("kill balancer", "restart balancer"))
    assert account.spool_taken_records == account.exporters_stored_records > account.exported_records * 0.5 > 5_000
    assert account.acknowledged_records == account.sent_records
    assert account.clean, account

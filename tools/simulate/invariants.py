"""What must hold: at every moment, and once all is mended and has settled.

Always: a process dies only of what it says; nothing is logged with a traceback; what a process holds is within its
budget; what was acknowledged is durable. In the end: the log holds each stream's batches once and in order, each org's
own only, all that was acknowledged, and all that exporters sent over connections that ended in good order.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import trio
from attrs import define, field

from phloem.engine.embedded import EmbeddedLog
from sapflow.entry import CorruptEntry, decode_entry
from sapflow.flows.ipfix.session import Session
from tools.simulate.fleet import MIB, Fleet
from tools.simulate.readers import Reader
from tools.simulate.senders import Senders

LOOK_S = 0.5
BALANCE_S = 10.0
"""Over which load is measured."""
HELD = ("held_bytes", "unacknowledged_bytes", "pending_bytes", "spool_held_bytes", "spool_pending_bytes")
"""Figures of what a process has that is not durable in the log yet."""
SLACK_BYTES = 64 << 10
"""What a session that ended may put beside its budget (`put_now`: its last batch)."""


@define
class Invariants:
    """Looks, and keeps what is wrong."""

    fleet: Fleet
    senders: Senders
    readers: list[Reader] = field(init=False)
    faults: list[str] = field(factory=list)
    looks: int = 0
    most_held: dict[str, int] = field(factory=dict)
    """By role: the most that one of its processes has held."""

    def __attrs_post_init__(self) -> None:
        fleet = self.fleet
        self.readers = [
            Reader(org, fleet.tokens[org], fleet.host(f"reader-{number}", f"10.0.7.{number}"))
            for number, org in enumerate((fleet.size.org_names * fleet.size.readers)[: fleet.size.readers], 1)
        ]

    async def run(self) -> None:
        """Look again and again until cancelled."""
        while True:
            self.look()
            await trio.sleep(LOOK_S)

    def look(self) -> None:
        """What must hold at any moment."""
        self.looks += 1
        for process in self.fleet.processes.values():
            if process.deaths:
                self._wrong(f"{process.name} died: {process.deaths.pop()}")
            if process.status is not None:
                self._bounded(process.name, process.status())
        for reader in self.readers:
            while reader.faults:
                self._wrong(reader.faults.pop())
        if self.senders.impostors.acknowledged_records:
            self._wrong(f"{self.senders.impostors.acknowledged_records} records of impostors were acknowledged")
            self.senders.impostors.acknowledged_records = 0
        trace = self.fleet.trace
        while trace.unexpected:
            self._wrong(f"an error nobody expected: {trace.unexpected.pop()}")

    def _bounded(self, name: str, status: dict[str, Any]) -> None:
        gauges = status["gauges"]
        role = status["role"]
        held = gauges.get("held_bytes", gauges.get("unacknowledged_bytes", 0))
        limit = gauges.get("budget_bytes", gauges.get("limit_bytes"))
        self.most_held[role] = max(self.most_held.get(role, 0), held)
        if held > limit + SLACK_BYTES:
            self._wrong(f"{name} holds {held:,} bytes, its budget is {limit:,}")
        if gauges.get("channel_bytes", 0) > limit:
            self._wrong(f"{name} has {gauges['channel_bytes']:,} bytes in its channel, its budget is {limit:,}")
        if role == "meter" and gauges["pending_bytes"] > gauges["pending_limit_bytes"] + MIB:
            self._wrong(f"{name} has {gauges['pending_bytes']:,} bytes that are not on disk yet")

    async def balance(self, most: float) -> float:
        """How many times the mean the most loaded collector has, over some seconds: at most `most`."""
        before = self._taken()
        await trio.sleep(BALANCE_S)
        taken = [bytes_in - before.get(name, 0) for name, bytes_in in self._taken().items()]
        ratio = max(taken) * len(taken) / sum(taken) if sum(taken) else float("inf")
        if ratio > most:
            self._wrong(f"a collector has {ratio:.2f} times the mean, at most {most:g} were allowed: {taken}")
        return ratio

    def _taken(self) -> dict[str, int]:
        return {
            process.name: process.status()["flow"]["link"]["in"]["bytes"]
            for process in self.fleet.of_role("collector")
            if process.status is not None
        }

    def settled(self) -> bool:
        """Whether all is as it should be once nothing is broken any more."""
        read = all(reader.has(self._acknowledged(reader.org)) for reader in self.readers)
        return read and self.fleet.is_whole() and all(map(self._holds_nothing, self.fleet.processes.values()))

    def _acknowledged(self, org: str) -> dict[bytes, int]:
        return self.senders.ledger.acknowledged.get(org, {})

    def _holds_nothing(self, process: Any) -> bool:
        gauges = process.status()["gauges"]
        return not any(gauges.get(name) for name in HELD)

    def unsettled(self) -> str:
        """What is not as it should be, for people."""
        found = []
        for name, process in self.fleet.processes.items():
            if process.status is None:
                found.append(f"{name} does not run")
            elif not self._holds_nothing(process):
                found.append(f"{name}: {process.status()['gauges']}")
        waiting = [meter for meter in self.senders.meters if meter.uplink.unacknowledged_bytes]
        found += [f"{meter.name} waits: {meter.uplink.last_error}" for meter in waiting]
        found += [
            f"the reader of {reader.org} is at {reader.position}"
            for reader in self.readers
            if not reader.has(self._acknowledged(reader.org))
        ]
        return "; ".join(found) or "a balancer does not see all members"

    def final(self) -> None:
        """The whole log beside what was sent and acknowledged; nobody has it open any more."""
        log = EmbeddedLog.open(self.fleet.log_path(), map_bytes=self.fleet.map_bytes)
        try:
            exported: dict[str, int] = defaultdict(int)
            for org in self.fleet.size.org_names:
                self._org(log, org, exported)
            strange = set(log.orgs()) - set(self.fleet.size.org_names)
            if strange:
                self._wrong(f"the log has orgs that nobody is: {sorted(strange)}")
        finally:
            log.close()
        for address, session in self.senders.sessions.items():
            stored = exported.pop(address, 0)
            if stored > session.records or (session.whole and stored < session.records):
                what = "closed in good order" if session.whole else "broken"
                self._wrong(f"exporter {address} ({what}) sent {session.records} records, {stored} are stored")
        strange = {address: records for address, records in exported.items() if records}
        if strange:
            self._wrong(f"records of exporters that nobody is: {strange}")

    def _org(self, log: EmbeddedLog, org: str, exported: dict[str, int]) -> None:
        ledger = self.senders.ledger
        last: dict[bytes, int] = {}
        after = 0
        while found := log.read(org, after, max_bytes=4 * MIB, max_entries=4096):
            for after, data in found:
                try:
                    entry = decode_entry(data)
                except CorruptEntry as error:
                    self._wrong(f"{org}: entry {after}: {error}")
                    continue
                if entry.seq != last.get(entry.stream, 0) + 1:
                    self._wrong(
                        f"{org}: stream {entry.stream.hex()} of {entry.exporter} has {entry.seq} behind "
                        f"{last.get(entry.stream, 0)}"
                    )
                last[entry.stream] = entry.seq
                walk = Session().walk(entry.payload)
                if walk.fault is not None or walk.records != entry.records:
                    self._wrong(f"{org}: entry {after} cannot be read: {walk.fault}")
                if not entry.exporter.startswith("agent-"):
                    exported[entry.exporter] += entry.records
                    session = self.senders.sessions.get(entry.exporter)
                    if session is not None and session.org != org:
                        self._wrong(f"{org} has records of {session.org}: entry {after}")
                elif entry.stream not in ledger.sent.get(org, {}):
                    self._wrong(f"{org} has a stream that none of its meters sent: {entry.stream.hex()}")
        for stream, through in self._acknowledged(org).items():
            if last.get(stream, 0) < through:
                self._wrong(f"{org}: stream {stream.hex()}: {through} was acknowledged, {last.get(stream, 0)} stored")

    def _wrong(self, what: str) -> None:
        self.faults.append(f"{trio.current_time():.3f} s: {what}")
        self.fleet.trace.note("WRONG", what)

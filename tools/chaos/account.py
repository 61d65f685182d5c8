"""The account: every record that the log holds beside every one that was acknowledged, and what the ledgers tell."""

from __future__ import annotations

import trio
from attrs import define, field

from sapflow.client import subscribe
from sapflow.client.ledger import ledger as tell_ledger
from sapflow.errors import Unreachable
from sapflow.flows.ipfix.session import Session
from sapflow.runtime.dial import dial
from tools.fleet import Fleet
from tools.loadgen import Ledger

READ_TIMEOUT_S = 120


@define
class Account:
    """What the log holds beside what was acknowledged; of the figures behind `latency_s` all must be 0."""

    sent_records: int = 0
    acknowledged_records: int = 0
    stored_records: int = 0
    exported_records: int = 0
    """Of plain exporters: what they wrote, which nobody acknowledged …"""
    exporters_stored_records: int = 0
    """… what of it the log holds …"""
    spool_taken_records: int = 0
    """… and what the balancer's spool ever took, if it has one."""
    faults: list[str] = field(factory=list)
    latency_s: dict[str, float] = field(factory=dict)
    lost_batches: int = 0
    duplicated_batches: int = 0
    foreign_batches: int = 0
    disordered_batches: int = 0
    unreadable_batches: int = 0
    spool_missing_records: int = 0
    """Taken by the balancer's spool and not in the log; less than 0: there, and never taken."""
    ledger_differences: dict[str, dict[str, int]] = field(factory=dict)
    """Of each org whose ledger does not close, or tells of other records than are there."""

    @property
    def clean(self) -> bool:
        """Nothing acknowledged is lost, nothing is stored twice, foreign, out of order or unreadable; ledgers close."""
        return not (
            self.lost_batches
            or self.duplicated_batches
            or self.foreign_batches
            or self.disordered_batches
            or self.unreadable_batches
            or self.spool_missing_records
            or self.ledger_differences
        )


async def count(fleet: Fleet, ledger: Ledger, account: Account) -> None:
    """Read every org's log from its beginning, and compare it with what was sent, and with the fleet's ledger."""
    for org, acknowledged in ledger.acknowledged.items():
        seen: dict[bytes, int] = {}
        before = account.stored_records
        known = ledger.sent[org]
        url = f"link://{fleet.doors['consume']}"
        with trio.fail_after(READ_TIMEOUT_S):
            await until_open(fleet.doors["consume"])
            async with subscribe(url, org, fleet.fleet_token(), at="earliest", follow=False) as batches:
                async for batch in batches:
                    account.foreign_batches += batch.stream not in known
                    account.disordered_batches += batch.seq != seen.get(batch.stream, 0) + 1
                    seen[batch.stream] = batch.seq
                    walk = Session().walk(batch.payload)
                    account.unreadable_batches += walk.fault is not None or walk.records != batch.records
                    account.stored_records += batch.records
                account.duplicated_batches += batches.repeats
        await compare(fleet, org, account, account.stored_records - before)
        account.lost_batches += sum(max(0, through - seen.get(stream, 0)) for stream, through in acknowledged.items())
    account.sent_records, account.acknowledged_records = ledger.sent_records, ledger.acknowledged_records
    account.latency_s = ledger.quantiles()


async def until_open(door: str) -> None:
    """Wait until a door takes connections: the last fault may have been its process's end."""
    while True:
        try:
            stream = await dial(door, timeout_s=2.0)
        except Unreachable:
            await trio.sleep(0.1)
            continue
        await trio.aclose_forcefully(stream)
        return


async def compare(fleet: Fleet, org: str, account: Account, found_records: int) -> None:
    """An org's ledger closes, and tells of so many records."""
    told = await tell_ledger(f"link://{fleet.doors['consume']}", org, fleet.fleet_token())
    differences = told.differences()
    if told.behind:
        differences["behind"] = told.behind
    if told.total.stored != found_records:
        differences["found"] = told.total.stored - found_records
    if differences:
        account.ledger_differences[org] = differences

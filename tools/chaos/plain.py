"""The account of plain exporters, who are told nothing: what the log holds of them, beside the balancer's spool.

Without a spool only what is there can be looked at: once, in order, and as the ledger says. With one, all that it ever
took must be there, whatever was killed.
"""

from __future__ import annotations

from typing import Any

import trio

from sapflow.client import subscribe
from sapflow.flows.ipfix.session import Session
from tools.chaos.account import READ_TIMEOUT_S, Account, compare, until_open
from tools.fleet import Fleet

ORG = "default"
"""That of exporters on this host."""
BALANCER = "balancer"


async def settled(fleet: Fleet, seconds: float) -> None:
    """Wait until the balancer holds nothing that is not durable."""
    with trio.fail_after(seconds):
        while not _is_empty((await trio.to_thread.run_sync(fleet.status))[BALANCER]):
            await trio.sleep(0.2)


def _is_empty(status: dict[str, Any]) -> bool:
    if "error" in status:
        return False
    gauges = status["gauges"]
    waiting = ("unacknowledged_bytes", "spool_held_records", "spool_pending_bytes")
    return not any(gauges.get(name, 0) for name in waiting)


async def count_plain(fleet: Fleet, account: Account) -> None:
    """Read the exporters' log, and compare it with their ledger and the spool's totals."""
    marks: dict[bytes, int] = {}
    stored = 0
    await until_open(fleet.doors["consume"])
    with trio.fail_after(READ_TIMEOUT_S):
        door = f"link://{fleet.doors['consume']}"
        async with subscribe(door, ORG, fleet.fleet_token(), at="earliest", follow=False) as batches:
            async for batch in batches:
                account.disordered_batches += batch.seq != marks.get(batch.stream, 0) + 1
                marks[batch.stream] = batch.seq
                walk = Session().walk(batch.payload)
                account.unreadable_batches += walk.fault is not None or walk.records != batch.records
                stored += batch.records
            account.duplicated_batches += batches.repeats
    await compare(fleet, ORG, account, stored)
    account.exporters_stored_records = stored
    status = (await trio.to_thread.run_sync(fleet.status))[BALANCER]
    if (spool := status["counts"].get("spool")) is not None:
        account.spool_taken_records = spool["taken_records"]
        account.spool_missing_records = spool["taken_records"] - stored

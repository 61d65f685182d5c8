"""One chaos run: load, faults, then the account."""

from __future__ import annotations

import sys
from functools import partial

import trio

from tools.chaos.account import Account, count
from tools.chaos.faults import Plan, inflict
from tools.chaos.plain import count_plain, settled
from tools.chaos.proxy import FaultProxy
from tools.fleet import Fleet
from tools.loadgen import Ledger, load


async def run(
    fleet: Fleet,
    plan: Plan,
    *,
    seconds: float,
    meters: int,
    orgs: int,
    exporters: int = 0,
    progress: bool = False,
) -> Account:
    """Load `fleet` with meters and plain exporters for so many seconds while faults happen as planned, then count
    every record."""
    account, ledger = Account(), Ledger()
    tokens = {f"org-{number}": fleet.token(f"org-{number}") for number in range(orgs)}
    stop = trio.Event()
    proxy = FaultProxy(fleet.doors["link"])
    await trio.sleep(1.5)  # collectors read the org table once a second
    async with trio.open_nursery() as background:
        await background.start(proxy.run)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                partial(
                    load,
                    proxy.address,
                    tokens,
                    ledger,
                    stop,
                    meters=meters,
                    interval_s=0.2,
                    records=24,
                    exporters=exporters,
                    exporter_door=fleet.doors["ipfix_tcp"],
                )
            )
            await _faults(fleet, plan, proxy, account, trio.current_time() + seconds, progress)
            stop.set()
            nursery.cancel_scope.deadline = trio.current_time() + plan.drain_s
        background.cancel_scope.cancel()
    await count(fleet, ledger, account)
    if exporters:
        account.exported_records = ledger.exported_records
        await settled(fleet, plan.drain_s)
        await count_plain(fleet, account)
    return account


async def _faults(fleet: Fleet, plan: Plan, proxy: FaultProxy, account: Account, until: float, progress: bool) -> None:
    while trio.current_time() + plan.every_s < until:
        await trio.sleep(plan.victim_choice.uniform(0.5, 1.5) * plan.every_s)
        kind, victim = plan.draw(list(fleet.processes()))
        if await inflict(kind, victim, fleet, proxy, plan):
            account.faults.append(f"{kind} {victim}")
            if progress:
                print(f"{kind} {victim}", file=sys.stderr, flush=True)
    await trio.sleep(max(0.0, until - trio.current_time()))

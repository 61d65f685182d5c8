"""Faults with an account of every record: kills processes of a real fleet under load, then reads the whole log.

python -m tools.chaos --seconds 60 --every 5
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from functools import partial
from pathlib import Path

import click
import trio
from attrs import asdict, define, field

from sapflow.cli.fleet import start_log
from sapflow.client import subscribe
from sapflow.flows.session import Session
from tools.fleet import Fleet, running
from tools.loadgen import Ledger, load

READ_TIMEOUT_S = 120


@define
class Account:
    """What the log holds beside what was acknowledged; all but the first four must be 0."""

    sent_records: int = 0
    acknowledged_records: int = 0
    stored_records: int = 0
    faults: list[str] = field(factory=list)
    lost_batches: int = 0
    duplicated_batches: int = 0
    foreign_batches: int = 0
    disordered_batches: int = 0
    unreadable_batches: int = 0

    @property
    def clean(self) -> bool:
        """Nothing acknowledged is lost, nothing is stored twice, foreign, out of order or unreadable."""
        return not (
            self.lost_batches
            or self.duplicated_batches
            or self.foreign_batches
            or self.disordered_batches
            or self.unreadable_batches
        )


async def count(fleet: Fleet, ledger: Ledger, account: Account) -> None:
    """Read every org's log from its beginning, and compare it with the ledger."""
    for org, acknowledged in ledger.acknowledged.items():
        seen: dict[bytes, int] = {}
        known = ledger.sent[org]
        url = f"link://{fleet.doors['consume']}"
        with trio.fail_after(READ_TIMEOUT_S):
            async with subscribe(url, org, fleet.fleet_token(), at="earliest", follow=False) as batches:
                async for batch in batches:
                    account.foreign_batches += batch.stream not in known
                    account.disordered_batches += batch.seq != seen.get(batch.stream, 0) + 1
                    seen[batch.stream] = batch.seq
                    walk = Session().walk(batch.payload)
                    account.unreadable_batches += walk.fault is not None or walk.records != batch.records
                    account.stored_records += batch.records
                account.duplicated_batches += batches.repeats
        account.lost_batches += sum(max(0, through - seen.get(stream, 0)) for stream, through in acknowledged.items())
    account.sent_records, account.acknowledged_records = ledger.sent_records, ledger.acknowledged_records


async def run(
    fleet: Fleet, *, seconds: float, every_s: float, meters: int, orgs: int, seed: int, drain_s: float = 60
) -> Account:
    """Load `fleet`, kill -9 a random process of it every `every_s` seconds, then count."""
    chance = random.Random(seed)
    account, ledger = Account(), Ledger()
    tokens = {f"org-{number}": fleet.token(f"org-{number}") for number in range(orgs)}
    stop = trio.Event()
    await trio.sleep(1.5)  # collectors read the org table once a second
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            partial(load, fleet.doors["link"], tokens, ledger, stop, meters=meters, interval_s=0.2, records=24)
        )
        until = trio.current_time() + seconds
        while trio.current_time() + every_s < until:
            await trio.sleep(chance.uniform(0.5, 1.5) * every_s)
            victim = chance.choice(sorted(fleet.processes()))
            try:
                fleet.kill(victim)
            except ProcessLookupError:
                continue  # it is on its way back from the last kill
            account.faults.append(victim)
        await trio.sleep(max(0.0, until - trio.current_time()))
        stop.set()
        nursery.cancel_scope.deadline = trio.current_time() + drain_s
    await count(fleet, ledger, account)
    return account


@click.command()
@click.option("--seconds", default=60.0, show_default=True)
@click.option("--every", default=5.0, show_default=True, help="Seconds between faults, about.")
@click.option("--meters", default=50, show_default=True)
@click.option("--orgs", default=3, show_default=True)
@click.option("--collectors", default=2, show_default=True)
@click.option("--seed", default=0, show_default=True, help="The same seed chooses the same victims.")
def main(seconds: float, every: float, meters: int, orgs: int, collectors: int, seed: int) -> None:
    """Start a fleet, load it, kill its processes at random, and account for every record. Exits 1 if one is missing."""
    start_log()
    with (
        tempfile.TemporaryDirectory(prefix="sapflow-chaos-") as directory,
        running(Path(directory), collectors=collectors) as fleet,
    ):
        account = trio.run(partial(run, fleet, seconds=seconds, every_s=every, meters=meters, orgs=orgs, seed=seed))
    click.echo(json.dumps(asdict(account)))
    sys.exit(0 if account.clean else 1)


if __name__ == "__main__":
    main()

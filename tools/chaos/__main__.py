"""python -m tools.chaos --seconds 60 --every 5 --fault kill --fault stop --victim phloem-1"""

from __future__ import annotations

import json
import sys
import tempfile
from functools import partial
from pathlib import Path

import click
import trio
from attrs import asdict

from sapflow.cli import start_log
from tools.chaos import FAULTS, Plan, run
from tools.fleet import running


@click.command()
@click.option("--seconds", default=60.0, show_default=True)
@click.option("--every", default=5.0, show_default=True, help="Seconds between faults, about.")
@click.option("--fault", "faults", multiple=True, type=click.Choice([*FAULTS, "any"]), help="Kinds; kill if none.")
@click.option("--victim", "victims", multiple=True, help="Processes that faults hit; any if none is named.")
@click.option("--stop-seconds", default=3.0, show_default=True, help="How long a stop, half-open or slow lasts.")
@click.option("--meters", default=50, show_default=True)
@click.option("--orgs", default=3, show_default=True)
@click.option("--collectors", default=2, show_default=True)
@click.option("--seed", default=0, show_default=True, help="The same seed chooses the same faults and victims.")
def main(
    seconds: float,
    every: float,
    faults: tuple[str, ...],
    victims: tuple[str, ...],
    stop_seconds: float,
    meters: int,
    orgs: int,
    collectors: int,
    seed: int,
) -> None:
    """Start a fleet, load it, hurt it at random, and account for every record. Exits 1 if one is missing."""
    start_log("error")
    kinds = FAULTS if "any" in faults else faults or ("kill",)
    plan = Plan(kinds=kinds, victims=victims, every_s=every, stop_s=stop_seconds, seed=seed)
    with (
        tempfile.TemporaryDirectory(prefix="sapflow-chaos-") as directory,
        running(Path(directory), collectors=collectors) as fleet,
    ):
        unknown = set(victims) - set(fleet.processes())
        if unknown:
            raise click.UsageError(f"no process {', '.join(unknown)}; there are {', '.join(fleet.processes())}")
        account = trio.run(partial(run, fleet, plan, seconds=seconds, meters=meters, orgs=orgs, progress=True))
    click.echo(json.dumps({**asdict(account), "clean": account.clean}))
    sys.exit(0 if account.clean and account.acknowledged_records == account.sent_records else 1)


if __name__ == "__main__":
    main()

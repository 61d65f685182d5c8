"""python -m tools.chaos --seconds 60 --every 5 --fault kill --fault stop --victim phloem-1"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import click
import trio
from attrs import asdict

from sapflow.cli import start_log
from tools.chaos import FAULTS, Plan, run
from tools.fleet import running
from tools.peers import kafka


@click.command()
@click.option("--seconds", default=60.0, show_default=True)
@click.option("--every", default=5.0, show_default=True, help="Seconds between faults, about.")
@click.option("--fault", "faults", multiple=True, type=click.Choice([*FAULTS, "any"]), help="Kinds; kill if none.")
@click.option("--victim", "victims", multiple=True, help="Processes that faults hit; any if none is named.")
@click.option("--stop-seconds", default=3.0, show_default=True, help="How long a stop, half-open or slow lasts.")
@click.option("--meters", default=50, show_default=True)
@click.option("--orgs", default=3, show_default=True)
@click.option("--collectors", default=2, show_default=True)
@click.option("--phloems", default=1, show_default=True, help="Phloem nodes; more than one with --kafka.")
@click.option("--kafka", "on_kafka", is_flag=True, help="The log is a Kafka broker's, which is started for it.")
@click.option("--exporters", default=0, show_default=True, help="Plain exporters over TCP.")
@click.option("--spool", is_flag=True, help="The balancer has a spool: nothing it took may be missing.")
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
    phloems: int,
    on_kafka: bool,
    exporters: int,
    spool: bool,
    seed: int,
) -> None:
    """Start a fleet, load it, hurt it at random, and account for every record. Exits 1 if one is missing."""
    start_log("error")
    kinds = FAULTS if "any" in faults else faults or ("kill",)
    plan = Plan(kinds=kinds, victims=victims, every_s=every, stop_s=stop_seconds, seed=seed)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sapflow-chaos-")))
        lines = stack.enter_context(_on_kafka(directory, phloems)) if on_kafka else []
        config = directory / "fleet.toml"
        config.write_text("\n".join([*lines, "[balancer]", f"spool = {str(spool).lower()}", ""]))
        fleet = stack.enter_context(running(directory / "fleet", collectors=collectors, config=config))
        unknown = set(victims) - set(fleet.processes())
        if unknown:
            raise click.UsageError(f"no process {', '.join(unknown)}; there are {', '.join(fleet.processes())}")
        load = partial(run, seconds=seconds, meters=meters, orgs=orgs, exporters=exporters, progress=True)
        account = trio.run(load, fleet, plan)
    click.echo(json.dumps({**asdict(account), "clean": account.clean}))
    sys.exit(0 if account.clean and account.acknowledged_records == account.sent_records else 1)


@contextmanager
def _on_kafka(directory: Path, phloems: int) -> Iterator[list[str]]:
    """The configuration's lines of a fleet on a broker that runs meanwhile."""
    with kafka.broker(directory / "kafka") as broker:
        lines = [f"phloems = {phloems}", "[phloem]", 'engine = "kafka"', f'kafka = "{broker.address}"']
        yield [*lines, "kafka_ledger_interval_s = 2.0"]


if __name__ == "__main__":
    main()

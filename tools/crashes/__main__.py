"""`python -m tools.crashes [--states N] [--groups N] [--seed N] [--json]`: crash states of the embedded log, opened."""

from __future__ import annotations

import json
import sys

import click
from attrs import asdict
from rich.console import Console
from rich.progress import Progress

from tools.crashes.run import run


@click.command()
@click.option("--states", "at_most", default=20_000, show_default=True, help="A sample of so many, if there are more.")
@click.option("--groups", default=60, show_default=True, help="Appends that are recorded.")
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same workload.")
@click.option("--json", "as_json", is_flag=True, help="The report as one JSON object.")
def main(at_most: int, groups: int, seed: int, as_json: bool) -> None:
    """Record the writes of the embedded log, and open what a loss of power would leave. Exits 1 if one is broken."""
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("crash states", total=at_most)
        report = run(groups=groups, at_most=at_most, seed=seed, progress=lambda count: progress.advance(task, count))
    if as_json:
        click.echo(json.dumps(asdict(report)))
    else:
        click.echo(f"{report.checked:,} of {report.possible:,} states of {report.events:,} system calls checked")
        click.echo("\n".join(report.faults) or "each opens, has all that was acknowledged, and takes what comes next")
    sys.exit(1 if report.faults else 0)


if __name__ == "__main__":
    main()

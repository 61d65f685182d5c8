"""python -m tools.simulate --seeds 1000; python -m tools.simulate --seed 17 --trace"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat

import click
from attrs import evolve

from tools.number import Number
from tools.simulate.fleet import Size
from tools.simulate.run import Outcome, Scenario, replay, simulate

TOLD_WRONG = 5
TOLD_CHARACTERS = 3000


@click.command("simulate")
@click.option("--seeds", type=click.IntRange(1), default=20, show_default=True, help="How many.")
@click.option("--first", type=click.IntRange(0), default=0, show_default=True, help="The first of them.")
@click.option("--seed", type=click.IntRange(0), help="This one only, as a failing one is replayed.")
@click.option("--trace", is_flag=True, help="With --seed: the last of what happened.")
@click.option("--seconds", type=Number(0, more=True), help="Virtual seconds of faults; else 5.")
@click.option(
    "--fleet",
    "large",
    is_flag=True,
    help="3 balancers, 5 collectors and 200 meters, where else the seed draws a small fleet.",
)
@click.option("--jobs", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes.")
def main(seeds: int, first: int, seed: int | None, trace: bool, seconds: float | None, large: bool, jobs: int) -> None:
    """Run the real fleet in virtual time, hurt it, mend it, and check what must hold. Exits 1 if that does not."""
    numbers = range(first, first + seeds) if seed is None else range(seed, seed + 1)
    began = time.monotonic()
    failed = 0
    virtual_s = cpu_s = 0.0
    with ProcessPoolExecutor(jobs) as pool:
        for outcome in pool.map(_one, numbers, repeat(seconds), repeat(large)):
            virtual_s, cpu_s = virtual_s + outcome.virtual_s, cpu_s + outcome.cpu_s
            failed += bool(outcome.wrong)
            if outcome.wrong or seed is not None:
                _tell(outcome, trace)
    click.echo(
        f"{len(numbers):,} seeds, {failed:,} failed; {virtual_s:,.0f} virtual seconds in {cpu_s:,.1f} s of CPU "
        f"({virtual_s / cpu_s:,.0f} times real time), {time.monotonic() - began:,.1f} s in all"
    )
    sys.exit(1 if failed else 0)


def _one(seed: int, seconds: float | None, large: bool) -> Outcome:
    scenario = Scenario.drawn(seed)
    if large:
        scenario = evolve(scenario, size=Size.large())
    if seconds is not None:
        scenario = evolve(scenario, faults_s=seconds)
    return simulate(scenario)


def _tell(outcome: Outcome, trace: bool) -> None:
    if trace:
        click.echo("\n".join(outcome.lines))
    click.echo(
        f"seed {outcome.seed}: {outcome.faults} faults, {outcome.acknowledged_records:,} records acknowledged, "
        f"{outcome.read_records:,} read, settled {outcome.settled_s:.1f} s after all was mended; trace "
        f"{outcome.checksum:08x} of {outcome.notes:,} notes"
    )
    for what in outcome.wrong[:TOLD_WRONG]:
        click.echo(f"  {what[:TOLD_CHARACTERS]}")
    if outcome.wrong:
        click.echo(f"  replay: {replay(outcome.seed)}")


if __name__ == "__main__":
    main()

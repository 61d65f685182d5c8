"""python -m tools.incident july-31 -o report.html; python -m tools.incident --list"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click
from attrs import evolve

from tools.incident.report import Report
from tools.incident.scenario import Options, Recording
from tools.incident.scenarios import SCENARIOS
from tools.number import Number

TOLD_S = 1.0
TOLD_CHARACTERS = 600


class _Progress:
    """Once a second of real time, on a terminal."""

    def __init__(self) -> None:
        self._at = 0.0
        self.told = False

    def __call__(self, what: str, done_s: float, all_s: float) -> None:
        now = time.perf_counter()
        if now - self._at >= TOLD_S:
            self._at, self.told = now, True
            click.echo(f"\r{what}: {done_s:,.0f} of {all_s:,.0f} virtual seconds", nl=False, err=True)

    def end(self) -> None:
        """The next line begins where it should."""
        if self.told:
            click.echo("", err=True)


@click.command("incident")
@click.argument("name", type=click.Choice(list(SCENARIOS)))
@click.option("--meters", type=click.IntRange(20, 20_000), help="How many; else as many as the scenario wants.")
@click.option("--minutes", type=Number(1), help="Virtual minutes; else as long as the scenario wants.")
@click.option(
    "--seed", type=click.IntRange(0), default=1, show_default=True, help="The same seed gives the same trace."
)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the report here, HTML.")
@click.option("--json", "as_json", is_flag=True, help="The summary as one JSON object.")
def main(name: str, meters: int | None, minutes: float | None, seed: int, output: Path | None, as_json: bool) -> None:
    """Play an incident in virtual time, and say what came of it. Exits 1 when something that must hold did not."""
    scenario = SCENARIOS[name]
    if output is not None and not output.resolve().parent.is_dir():
        raise click.UsageError(f"{output}: there is no directory {output.resolve().parent}")
    progress = _Progress()
    options = Options(seed, meters or scenario.meters, minutes or scenario.minutes)
    if sys.stderr.isatty():
        options = evolve(options, progress=progress)
    began = time.monotonic()
    recordings = scenario.play(options)
    progress.end()
    report = Report(scenario, options, recordings)
    if output is not None:
        output.write_text(report.html())
    took_s = time.monotonic() - began
    click.echo(json.dumps(_fields(report, took_s)) if as_json else _summary(report, took_s, output))
    sys.exit(1 if any(one.wrong for one in recordings) else 0)


def _fields(report: Report, took_s: float) -> dict[str, object]:
    def fields(one: Recording) -> dict[str, object]:
        return {
            "name": one.name,
            "facts": one.facts,
            "wrong": one.wrong,
            "trace": f"{one.trace:08x}",
            "events": one.events,
            "cpu_s": round(one.cpu_s, 1),
        }

    options = report.options
    return {
        "scenario": report.scenario.name,
        "seed": options.seed,
        "meters": options.meters,
        "minutes": options.minutes,
        "seconds": round(took_s, 1),
        "played": list(map(fields, report.recordings)),
    }


def _summary(report: Report, took_s: float, output: Path | None) -> str:
    recordings = report.recordings
    rows = [("", [one.name for one in recordings]), *report.rows()]
    rows.append(("trace", [f"{one.trace:08x}" for one in recordings]))
    widths = [max(len(values[column]) for _, values in rows) for column in range(len(recordings))]
    first = max(len(name) for name, _ in rows)
    lines = [report.scenario.title, report.command(), ""]
    for name, values in rows:
        cells = "  ".join(value.ljust(width) for value, width in zip(values, widths, strict=True))
        lines.append(f"  {name.ljust(first)}  {cells}".rstrip())
    wrong = [f"  {one.name}: {what[:TOLD_CHARACTERS]}" for one in recordings for what in one.wrong]
    lines += ["", "what must hold did not:" if wrong else "all that must hold held", *wrong]
    where = f"; the report is {output}" if output is not None else "; -o report.html writes it with plots"
    return "\n".join([*lines, f"played in {took_s:,.0f} s{where}"])


if __name__ == "__main__":
    main()

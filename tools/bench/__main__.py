"""python -m tools.bench [NAME …] [--json] [--write docs/benchmarks.md]"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from sapflow.cli import start_log

NAMES = (
    "decode",
    "log",
    "relay",
    "herd",
    "idle",
    "pipeline",
    "stalled",
    "udp",
    "recovery",
    "latency",
    "overload",
    "balance",
)


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(NAMES))
@click.option("--json", "as_json", is_flag=True, help="One JSON object a benchmark.")
@click.option("--write", type=click.Path(path_type=Path), help="Append the table, with date and command, to this file.")
def main(names: tuple[str, ...], as_json: bool, write: Path | None) -> None:
    """Run benchmarks (all of them, if none is named)."""
    start_log("warning")
    console = Console(stderr=True)
    for name in names or NAMES:
        console.print(f"{name} …")
        rows: list[dict[str, Any]] = import_module(f"tools.bench.{name}").run()
        if as_json:
            click.echo(json.dumps({"bench": name, "rows": rows}))
        else:
            Console().print(_table(name, rows))
        if write is not None:
            _append(write, name, rows)


def _table(name: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=name)
    for key in rows[0]:
        table.add_column(key)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    return table


def _append(path: Path, name: str, rows: list[dict[str, Any]]) -> None:
    head = list(rows[0])
    lines = [
        "",
        f"### {name}, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"`python -m tools.bench {name}`",
        "",
        f"| {' | '.join(head)} |",
        f"|{' --- |' * len(head)}",
        *(f"| {' | '.join(str(row[key]) for key in head)} |" for row in rows),
    ]
    with path.open("a") as file:
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

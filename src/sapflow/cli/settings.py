"""`sapflow config`: checks a file, shows what is in force."""

from __future__ import annotations

import json
from pathlib import Path

import click

from sapflow.cli.roles import CONFIG
from sapflow.config_file import describe, load


@click.group("config")
def config_group() -> None:
    """The configuration: check a file, show what is in force."""


@config_group.command("check")
@click.argument("path", type=click.Path(path_type=Path))
def check_config(path: Path) -> None:
    """Check a file: unknown keys and bad values are named."""
    load(path)
    click.echo(f"{path}: good")


@config_group.command("show")
@CONFIG
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show_config(config_path: Path | None, as_json: bool) -> None:
    """Show every setting, its value, and where that came from."""
    rows = [
        (key, value, "default" if value == default else str(config_path))
        for key, value, default in describe(load(config_path))
    ]
    if as_json:
        click.echo(json.dumps({key: {"value": str(value), "from": origin} for key, value, origin in rows}))
        return
    for key, value, origin in rows:
        click.echo(f"{key:<36} {value!s:<40} {origin}")

"""`sapflow status --why STREAM`: what balancers decided about a stream, and what its collectors have now."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import click

from sapflow.cli.fleet_file import read_fleet, read_why
from sapflow.errors import SapflowError


def say_why(data: str, stream: str, as_json: bool) -> None:
    """Print it. Raises SapflowError when no balancer knows of it."""
    answers = read_why(read_fleet(data), stream)
    found = [subject for answer in answers.values() for subject in answer.get("found", [])]
    if as_json:
        click.echo(json.dumps(answers))
    else:
        for name, answer in answers.items():
            _say(name, answer)
    if silent := [f"{name}: {answer['error']}" for name, answer in answers.items() if "error" in answer]:
        raise SapflowError("a balancer does not answer: " + "; ".join(silent))
    if not found:
        raise SapflowError(
            f"no balancer knows of '{stream}'; name a stream by its id or the beginning of it, its exporter's address "
            "or its meter's name. Of streams nothing was decided about for long, nothing is known"
        )


def _say(balancer: str, answer: dict[str, Any]) -> None:
    for subject in answer.get("found", []):
        names = ", ".join(name for name in subject.get("names", []) if name)
        click.echo(f"{subject['key']}  org {subject['org']}{f', {names}' if names else ''}  ({balancer})")
        if "collector" in subject:
            click.echo(f"  now on {subject['collector']}, {subject['bytes_per_s']:,} B/s")
        for entry in subject["history"]:
            at = datetime.fromtimestamp(entry["at"], UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
            click.echo(f"  {at}  {entry['what']}")
    for name, load in answer.get("collectors", {}).items():
        state = load["unfit"] or ("ramping up" if load["ramp"] < 1 else "takes streams")
        click.echo(f"{name:<14}{load['bytes_per_s']:>14,} B/s  {state}")

"""Options of the commands that go to the consume door: where it is, with which credential, and what position."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from sapflow.cli.fleet_file import read_fleet
from sapflow.cli.options import read_token

Position = str | int | dict[str, int]

TO = click.option("--to", "url", help="The consume door, link://HOST:PORT; else that of the fleet in --data.")
TOKEN_FILE = click.option(
    "--token-file", type=click.Path(path_type=Path, exists=True), help="The org's token; else the fleet's."
)
DATA = click.option(
    "--data", default="sapflow-data", show_default=True, help="The data directory of a fleet on this host."
)


def consume_door(url: str | None, token_file: Path | None, data: str) -> tuple[str, str]:
    """The consume door and a credential for it. Raises SapflowError."""
    if url is None:
        url = f"link://{read_fleet(data)['doors']['consume']}"
    return url, read_token(token_file or Path(data) / "fleet.token")


def position_of(text: str, option: str = "--at") -> Position:
    """What an option for a position says. Raises click.UsageError."""
    if text in ("earliest", "latest"):
        return text
    try:
        if text.isascii() and text.isdigit():
            return int(text)
        when = datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(f"{option} {text:.80}: write earliest, latest, a position, or a time") from None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return {"time_us": max(0, int(when.timestamp() * 1e6))}

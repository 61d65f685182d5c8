"""`sapflow tail`: an org's records, from the log and then live."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO

import click
import trio

from sapflow.cli.fleet import read_fleet
from sapflow.cli.meaning import Meaning, meaning_options
from sapflow.cli.options import FIELDS, FORMAT, OUT, field_names, finish, open_output
from sapflow.client import subscribe
from sapflow.errors import ConfigurationError, SapflowError
from sapflow.flows.formats import Writer, open_writer
from sapflow.flows.records import Context


@click.command("tail")
@click.argument("org")
@click.option("--at", default="latest", show_default=True, help="earliest, latest, a position, or a time (ISO 8601).")
@click.option("--no-follow", is_flag=True, help="End at what is stored now.")
@click.option("--limit", type=click.IntRange(1), help="End after so many records.")
@FORMAT
@FIELDS
@OUT
@meaning_options
@click.option("--to", "url", help="The consume door, link://HOST:PORT; else that of the fleet in --data.")
@click.option("--token-file", type=click.Path(path_type=Path, exists=True), help="The org's token; else the fleet's.")
@click.option("--data", default="sapflow-data", show_default=True, help="The data directory of a fleet on this host.")
def tail_command(
    org: str,
    at: str,
    no_follow: bool,
    limit: int | None,
    format_: str,
    fields: str | None,
    output: Path | None,
    meaning: Meaning,
    url: str | None,
    token_file: Path | None,
    data: str,
) -> None:
    """Read an org's records, from the log and then live."""
    if url is None:
        url = f"link://{read_fleet(data)['doors']['consume']}"
    source = token_file or Path(data) / "fleet.token"
    try:
        token = source.read_text().strip()
    except OSError as error:
        raise SapflowError(f"no credential: {source}: {error.strerror}; give one with --token-file") from error
    with ExitStack() as stack:
        out = open_output(output, stack)
        writer = open_writer(format_, out, field_names(fields), meaning.stages)
        try:
            trio.run(partial(_tail, url, org, token, _position(at), not no_follow, limit, writer, meaning, out))
        finally:
            finish(writer)
            meaning.tell()


def _position(at: str) -> str | int | dict[str, int]:
    if at in ("earliest", "latest"):
        return at
    if at.isdigit():
        return int(at)
    try:
        when = datetime.fromisoformat(at)
    except ValueError:
        raise ConfigurationError(f"--at {at}: write earliest, latest, a position, or a time") from None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return {"time_us": int(when.timestamp() * 1e6)}


async def _tail(
    url: str,
    org: str,
    token: str,
    at: str | int | dict[str, int],
    follow: bool,
    limit: int | None,
    writer: Writer,
    meaning: Meaning,
    out: BinaryIO,
) -> None:
    left = limit
    async with subscribe(url, org, token, at=at, follow=follow) as batches:
        told = 0
        async for batch in batches:
            context = Context(org, batch.exporter, batch.stream.hex(), batch.position)
            with meaning.reading(context, batch.payload):
                count = writer.write(batch.payload, context, left)
            out.flush()
            for gap in batches.gaps[told:]:
                click.echo(
                    f"sapflow: {gap.entries} stored batches after position {gap.after} are past retention", err=True
                )
            told = len(batches.gaps)
            if left is not None:
                left -= count
                if left <= 0:
                    break

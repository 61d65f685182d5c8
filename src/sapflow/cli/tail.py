"""`sapflow tail`: an org's records, from the log and then live."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO

import click
import trio
from attrs import define

from sapflow.cli.fleet import read_fleet
from sapflow.cli.meaning import Meaning, meaning_options
from sapflow.cli.options import FIELDS, FORMAT, OUT, field_names, finish, open_output, read_token
from sapflow.client import Subscription, subscribe
from sapflow.errors import Unreachable
from sapflow.flows.columns.records import Context
from sapflow.flows.formats import Writer, open_writer

BACKOFF_MOST_S = 5.0
Position = str | int | dict[str, int]


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
    position = _position(at)
    if url is None:
        url = f"link://{read_fleet(data)['doors']['consume']}"
    token = read_token(token_file or Path(data) / "fleet.token")
    with ExitStack() as stack:
        out = open_output(output, stack)
        writer = open_writer(format_, out, field_names(fields), meaning.stages)
        reader = _Reader(
            partial(subscribe, url, org, token, follow=not no_follow), position, writer, meaning, out, limit
        )
        try:
            trio.run(reader.run)
        except* KeyboardInterrupt:
            pass  # is how following ends
        finally:
            finish(writer)
            meaning.tell()


def _position(at: str) -> Position:
    if at in ("earliest", "latest"):
        return at
    try:
        if at.isascii() and at.isdigit():
            return int(at)
        when = datetime.fromisoformat(at)
    except ValueError:
        raise click.UsageError(f"--at {at:.80}: write earliest, latest, a position, or a time") from None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return {"time_us": max(0, int(when.timestamp() * 1e6))}


@define
class _Reader:
    """Reads to the end, through any number of connections: each goes on where the last one ended."""

    subscribe: Callable[..., AbstractAsyncContextManager[Subscription]]
    at: Position
    writer: Writer
    meaning: Meaning
    out: BinaryIO
    left: int | None
    """How many records are still to be written; None: all that come."""
    _was_up: bool = False
    _failures: int = 0

    async def run(self) -> None:
        """Write records. Raises SapflowError; a door that went away is waited for."""
        while True:
            try:
                async with self.subscribe(at=self.at) as batches:
                    self._back()
                    await self._read(batches)
                    return
            except Unreachable as error:
                if not self._was_up:
                    raise
                self._away(error)
            await trio.sleep(random.uniform(0, min(BACKOFF_MOST_S, 0.1 * 2**self._failures)))

    async def _read(self, batches: Subscription) -> None:
        try:
            async for batch in batches:
                context = Context(batches.org, batch.exporter, batch.stream.hex(), batch.position)
                with self.meaning.reading(context, batch.payload):
                    count = self.writer.write(batch.payload, context, self.left)
                self.out.flush()
                _tell_missing(batches)
                if self.left is not None:
                    self.left -= count
                    if self.left <= 0:
                        break
        finally:
            _tell_missing(batches)
            self.at = batches.position

    def _back(self) -> None:
        if self._failures:
            click.echo(f"sapflow: back; reading on after position {self.at}", err=True)
        self._was_up, self._failures = True, 0

    def _away(self, error: Unreachable) -> None:
        if not self._failures:
            click.echo(f"sapflow: {error}; trying again", err=True)
        self._failures = min(self._failures + 1, 10)


def _tell_missing(batches: Subscription) -> None:
    """Say what of the log was not there, once."""
    if batches.ahead:
        click.echo(
            f"sapflow: that is {batches.ahead:,} beyond the log's end, {batches.position:,}; reading from there",
            err=True,
        )
        batches.ahead = 0
    for gap in batches.gaps:
        click.echo(f"sapflow: {gap.entries} stored batches after position {gap.after} are past retention", err=True)
    for entry in batches.corrupt:
        click.echo(f"sapflow: the batch at position {entry.position} is damaged and left out: {entry.reason}", err=True)
    batches.gaps.clear()
    batches.corrupt.clear()

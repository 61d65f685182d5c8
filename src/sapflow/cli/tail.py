"""`sapflow tail`: an org's records, from the log and then live, or for a consumer group."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

import click
import trio
from attrs import define

from sapflow.cli.consuming import DATA, TO, TOKEN_FILE, Position, consume_door, position_of
from sapflow.cli.meaning import Meaning, meaning_options
from sapflow.cli.options import FIELDS, FORMAT, OUT, field_names, finish, open_output
from sapflow.client import (
    Ahead,
    ConsumedBatch,
    Corrupt,
    Gap,
    Member,
    Missing,
    OptionsData,
    Subscription,
    consume,
    subscribe,
)
from sapflow.errors import Fenced, MalformedMessage, SapflowError, Unreachable
from sapflow.flows.columns.records import Context
from sapflow.flows.formats import Writer, open_writer

BACKOFF_MOST_S = 5.0
COMMIT_INTERVAL_S = 1.0
END_S = 5.0
"""How long the last commit may take."""


@click.command("tail")
@click.argument("org")
@click.option(
    "--at",
    help="earliest, latest, a position, or a time (ISO 8601). Without it: latest; with --group: where the group has "
    "come to, and with it where one that is new begins (else earliest).",
)
@click.option("--group", help="Read as a member of this consumer group, and commit what was written.")
@click.option("--no-follow", is_flag=True, help="End at what is stored now.")
@click.option(
    "--limit", type=click.IntRange(1), help="End after so many records; with --group after the batch that has the last."
)
@FORMAT
@FIELDS
@OUT
@meaning_options
@TO
@TOKEN_FILE
@DATA
def tail_command(
    org: str,
    at: str | None,
    group: str | None,
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
    """Read an org's records, from the log and then live.

    What cannot be given (past retention, damaged) is told on standard error, and the exit code is then 1.
    """
    position = position_of(at or ("latest" if group is None else "earliest"))
    door, token = consume_door(url, token_file, data)
    with ExitStack() as stack:
        out = open_output(output, stack)
        writer = open_writer(format_, out, field_names(fields), meaning.stages)
        taken = _Output(writer, meaning, out, limit)
        try:
            if group is None:
                trio.run(_Reader(partial(subscribe, door, org, token, follow=not no_follow), position, taken).run)
            else:
                # A file of Parquet is one when it is closed: what it holds is committed then.
                read = partial(consume, door, org, token, group=group, at=position, follow=not no_follow)
                trio.run(_read_group, read, taken, format_ != "parquet")
        except* KeyboardInterrupt:
            pass  # is how following ends
        finally:
            taken.close()
    if taken.missing:
        raise SapflowError(f"{taken.missing:,} stored batches are not in what was read; see above")


@define
class _Output:
    """Where records go."""

    writer: Writer
    meaning: Meaning
    out: BinaryIO
    left: int | None
    """How many records are still to be written; None: all that come."""
    missing: int = 0
    """Stored batches that could not be given."""
    _closed: bool = False

    @property
    def full(self) -> bool:
        """No more records are wanted."""
        return self.left is not None and self.left <= 0

    def take(self, batch: ConsumedBatch, *, whole: bool = False) -> str | None:
        """Write a batch's records, as many as are wanted or all: why it cannot be decoded, if it cannot."""
        context = Context(batch.org, batch.exporter, batch.stream.hex(), batch.position)
        try:
            with self.meaning.reading(context, batch.payload):
                count = self.writer.write(batch.payload, context, None if whole else self.left)
        except MalformedMessage as error:
            return f"it cannot be decoded: {error}"
        self.out.flush()
        if self.left is not None:
            self.left -= count
        return None

    def learn(self, options: Iterable[OptionsData]) -> None:
        """What exporters had told before the records that come."""
        for told in options:
            context = Context(told.org, told.exporter, told.stream.hex(), 0)
            with suppress(MalformedMessage):  # it is none of the records that were asked for
                self.meaning.learn(context, told.payload)

    def make_durable(self) -> None:
        """What was written is on the disk, if it goes to one."""
        self.out.flush()
        with suppress(OSError):  # of a pipe or a terminal there is nothing to sync
            os.fsync(self.out.fileno())

    def tell(self, what: Missing) -> None:
        """Say what was not there, and count it."""
        click.echo(f"sapflow: {what}", err=True)
        match what:
            case Gap():
                self.missing += what.entries
            case Corrupt():
                self.missing += 1

    def close(self) -> None:
        """End the output, once."""
        if not self._closed:
            self._closed = True
            finish(self.writer)
            self.meaning.tell()


@define
class _Reader:
    """Reads to the end, through any number of connections: each goes on where the last one ended."""

    subscribe: Callable[..., AbstractAsyncContextManager[Subscription]]
    at: Position
    output: _Output
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
                self.output.learn(batches.take_options())
                fault = self.output.take(batch)
                if fault is not None:
                    batches.corrupt.append(Corrupt(batch.position, fault))
                self._tell_missing(batches)
                if self.output.full:
                    break
        finally:
            self._tell_missing(batches)
            self.at = batches.position

    def _back(self) -> None:
        if self._failures:
            click.echo(f"sapflow: back; reading on after position {self.at}", err=True)
        self._was_up, self._failures = True, 0

    def _away(self, error: Unreachable) -> None:
        if not self._failures:
            click.echo(f"sapflow: {error}; trying again", err=True)
        self._failures = min(self._failures + 1, 10)

    def _tell_missing(self, batches: Subscription) -> None:
        """Say what of the log was not there, once."""
        if batches.ahead:
            self.output.tell(Ahead(batches.ahead, batches.position))
            batches.ahead = 0
        missing: list[Missing] = [*batches.gaps, *batches.corrupt]
        for what in missing:
            self.output.tell(what)
        batches.gaps.clear()
        batches.corrupt.clear()


async def _read_group(
    read: Callable[..., AbstractAsyncContextManager[Member]], output: _Output, as_it_goes: bool
) -> None:
    """Write what is a group's, and commit what is durable: each second, or at the end, when the output is closed.

    Ctrl-C and SIGTERM end it between two batches.
    """
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            async with read(auto_commit=False, on_missing=output.tell) as member:
                await _write_group(member, output, as_it_goes)
            nursery.cancel_scope.cancel()


async def _write_group(member: Member, output: _Output, as_it_goes: bool) -> None:
    committed = trio.current_time()
    try:
        ended = False
        while not ended:
            batch = None
            await member.turn()  # a connection that is made anew takes the time it takes
            with trio.move_on_after(COMMIT_INTERVAL_S), _telling_fences():
                # What is cancelled while it waits has lost nothing.
                batch = await anext(member, None)
                ended = batch is None
            if batch is not None:
                output.learn(member.take_options())
                fault = output.take(batch, whole=True)
                if fault is not None:
                    member.quarantine(batch, fault)
                ended = output.full
            if as_it_goes and trio.current_time() - committed >= COMMIT_INTERVAL_S:
                await _commit(member, output)
                committed = trio.current_time()
    except trio.Cancelled:
        with trio.move_on_after(END_S, shield=True):
            await _end(member, output, as_it_goes)
        raise
    await _end(member, output, as_it_goes)


async def _end(member: Member, output: _Output, as_it_goes: bool) -> None:
    if not as_it_goes:
        output.close()
    await _commit(member, output)


async def _commit(member: Member, output: _Output) -> None:
    output.make_durable()
    if member.position > member.committed:
        with _telling_fences():
            await member.commit()


@contextmanager
def _telling_fences() -> Iterator[None]:
    """Another member took over, or the group was reset: what was written already cannot be taken back."""
    try:
        yield
    except Fenced as error:
        click.echo(f"sapflow: {error}", err=True)

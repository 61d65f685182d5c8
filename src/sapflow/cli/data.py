"""`sapflow send`, `tail`, `decode`: records in and out."""

from __future__ import annotations

import json
import ssl
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlencode, urlsplit

import click
import trio

from meter.batching import Batcher
from meter.uplink import FixedTarget, Target, Uplink, UplinkSettings
from sapflow.cli.fleet import read_fleet
from sapflow.client import subscribe
from sapflow.errors import ConfigurationError, MalformedMessage, Refused, SapflowError
from sapflow.flows.formats import FORMATS, open_writer
from sapflow.flows.limits import FlowLimits
from sapflow.flows.records import Context
from sapflow.link.frames import Hint
from sapflow.runtime import websocket
from sapflow.runtime.dial import dial
from sapflow.runtime.transport import LinkUrl, client_tls, dial_link, link_url

READ_BYTES = 256 << 10

FORMAT = click.option("--format", "format_", type=click.Choice(FORMATS), default="jsonl", show_default=True)
FIELDS = click.option("--fields", help="Only these fields, by name, separated by commas.")
OUT = click.option("-o", "--output", type=click.Path(path_type=Path), help="A file instead of standard output.")


def _opened(output: Path | None, stack: ExitStack) -> BinaryIO:
    if output is None:
        return sys.stdout.buffer
    try:
        return stack.enter_context(output.open("wb"))
    except OSError as error:
        raise SapflowError(f"{output} cannot be written: {error.strerror}") from error


def _fields(fields: str | None) -> Sequence[str] | None:
    return None if fields is None else [name.strip() for name in fields.split(",") if name.strip()]


@click.command("decode")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@FORMAT
@FIELDS
@OUT
@click.option("--stats", is_flag=True, help="Counts instead of records.")
def decode_command(files: tuple[Path, ...], format_: str, fields: str | None, output: Path | None, stats: bool) -> None:
    """Decode IPFIX Files ('-' is standard input), without a fleet."""
    faults = []
    with ExitStack() as stack:
        writer = None if stats else open_writer(format_, _opened(output, stack), _fields(fields))
        for path in files:
            batcher = Batcher(FlowLimits(), batch_bytes=1 << 20)
            for draft in _drafts(path, batcher, stack):
                if writer is not None:
                    writer.write(draft, Context(exporter=str(path)))
            if batcher.fault is None and batcher.partial_bytes:
                batcher.fault = MalformedMessage(
                    "the file ends inside a message", offset=batcher.counts.bytes, reason="cut"
                )
            if stats:
                counts = batcher.counts
                click.echo(
                    json.dumps(
                        {
                            "file": str(path),
                            "bytes": counts.bytes,
                            "messages": counts.messages,
                            "records": counts.records,
                            "lost_records": counts.lost_records,
                            "undecodable_sets": counts.undecodable_sets,
                            "ignored_sets": counts.ignored_sets,
                        }
                    )
                )
            if batcher.fault is not None:
                faults.append(f"{path}: {batcher.fault}; what came before it was decoded")
        if writer is not None:
            writer.close()
    if faults:
        raise SapflowError("; ".join(faults))


def _drafts(path: Path, batcher: Batcher, stack: ExitStack) -> Iterator[bytes]:
    try:
        file = sys.stdin.buffer if str(path) == "-" else stack.enter_context(path.open("rb"))
    except OSError as error:
        raise SapflowError(f"{path} cannot be read: {error.strerror}") from error
    while batcher.fault is None and (data := file.read(READ_BYTES)):
        draft = batcher.feed(data)
        if draft is not None:
            yield draft.payload
    rest = batcher.flush()
    if rest is not None:
        yield rest.payload


@click.command("send")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--to", "url", required=True, help="ipfix+tcp://, link://, links:// (TLS), ws:// or wss://HOST:PORT.")
@click.option("--org", default="", help="The org, as a hint to the balancer; the token decides.")
@click.option("--token-file", type=click.Path(path_type=Path, exists=True), help="The org's token, for a link.")
@click.option("--ca", type=click.Path(path_type=Path, exists=True), help="Certificate authorities to trust (PEM).")
@click.option("--loop", default=1, show_default=True, type=click.IntRange(1), help="Play the files so many times.")
@click.option("--json", "as_json", is_flag=True, help="The result as one JSON object.")
def send_command(
    files: tuple[Path, ...],
    url: str,
    org: str,
    token_file: Path | None,
    ca: Path | None,
    loop: int,
    as_json: bool,
) -> None:
    """Play IPFIX Files into a door. Over a link it ends when all is durable."""
    if url.startswith("ipfix+tcp://"):
        parts = urlsplit(url)
        if not parts.hostname or not parts.port:
            raise click.UsageError(f"'{url}' is not a door; write ipfix+tcp://HOST:PORT")
        result = trio.run(_send_plain, files, f"{parts.hostname}:{parts.port}", loop)
    else:
        try:
            link = link_url(url)
        except ConfigurationError as error:
            raise click.UsageError(f"{error}, or ipfix+tcp://HOST:PORT") from error
        if token_file is None:
            raise click.UsageError("a link needs the org's token: --token-file FILE (see 'sapflow orgs token')")
        tls = client_tls(str(ca) if ca else None) if link.secure else None
        result = trio.run(partial(_send_link, files, link, org, token_file.read_text().strip(), loop, tls))
    if as_json:
        click.echo(json.dumps(result))
    else:
        click.echo(", ".join(f"{value:,} {key.replace('_', ' ')}" for key, value in result.items()))


async def _send_plain(files: tuple[Path, ...], address: str, loop: int) -> dict[str, int]:
    sent = {"records": 0, "messages": 0, "bytes": 0}
    for path in files * loop:
        batcher = Batcher(FlowLimits(), batch_bytes=1)
        stream = await dial(address, timeout_s=5.0)
        async with stream:
            with path.open("rb") as file:
                while data := file.read(READ_BYTES):
                    batcher.feed(data)
                    if batcher.fault is not None:
                        raise SapflowError(f"{path}: {batcher.fault}; nothing from there on was sent")
                    with trio.fail_after(60):
                        await stream.send_all(data)
            assert isinstance(stream, trio.SocketStream)
            await stream.send_eof()
            # The door closes when it has read to the end.
            with trio.move_on_after(10):
                await stream.receive_some(1)
        sent["records"] += batcher.counts.records
        sent["messages"] += batcher.counts.messages
        sent["bytes"] += batcher.counts.bytes
    return sent


async def _send_link(
    files: tuple[Path, ...], url: LinkUrl, org: str, token: str, loop: int, tls: ssl.SSLContext | None
) -> dict[str, int]:
    path = f"{websocket.PATH}?{urlencode({'org': org, 'name': 'send'})}"
    uplink = Uplink(
        FixedTarget(Target("the door", url.address)),
        lambda _: dial_link(url, timeout_s=5.0, tls=tls, target=path),
        UplinkSettings(hello={"role": "meter", "token": token, "name": "send"}, hint=Hint(org=org, name="send")),
    )
    done = {"records": 0, "batches": 0}
    async with trio.open_nursery() as nursery:
        await nursery.start(uplink.run)
        nursery.start_soon(_until_refused, uplink)
        for file_path in files * loop:
            batcher = Batcher(FlowLimits(), batch_bytes=64 << 10)
            stream = uplink.open_stream(org, str(file_path))
            with file_path.open("rb") as file:
                while data := file.read(READ_BYTES):
                    draft = batcher.feed(data)
                    if draft is not None:
                        await stream.put(draft)
                    if batcher.fault is not None:
                        raise SapflowError(f"{file_path}: {batcher.fault}; nothing from there on was sent")
            rest = batcher.flush()
            if rest is not None:
                await stream.put(rest)
            await stream.drained()
            stream.end()
            done["records"] += stream.records_acknowledged
            done["batches"] += stream.batches_acknowledged
        nursery.cancel_scope.cancel()
    return done


async def _until_refused(uplink: Uplink) -> None:
    await uplink.was_refused.wait()
    raise Refused(str(uplink.refused))


@click.command("tail")
@click.argument("org")
@click.option("--at", default="latest", show_default=True, help="earliest, latest, a position, or a time (ISO 8601).")
@click.option("--no-follow", is_flag=True, help="End at what is stored now.")
@click.option("--limit", type=click.IntRange(1), help="End after so many records.")
@FORMAT
@FIELDS
@OUT
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
        out = _opened(output, stack)
        work = partial(_tail, url, org, token, _position(at), not no_follow, limit, format_, _fields(fields), out)
        trio.run(work)


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
    format_: str,
    fields: Sequence[str] | None,
    out: BinaryIO,
) -> None:
    writer = open_writer(format_, out, fields)
    left = limit
    try:
        async with subscribe(url, org, token, at=at, follow=follow) as batches:
            told = 0
            async for batch in batches:
                context = Context(org, batch.exporter, batch.stream.hex(), batch.position)
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
    finally:
        writer.close()

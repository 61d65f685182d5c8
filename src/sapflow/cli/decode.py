"""`sapflow decode`: flow records out of files, without a fleet."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path

import click

from sapflow.cli.contents import described
from sapflow.cli.inputs import Decoder, arrivals, opened
from sapflow.cli.meaning import Meaning, meaning_options
from sapflow.cli.options import FIELDS, FORMAT, OUT, field_names, finish, open_output
from sapflow.errors import MalformedMessage, SapflowError
from sapflow.flows.columns.records import Context
from sapflow.flows.formats import Writer, open_writer

BATCH_BYTES = 1 << 20
MAX_TOLD = 1 << 18
"""Templates that are remembered as told; when there are more, they are told again."""


@click.command("decode")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@FORMAT
@FIELDS
@OUT
@meaning_options
@click.option("--stats", is_flag=True, help="What each exporter and domain brought and lost, instead of records.")
@click.option("--templates", is_flag=True, help="The templates instead of records, one JSON object a line.")
def decode_command(
    files: tuple[Path, ...],
    format_: str,
    fields: str | None,
    output: Path | None,
    meaning: Meaning,
    stats: bool,
    templates: bool,
) -> None:
    """Decode IPFIX Files, captures (pcap, pcapng) or flow datagrams; '-' is standard input. Needs no fleet.

    Datagrams, in captures or raw, may be NetFlow v5, NetFlow v9, IPFIX or sFlow v5.

    What is malformed is named at the end, with exit code 1; everything before it has been written by then.
    """
    faults: list[str] = []
    with ExitStack() as stack:
        out = open_output(output, stack)
        writer = None if stats or templates else open_writer(format_, out, field_names(fields), meaning.stages)
        try:
            for path in files:
                faults += _decode(path, output, writer, meaning, stats=stats, templates=templates)
        except KeyboardInterrupt:
            if writer is not None:
                finish(writer)  # a table can be read only when it has its end
            raise
        if writer is not None:
            finish(writer)
            meaning.tell()
    if faults:
        raise SapflowError("; ".join(faults))


def _decode(
    path: Path, output: Path | None, writer: Writer | None, meaning: Meaning, *, stats: bool, templates: bool
) -> list[str]:
    decoder = Decoder(batch_bytes=BATCH_BYTES, tally=stats)
    skipped: Counter[str] = Counter()
    faults: list[str] = []

    def write(exporter: str, payload: bytes) -> None:
        context = Context(exporter=exporter)
        with meaning.reading(context, payload):
            take(context, payload)

    def take(context: Context, payload: bytes) -> None:
        if writer is not None:
            writer.write(payload, context)
        elif templates:
            for template in described(payload):
                line = json.dumps({"exporter": context.exporter, **template})
                digest = blake2b(line.encode(), digest_size=16).digest()
                if digest not in told:
                    if len(told) >= MAX_TOLD:
                        told.clear()
                    told.add(digest)
                    click.echo(line)

    told: set[bytes] = set()
    with opened(path, output=None if stats or templates else output) as file:
        try:
            for arrival in arrivals(file, str(path), skipped):
                for exporter, draft in decoder.feed(arrival):
                    write(exporter, draft.payload)
        except MalformedMessage as fault:
            faults.append(f"{path}: {fault}; what came before it was decoded")
    for exporter, draft in decoder.flush():
        write(exporter, draft.payload)
    if decoder.forgotten:
        skipped["forgotten_exporters"] += decoder.forgotten
    if stats:
        for line in _stats(path, decoder, skipped):
            click.echo(json.dumps(line))
    return faults + [fault if fault.startswith(str(path)) else f"{path}: {fault}" for fault in decoder.faults]


def _stats(path: Path, decoder: Decoder, skipped: Counter[str]) -> list[dict[str, object]]:
    lines: list[dict[str, object]] = []
    for name, stats in decoder.stats.items():
        lines.append(
            {
                "file": str(path),
                "exporter": name.rpartition(" ")[0],
                "protocol": stats.protocol,
                "bytes": stats.bytes,
                "datagrams": stats.datagrams,
                "messages": sum(domain.messages for domain in stats.domains.values()),
                "records": sum(domain.records for domain in stats.domains.values()),
                "lost": stats.lost,
                "undecodable_sets": stats.undecodable_sets,
                "errors": dict(stats.errors),
                "skipped": dict(stats.skipped),
                "domains": {str(number): domain.as_json() for number, domain in stats.domains.items()},
            }
        )
    if skipped:
        lines.append({"file": str(path), "skipped": dict(skipped)})
    return lines

"""`sapflow status --ledger ORG`: what became of an org's records, and whether it closes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import trio
from attrs import frozen

from sapflow.cli.fleet_file import read_fleet
from sapflow.cli.options import read_token
from sapflow.client.ledger import ledger
from sapflow.errors import SapflowError
from sapflow.ledger import OrgLedger, StreamLedger

ROWS = 10_000
MEANINGS = {
    "numbers": "records exported and repeated differ from those received and lost",
    "packets": "packets exported and repeated differ from those received and lost",
    "stored": "records received differ from those stored and refused",
    "missing_batches": "batches came before the first that this log has seen",
    "kept": "records stored differ from those that the log holds and those that retention removed",
}


OPTIONS = (
    click.option(
        "--ledger", "org", metavar="ORG", help="What became of an org's records instead, and whether it adds up."
    ),
    click.option("--streams", is_flag=True, help="With --ledger: of each of its streams."),
    click.option("--position", type=click.IntRange(min=0), help="With --ledger: what is left to read behind it."),
    click.option(
        "--token-file", type=click.Path(path_type=Path), help="With --ledger: the org's token, not the fleet's."
    ),
    click.option("--to", help="With --ledger: another consume door, link://HOST:PORT."),
)
Command = TypeVar("Command", bound=Callable[..., None])


@frozen
class Asked:
    """Whose ledger, of which door, with what credential, and how much of it."""

    org: str
    data: str
    to: str | None = None
    token_file: Path | None = None
    streams: bool = False
    position: int | None = None

    async def answer(self) -> OrgLedger:
        """What the door says."""
        url = self.to or f"link://{read_fleet(self.data)['doors']['consume']}"
        token = read_token(self.token_file or Path(self.data) / "fleet.token")
        return await ledger(url, self.org, token, streams=ROWS if self.streams else 0, position=self.position)


def ledger_options(command: Command) -> Command:
    """The options of `status` that are about the ledger."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def asked_for(data: str, org: str | None, **how: Any) -> Asked | None:
    """What they ask for; None when no ledger is asked for. Raises UsageError for those that make no sense without."""
    if org is not None:
        return Asked(org, data, **how)
    if any(value not in (None, False) for value in how.values()):
        raise click.UsageError("--streams, --position, --token-file and --to belong to --ledger")
    return None


def show_ledger(asked: Asked, *, as_json: bool) -> None:
    """Print it. Raises SapflowError when it cannot be had, or does not close."""
    found = trio.run(asked.answer)
    if as_json:
        rows = {"rows": [row.as_json() for row in found.rows]} if asked.streams else {}
        click.echo(json.dumps({**found.as_json(), **rows}))
    else:
        click.echo("\n".join(ledger_lines(found)))
    if not found.closes:
        raise SapflowError(f"the ledger of {asked.org} does not close; see above")


def ledger_lines(found: OrgLedger) -> list[str]:
    """As people read it."""
    total = found.total
    account = total.account
    lines = [
        f"ledger of {found.org}, {found.streams:,} streams, {total.batches:,} batches",
        f"{'':<24}{'records':>18}{'packets':>18}",
        _line("exported", account.exported, account.packets_exported),
        _line("+ repeated", account.repeated, account.packets_repeated),
        _line("+ not counted by numbers", account.uncounted),
        _line("= received", account.received, account.packets_received),
        _line("+ lost", account.lost, account.packets_lost),
        "",
        _line("received", account.received),
        _line("= stored", total.stored),
    ]
    lines += [_line(f"+ refused: {reason}", count) for reason, count in sorted(account.refused.items())]
    lines += ["", _line("stored", total.stored), _line("= kept", found.kept), _line("+ removed", found.removed)]
    lines += _uncertain("kept or removed", found.uncertain)
    if found.backlog is not None:
        read = total.stored - found.backlog.records - found.backlog.uncertain
        lines += ["", _line("stored", total.stored), _line(f"= read, to {found.backlog.position:,}", read)]
        lines += [_line("+ backlog", found.backlog.records), *_uncertain("read or not", found.backlog.uncertain)]
    for name, group in sorted(found.groups.items()):
        lines += ["", _line("stored", total.stored)]
        lines += [_line(f"= read by {name}", total.stored - group.records - group.uncertain)]
        lines += [_line("+ backlog", group.records), *_uncertain("read or not", group.uncertain)]
    if account.faults:
        lines += ["", "messages and sets that could not be read"]
        lines += [_line(reason, count) for reason, count in sorted(account.faults.items())]
    if found.rows:
        lines += ["", f"{'exporter':<24}{'exported':>14}{'received':>14}{'lost':>12}{'refused':>12}{'stored':>14}"]
        lines += [_row(row) for row in found.rows]
    lines += ["", *_not_known(found)]
    differences = found.differences()
    lines += ["it closes" if not differences else "it does not close:"]
    return lines + [f"  {value:,} {MEANINGS[name]}" for name, value in differences.items()]


def _uncertain(what: str, records: int) -> list[str]:
    return [_line(f"+ {what}, not known", records)] if records else []


def _not_known(found: OrgLedger) -> list[str]:
    """What the figures leave out."""
    lines = []
    if found.begun:
        lines.append(f"not all of the log: {found.begun}")
    if found.total.unknown_batches:
        lines.append(f"{found.total.unknown_batches:,} batches were gone before they were counted")
    if found.behind:
        lines.append(f"{found.behind:,} positions at the log's end are not counted yet")
    if found.untold_groups:
        lines.append(f"{found.untold_groups:,} groups' backlogs could not be counted in time")
    return lines


def _line(what: str, records: int, packets: int | None = None) -> str:
    return f"{what:<24}{records:>18,}" + (f"{packets:>18,}" if packets is not None else "")


def _row(row: StreamLedger) -> str:
    account = row.account
    refused = sum(account.refused.values())
    return (
        f"{row.exporter:<24}{account.exported:>14,}{account.received:>14,}{account.lost:>12,}{refused:>12,}"
        f"{row.stored:>14,}"
    )

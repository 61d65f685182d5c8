"""`sapflow meter`: the agent on a host, and what it says of itself."""

from __future__ import annotations

import json
import urllib.request
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import attrs
import click
import trio

from meter.node import read_file
from meter.node import run as run_meter
from sapflow.cli.roles import CONFIG, say, until_signalled
from sapflow.config import Config
from sapflow.config_file import load
from sapflow.errors import SapflowError

STATUS_TIMEOUT_S = 5.0
MIB = 1 << 20


@click.group("meter", invoke_without_command=True)
@CONFIG
@click.option("--to", help="The fleet: link://, links:// (TLS), ws:// or wss://HOST:PORT.")
@click.option("--org", help="The org, as a hint to the balancer; the token decides.")
@click.option("--name", help="The meter's name; the host's if none is given.")
@click.option("--token-file", help="The org's token.")
@click.option("--authority", help="Certificate authorities to trust (PEM).")
@click.option("--ipfix-tcp", help="Listen here for IPFIX over TCP.")
@click.option("--udp", help="Listen here for NetFlow v5 and v9, IPFIX and sFlow over UDP.")
@click.option("--unix", help="Listen on a Unix socket for IPFIX.")
@click.option("--drop", help="Take IPFIX Files from this directory.")
@click.option("--spool", help="The spool's directory.")
@click.option("--spool-bytes", type=int, help="Its size on disk, at most.")
@click.option("--when-full", type=click.Choice(["oldest", "newest"]), help="What of exporters over UDP is dropped.")
@click.option("--control", help="The control plane's address.")
@click.pass_context
def meter_group(context: click.Context, /, config_path: Path | None, **options: Any) -> None:
    """Take exporters' flows on this host into a spool on disk, and from there to the fleet."""
    config = load(config_path)
    given = {key: value for key, value in options.items() if value is not None}
    config = attrs.evolve(config, meter=attrs.evolve(config.meter, **given))
    context.obj = config
    if context.invoked_subcommand is None:
        _check(config)
        trio.run(until_signalled, partial(run_meter, config, say))


def _check(config: Config) -> None:
    if config.meter.spool_bytes < 8 * MIB:
        raise click.UsageError(f"--spool-bytes: at least {8 * MIB:,}")


@meter_group.command("status")
@click.option("--spool", help="The spool's directory of the meter that is asked.")
@click.option("--json", "as_json", is_flag=True, help="Everything, as one JSON object.")
@click.pass_obj
def status_command(config: Config, spool: str | None, as_json: bool) -> None:
    """Show a running meter: what its spool holds, what became of what it took, its link, its last error."""
    address = read_file(spool or config.meter.spool)["addresses"]["control"]
    try:
        with urllib.request.urlopen(f"http://{address}/status", timeout=STATUS_TIMEOUT_S) as answer:
            status = json.load(answer)
    except (OSError, ValueError, HTTPException) as error:
        raise SapflowError(f"the meter at {address} does not answer: {error}") from error
    click.echo(json.dumps(status) if as_json else "\n".join(_lines(status)))


def _lines(status: dict[str, Any]) -> list[str]:
    gauges, totals, link = status["gauges"], status["counts"]["spool"], status["link"]
    fill = gauges["held_bytes"] / gauges["limit_bytes"]
    state = f"up ({', '.join(link['up'])})" if link["up"] else "down"
    lines = [
        f"meter {status['name']}  {gauges['rss_bytes'] / MIB:.0f} MiB  {gauges['cpu']:.0%} CPU",
        f"link to {link['to']}  {state}",
        f"spool {status['spool']['path']}  {gauges['held_bytes'] / MIB:,.1f} of {gauges['limit_bytes'] / MIB:,.1f} MiB "
        f"({fill:.0%}), oldest {gauges['oldest_s']:,.1f} s",
        f"{'':<14}{'batches':>14}{'records':>16}",
    ]
    for what in ("taken", "acknowledged", "dropped", "corrupt", "refused"):
        lines.append(f"{what:<14}{totals[f'{what}_batches']:>14,}{totals[f'{what}_records']:>16,}")
    lines.append(f"{'held':<14}{gauges['held_batches']:>14,}{gauges['held_records']:>16,}")
    lines += [f"last error: {error}" for error in (link["last_error"], status["spool"]["error"]) if error]
    return lines

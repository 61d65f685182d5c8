"""The command `sapflow`. Exit codes: 0 done, 1 the work failed (with a clear reason), 2 wrong use."""

from __future__ import annotations

import sys

import click

from sapflow.cli.decode import decode_command
from sapflow.cli.fleet import ROLE_COMMANDS, config_group, start_log, status_command, up_command
from sapflow.cli.meter import meter_group
from sapflow.cli.orgs import orgs_group
from sapflow.cli.send import send_command
from sapflow.cli.tail import tail_command
from sapflow.errors import SapflowError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sapflow")
def cli() -> None:
    """The front door for flow telemetry: IPFIX from many exporters and meters into a durable log."""
    start_log()


for command in (
    up_command,
    *ROLE_COMMANDS,
    meter_group,
    send_command,
    tail_command,
    decode_command,
    orgs_group,
    status_command,
    config_group,
):
    cli.add_command(command)


def main() -> None:
    """The entry point: errors of the world become one clear line and exit code 1."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        sys.exit(130)
    except SapflowError as error:
        click.echo(f"sapflow: {error}", err=True)
        sys.exit(1)
    except BaseExceptionGroup as group:
        _exit_for(group)


def _exit_for(group: BaseExceptionGroup[BaseException]) -> None:
    matched, rest = group.split((SapflowError, KeyboardInterrupt))
    if matched is None or rest is not None:
        raise group
    error: BaseException = matched
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, KeyboardInterrupt):
        sys.exit(130)
    click.echo(f"sapflow: {error}", err=True)
    sys.exit(1)

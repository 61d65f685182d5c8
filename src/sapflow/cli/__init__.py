"""The command `sapflow`. Exit codes: 0 done, 1 the work failed (with a clear reason), 2 wrong use."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import NoReturn

import click
import structlog

from sapflow.cli.exits import run

COMMANDS = {
    "up": "fleet:up_command",
    "balancer": "roles:balancer_command",
    "collector": "roles:collector_command",
    "phloem": "roles:phloem_command",
    "meter": "meter:meter_group",
    "send": "send:send_command",
    "tail": "tail:tail_command",
    "decode": "decode:decode_command",
    "groups": "groups:groups_group",
    "orgs": "orgs:orgs_group",
    "status": "status:status_command",
    "top": "top:top_command",
    "drain": "draining:drain_command",
    "restart": "draining:restart_command",
    "config": "settings:config_group",
    "spare": "spare:spare_command",
}
"""Where each command is: imported when it is asked for, since a role that was killed is to serve again at once."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command = getattr(import_module(f"sapflow.cli.{module}"), name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sapflow")
def cli() -> None:
    """The front door for flow telemetry: flow records of many exporters and meters into a durable log."""
    start_log()


def start_log(level: str = "info") -> None:
    """Structured log lines on standard error, one JSON object each."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(level),
    )


def main() -> NoReturn:
    """The entry point."""
    run(cli, "sapflow")

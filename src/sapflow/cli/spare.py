"""`sapflow spare`: a process that `sapflow up` keeps, and that becomes the next one it needs. Nobody else starts it."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path

import click
from setproctitle import setproctitle

from sapflow.cli.roles import CONFIG
from sapflow.config import Config
from sapflow.config_file import load
from sapflow.runtime.memory import keep_few_arenas
from sapflow.runtime.sockets import SOCKETS_VARIABLE, told_sockets
from sapflow.runtime.spare import Order, await_order, is_ordered
from sapflow.runtime.supervisor import sapflow_command

IDLE = "sapflow spare"
"""What `ps` shows of one that has loaded; of one that still does it shows the whole command."""
Files = Mapping[str, tuple[int, int, int]]


@click.command("spare", hidden=True)
@CONFIG
@click.argument("number", type=int)
def spare_command(config_path: Path | None, number: int) -> None:
    """Load what any role needs, and wait on socket NUMBER for the order to become one."""
    orders = socket.socket(fileno=number)
    orders.set_inheritable(False)
    # Both before a library is loaded that starts threads, and to have made what reads a configuration.
    keep_few_arenas()
    config = load(config_path)
    for module in modules(config):
        if is_ordered(orders):
            break
        import_module(module)
    loaded = loaded_files()
    setproctitle(IDLE)
    order = await_order(orders)
    if order is not None:
        _become(order, is_current=loaded_files(loaded) == loaded)


_ROLES = (
    # Phloem first, with all that it needs: there is one, and without it nothing is acknowledged.
    "phloem.node",
    "sapflow.cluster.server",
    "balancer.doors",
    "balancer.idle",
    "balancer.placement",
    "balancer.readings",
    "balancer.steering",
    "collector.live",
    "collector.reporting",
    "collector.sessions",
    "meter.exporter_tls",
    "meter.pending",
    "meter.quarantine",
    "meter.rendezvous",
    "meter.spool",
    "meter.spool_writing",
    "meter.target_link",
    "sapflow.flows.datagrams.ipfix",
    "sapflow.flows.datagrams.sflow",
    "sapflow.runtime.giving",
    "sapflow.runtime.taking",
)


def modules(config: Config) -> Iterator[str]:
    """What is loaded: all that Phloem needs, and of the other roles what does not bring numpy with it.

    That is 15 MiB, for which a Phloem node has no use; a collector or balancer loads it when it is one.
    """
    yield from _ROLES
    if config.fleet.coordinator == "zookeeper":
        yield "sapflow.cluster.zookeeper"


def loaded_files(among: Files | None = None) -> Files:
    """Of each file that a loaded module came from, or that is `among` these and there, what differs when it changes."""
    paths = (
        among
        if among is not None
        else {getattr(module, "__dict__", {}).get("__file__") for module in sys.modules.copy().values()}
    )
    found = {}
    for path in paths:
        try:
            now = os.stat(path or "")
        except OSError:
            continue
        found[str(path)] = (now.st_mtime_ns, now.st_size, now.st_ino)
    return found


def _become(order: Order, *, is_current: bool) -> None:
    """The process that was ordered, by its command, as if it had been started with it.

    When a module's file is not what was loaded (another version was installed since), this process begins anew.
    """
    if order.sockets:
        os.environ[SOCKETS_VARIABLE] = told_sockets(order.sockets)
    if not is_current:
        for number in order.sockets.values():
            os.set_inheritable(number, True)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        command = sapflow_command(order.arguments)
        os.execv(command[0], command)
    sys.argv = ["sapflow", *order.arguments]
    setproctitle(" ".join(sys.argv))
    _cli().main(list(order.arguments), prog_name="sapflow", standalone_mode=False)


def _cli() -> click.Group:
    # It finds this command by name, when it is asked for.
    from sapflow.cli import cli

    return cli

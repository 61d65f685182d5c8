"""One role as a process: until it is signalled, or whoever started it is gone."""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import trio

from sapflow.cli.elements import registry_of
from sapflow.config import Config
from sapflow.config_file import load
from sapflow.errors import SapflowError
from sapflow.flows.registry import using
from sapflow.monitor.machine import Machine
from sapflow.runtime.drain import Successor
from sapflow.runtime.memory import keep_few_arenas

CONFIG = click.option("--config", "config_path", type=click.Path(path_type=Path), help="A TOML configuration file.")
SUPERVISED = click.option(
    "--supervised", is_flag=True, hidden=True, help="End when standard input does: who started it is gone."
)


def fleet_token(config: Config) -> str:
    """The fleet's own credential, made when there is none. Raises SapflowError."""
    path = config.data_path / "fleet.token"
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(32))
        return path.read_text().strip()
    except OSError as error:
        raise SapflowError(
            f"the data directory {config.data_path} cannot be used: {error.strerror}; choose another with --data"
        ) from error


def say(event: dict[str, Any]) -> None:
    """Tell whoever started this process, one JSON object a line."""
    print(json.dumps(event), flush=True)


_SUCCESSORS: dict[bytes, Successor] = {b"next": "next", b"there": "there"}

Role = Callable[[Config, str, str, Callable[[dict[str, Any]], None], Machine], Awaitable[None]]


async def until_signalled(
    run: Callable[[], Awaitable[None]],
    *,
    supervised: bool = False,
    machine: Machine | None = None,
    drain_s: float = 0.0,
) -> None:
    """Run until it ends, or SIGTERM or Ctrl-C cancels it; supervised, also until standard input ends.

    With a `machine` the first SIGTERM asks to end gently within `drain_s`, and so does a line `drain SECONDS` on the
    standard input of one that is supervised; a line `begin` tells a successor to take up its work. Signals are watched
    for until all has stopped: a second one is no reason to leave work half done.
    """
    work = trio.CancelScope()
    drain = machine.drain if machine is not None else None

    async def watch() -> None:
        async for number in signals:
            if number == signal.SIGTERM and drain is not None and not drain.is_asked:
                drain.ask(drain_s)
            else:
                work.cancel()

    async def until_alone() -> None:
        held = b""
        async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as pipe:
            while data := await pipe.receive_some(64):
                *lines, held = (held + bytes(data)).split(b"\n")
                for line in lines:
                    if machine is not None:
                        _obey(line, machine)
        work.cancel()

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            if supervised:
                nursery.start_soon(until_alone)
            with work:
                await run()
            nursery.cancel_scope.cancel()


def _obey(line: bytes, machine: Machine) -> None:
    match line.split():
        case [b"drain", seconds, *how]:
            machine.drain.ask(float(seconds), successor=_SUCCESSORS.get(b"".join(how), "none"))
        case [b"begin"]:
            machine.may_begin.set()


def _role_command(role: str) -> click.Command:
    @click.command(role, help=f"Run one {role}, and nothing else.")
    @CONFIG
    @click.option("--name", default=f"{role}-1", show_default=True, help="Its name in the fleet.")
    @SUPERVISED
    @click.option("--successor", is_flag=True, hidden=True, help="Get ready, and begin when told to.")
    def command(config_path: Path | None, name: str, supervised: bool, successor: bool) -> None:
        config = load(config_path)
        keep_few_arenas()
        run: Role = import_module(f"{role}.node").run
        # Ours alone are loaded when somebody first asks for one.
        with using(registry_of(config)) if config.elements else nullcontext():
            machine = Machine(may_begin=trio.Event())
            if not successor:
                machine.may_begin.set()
            work = partial(run, config, name, fleet_token(config), say, machine)
            seconds = config.fleet.sigterm_drain_s
            trio.run(partial(until_signalled, work, supervised=supervised, machine=machine, drain_s=seconds))

    return command


balancer_command, collector_command, phloem_command = map(_role_command, ("balancer", "collector", "phloem"))

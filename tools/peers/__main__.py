"""python -m tools.peers list|install|start: peers for the tests and benchmarks."""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from tools.peers import kafka, zookeeper
from tools.peers.catalog import PEERS, find, install_line
from tools.peers.install import install as bring
from tools.peers.server import Server, ServerFailed

_SERVERS: dict[str, Callable[..., AbstractContextManager[Server]]] = {
    "kafka": kafka.broker,
    "zookeeper": zookeeper.server,
}


@click.group()
def main() -> None:
    """Peers for the tests and benchmarks."""


@main.command("list")
def list_peers() -> None:
    """Say what is there, and how to get what is not."""
    for name, peer in PEERS.items():
        use = "tests" if peer.for_tests else ""
        click.echo(f"{name:<15} {use:<6} {find(name) or 'missing: ' + install_line(name)}")


@main.command()
@click.argument("names", nargs=-1, type=click.Choice(list(PEERS)))
@click.option("--all", "everything", is_flag=True, help="Also those that only benchmarks need.")
def install(names: tuple[str, ...], everything: bool) -> None:
    """Install peers: those named, or those that the tests need."""
    wanted = names or tuple(name for name, peer in PEERS.items() if everything or peer.for_tests)
    brought = bring(wanted)
    if brought:
        click.echo(f"installed: {', '.join(brought)}")


@main.command()
@click.argument("name", type=click.Choice(list(_SERVERS)))
@click.option("--directory", type=click.Path(path_type=Path), help="Where its data stay; a temporary one if not given.")
@click.option("--port", type=click.IntRange(1, 65_535), help="A free one if not given.")
@click.option("--json", "as_json", is_flag=True, help="One line for programs when it is ready.")
def start(name: str, directory: Path | None, port: int | None, as_json: bool) -> None:
    """Run a server until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, _interrupt)
    with ExitStack() as stack:
        place = directory or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"sapflow-{name}-")))
        try:
            server = stack.enter_context(_SERVERS[name](place, port=port))
            click.echo(_ready(server, as_json))
            while True:
                signal.pause()
        except ServerFailed as error:
            raise click.ClickException(str(error)) from None
        except KeyboardInterrupt:
            pass


def _ready(server: Server, as_json: bool) -> str:
    if as_json:
        said = {"name": server.name, "address": server.address, "pid": server.pid, "directory": str(server.directory)}
        return json.dumps(said)
    return f"{server.name} is at {server.address}, process {server.pid}, log {server.log}; Ctrl-C stops it"


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()

"""`sapflow up`: the whole fleet on this machine."""

from __future__ import annotations

import random
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import attrs
import click
import structlog
import trio

from meter.udp import bind_udp
from sapflow.cli.elements import registry_of
from sapflow.cli.fleet_control import fleet_actions
from sapflow.cli.fleet_file import FleetFile
from sapflow.cli.roles import CONFIG, SUPERVISED, fleet_token, say, until_signalled
from sapflow.config import Config
from sapflow.config_file import check, dumps, load
from sapflow.errors import SapflowError
from sapflow.monitor.control import serve_control
from sapflow.orgs import OrgTable
from sapflow.runtime.serve import listen
from sapflow.runtime.spare import Spare
from sapflow.runtime.succession import INTO, OUT_OF, succession_sockets
from sapflow.runtime.supervisor import Child, Supervisor, role_arguments, sapflow_command

log = structlog.get_logger()

FREE_PORTS = (10_000, 32_000)
FREE_PORT_TRIES = 1000


def _free_port(chosen: set[int], kind: socket.SocketKind = socket.SOCK_STREAM, count: int = 1) -> int:
    """The first of so many ports in a row that are free, and not chosen for anything else; now they are.

    They are below those that the kernel gives to connections, which could take one while its process is away.
    """
    for _ in range(FREE_PORT_TRIES):
        first = random.SystemRandom().randrange(*FREE_PORTS)
        ports = range(first, first + count)
        if not chosen.isdisjoint(ports):
            continue
        with ExitStack() as stack, suppress(OSError):
            for port in ports:
                stack.enter_context(socket.socket(socket.AF_INET, kind)).bind(("127.0.0.1", port))
            chosen.update(ports)
            return first
    what = f"{count:,} ports in a row" if count > 1 else "port"
    low, high = FREE_PORTS
    raise SapflowError(
        f"no free {what} found from {low:,} to {high:,}; stop what listens there, or give ports yourself"
    )


def _ephemeral(config: Config) -> Config:
    """Free ports: chosen now, so that a process which is started again listens where it did."""
    local, chosen = "127.0.0.1:{}".format, set[int]()
    # A name too: with a token of its own it cannot share nodes of a ZooKeeper with a fleet that was before.
    name = f"{config.fleet.name}-{secrets.token_hex(4)}"
    return attrs.evolve(
        config,
        fleet=attrs.evolve(config.fleet, coordinator_address=local(_free_port(chosen)), name=name),
        balancer=attrs.evolve(
            config.balancer,
            ipfix_tcp=local(_free_port(chosen)),
            ipfix_tls=local(_free_port(chosen)) if config.balancer.ipfix_tls else "",
            udp=local(_free_port(chosen, socket.SOCK_DGRAM)) if config.balancer.udp else "",
            link=local(_free_port(chosen)),
        ),
        phloem=attrs.evolve(config.phloem, consume=local(_free_port(chosen, count=config.phloems))),
    )


@click.command("up")
@CONFIG
@click.option("--data", help="The data directory.")
@click.option("--collectors", type=click.IntRange(1, 64), help="How many collectors.")
@click.option("--bind", help="The address that the doors listen on.")
@click.option("--ephemeral", is_flag=True, help="Free ports and a temporary data directory, removed at the end.")
@click.option("--json", "as_json", is_flag=True, help="Events as JSON, one a line; the first is 'ready'.")
@click.option("--coordinator", type=click.Choice(["local", "zookeeper"]), help="Who tells the processes of each other.")
@click.option("--zookeeper", help="ZooKeeper's servers, HOST:PORT with commas between; for --coordinator zookeeper.")
@click.option("--engine", type=click.Choice(["embedded", "kafka"]), help="What keeps the log.")
@click.option("--kafka", help="Kafka's brokers, HOST:PORT with commas between; for --engine kafka.")
@click.option("--phloems", type=click.IntRange(1, 64), help="How many Phloem nodes; more than one with Kafka only.")
@click.option("--quiet", is_flag=True, help="Keep the processes' logs in the data directory only.")
@SUPERVISED
def up_command(
    config_path: Path | None,
    data: str | None,
    collectors: int | None,
    bind: str | None,
    ephemeral: bool,
    as_json: bool,
    coordinator: str | None,
    zookeeper: str | None,
    engine: Literal["embedded", "kafka"] | None,
    kafka: str | None,
    phloems: int | None,
    quiet: bool,
    supervised: bool,
) -> None:
    """Run the whole fleet on this machine, every role a process of its own, supervised."""
    config = _stored(_coordinated(load(config_path), coordinator, zookeeper), engine, kafka, phloems)
    check(config, "the command line")
    temporary = tempfile.mkdtemp(prefix="sapflow-") if ephemeral and data is None else None
    config = attrs.evolve(
        config, data=str(Path(data or temporary or config.data).absolute()), collectors=collectors or config.collectors
    )
    if ephemeral:
        config = _ephemeral(config)
    if bind:
        config = _bound(config, bind)
    try:
        trio.run(partial(until_signalled, partial(_up, config, as_json, quiet), supervised=supervised))
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _coordinated(config: Config, coordinator: str | None, zookeeper: str | None) -> Config:
    fleet = config.fleet
    if zookeeper is not None and (coordinator or fleet.coordinator) != "zookeeper":
        raise click.UsageError("--zookeeper is of no use without --coordinator zookeeper")
    fleet = attrs.evolve(fleet, coordinator=coordinator or fleet.coordinator, zookeeper=zookeeper or fleet.zookeeper)
    return attrs.evolve(config, fleet=fleet)


def _stored(
    config: Config, engine: Literal["embedded", "kafka"] | None, kafka: str | None, phloems: int | None
) -> Config:
    phloem = config.phloem
    if kafka is not None and (engine or phloem.engine) != "kafka":
        raise click.UsageError("--kafka is of no use without --engine kafka")
    phloem = attrs.evolve(phloem, engine=engine or phloem.engine, kafka=kafka or phloem.kafka)
    return attrs.evolve(config, phloem=phloem, phloems=phloems or config.phloems)


def _bound(config: Config, bind: str) -> Config:
    def at(address: str) -> str:
        return f"{bind}:{address.rpartition(':')[2]}"

    return attrs.evolve(
        config,
        balancer=attrs.evolve(
            config.balancer,
            ipfix_tcp=at(config.balancer.ipfix_tcp),
            ipfix_tls=at(config.balancer.ipfix_tls) if config.balancer.ipfix_tls else "",
            udp=at(config.balancer.udp) if config.balancer.udp else "",
            link=at(config.balancer.link),
        ),
        phloem=attrs.evolve(config.phloem, consume=at(config.phloem.consume)),
    )


async def _up(config: Config, as_json: bool, quiet: bool) -> None:
    registry_of(config)  # a file of elements that is broken is said so here, not by every role
    token = fleet_token(config)
    table = OrgTable(config.data_path / "orgs.json")
    if "default" not in table.names():
        table.add("default")
    _warn_of_sources(config, table)
    resolved = _written(config, config.data_path / "fleet.toml")
    ready = False

    def event(what: dict[str, Any]) -> None:
        if as_json and ready:
            say(what)
        elif not as_json:
            click.echo(" ".join(f"{key}={value}" for key, value in what.items()), err=True)
        if ready and "pid" in what:
            file.changed()

    place = str(config.data_path / "fleet.log") if quiet else None
    spare = Spare(_logging_to(place, sapflow_command(["spare", "--config", str(resolved)])))
    supervisor = Supervisor(event, spare=spare if config.fleet.spare else None)
    fleet: dict[str, Any] = {}

    def content() -> dict[str, Any]:
        return {**_fleet(supervisor), **fleet}

    file = FleetFile(config.data_path, content, event)
    balancer = _child("balancer", "balancer", resolved, place)
    # A spool on disk is one process's: with it a balancer ends before the next begins.
    balancer.successor_first = not config.balancer.spool
    children = [balancer]
    children += [
        _child("collector", name, resolved, place)
        for name in (f"collector-{number}" for number in range(1, config.collectors + 1))
    ]
    children += [
        _child("phloem", name, _written(one, config.data_path / f"{name}.toml"), place)
        for name, one in _phloems(config)
    ]
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        balancer.sockets = await _door_sockets(config, stack)
        async with trio.open_nursery() as starting:
            for child in children:
                starting.start_soon(nursery.start, supervisor.keep, child)
        actions = fleet_actions(supervisor, token, config.fleet.drain_s)
        control = partial(serve_control, actions=actions)
        fleet["fleet_control"] = f"http://{await nursery.start(control, config.fleet.control, 'fleet', content)}"
        ready = True
        if config.fleet.spare:
            nursery.start_soon(spare.run)
        try:
            # Before it is said that all is ready, since whoever is told may read it at once.
            file.write_first()
            _announce(supervisor, as_json, config)
            await file.run()
        finally:
            file.remove()


def _child(role: str, name: str, config: Path, log_place: str | None) -> Child:
    arguments = role_arguments(role, name, str(config))
    child = Child(name, _logging_to(log_place, sapflow_command(arguments)), arguments)
    child.log_place = log_place or child.log_place
    return child


def _logging_to(place: str | None, command: list[str]) -> list[str]:
    return ["/bin/sh", "-c", 'exec "$@" 2>>"$0"', place, *command] if place is not None else command


async def _door_sockets(config: Config, stack: AsyncExitStack) -> dict[str, int]:
    """The balancer's listening sockets by name: kept here, so that no connection is refused while it is started anew;
    and the queue in which one process leaves exporters' connections to the next.

    Raises ConfigurationError.
    """
    mine, fleet = config.balancer, config.fleet
    is_served = fleet.coordinator == "local" and mine.serves_coordinator
    coordinator = fleet.coordinator_address if is_served else ""
    wanted = [
        ("ipfix_tcp", mine.ipfix_tcp, "exporters (IPFIX over TCP)"),
        ("ipfix_tls", mine.ipfix_tls, "exporters (IPFIX over TLS)"),
        ("link", mine.link, "meters' links"),
        ("coordinator", coordinator, "the coordinator"),
        # Of free ports each process takes one of its own.
        ("control", "" if mine.control.endswith(":0") else mine.control, "the control plane of balancer"),
    ]
    sockets: dict[str, int] = {}
    # What one process leaves to the next waits in it, and is nobody's who ends.
    for name, end in zip((INTO, OUT_OF), succession_sockets(), strict=True):
        sockets[name] = stack.enter_context(end).fileno()
    for name, address, what in wanted:
        if address:
            listener = await listen(address, what=what)
            stack.push_async_callback(listener.aclose)
            sockets[name] = listener.socket.fileno()
    if mine.udp:
        sockets["udp"] = stack.enter_context(bind_udp(mine.udp, mine.udp_buffer_bytes)).fileno()
    return sockets


def _written(config: Config, path: Path) -> Path:
    try:
        path.write_text(dumps(config))
    except OSError as error:
        raise SapflowError(f"{path} cannot be written: {error.strerror}; choose another with --data") from error
    return path


def _phloems(config: Config) -> Iterator[tuple[str, Config]]:
    """Each node's name and configuration: a consume door of its own, on the ports behind the first's."""
    host, _, port = config.phloem.consume.rpartition(":")
    for number in range(config.phloems):
        consume = f"{host}:{int(port) + number if int(port) else 0}"
        yield f"phloem-{number + 1}", attrs.evolve(config, phloem=attrs.evolve(config.phloem, consume=consume))


def _warn_of_sources(config: Config, table: OrgTable) -> None:
    for source in config.balancer.sources:
        if source.org not in table.names():
            log.warning(
                "source without org",
                prefix=source.prefix,
                org=source.org,
                meaning="what exporters there send is stored, but nobody may read it until the org exists",
                advice=f"sapflow orgs add {source.org} --data {config.data}",
            )


def _fleet(supervisor: Supervisor) -> dict[str, Any]:
    children = supervisor.children
    balancer = children["balancer"].addresses
    there = {name: child for name, child in children.items() if child.state != "drained"}
    phloems = [child for name, child in children.items() if name.startswith("phloem")]
    serving = [child for child in phloems if child.name in there] or phloems
    consume = [child.addresses["consume"] for child in serving]
    collectors = [child for name, child in children.items() if name.startswith("collector")]
    collector = next((child for child in collectors if child.name in there), collectors[0])
    return {
        "doors": {
            "ipfix_tcp": balancer["ipfix_tcp"],
            **({"ipfix_tls": balancer["ipfix_tls"]} if "ipfix_tls" in balancer else {}),
            **({"udp": balancer["udp"]} if "udp" in balancer else {}),
            "link": balancer["link"],
            "websocket": f"ws://{collector.addresses['live']}/live",
            "consume": consume[0],
        },
        "consume": consume,
        "console": None,
        "control": {name: f"http://{child.addresses['control']}/status" for name, child in there.items()},
        "metrics": [f"http://{child.addresses['control']}/metrics" for child in there.values()],
        "processes": {name: child.pid for name, child in there.items()},
        "drained": [name for name in children if name not in there],
    }


def _announce(supervisor: Supervisor, as_json: bool, config: Config) -> None:
    fleet = _fleet(supervisor)
    if as_json:
        say({"event": "ready", **fleet, "data": config.data})
        return
    doors = fleet["doors"]
    tls = f"  exporters (IPFIX over TLS)  {doors['ipfix_tls']}\n" if "ipfix_tls" in doors else ""
    udp = f"  exporters (UDP)             {doors['udp']}\n" if "udp" in doors else ""
    click.echo(
        f"sapflow is up; its data are in {config.data}\n"
        f"  exporters (IPFIX over TCP)  {doors['ipfix_tcp']}\n{tls}{udp}"
        f"  meters (link)               link://{doors['link']}\n"
        f"  live (WebSocket)            {doors['websocket']}\n"
        f"  consumers                   {', '.join(f'link://{address}' for address in fleet['consume'])}\n"
        f"Try:  sapflow tail default --data {config.data}\nStop with Ctrl-C."
    )

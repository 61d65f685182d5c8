"""Kafka brokers of one's own, on loopback ports: one, or a cluster in which one can be killed.

Each is a broker and a controller in one process (KRaft), in a directory that holds its configuration, its log and,
unless told otherwise, its data. Replication factors of the internal topics follow the number of brokers.
"""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from attrs import frozen

from tools.peers.server import HOST, Server, ServerFailed, free_ports, java, libs, properties_file, running

_CLUSTER_ID = "sapflow-peer-cluster-A"
_FORMAT_TIMEOUT_S = 60
_PROBE_TIMEOUT_S = 2.0
_METADATA = 3
_GC = ("-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35")
"""As Kafka's own start script has it, so that benchmarks measure what people run."""


@frozen
class _Node:
    """One broker's number and ports."""

    number: int
    port: int
    controller_port: int


@contextmanager
def broker(
    directory: Path,
    *,
    heap_mb: int = 512,
    port: int | None = None,
    log_dir: Path | None = None,
    properties: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """A running cluster of one broker, stopped at the end.

    Its data are in `log_dir`, or in `directory`; one that has served there before goes on with what it had.
    `properties` overrides lines of its configuration: `advertised.listeners` puts a proxy before it.
    Raises ServerFailed.
    """
    free, controller_port = free_ports(2)
    node = _Node(1, port or free, controller_port)
    found = _prepare(directory, node, (node,), heap_mb, log_dir, properties or {})
    with running(found):
        yield found


@contextmanager
def cluster(
    directory: Path, *, brokers: int = 3, heap_mb: int = 256, properties: Mapping[str, str] | None = None
) -> Iterator[tuple[Server, ...]]:
    """Running brokers of one cluster, each in a directory of its own; killed at the end. Raises ServerFailed."""
    ports = iter(free_ports(2 * brokers))
    nodes = tuple(_Node(number, next(ports), next(ports)) for number in range(1, brokers + 1))
    found = tuple(
        _prepare(directory / f"broker-{node.number}", node, nodes, heap_mb, None, properties or {}) for node in nodes
    )
    with running(*found):
        yield found


def alive(port: int) -> set[int]:
    """The numbers of the brokers that the broker there knows to be alive. Raises OSError.

    By a Metadata request, version 1, for no topic.
    """
    request = struct.pack("!hhihi", _METADATA, 1, 7, -1, 0)
    with socket.create_connection((HOST, port), _PROBE_TIMEOUT_S) as connection:
        connection.sendall(struct.pack("!i", len(request)) + request)
        (size,) = struct.unpack("!i", _read(connection, 4))
        return broker_numbers(_read(connection, size))


def command(main: str, *arguments: str, timeout_s: float = 60) -> str:
    """What one of Kafka's own commands prints, such as org.apache.kafka.tools.TopicCommand. Raises ServerFailed."""
    quick = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error")
    line = java(libs("kafka"), main, *arguments, options=quick)
    found = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s)
    if found.returncode:
        raise ServerFailed(f"{main} {' '.join(arguments)}:\n{found.stdout[-2000:]}{found.stderr[-2000:]}")
    return found.stdout


def _prepare(
    directory: Path,
    node: _Node,
    nodes: tuple[_Node, ...],
    heap_mb: int,
    log_dir: Path | None,
    properties: Mapping[str, str],
) -> Server:
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    data = (log_dir or directory / "data").absolute()
    configuration = directory / "server.properties"
    configuration.write_text(properties_file({**_settings(node, nodes, data), **properties}))
    if not (data / "meta.properties").exists():
        _format(configuration)
    options = (f"-Xmx{heap_mb}m", *_GC)
    start = java(libs("kafka"), "kafka.Kafka", str(configuration), options=options)
    return Server("kafka", node.port, directory, start, partial(_is_alive, node.number))


def _format(configuration: Path) -> None:
    arguments = ("format", "--cluster-id", _CLUSTER_ID, "--config", str(configuration))
    command("kafka.tools.StorageTool", *arguments, timeout_s=_FORMAT_TIMEOUT_S)


def _settings(node: _Node, nodes: tuple[_Node, ...], data: Path) -> dict[str, str]:
    copies = min(3, len(nodes))
    return {
        "process.roles": "broker,controller",
        "node.id": str(node.number),
        "controller.quorum.voters": ",".join(f"{one.number}@{HOST}:{one.controller_port}" for one in nodes),
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://{HOST}:{node.port},CONTROLLER://{HOST}:{node.controller_port}",
        "log.dirs": str(data),
        "default.replication.factor": str(copies),
        "min.insync.replicas": str(max(1, copies - 1)),
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.num.partitions": "4",
        **_internal_topics(copies),
        # A broker that was killed is let in again only when its old session has ended: not after nine seconds.
        "broker.session.timeout.ms": "3000",
        "broker.heartbeat.interval.ms": "500",
        "group.initial.rebalance.delay.ms": "0",
    }


def _internal_topics(copies: int) -> dict[str, str]:
    in_sync = str(max(1, copies - 1))
    return {
        "offsets.topic.replication.factor": str(copies),
        "transaction.state.log.replication.factor": str(copies),
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.replication.factor": str(copies),
        "share.coordinator.state.topic.min.isr": in_sync,
    }


def _is_alive(number: int, port: int) -> bool:
    return number in alive(port)


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionError("the broker closed the connection before the end of its answer")
        data += more
    return data


def broker_numbers(answer: bytes) -> set[int]:
    """The node ids of a Metadata answer: each with host, port and rack behind it."""
    (count,) = struct.unpack_from("!i", answer, 4)
    offset, found = 8, set()
    for _ in range(count):
        number, host_size = struct.unpack_from("!ih", answer, offset)
        offset += 6 + host_size + 4
        (rack_size,) = struct.unpack_from("!h", answer, offset)
        offset += 2 + max(0, rack_size)
        found.add(number)
    return found

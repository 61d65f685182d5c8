"""ZooKeeper servers of one's own, on loopback ports: one alone, or an ensemble in which one can be killed."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tools.peers.server import HOST, Server, free_port, free_ports, java, libs, properties_file, running

_PROBE_TIMEOUT_S = 2.0


@contextmanager
def server(
    directory: Path, *, heap_mb: int = 128, port: int | None = None, properties: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """A running server whose data, configuration and log are in `directory`; stopped at the end.

    `properties` overrides lines of its configuration. Raises ServerFailed.
    """
    found = prepare(directory, heap_mb=heap_mb, port=port or free_port(), properties=properties or {})
    with running(found):
        yield found


@contextmanager
def ensemble(directory: Path, *, servers: int = 3, heap_mb: int = 64) -> Iterator[tuple[Server, ...]]:
    """Running servers of one ensemble, each in a directory of its own; killed at the end. Raises ServerFailed."""
    ports = iter(free_ports(3 * servers))
    clients = [next(ports) for _ in range(servers)]
    peers = {f"server.{n}": f"{HOST}:{next(ports)}:{next(ports)}" for n in range(1, servers + 1)}
    found = []
    for number, port in enumerate(clients, 1):
        own = directory / f"server-{number}"
        # Ticks: a follower may take so many to join its leader, and be so many behind it.
        properties = {"initLimit": "40", "syncLimit": "8", **peers}
        found.append(prepare(own, heap_mb=heap_mb, port=port, properties=properties))
        (own / "data").mkdir(exist_ok=True)
        (own / "data" / "myid").write_text(f"{number}\n")
    with running(*found):
        yield tuple(found)


def mode(port: int) -> str:
    """What the server there is: `leader`, `follower`, `standalone`; "" while it serves nobody. Raises OSError."""
    lines = four_letters(port, "srvr").decode(errors="replace").splitlines()
    return next((line.removeprefix("Mode: ") for line in lines if line.startswith("Mode: ")), "")


def prepare(directory: Path, *, heap_mb: int, port: int, properties: Mapping[str, str]) -> Server:
    """A server that has its configuration, not yet started."""
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    configuration = directory / "zoo.cfg"
    configuration.write_text(properties_file({**_settings(directory, port), **properties}))
    options = (f"-Xmx{heap_mb}m", "-XX:+UseSerialGC")
    command = java(
        libs("zookeeper"), "org.apache.zookeeper.server.quorum.QuorumPeerMain", str(configuration), options=options
    )
    return Server("zookeeper", port, directory, command, is_ok)


def four_letters(port: int, word: str) -> bytes:
    """The answer to a four-letter word, such as `ruok`, `stat` or `dump`. Raises OSError."""
    with socket.create_connection((HOST, port), _PROBE_TIMEOUT_S) as connection:
        connection.sendall(word.encode())
        answer = b""
        while data := connection.recv(65_536):
            answer += data
    return answer


def is_ok(port: int) -> bool:
    """Whether the server there serves: it answers `imok`, and `srvr` names its mode. Raises OSError."""
    return four_letters(port, "ruok") == b"imok" and b"Mode: " in four_letters(port, "srvr")


def _settings(directory: Path, port: int) -> dict[str, str]:
    # A short tick with wide bounds: tests may ask for sessions from half a second to a minute.
    return {
        "dataDir": str(directory / "data"),
        "clientPort": str(port),
        "clientPortAddress": HOST,
        "tickTime": "250",
        "minSessionTimeout": "500",
        "maxSessionTimeout": "60000",
        "maxClientCnxns": "0",
        "admin.enableServer": "false",
        "4lw.commands.whitelist": "*",
    }

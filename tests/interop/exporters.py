"""Real UDP exporters: what they send for a capture, recorded datagram by datagram."""

import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tools.peers import find

from tests.interop.test_softflowd import a_capture

QUIET_S = 1.5
MOST_S = 30.0

Command = Callable[[Path, int], list[str]]
"""The command that exports to a port, working in a directory."""


def program(name: str) -> str:
    found = find(name)
    assert found is not None, name
    return found


def softflowd(version: int) -> Command:
    def command(directory: Path, port: int) -> list[str]:
        a_capture(directory / "flows.pcap", apart_s=1)
        options = ["-d", "-a", "-c", "none", "-r", str(directory / "flows.pcap")]
        if version == 10:
            options += ["-A", "milli"]
        return [program("softflowd"), *options, "-n", f"127.0.0.1:{port}", "-v", str(version), "-P", "udp"]

    return command


def pmacctd(version: int) -> Command:
    def command(directory: Path, port: int) -> list[str]:
        a_capture(directory / "flows.pcap", apart_s=1)
        (directory / "pmacctd.conf").write_text(
            f"daemonize: false\npcap_savefile: {directory}/flows.pcap\nplugins: nfprobe\n"
            f"nfprobe_receiver: 127.0.0.1:{port}\nnfprobe_version: {version}\n"
            "aggregate: src_host, dst_host, src_port, dst_port, proto, tos\n"
            "nfprobe_timeouts: maxlife=20:udp=10:expint=1\n"
        )
        return [program("pmacctd"), "-f", str(directory / "pmacctd.conf")]

    return command


def nfreplay(version: int) -> Command:
    def command(directory: Path, port: int) -> list[str]:
        stored = nfcapd(directory / "stored", record(softflowd(9), directory))
        return [program("nfreplay"), "-r", str(stored), "-H", "127.0.0.1", "-p", str(port), "-v", str(version)]

    return command


def record(command: Command, directory: Path) -> list[bytes]:
    """Run an exporter against a socket, until it has been quiet for a while."""
    directory.mkdir(parents=True, exist_ok=True)
    datagrams: list[bytes] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(0.2)
        line = command(directory, receiver.getsockname()[1])
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        began = heard = time.monotonic()
        try:
            while time.monotonic() < began + MOST_S and not (datagrams and time.monotonic() > heard + QUIET_S):
                with suppress(TimeoutError):
                    datagrams.append(receiver.recv(65_535))
                    heard = time.monotonic()
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    return datagrams


def nfcapd(directory: Path, datagrams: list[bytes]) -> Path:
    """The file that nfdump's collector makes of datagrams."""
    directory.mkdir(parents=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program("nfcapd"), "-w", str(directory), "-b", "127.0.0.1", "-p", str(port), "-t", "3600"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _await_bound(port)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for datagram in datagrams:
                sender.sendto(datagram, ("127.0.0.1", port))
                time.sleep(0.005)
        _await_read(port)
    finally:
        process.terminate()
        process.wait(20)
    (found,) = [path for path in directory.iterdir() if path.name.startswith("nfcapd.2")]
    return found


def _sockets(port: int) -> list[list[str]]:
    lines = Path("/proc/net/udp").read_text().splitlines()[1:]
    return [line.split() for line in lines if line.split()[1].endswith(f":{port:04X}")]


def _await_bound(port: int) -> None:
    until = time.monotonic() + 10
    while not _sockets(port):
        assert time.monotonic() < until, "nfcapd did not start"
        time.sleep(0.05)


def _await_read(port: int) -> None:
    until = time.monotonic() + 10
    while any(int(line[4].split(":")[1], 16) for line in _sockets(port)):
        assert time.monotonic() < until, "nfcapd does not read"
        time.sleep(0.05)
    time.sleep(0.3)

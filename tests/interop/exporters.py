"""Real exporters: how each is made to export the same traffic, and what it needs to be there."""

from __future__ import annotations

import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import frozen
from tools.peers import find

from tests.interop.traffic import a_mixed_capture

QUIET_S = 3.0
MOST_S = 30.0

Command = Callable[[Path, int], list[str]]
"""The command that exports to a port, working in a directory."""
Aside = Callable[["subprocess.Popen[bytes]", float], None]
"""What is to be done while the command runs, looked at again and again: given the process and the seconds so far."""


def program(name: str) -> str:
    found = find(name)
    assert found is not None, name
    return found


@frozen
class Exporter:
    """One exporter in one mood."""

    name: str
    command: Command
    needs: tuple[str, ...]
    aside: Aside | None = None
    is_tcp: bool = False
    needs_root: bool = False
    describes: bool = False
    """Its own elements (RFC 5610)."""

    def record(self, directory: Path) -> list[bytes]:
        """What it sends, datagram by datagram, or message by message."""
        if self.is_tcp:
            return messages_of(recorded_tcp(self.command, directory))
        return record(self.command, directory, self.aside)


def softflowd(version: int, *options: str, transport: str = "udp") -> Command:
    def command(directory: Path, port: int) -> list[str]:
        capture = a_mixed_capture(directory / "flows.pcap")
        line = [program("softflowd"), "-d", "-6", "-a", "-c", "none", "-r", str(capture)]
        return [*line, "-n", f"127.0.0.1:{port}", "-v", str(version), "-P", transport, *options]

    return command


def pmacctd(version: int) -> Command:
    def command(directory: Path, port: int) -> list[str]:
        capture = a_mixed_capture(directory / "flows.pcap")
        (directory / "pmacctd.conf").write_text(
            f"daemonize: false\npcap_savefile: {capture}\nplugins: nfprobe\n"
            f"nfprobe_receiver: 127.0.0.1:{port}\nnfprobe_version: {version}\n"
            "aggregate: src_host, dst_host, src_port, dst_port, proto, tos, tcpflags, vlan, src_mac, dst_mac, "
            "src_as, dst_as, src_mask, dst_mask\n"
            "nfprobe_timeouts: maxlife=20:udp=10:expint=1\n"
        )
        return [program("pmacctd"), "-f", str(directory / "pmacctd.conf")]

    return command


def nfreplay(version: int) -> Command:
    def command(directory: Path, port: int) -> list[str]:
        stored = nfcapd(directory / "stored", record(softflowd(9), directory / "softflowd"))
        return [program("nfreplay"), "-r", str(stored), "-H", "127.0.0.1", "-p", str(port), "-v", str(version)]

    return command


FPROBE_PORT = 53_531
"""Where what fprobe meters goes on the loopback interface; nobody listens."""


def fprobe(directory: Path, port: int) -> list[str]:
    line = [program("fprobe"), "-i", "lo", "-f", f"udp and dst port {FPROBE_PORT}", "-s", "1", "-d", "1", "-e", "2"]
    return [*line, "-l", "2", f"127.0.0.1:{port}"]


def loopback_traffic(process: subprocess.Popen[bytes], seconds: float) -> None:
    """fprobe reads no file: packets for some seconds, then the end, at which it exports what it has."""
    if seconds < 4:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sender.bind(("127.0.0.1", FPROBE_PORT - 1))
            for number in range(4):
                sender.sendto(bytes(10 + number), (f"127.0.0.{2 + number}", FPROBE_PORT))
    else:
        process.terminate()


def fixbuf_exporter(records: int) -> Command:
    def command(directory: Path, port: int) -> list[str]:
        return [program("fixbuf_exporter"), "tcp", "127.0.0.1", str(port), str(records)]

    return command


EXPORTERS = {
    exporter.name: exporter
    for exporter in (
        Exporter("softflowd v5", softflowd(5), ("softflowd",)),
        Exporter("softflowd v9", softflowd(9, "-T", "ether"), ("softflowd",)),
        Exporter("softflowd v9 sampled", softflowd(9, "-s", "3"), ("softflowd",)),
        Exporter("softflowd ipfix", softflowd(10), ("softflowd",)),
        Exporter("softflowd ipfix biflow", softflowd(10, "-b", "-T", "ether", "-A", "milli"), ("softflowd",)),
        Exporter("softflowd ipfix sampled", softflowd(10, "-s", "3", "-T", "vlan", "-A", "micro"), ("softflowd",)),
        Exporter("softflowd ipfix nanoseconds", softflowd(10, "-T", "ether", "-A", "nano"), ("softflowd",)),
        *(Exporter(f"pmacctd {word}", pmacctd(number), ("pmacctd",)) for word, number in (("v5", 5), ("v9", 9))),
        Exporter("pmacctd ipfix", pmacctd(10), ("pmacctd",)),
        *(Exporter(f"nfreplay v{n}", nfreplay(n), ("nfreplay", "nfcapd", "softflowd")) for n in (5, 9)),
        Exporter("fprobe v5", fprobe, ("fprobe",), loopback_traffic, needs_root=True),
        Exporter("softflowd ipfix tcp", softflowd(10, transport="tcp"), ("softflowd",), is_tcp=True),
        Exporter("fixbuf ipfix tcp", fixbuf_exporter(12), ("fixbuf_exporter",), is_tcp=True, describes=True),
    )
}


def record(command: Command, directory: Path, aside: Aside | None = None) -> list[bytes]:
    """Run an exporter against a socket, until it has ended or been quiet for a while."""
    directory.mkdir(parents=True, exist_ok=True)
    datagrams: list[bytes] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(0.2)
        line = command(directory, receiver.getsockname()[1])
        with _running(line) as process:
            began = heard = time.monotonic()
            while time.monotonic() < began + MOST_S and not (datagrams and time.monotonic() > heard + QUIET_S):
                ended = process.poll() is not None
                if aside is not None and not ended:
                    aside(process, time.monotonic() - began)
                with suppress(TimeoutError):
                    datagrams.append(receiver.recv(65_535))
                    heard = time.monotonic()
                    continue
                if ended:
                    break
    return datagrams


def recorded_tcp(command: Command, directory: Path) -> bytes:
    """The bytes that an exporter sends over TCP until it ends."""
    directory.mkdir(parents=True, exist_ok=True)
    received = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(MOST_S)
        with _running(command(directory, server.getsockname()[1])):
            connection, _ = server.accept()
            connection.settimeout(MOST_S)
            with connection:
                while data := connection.recv(65_536):
                    received.append(data)
    return b"".join(received)


def messages_of(data: bytes) -> list[bytes]:
    """The IPFIX messages of a transport session."""
    messages = []
    while data:
        length = int.from_bytes(data[2:4], "big")
        messages.append(data[:length])
        data = data[length:]
    return messages


@contextmanager
def _running(line: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def nfcapd(directory: Path, datagrams: list[bytes]) -> Path:
    """The file that nfdump's collector makes of datagrams."""
    directory.mkdir(parents=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with _running([program("nfcapd"), "-w", str(directory), "-b", "127.0.0.1", "-p", str(port), "-t", "3600"]):
        _await("nfcapd did not start", lambda: bool(_sockets(port)))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for datagram in datagrams:
                sender.sendto(datagram, ("127.0.0.1", port))
                _await("nfcapd does not read", lambda: not any(map(_waiting_bytes, _sockets(port))))
    (found,) = [path for path in directory.iterdir() if path.name.startswith("nfcapd.2")]
    return found


def _await(failed: str, holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < until, failed
        time.sleep(0.01)


def _sockets(port: int) -> list[list[str]]:
    lines = Path("/proc/net/udp").read_text().splitlines()[1:]
    return [line.split() for line in lines if line.split()[1].endswith(f":{port:04X}")]


def _waiting_bytes(line: list[str]) -> int:
    return int(line[4].split(":")[1], 16)


def a_capture_of(datagrams: list[bytes], path: Path) -> Path:
    """Datagrams as an exporter at 192.0.2.9 sent them, in a capture."""
    data = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 101)
    for payload in datagrams:
        udp = struct.pack("!HHHH", 40_000, 2055, 8 + len(payload), 0) + payload
        addresses = b"\xc0\x00\x02\x09\xc0\x00\x02\x0a"
        packet = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0) + addresses + udp
        data += struct.pack("<IIII", int(time.time()), 0, len(packet), len(packet)) + packet
    path.write_bytes(data)
    return path

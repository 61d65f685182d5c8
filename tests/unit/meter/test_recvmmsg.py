"""Readers of datagrams: both give the same, whatever comes."""

import socket
import struct
import sys
from collections.abc import Callable

import pytest

from meter.recvmmsg import DATAGRAMS, MAX_SOURCES, ManyAtOnce, OneByOne, Reader, open_reader, source_of

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="recvmmsg is Linux's")
each_reader = pytest.mark.parametrize("reader", [OneByOne, pytest.param(ManyAtOnce, marks=needs_linux)])


def a_socket(address: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.bind((address, 0))
    sock.setblocking(False)
    return sock


@each_reader
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_datagrams_come_whole_in_order_with_their_sources(
    reader: Callable[[socket.socket], Reader], address: str
) -> None:
    with a_socket(address) as door, a_socket(address) as one, a_socket(address) as other:
        reads = reader(door)
        assert reads.read() == []
        sent = []
        for number in range(20):
            exporter = (one, other)[number % 2]
            data = bytes([number]) * (number * number)
            exporter.sendto(data, door.getsockname())
            sent.append((data, (address, exporter.getsockname()[1])))
        assert reads.read() == sent
        one.sendto(b"x" * 65_000, door.getsockname())
        one.sendto(b"y", door.getsockname())
        assert [data for data, _ in reads.read()] == [b"x" * 65_000, b"y"]
        assert reads.read() == []


@each_reader
def test_a_read_is_bounded_and_the_rest_comes_next(reader: Callable[[socket.socket], Reader]) -> None:
    with a_socket() as door, a_socket() as exporter:
        reads = reader(door)
        for number in range(DATAGRAMS + 3):
            exporter.sendto(struct.pack("!I", number), door.getsockname())
        found = [reads.read(), reads.read(), reads.read()]
        assert [len(part) for part in found] == [DATAGRAMS, 3, 0]
        assert [struct.unpack("!I", data)[0] for part in found for data, _ in part] == list(range(DATAGRAMS + 3))


@each_reader
def test_a_socket_that_is_closed_is_an_error_and_no_silence(reader: Callable[[socket.socket], Reader]) -> None:
    door = a_socket()
    reads = reader(door)
    door.close()
    with pytest.raises(OSError):
        reads.read()


@needs_linux
def test_here_the_fast_one_is_used_and_the_sources_that_it_remembers_are_bounded() -> None:
    with a_socket() as door, a_socket() as exporter:
        reads = open_reader(door)
        assert isinstance(reads, ManyAtOnce)
        reads._sources.update((number.to_bytes(4, "big"), ("x", 0)) for number in range(MAX_SOURCES))
        exporter.sendto(b"x", door.getsockname())
        assert reads.read() == [(b"x", exporter.getsockname())]
        assert len(reads._sources) == 1


def test_addresses_are_read_from_both_families() -> None:
    four = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s", 2055, b"\xc0\0\2\1") + bytes(8)
    assert source_of(four) == ("192.0.2.1", 2055)
    six = socket.inet_pton(socket.AF_INET6, "fe80::1")
    plain = struct.pack("=H", socket.AF_INET6) + struct.pack("!HI16s", 9, 0, six)
    assert source_of(plain + struct.pack("=I", 0)) == ("fe80::1", 9)
    index = socket.if_nameindex()[0]
    assert source_of(plain + struct.pack("=I", index[0])) == (f"fe80::1%{index[1]}", 9)

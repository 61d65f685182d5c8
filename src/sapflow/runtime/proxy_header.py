"""The PROXY protocol, version 2: who is at the other end of a connection that came by way of another. Pure.

    signature 12 | version 4 bits, command 4 bits | family and protocol | length u16 | addresses | TLVs

Source: "The PROXY protocol", versions 1 & 2, HAProxy Technologies, 2.2. Version 1 (text) is not spoken. A header is
worth what its sender is: whose is believed is for the reader to decide.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

from attrs import frozen
from crc32c import crc32c

from sapflow.errors import SapflowError
from sapflow.runtime.addresses import join_address, split_address

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
FIXED = struct.Struct("!12sBBH")
MAX_LENGTH = 4096
"""Of what follows the fixed part; senders keep the whole within 536 bytes unless they send certificates."""
_LOCAL, _PROXY = 0x20, 0x21
_FAMILIES = {0x11: struct.Struct("!4s4sHH"), 0x21: struct.Struct("!16s16sHH")}
_CRC32C = 0x03
_TLV = struct.Struct("!BH")


class NoProxyHeader(SapflowError):
    """A connection that is to begin with a header does not."""


@frozen
class ProxyHeader:
    """Addresses as HOST:PORT; "" where the sender speaks for itself, or of something else than TCP over IP."""

    source: str
    destination: str


def encode(source: str, destination: str) -> bytes:
    """A header for a TCP connection between two addresses. One of IPv4 and one of IPv6 are both told as IPv6."""
    (a, a_port), (b, b_port) = _address(source), _address(destination)
    if a.version != b.version:
        a, b = _wide(a), _wide(b)
    kind = 0x11 if a.version == 4 else 0x21
    layout = _FAMILIES[kind]
    return FIXED.pack(SIGNATURE, _PROXY, kind, layout.size) + layout.pack(a.packed, b.packed, a_port, b_port)


def decode(data: bytes) -> tuple[ProxyHeader, int] | None:
    """The header that data begins with, and its length; None when more of it is needed. Raises NoProxyHeader."""
    if not data.startswith(SIGNATURE[: len(data)]):
        raise NoProxyHeader("it does not begin with a PROXY protocol v2 header")
    if len(data) < FIXED.size:
        return None
    _, command, kind, length = FIXED.unpack_from(data)
    if command not in (_LOCAL, _PROXY):
        raise NoProxyHeader(f"a PROXY header of version and command 0x{command:02x}")
    if length > MAX_LENGTH:
        raise NoProxyHeader(f"a PROXY header of {length:,} bytes; at most {MAX_LENGTH:,} are read")
    end = FIXED.size + length
    if len(data) < end:
        return None
    return _decoded(data[:end], command, kind), end


def missing(data: bytes) -> int:
    """How many bytes the header needs at least, beside these, which are the beginning of one."""
    if len(data) < FIXED.size:
        return FIXED.size - len(data)
    length: int = FIXED.unpack_from(data)[3]
    return FIXED.size + length - len(data)


def _decoded(header: bytes, command: int, kind: int) -> ProxyHeader:
    layout = _FAMILIES.get(kind)
    if command == _LOCAL or layout is None:
        # Of what is not told as TCP over IP the receiver goes by the connection's own addresses (2.2).
        return ProxyHeader("", "")
    if len(header) < FIXED.size + layout.size:
        raise NoProxyHeader(f"a PROXY header of {len(header)} bytes, too short for its addresses")
    source, destination, source_port, destination_port = layout.unpack_from(header, FIXED.size)
    _check_tlvs(header, FIXED.size + layout.size)
    return ProxyHeader(
        join_address(str(ip_address(source)), source_port),
        join_address(str(ip_address(destination)), destination_port),
    )


def _check_tlvs(header: bytes, at: int) -> None:
    while at < len(header):
        if at + _TLV.size > len(header):
            raise NoProxyHeader("a PROXY header whose last TLV is cut off")
        kind, length = _TLV.unpack_from(header, at)
        start = at + _TLV.size
        at = start + length
        if at > len(header):
            raise NoProxyHeader(f"a PROXY header with a TLV of {length:,} bytes, more than are left of it")
        if kind == _CRC32C and not _is_sound(header, start, at):
            raise NoProxyHeader("a PROXY header whose checksum does not hold")


def _is_sound(header: bytes, start: int, end: int) -> bool:
    if end - start != 4:
        return False
    without = header[:start] + bytes(4) + header[end:]
    return bool(crc32c(without) == int.from_bytes(header[start:end], "big"))


def _address(address: str) -> tuple[IPv4Address | IPv6Address, int]:
    host, port = split_address(address)
    # A zone means something on its own host only.
    return ip_address(host.partition("%")[0]), port


def _wide(address: IPv4Address | IPv6Address) -> IPv6Address:
    return address if isinstance(address, IPv6Address) else IPv6Address(f"::ffff:{address}")

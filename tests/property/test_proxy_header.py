"""PROXY protocol v2 headers, sound and hostile: read as written however they are cut, and never past their end."""

import struct
from ipaddress import ip_address

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from sapflow.runtime.addresses import join_address, split_address
from sapflow.runtime.proxy_header import FIXED, MAX_LENGTH, SIGNATURE, NoProxyHeader, decode, encode, missing

ports = st.integers(0, 65535)
v4 = st.builds(join_address, st.ip_addresses(v=4).map(str), ports)
v6 = st.builds(join_address, st.ip_addresses(v=6).map(str), ports)


def same(told: str, meant: str) -> bool:
    (a, a_port), (b, b_port) = split_address(told), split_address(meant)
    return ip_address(a) == ip_address(b) and a_port == b_port


@given(st.one_of(st.tuples(v4, v4), st.tuples(v6, v6)), st.binary(max_size=40))
def test_what_was_written_is_read_and_what_follows_is_left(pair: tuple[str, str], rest: bytes) -> None:
    header = encode(*pair)
    found = decode(header + rest)
    assert found is not None
    assert found[1] == len(header)
    assert same(found[0].source, pair[0])
    assert same(found[0].destination, pair[1])


@given(v4, v6)
def test_addresses_of_both_kinds_are_told_as_ipv6(narrow: str, wide: str) -> None:
    found = decode(encode(narrow, wide))
    assert found is not None
    host, port = split_address(found[0].source)
    mapped = ip_address(host)
    assert mapped.version == 6
    assert same(join_address(str(mapped.ipv4_mapped), port), narrow)
    assert same(found[0].destination, wide)


@given(v6, v6)
def test_every_beginning_asks_for_more_and_no_more_than_is_there(source: str, destination: str) -> None:
    header = encode(source, destination)
    for cut in range(len(header)):
        assert decode(header[:cut]) is None
        assert 0 < missing(header[:cut]) <= len(header) - cut
    assert decode(header) is not None


@given(st.binary(max_size=200))
def test_anything_else_is_refused_or_waited_for(data: bytes) -> None:
    try:
        found = decode(data)
    except NoProxyHeader:
        return
    assert found is None or found[1] <= len(data)


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 65535), st.binary(max_size=300))
def test_any_header_with_the_right_signature_is_read_refused_or_waited_for(
    command: int, kind: int, length: int, rest: bytes
) -> None:
    data = FIXED.pack(SIGNATURE, command, kind, length) + rest
    try:
        found = decode(data)
    except NoProxyHeader:
        return
    if found is None:
        assert len(data) < FIXED.size + length
    else:
        assert found[1] == FIXED.size + length
        assert command in (0x20, 0x21)


@given(v4, v4, st.integers(0, 27), st.integers(0, 7))
def test_a_flipped_bit_changes_what_is_read_or_is_refused_and_harms_nothing(
    source: str, destination: str, at: int, bit: int
) -> None:
    header = bytearray(encode(source, destination))
    header[at] ^= 1 << bit
    try:
        found = decode(bytes(header))
    except NoProxyHeader:
        return
    assert found is None or found[0] != decode(encode(source, destination))


def a_header(tlvs: bytes = b"", command: int = 0x21, kind: int = 0x11) -> bytes:
    addresses = bytes([192, 0, 2, 7, 198, 51, 100, 1]) + struct.pack("!HH", 4711, 4740)
    return FIXED.pack(SIGNATURE, command, kind, len(addresses) + len(tlvs)) + addresses + tlvs


def with_checksum(wrong: int = 0) -> bytes:
    header = a_header(b"\x02\x00\x03abc" + b"\x03\x00\x04" + bytes(4))
    return header[:-4] + struct.pack("!I", crc32c(header) ^ wrong)


def test_tlvs_are_read_over_and_a_checksum_is_checked() -> None:
    for header in (a_header(b"\x04\x00\x02\0\0"), with_checksum()):
        found = decode(header)
        assert found is not None
        assert found[0].source == "192.0.2.7:4711"
    with pytest.raises(NoProxyHeader, match="checksum"):
        decode(with_checksum(wrong=1))


@pytest.mark.parametrize("header", [a_header(command=0x20), a_header(kind=0), a_header(kind=0x31), a_header(kind=0x12)])
def test_of_the_sender_itself_and_of_other_families_the_connection_says_who_it_is(header: bytes) -> None:
    found = decode(header)
    assert found is not None
    assert found[0].source == ""
    assert found[1] == len(header)


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 4740\r\n", "begin"),
        (SIGNATURE[:5] + b"x", "begin"),
        (a_header(command=0x11), "version"),
        (a_header(command=0x2F), "version"),
        (FIXED.pack(SIGNATURE, 0x21, 0x11, 11) + bytes(11), "too short"),
        (FIXED.pack(SIGNATURE, 0x21, 0x21, 12) + bytes(12), "too short"),
        (a_header(b"\x04"), "cut off"),
        (a_header(b"\x04\x00\x09abc"), "more than are left"),
        (a_header(b"\x03\x00\x03abc"), "checksum"),
        (FIXED.pack(SIGNATURE, 0x21, 0x11, MAX_LENGTH + 1), "at most"),
    ],
)
def test_hostile_headers_are_refused_with_a_reason(header: bytes, why: str) -> None:
    with pytest.raises(NoProxyHeader, match=why):
        decode(header)

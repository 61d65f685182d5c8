"""One end of a link, frame by frame."""

import struct

import pytest

from sapflow.errors import LinkError
from sapflow.link import (
    Acknowledged,
    Batch,
    BatchReceived,
    Closed,
    Connection,
    CreditGranted,
    CreditWanted,
    HelloReceived,
    LinkLimits,
    Opened,
    Ponged,
    Rewound,
    Side,
    StreamEnded,
    StreamId,
    Welcomed,
)
from sapflow.link.frames import HEADER, Frame, Hint, decode_preamble, encode_mark, encode_preamble

STREAM = StreamId(b"0123456789abcdef")


def a_batch(seq: int = 1, size: int = 10) -> Batch:
    return Batch(seq, 1, 2, 3, bytes(size))


def a_pair() -> tuple[Connection, Connection]:
    client, server = Connection(Side.CLIENT), Connection(Side.SERVER)
    (hello,) = server.receive(client.hello(Hint(org="acme", name="m1"), token="t"))
    assert hello == HelloReceived(Hint(org="acme", name="m1"), {"token": "t"})
    (welcome,) = client.receive(server.welcome(name="c1"))
    assert welcome == Welcomed({"name": "c1"})
    return client, server


def an_open_stream(credit: int = 1000) -> tuple[Connection, Connection, int]:
    client, server = a_pair()
    handle, data = client.open(STREAM, "acme", "192.0.2.1:5")
    assert server.receive(data) == [Opened(handle, STREAM, "acme", "192.0.2.1:5")]
    assert server.receive(client.want(handle, credit)) == [CreditWanted(handle, credit)]
    assert client.receive(server.grant(handle, credit)) == [CreditGranted(handle, credit)]
    return client, server, handle


def test_a_batch_arrives_as_it_was_sent() -> None:
    client, server, handle = an_open_stream()
    data = b"".join(client.batch(handle, a_batch()))
    assert server.receive(data) == [BatchReceived(handle, a_batch())]
    assert client.credit(handle) == 990


def test_acknowledgement_rewind_end_and_ping_cross_the_link() -> None:
    client, server, handle = an_open_stream()
    assert client.receive(server.acknowledge(handle, 7)) == [Acknowledged(handle, 7)]
    assert client.receive(server.rewind(handle, 3)) == [Rewound(handle, 3)]
    assert server.receive(client.ping(9)) == []
    assert client.receive(b"".join(server.take_replies())) == [Ponged(9)]
    assert server.receive(client.end(handle)) == [StreamEnded(handle)]
    assert server.acknowledge(handle, 8) == b""


def test_credit_is_asked_for_once() -> None:
    client, _server, handle = an_open_stream(credit=50)
    assert client.want(handle, 50) == b""
    assert client.want(handle, 80) != b""
    assert client.want(handle, 80) == b""


def test_a_late_or_repeated_grant_changes_nothing() -> None:
    client, _server, handle = an_open_stream(credit=500)
    assert client.receive(encode_mark(Frame.GRANT, handle, 400)) == []
    assert client.receive(encode_mark(Frame.GRANT, 99, 400)) == []
    assert client.credit(handle) == 500


def test_an_acknowledgement_of_an_unknown_stream_is_ignored() -> None:
    client, _server, _handle = an_open_stream()
    assert client.receive(encode_mark(Frame.ACKNOWLEDGE, 99, 1)) == []


def test_a_byte_beyond_the_credit_closes_the_link() -> None:
    client, server, handle = an_open_stream(credit=20)
    client._sending[handle].limit = 10_000
    with pytest.raises(LinkError, match="more than were granted"):
        server.receive(b"".join(client.batch(handle, a_batch(size=21))))
    assert server.receive(b"anything") == []


def test_nothing_is_legal_before_the_hello() -> None:
    server = Connection(Side.SERVER)
    with pytest.raises(LinkError, match="awaits the hello"):
        server.receive(encode_preamble(Hint()) + encode_mark(Frame.WANT, 1, 1))


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00", b"\x00\x0a"])
def test_bytes_that_are_no_link_are_refused_at_once(first: bytes) -> None:
    with pytest.raises(LinkError, match="not a sapflow link"):
        Connection(Side.SERVER).receive(first)


def test_another_version_is_refused_by_name() -> None:
    data = bytearray(encode_preamble(Hint()))
    data[4] = 9
    with pytest.raises(LinkError, match="version 9"):
        decode_preamble(bytes(data), LinkLimits())


@pytest.mark.parametrize(
    "frame",
    [
        HEADER.pack(200, 0),
        HEADER.pack(Frame.BATCH, 3),
        HEADER.pack(Frame.BATCH, 2**31),
        HEADER.pack(Frame.ACKNOWLEDGE, 13),
        HEADER.pack(Frame.SUBSCRIBE, 1 << 20),
        HEADER.pack(Frame.SUBSCRIBE, 1) + b"x",
        HEADER.pack(Frame.SUBSCRIBE, 2) + b"[]",
        HEADER.pack(Frame.HOLD, 2) + b"{}",
        HEADER.pack(Frame.OPEN, 2) + b"{}",
        HEADER.pack(Frame.HELLO, 2) + b"{}",
        encode_mark(Frame.WANT, 77, 1),
        HEADER.pack(Frame.END, 4) + struct.pack("!I", 77),
    ],
)
def test_a_broken_frame_closes_the_link_and_claims_no_memory(frame: bytes) -> None:
    _client, server = a_pair()
    with pytest.raises(LinkError):
        server.receive(frame)


@pytest.mark.parametrize("account", [b"", b"account"])
def test_whether_a_batch_may_tell_of_its_exporter_goes_with_it(account: bytes) -> None:
    client, server = a_pair()
    handle, data = client.open(STREAM, "acme", "192.0.2.1:9")
    server.receive(data)
    client.receive(server.grant(handle, 1000))
    for tells in (False, True):
        batch = Batch(1 + tells, 1, 2, 3, b"messages", account, tells)
        assert server.receive(b"".join(client.batch(handle, batch))) == [BatchReceived(handle, batch)]


def test_a_batch_without_a_number_is_refused() -> None:
    client, server, handle = an_open_stream()
    with pytest.raises(LinkError, match="numbers begin at 1"):
        server.receive(b"".join(client.batch(handle, a_batch(seq=0))))


def test_a_handle_opened_twice_is_refused() -> None:
    client, server = a_pair()
    _, data = client.open(STREAM, "acme", "x")
    server.receive(data)
    with pytest.raises(LinkError, match="opened twice"):
        server.receive(data)


def test_streams_are_bounded() -> None:
    server = Connection(Side.SERVER, LinkLimits(max_streams=1))
    client = Connection(Side.CLIENT)
    server.receive(client.hello(Hint()))
    client.receive(server.welcome())
    server.receive(client.open(STREAM, "acme", "x")[1])
    with pytest.raises(LinkError, match="more than 1 streams"):
        server.receive(client.open(STREAM, "acme", "x")[1])


def test_close_says_why_and_nothing_is_taken_after_it() -> None:
    client, server = a_pair()
    assert client.receive(server.close(1001, "drain") + server.ping(1)) == [Closed(1001, "drain")]
    assert client.receive(b"more") == []


@pytest.mark.parametrize("size", [1, 2, 3, 7, 11])
def test_any_cut_of_the_bytes_gives_the_same_events(size: int) -> None:
    client, server, handle = an_open_stream()
    data = b"".join([*client.batch(handle, a_batch(1)), *client.batch(handle, a_batch(2, 100)), client.end(handle)])
    events = [event for at in range(0, len(data), size) for event in server.receive(data[at : at + size])]
    assert events == [BatchReceived(handle, a_batch(1)), BatchReceived(handle, a_batch(2, 100)), StreamEnded(handle)]

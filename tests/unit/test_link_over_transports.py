"""Link cases of the hostile world, over TCP, TLS, WebSocket, and WebSocket in TLS."""

import ssl
from pathlib import Path

import pytest
import trio

from meter.batching import Draft
from sapflow.errors import LinkError, Unreachable
from sapflow.flows.reference import reference_work
from sapflow.link import (
    Acknowledged,
    Batch,
    Closed,
    Connection,
    CreditGranted,
    Event,
    Opened,
    Side,
    StreamId,
    Welcomed,
    frames,
)
from sapflow.link.frames import Close, Hint
from tests.small_fleet import BUDGET_BYTES, TRANSPORTS, SmallFleet, small_fleet

STREAM = StreamId(b"0123456789abcdef")
over_each = pytest.mark.parametrize("transport", TRANSPORTS)


class Peer:
    """A meter driven by hand."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.connection = Connection(Side.CLIENT)
        self.stream = stream
        self._events: list[Event] = []

    async def say(self, *pieces: bytes) -> None:
        await self.stream.send_all(b"".join(pieces))

    async def hear(self) -> Event:
        while not self._events:
            data = await self.stream.receive_some(1 << 20)
            if not data:
                return Closed(0, "without a word")
            self._events += self.connection.receive(bytes(data))
        return self._events.pop(0)

    async def hello(self, **fields: object) -> Event:
        await self.say(self.connection.hello(Hint(), role="meter", name="m1", **fields))
        return await self.hear()

    async def send(self, batch: Batch) -> Event:
        """Open the stream, send one batch under credit: what comes then."""
        handle, data = self.connection.open(STREAM, "acme", "192.0.2.1:9")
        await self.say(data, self.connection.want(handle, batch.size))
        assert isinstance(await self.hear(), CreditGranted)
        await self.say(*self.connection.batch(handle, batch))
        return await self.hear()


def a_batch(seq: int = 1, records: int = 2) -> Batch:
    return Batch(seq, 1, records * 24, 0, reference_work(records))


async def a_peer(fleet: SmallFleet, transport: str) -> Peer:
    peer = Peer(await fleet.dial(transport))
    assert isinstance(await peer.hello(token="a-token"), Welcomed)
    return peer


@over_each
async def test_w12_a_batch_again_after_a_reconnect_is_stored_once_and_other_content_is_refused(
    tmp_path: Path, transport: str
) -> None:
    async with small_fleet(tmp_path) as fleet:
        for _ in range(2):
            peer = await a_peer(fleet, transport)
            assert await peer.send(a_batch()) == Acknowledged(1, 1)
            await peer.stream.aclose()
        forged = await a_peer(fleet, transport)
        told = await forged.send(a_batch(records=3))
        while isinstance(told, Acknowledged):
            told = await forged.hear()
        assert isinstance(told, Closed)
        assert told.code == Close.CONFLICT
        assert [entry.payload for entry in fleet.stored()] == [a_batch().payload]


class CutAfter(trio.abc.Stream):
    """A transport that breaks once so many bytes have been received."""

    def __init__(self, stream: trio.abc.Stream, left: int, taken: list[int]) -> None:
        self._stream = stream
        self._left = left
        self._taken = taken

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._left <= 0:
            await trio.aclose_forcefully(self._stream)
            raise trio.BrokenResourceError("cut")
        data = bytes(await self._stream.receive_some(self._left))
        self._left -= len(data)
        self._taken[0] += len(data)
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


@over_each
async def test_w13_an_acknowledgement_lost_at_any_byte_means_sent_again_and_stored_once(
    tmp_path: Path, transport: str
) -> None:
    async with small_fleet(tmp_path) as fleet:

        async def deliver(cut_after: int | None) -> int:
            """Three batches by a real uplink, whose first connection is cut: bytes received on it."""
            uplink, taken, first = fleet.uplink(transport), [0], [True]
            dial = uplink._dial

            async def cut_once(target: object) -> trio.abc.Stream:
                stream = await dial(target)  # type: ignore[arg-type]
                if not first[0]:
                    return stream
                first[0] = False
                return CutAfter(stream, 1 << 30 if cut_after is None else cut_after, taken)

            uplink._dial = cut_once  # type: ignore[assignment]
            async with trio.open_nursery() as nursery:
                await nursery.start(uplink.run)
                stream = uplink.open_stream("acme", "192.0.2.1:9")
                for _ in range(3):
                    await stream.put(Draft(2, 48, reference_work(2)))
                await stream.drained()
                nursery.cancel_scope.cancel()
            return taken[0]

        received = await deliver(None)
        runs = 1
        for cut_after in range(1, received + 1, max(1, received // 40)):
            await deliver(cut_after)
            runs += 1
        entries = fleet.stored()
        assert len(entries) == runs * 3
        by_stream: dict[bytes, list[int]] = {}
        for entry in entries:
            by_stream.setdefault(entry.stream, []).append(entry.seq)
        assert set(map(tuple, by_stream.values())) == {(1, 2, 3)}


@over_each
async def test_w11_a_client_that_never_reads_is_held_to_its_bound_and_others_go_on(
    tmp_path: Path, transport: str
) -> None:
    async with small_fleet(tmp_path) as fleet:
        deaf = await a_peer(fleet, transport)
        ping = deaf.connection.ping(7) * 10_000
        with trio.move_on_after(2):
            while True:
                await deaf.say(ping)
        sessions = list(fleet.collector.sessions.values())
        assert max(session.unsent_bytes for session in sessions) <= BUDGET_BYTES
        good = await a_peer(fleet, transport)
        assert await good.send(a_batch()) == Acknowledged(1, 1)


@over_each
async def test_w11_a_subscriber_that_never_reads_is_cut_at_its_bound_and_the_other_goes_on(
    tmp_path: Path, transport: str
) -> None:
    async with small_fleet(tmp_path) as fleet:
        deaf = Peer(await fleet.dial(transport))
        await deaf.say(deaf.connection.hello(Hint(), role="phloem", token="f-token", name="deaf"))
        assert isinstance(await deaf.hear(), Welcomed)
        await deaf.say(deaf.connection.subscribe(orgs=["*"]))
        most = 0
        async with trio.open_nursery() as nursery:
            uplink = fleet.uplink(transport)
            await nursery.start(uplink.run)
            stream = uplink.open_stream("acme", "192.0.2.1:9")
            await stream.put(Draft(2, 48, reference_work(2)))
            while not isinstance(event := await deaf.hear(), Opened):
                assert not isinstance(event, Closed)
            await deaf.say(deaf.connection.grant(event.handle, 1 << 40))
            for _ in range(900):
                await stream.put(Draft(41, 960, reference_work(40)))
                most = max([most, *(session.unsent_bytes for session in fleet.collector.sessions.values())])
            await stream.drained()
            assert most <= 2 * BUDGET_BYTES + (1 << 20)
            assert fleet.collector.pool.used_bytes <= BUDGET_BYTES
            nursery.cancel_scope.cancel()
        assert sum(entry.records for entry in fleet.stored()) == 48 + 900 * 960


@over_each
async def test_w09_without_a_token_that_counts_the_same_answer_comes_over_every_transport(
    tmp_path: Path, transport: str
) -> None:
    hellos = ({}, {"token": ""}, {"token": "wrong"}, {"token": ["a-token"]}, {"token": "A-TOKEN"}, {"token": "f-token"})
    answers = set()
    async with small_fleet(tmp_path) as fleet:
        for fields in hellos:
            told = await Peer(await fleet.dial(transport)).hello(**fields)
            assert isinstance(told, Closed)
            answers.add((told.code, told.reason))
        assert fleet.collector.counts.unauthorized == len(hellos)
    ((code, reason),) = answers
    assert code == Close.UNAUTHORIZED
    assert "acme" not in reason


@over_each
async def test_w09_a_token_of_another_org_opens_no_stream_over_any_transport(tmp_path: Path, transport: str) -> None:
    async with small_fleet(tmp_path) as fleet:
        peer = Peer(await fleet.dial(transport))
        assert isinstance(await peer.hello(token="g-token"), Welcomed)
        _, opening = peer.connection.open(StreamId(bytes(16)), "acme", "192.0.2.1:9")
        await peer.say(opening)
        told = await peer.hear()
        assert isinstance(told, Closed)
        assert told.code == Close.FORBIDDEN
        assert "acme" not in fleet.collector.endpoints


@over_each
async def test_w10_an_acknowledgement_of_what_was_never_sent_changes_nothing(tmp_path: Path, transport: str) -> None:
    async with small_fleet(tmp_path) as fleet:
        peer = await a_peer(fleet, transport)
        await peer.say(b"".join(_mark(handle, number) for handle in (0, 1, 99) for number in (0, 1, 1 << 40)))
        assert await peer.send(a_batch()) == Acknowledged(1, 1)


def _mark(handle: int, number: int) -> bytes:
    return frames.encode_mark(frames.Frame.ACKNOWLEDGE, handle, number)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param(b"\x82\x04abcd", 1002, id="unmasked"),
        pytest.param(b"\xc2\x84\0\0\0\0abcd", 1002, id="RSV1 without deflate"),
        pytest.param(b"\x83\x80\0\0\0\0", 1002, id="bad opcode"),
        pytest.param(b"\x82\xff\x80\0\0\0\0\0\0\1\0\0\0\0", 1002, id="length with its highest bit set"),
        pytest.param(b"\x82\xfe\0\x01\0\0\0\0a", 1002, id="length not minimal"),
        pytest.param(b"\x88\x82\0\0\0\0\x03\xed", 1002, id="close code 1005"),
        pytest.param(b"\x81\x81\0\0\0\0a", 1003, id="text"),
        pytest.param(b"\x02\x80\0\0\0\0" + b"\x00\x80\0\0\0\0" * 2000, 1009, id="fragments without end"),
    ],
)
async def test_w01_w03_w04_w07_a_frame_that_breaks_the_protocol_closes_with_its_code(
    tmp_path: Path, sent: bytes, code: int
) -> None:
    async with small_fleet(tmp_path) as fleet:
        stream = await fleet.dial("ws")
        await stream._transport.send_all(sent)  # type: ignore[attr-defined]
        heard = b""
        with trio.fail_after(5):
            while data := await stream._transport.receive_some(4096):  # type: ignore[attr-defined]
                heard += bytes(data)
            while fleet.collector.counts.links > 1:  # Phloem's own stays
                await trio.sleep(0.01)
        assert heard[0] == 0x88, heard
        assert int.from_bytes(heard[2:4], "big") == code


async def test_w04_a_message_of_more_than_a_mebibyte_is_refused(tmp_path: Path) -> None:
    async with small_fleet(tmp_path) as fleet:
        peer = await a_peer(fleet, "ws")
        ping = peer.connection.ping(1)
        count = (1 << 20) // len(ping) + 1
        head = b"\x82\xff" + (count * len(ping)).to_bytes(8, "big") + bytes(4)
        await peer.stream._transport.send_all(head + ping * count)  # type: ignore[attr-defined]
        heard = b""
        with trio.fail_after(5):
            while data := await peer.stream._transport.receive_some(1 << 20):  # type: ignore[attr-defined]
                heard += bytes(data)
        assert (1009).to_bytes(2, "big") + b"a message that is too long" in heard[-200:]


async def test_w02_a_frame_that_promises_much_and_brings_nothing_costs_nothing(tmp_path: Path) -> None:
    async with small_fleet(tmp_path) as fleet:
        stream = await fleet.dial("ws")
        await stream._transport.send_all(b"\x82\xff\x3f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0")  # type: ignore[attr-defined]
        good = await a_peer(fleet, "ws")
        assert await good.send(a_batch()) == Acknowledged(1, 1)
        assert max(session.unsent_bytes for session in fleet.collector.sessions.values()) < 1 << 20


def a_handshake(path: str, more: str = "") -> bytes:
    fixed = "Host: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    return f"GET {path} HTTP/1.1\r\n{fixed}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n".encode()


async def test_w05_deflate_is_not_negotiated(tmp_path: Path) -> None:
    async with small_fleet(tmp_path) as fleet:
        stream = await trio.open_tcp_stream("127.0.0.1", int(fleet.address.split(":")[1]))
        await stream.send_all(a_handshake("/link", "Sec-WebSocket-Extensions: permessage-deflate\r\n"))
        answer = bytes(await stream.receive_some(4096)).lower()
        assert answer.startswith(b"http/1.1 101")
        assert b"extensions" not in answer


async def test_a_websocket_to_another_path_is_told_where_links_are(tmp_path: Path) -> None:
    async with small_fleet(tmp_path) as fleet:
        stream = await trio.open_tcp_stream("127.0.0.1", int(fleet.address.split(":")[1]))
        await stream.send_all(a_handshake("/other"))
        answer = b""
        while data := await stream.receive_some(4096):
            answer += bytes(data)
        assert answer.startswith(b"HTTP/1.1 404")
        assert b"/link" in answer


async def test_a_certificate_of_another_authority_is_not_trusted(tmp_path: Path) -> None:
    async with small_fleet(tmp_path) as fleet:
        fleet.client_tls = ssl.create_default_context()
        with pytest.raises(Unreachable, match="certificate verify failed"):
            await fleet.dial("links")
        with pytest.raises((Unreachable, LinkError)):
            await fleet.dial("wss")

"""The exporter door's TLS: who gets in, who is refused, and that nothing is lost at the end."""

import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trustme
from attrs import frozen
from trio.testing import MockClock, memory_stream_pair

from meter.exporter_door import ExporterDoor, SourceBinding, SourceBindings
from meter.exporter_tls import ExporterTls
from meter.intake import Intake
from meter.uplink import Uplink
from sapflow.config import TlsNameConfig
from sapflow.errors import ConfigurationError
from sapflow.flows.reference import reference_work
from sapflow.runtime.addresses import split_address
from sapflow.runtime.serve import address_of, listen, serve
from tests.unit.meter.test_intake import an_intake, held


@frozen
class Door:
    """A TLS door on this host, and who trusts it."""

    address: tuple[str, int]
    door: ExporterDoor
    intake: object
    client_tls: ssl.SSLContext

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream(*self.address)

    async def until(self, **counts: int) -> None:
        """Wait for the door's counts."""
        with trio.fail_after(20):
            while any(getattr(self.door.counts, name) != count for name, count in counts.items()):
                await trio.sleep(0.01)


def a_certificate(directory: Path, client_tls: ssl.SSLContext) -> str:
    authority = trustme.CA()
    authority.configure_trust(client_tls)
    path = directory / "door.pem"
    authority.issue_cert("127.0.0.1", "::1", "*.flows.example").private_key_and_cert_chain_pem.write_to_path(path)
    return str(path)


@asynccontextmanager
async def a_door(
    directory: Path,
    *,
    prefix: str = "127.0.0.0/8",
    handshake_timeout_s: float = 5,
    names: Sequence[TlsNameConfig] = (),
    host: str = "127.0.0.1",
) -> AsyncIterator[Door]:
    client_tls = ssl.create_default_context()
    tls = ExporterTls.load(a_certificate(directory, client_tls), "", handshake_timeout_s, names)
    intake = an_intake()
    door = ExporterDoor(intake, SourceBindings([SourceBinding(prefix, "acme")]), tls=tls)
    listener = await listen(f"{host}:0", what="exporters")
    host, port = split_address(address_of(listener))
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(serve, max_connections=10, what="exporter"), listener, door.serve)
            yield Door((host, port), door, intake, client_tls)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_an_exporter_in_tls_is_read_like_a_plain_one(tmp_path: Path, version: ssl.TLSVersion) -> None:
    async with a_door(tmp_path) as door:
        door.client_tls.maximum_version = version
        tcp = await door.connect()
        secured = trio.SSLStream(tcp, door.client_tls, server_hostname="127.0.0.1", https_compatible=True)
        await secured.send_all(reference_work(4))
        await secured.aclose()
        await door.until(accepted=1, open=0)
        assert held(door.intake) == (1, 96)


async def test_what_an_exporter_sent_before_it_closed_comes_though_it_has_never_read(tmp_path: Path) -> None:
    # Trio keeps TLS 1.3's session tickets back until a server first sends; one that an exporter never read would make
    # its kernel reset the connection on close, and drop what is on its way.
    client_tls = ssl.create_default_context()
    door = ExporterTls.load(a_certificate(tmp_path, client_tls), "", 5.0)
    listener = await listen("127.0.0.1:0", what="exporters")
    host, port = address_of(listener).split(":")
    closed = trio.Event()

    def send_and_close() -> None:
        with (
            socket.create_connection((host, int(port))) as tcp,
            client_tls.wrap_socket(tcp, server_hostname=host) as it,
        ):
            it.sendall(bytes(1_000_000))

    async def export() -> None:
        await trio.to_thread.run_sync(send_and_close)
        closed.set()

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery, listener:
            nursery.start_soon(export)
            secured = trio.SSLStream(await listener.accept(), door.context, server_side=True, https_compatible=True)
            await secured.do_handshake()
            await closed.wait()
            assert sum([len(data) async for data in secured]) == 1_000_000


async def test_what_is_not_tls_is_refused_at_once(tmp_path: Path) -> None:
    async with a_door(tmp_path) as door:
        async with await door.connect() as plain:
            await plain.send_all(reference_work(1))
            await door.until(refused=1)
        assert door.door.counts.accepted == 0
        assert held(door.intake) == (0, 0)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1")
async def test_tls_older_than_1_2_is_refused(tmp_path: Path) -> None:
    async with a_door(tmp_path) as door:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        tls.set_ciphers("ALL:@SECLEVEL=0")
        tls.minimum_version = tls.maximum_version = ssl.TLSVersion.TLSv1_1
        old = trio.SSLStream(await door.connect(), tls, server_hostname="127.0.0.1")
        with pytest.raises(trio.BrokenResourceError):
            await old.do_handshake()
        await door.until(refused=1)


async def test_an_exporter_of_no_org_is_refused_before_any_handshake(tmp_path: Path) -> None:
    async with a_door(tmp_path, prefix="192.0.2.0/24") as door:
        async with await door.connect() as stranger:
            assert await stranger.receive_some() == b""
        assert (door.door.counts.refused, door.door.counts.accepted) == (1, 0)


async def test_a_handshake_that_does_not_come_ends_at_its_deadline(tmp_path: Path, autojump_clock: MockClock) -> None:
    tls = ExporterTls.load(a_certificate(tmp_path, ssl.create_default_context()), "", 5.0)
    door = ExporterDoor(an_intake(), SourceBindings([SourceBinding("192.0.2.0/24", "acme")]), tls=tls)
    theirs, ours = memory_stream_pair()
    began = trio.current_time()
    await theirs.send_all(b"\x16\x03\x01")
    await door.serve(ours, "192.0.2.1:9")  # type: ignore[arg-type]
    assert 5.0 <= trio.current_time() - began < 5.1
    assert (door.counts.refused, door.counts.open) == (1, 0)


def test_a_certificate_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "none.pem").write_text("none")
    with pytest.raises(ConfigurationError, match=r"none\.pem"):
        ExporterTls.load(str(tmp_path / "none.pem"), "", 5.0)


async def say(door: Door, name: str) -> None:
    """Send four messages in TLS, asking for a name; the door may refuse."""
    tcp = await door.connect()
    secured = trio.SSLStream(tcp, door.client_tls, server_hostname=name, https_compatible=True)
    try:
        await secured.send_all(reference_work(4))
        await secured.receive_some(1)
    except trio.BrokenResourceError:
        return
    finally:
        await trio.aclose_forcefully(secured)


def orgs(door: Door) -> list[str]:
    assert isinstance(door.intake, Intake)
    uplink = door.intake.uplink
    assert isinstance(uplink, Uplink)
    return sorted(stream.org for stream in uplink.streams)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_the_name_that_an_exporter_asks_for_says_its_org_where_it_may_ask_for_it(
    tmp_path: Path, host: str
) -> None:
    loopback = ("127.0.0.0/8", "::1/128")
    names = [
        TlsNameConfig("globex.flows.example", "globex", sources=loopback),
        TlsNameConfig("initech.flows.example", "initech", sources=("192.0.2.0/24",)),
    ]
    async with a_door(tmp_path, names=names, host=host) as door, trio.open_nursery() as nursery:
        nursery.start_soon(say, door, "GLOBEX.flows.example")
        await door.until(accepted=1)
        assert orgs(door) == ["globex"]
        # A name of somebody who is elsewhere is refused, and not taken for the source's own org.
        nursery.start_soon(say, door, "initech.flows.example")
        await door.until(refused=1)
        # Any other name goes by the source: by IPv6 that is none here.
        nursery.start_soon(say, door, "other.flows.example")
        await door.until(**({"accepted": 2} if host == "127.0.0.1" else {"refused": 2}))
        assert orgs(door) == (["acme", "globex"] if host == "127.0.0.1" else ["globex"])
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_name_with_an_authority_is_for_those_who_show_a_certificate_of_it(
    tmp_path: Path, version: ssl.TLSVersion
) -> None:
    authority, foreign = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "acme.pem")
    names = [TlsNameConfig("globex.flows.example", "globex", authority=str(tmp_path / "acme.pem"))]
    async with a_door(tmp_path, names=names) as door:
        door.client_tls.maximum_version = version
        await say(door, "globex.flows.example")
        await door.until(refused=1)
        foreign.issue_cert("exporter.example").configure_cert(door.client_tls)
        await say(door, "globex.flows.example")
        await door.until(refused=2)
        authority.issue_cert("exporter.example").configure_cert(door.client_tls)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(say, door, "globex.flows.example")
            await door.until(accepted=1)
            assert orgs(door) == ["globex"]
            nursery.cancel_scope.cancel()


async def test_a_name_that_comes_a_byte_at_a_time_is_found_and_a_silent_one_ends_at_its_deadline(
    tmp_path: Path,
) -> None:
    names = [TlsNameConfig("globex.flows.example", "globex", sources=("127.0.0.0/8",))]
    async with a_door(tmp_path, names=names, handshake_timeout_s=1.0) as door:
        silent = await door.connect()
        await silent.send_all(b"\x16\x03")
        await door.until(refused=1)
        await silent.aclose()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        with pytest.raises(ssl.SSLWantReadError):
            door.client_tls.wrap_bio(incoming, outgoing, server_hostname="globex.flows.example").do_handshake()
        slow = await door.connect()
        for byte in outgoing.read():
            await slow.send_all(bytes([byte]))
        # The name's own answer: a ServerHello.
        assert bytes(await slow.receive_some(1)) == b"\x16"
        await slow.aclose()
        await door.until(refused=2)

"""A collector and a Phloem node in this process, on real sockets and a real log: for link cases over any transport."""

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio
import trustme
from attrs import define

from collector.sessions import Collector, CollectorSettings
from meter.uplink import FixedTarget, Target, Uplink, UplinkSettings
from phloem.commits import Committer
from phloem.connections import Connections, ConnectionSettings
from phloem.engine.embedded import EmbeddedLog
from sapflow.entry import LogEntry, decode_entry
from sapflow.runtime.dial import dial
from sapflow.runtime.proxied import Networks, Proxied
from sapflow.runtime.serve import address_of, listen, serve
from sapflow.runtime.transport import dial_link, link_url

BUDGET_BYTES = 8 << 20
TRANSPORTS = ("link", "links", "ws", "wss")


@define
class SmallFleet:
    """`acme`'s meters have the token `a-token`."""

    address: str
    collector: Collector
    engine: EmbeddedLog
    committer: Committer
    client_tls: ssl.SSLContext

    async def dial(self, transport: str) -> trio.abc.Stream:
        """A stream for a link, over one of TRANSPORTS."""
        return await dial_link(link_url(f"{transport}://{self.address}"), timeout_s=5, tls=self.client_tls)

    def uplink(self, transport: str, token: str = "a-token") -> Uplink:
        """A meter's uplink."""
        return Uplink(
            FixedTarget(Target("the door", self.address)),
            lambda _: self.dial(transport),
            UplinkSettings(hello={"role": "meter", "token": token, "name": "m1"}, backoff_most_s=0.05),
        )

    def stored(self, org: str = "acme") -> list[LogEntry]:
        """What the log holds of an org."""
        return [decode_entry(data) for _, data in self.engine.read(org, 0, max_entries=10_000, max_bytes=1 << 30)]


@asynccontextmanager
async def small_fleet(directory: Path, *, proxy_from: Sequence[str] = ("127.0.0.0/8",)) -> AsyncIterator[SmallFleet]:
    """Run one, with a certificate of its own for 127.0.0.1; it believes relays of these networks."""
    authority = trustme.CA()
    server_tls, client_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server_tls)
    authority.configure_trust(client_tls)
    settings = CollectorSettings("c1", "f-token", budget_bytes=BUDGET_BYTES, tls=server_tls)
    collector = Collector(settings, {"a-token": "acme", "g-token": "globex"}.get)
    engine = EmbeddedLog.open(directory / "log", map_bytes=1 << 30)
    committer = Committer(engine, channel_bytes=BUDGET_BYTES, commit_bytes=1 << 20, on_stored=lambda _: None)
    connections = Connections(
        ConnectionSettings(name="p1", fleet_token="f-token", budget_bytes=BUDGET_BYTES),
        committer,
        partial(dial, timeout_s=5),
    )
    listener = await listen("127.0.0.1:0", what="links")
    address = address_of(listener)
    connections.collectors({"c1": address})
    try:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                serve_link = Proxied(Networks(proxy_from), 5.0).possible(collector.serve_link)
                nursery.start_soon(partial(serve, max_connections=100, what="link"), listener, serve_link)
                nursery.start_soon(connections.run)
                nursery.start_soon(committer.run)
                yield SmallFleet(address, collector, engine, committer, client_tls)
                nursery.cancel_scope.cancel()
    finally:
        engine.close()

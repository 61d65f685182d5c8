"""The exporter door: IPFIX over TCP, plain or in TLS, of many orgs. The balancer's; the balancer carries or ends it.

Default deny: an org is that of the source's network, or in TLS that of the name which the exporter asks for. A source
whose sessions are malformed again and again is turned away for a time.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Iterable
from ipaddress import IPv6Address, ip_address, ip_network

import structlog
import trio
from attrs import define, frozen

from meter.backoff import Backoff, BackoffSettings
from meter.exporter_tls import ExporterTls
from meter.intake import Intake
from meter.left import LeftSession
from sapflow.errors import MalformedMessage
from sapflow.runtime.addresses import split_address
from sapflow.runtime.client_hello import MAX_HELLO_BYTES, name_asked_for
from sapflow.runtime.peek import peek

log = structlog.get_logger()

FAREWELL_S = 1.0
"""The end of a TLS session is said within so long."""


@frozen
class SourceBinding:
    """Plain exporters from this network belong to this org."""

    prefix: str
    org: str


class SourceBindings:
    """Which org a source's plain exporters belong to: default deny, the longest prefix decides."""

    def __init__(self, bindings: Iterable[SourceBinding]) -> None:
        self._bindings = [(ip_network(binding.prefix), binding.org) for binding in bindings]

    def org_of(self, address: str) -> str | None:
        """The org of an address; None when no prefix holds it."""
        source = ip_address(address)
        if isinstance(source, IPv6Address) and source.ipv4_mapped is not None:
            source = source.ipv4_mapped
        found = [(net.prefixlen, org) for net, org in self._bindings if net.version == source.version and source in net]
        return max(found)[1] if found else None


@define
class ExporterCounts:
    """What came through a door; never goes down, but for `open`."""

    open: int = 0
    accepted: int = 0
    refused: int = 0


class ExporterDoor:
    """IPFIX over TCP, plain or in TLS: default deny, but for sources and names bound to an org."""

    def __init__(
        self,
        intake: Intake,
        bindings: SourceBindings,
        tls: ExporterTls | None = None,
        *,
        backoff: Backoff | None = None,
    ) -> None:
        self.counts = ExporterCounts()
        self.backoff = backoff or Backoff(BackoffSettings(), random.random)
        self._intake = intake
        self._bindings = bindings
        self._tls = tls

    async def serve(self, stream: trio.SocketStream, peer: str) -> None:
        """One exporter's session."""
        address = split_address(peer)[0]
        if not self.backoff.admits(address, trio.current_time()):
            return
        admitted = self._plain(stream, peer) if self._tls is None else await self._in_tls(stream, peer, self._tls)
        if admitted is None:
            return
        org, carried = admitted
        self.counts.accepted += 1
        try:
            await self._follow(address, org, self._intake.session(carried, peer, org))
        finally:
            if self._tls is not None:
                await _farewell(carried)

    async def resume(self, stream: trio.SocketStream, left: LeftSession) -> None:
        """A plain exporter's session that another process left, if it is still its org's."""
        if self.org_of(left.peer) != left.org:
            self._refuse(left.peer, f"it is not of {left.org} any more", "it may connect again, as what it is now")
            return
        await self._follow(split_address(left.peer)[0], left.org, self._intake.resume(stream, left))

    async def _follow(self, address: str, org: str, session: Awaitable[MalformedMessage | None]) -> None:
        self.counts.open += 1
        try:
            fault = await session
        finally:
            self.counts.open -= 1
        if fault is None:
            self.backoff.well(address)
        else:
            self._shut_out(address, org, fault)

    def _plain(self, stream: trio.abc.Stream, peer: str) -> tuple[str, trio.abc.Stream] | None:
        org = self.org_of(peer)
        if org is None:
            advice = "add its prefix and org to balancer.sources in the configuration"
            self._refuse(peer, "no org is bound to this source", advice)
            return None
        return org, stream

    async def _in_tls(
        self, stream: trio.SocketStream, peer: str, tls: ExporterTls
    ) -> tuple[str, trio.abc.Stream] | None:
        if not tls.names and self._plain(stream, peer) is None:
            return None
        try:
            with trio.fail_after(tls.handshake_timeout_s):
                name = await peek(stream, name_asked_for, MAX_HELLO_BYTES) if tls.names else ""
                return await self._secured(stream, peer, name or "", tls)
        except trio.TooSlowError:
            advice = "this door speaks TLS only; plain IPFIX belongs to balancer.ipfix_tcp"
            self._refuse(peer, f"no TLS handshake within {tls.handshake_timeout_s:g} s", advice)
            return None

    async def _secured(
        self, stream: trio.SocketStream, peer: str, name: str, tls: ExporterTls
    ) -> tuple[str, trio.abc.Stream] | None:
        named = tls.of(name)
        if named is not None and not named.admits(peer):
            advice = "add its prefix to the name's `sources` in balancer.tls_names in the configuration"
            self._refuse(peer, f"{name} may not be asked for from there", advice)
            return None
        admitted = self._plain(stream, peer) if named is None else (named.org, stream)
        if admitted is None:
            return None
        context = tls.context if named is None else named.context
        secured: trio.SSLStream[trio.SocketStream] = trio.SSLStream(stream, context, server_side=True)
        try:
            await secured.do_handshake()
        except trio.BrokenResourceError as error:
            advice = "the exporter needs TLS 1.2 or later, must trust who signed balancer.tls_certificate, and show a "
            advice += "certificate of its own where its name in balancer.tls_names has an authority"
            self._refuse(peer, f"TLS handshake failed: {error.__cause__ or error}", advice)
            return None
        return admitted[0], secured

    def _shut_out(self, address: str, org: str, fault: MalformedMessage) -> None:
        wait_s = self.backoff.malformed(address, trio.current_time())
        if wait_s:
            log.warning(
                "source shut out",
                address=address,
                org=org,
                seconds=round(wait_s, 1),
                reason=fault.reason,
                advice="its last sessions all ended with malformed messages; connections from it are closed at once "
                "until then. Mend the exporter, or find what else connects here",
            )

    def _refuse(self, peer: str, reason: str, advice: str) -> None:
        self.counts.refused += 1
        log.warning("exporter refused", peer=peer, reason=reason, advice=advice)

    def may_admit(self, peer: str) -> bool:
        """Whether a peer is of some org, as far as that can be said before anything was read of it."""
        return self.org_of(peer) is not None or bool(self._tls and self._tls.names)

    def org_of(self, peer: str) -> str | None:
        """The org of a peer, given as host:port."""
        return self._bindings.org_of(split_address(peer)[0])


async def _farewell(stream: trio.abc.Stream) -> None:
    """Say that a TLS session ends (close_notify): one that only sees its connection cut may take it for an attack."""
    with trio.move_on_after(FAREWELL_S, shield=True):
        await stream.aclose()

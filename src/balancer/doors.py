"""The two front doors.

The exporter door ends IPFIX sessions, plain or in TLS, with the meter's own intake; what it reads goes out on links,
and when a collector dies its streams are re-homed at a batch boundary, unnoticed by the exporter. A source whose
sessions are malformed again and again is turned away for a time. The link door carries meters' links without ending
them: it peeks at the clear preamble for a hint, places by it, and gives the socket itself to a collector of this host,
or relays the bytes to one elsewhere, and to one that cannot take the socket now.
"""

from __future__ import annotations

import random
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import IPv6Address, ip_address, ip_network

import structlog
import trio
from attrs import define, evolve, field, frozen

from balancer.backoff import Backoff, BackoffSettings
from balancer.carry import relay
from balancer.hints import MAX_HINT_BYTES, read_hint
from meter.intake import Intake
from sapflow.errors import LinkError, MalformedMessage, Unreachable
from sapflow.link import LinkLimits
from sapflow.link.frames import MAGIC, Close, Frame, Hint, encode_json
from sapflow.runtime.addresses import join_address, split_address
from sapflow.runtime.handoff import Handed
from sapflow.runtime.proxy_header import encode
from sapflow.runtime.seldom import Seldom
from sapflow.runtime.serve import UNKNOWN_PEER
from sapflow.runtime.transport import server_tls

log = structlog.get_logger()

OVER_FULL = "too many links wait to be placed"
NO_ROOM = "no collector can take it now"
PLACE_AGAIN_S = 0.05
HOLD_S = 5.0
"""A link that found no collector in time is told to come back after so long, jittered."""
HOLD_TOLD_S = 1.0
CUT_WITHIN_S = 2.0
"""Links that are cut off from one collector do not all come back at the same moment."""


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
class DoorCounts:
    """What came through a door; never goes down, but for `open`."""

    open: int = 0
    accepted: int = 0
    handed: int = 0
    """Of those accepted: given to a collector of this host, with their socket."""
    refused: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    bytes_back: int = 0


@frozen
class ExporterTls:
    """How a door ends exporters' TLS."""

    context: ssl.SSLContext
    handshake_timeout_s: float = 5.0

    @classmethod
    def load(cls, certificate: str, key: str, handshake_timeout_s: float) -> ExporterTls:
        """TLS as exporters speak it: many have no 1.3 yet. Raises ConfigurationError."""
        return cls(server_tls(certificate, key, minimum=ssl.TLSVersion.TLSv1_2), handshake_timeout_s)


class ExporterDoor:
    """IPFIX over TCP, plain or in TLS: default deny, but for sources bound to an org."""

    def __init__(
        self,
        intake: Intake,
        bindings: SourceBindings,
        tls: ExporterTls | None = None,
        *,
        backoff: Backoff | None = None,
    ) -> None:
        self.counts = DoorCounts()
        self.backoff = backoff or Backoff(BackoffSettings(), random.random)
        self._intake = intake
        self._bindings = bindings
        self._tls = tls

    async def serve(self, stream: trio.SocketStream, peer: str) -> None:
        """One exporter's session."""
        org = self.org_of(peer)
        if org is None:
            advice = "add its prefix and org to balancer.sources in the configuration"
            self._refuse(peer, "no org is bound to this source", advice)
            return
        address = split_address(peer)[0]
        if not self.backoff.admits(address, trio.current_time()):
            return
        carried = stream if self._tls is None else await self._secured(stream, peer, self._tls)
        if carried is None:
            return
        self.counts.accepted += 1
        self.counts.open += 1
        try:
            fault = await self._intake.session(carried, peer, org)
        finally:
            self.counts.open -= 1
        if fault is None:
            self.backoff.well(address)
        else:
            self._shut_out(address, org, fault)

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

    async def _secured(self, stream: trio.SocketStream, peer: str, tls: ExporterTls) -> trio.abc.Stream | None:
        secured: trio.SSLStream[trio.SocketStream] = trio.SSLStream(stream, tls.context, server_side=True)
        try:
            with trio.fail_after(tls.handshake_timeout_s):
                await secured.do_handshake()
        except trio.TooSlowError:
            advice = "this door speaks TLS only; plain IPFIX belongs to balancer.ipfix_tcp"
            self._refuse(peer, f"no TLS handshake within {tls.handshake_timeout_s:g} s", advice)
            return None
        except trio.BrokenResourceError as error:
            advice = "the exporter needs TLS 1.2 or later, and must trust who signed balancer.tls_certificate"
            self._refuse(peer, f"TLS handshake failed: {error.__cause__ or error}", advice)
            return None
        return secured

    def _refuse(self, peer: str, reason: str, advice: str) -> None:
        self.counts.refused += 1
        log.warning("exporter refused", peer=peer, reason=reason, advice=advice)

    def org_of(self, peer: str) -> str | None:
        """The org of a peer, given as host:port."""
        return self._bindings.org_of(split_address(peer)[0])


@define
class Carriage:
    """Bytes carried, of one link or of all that went to one collector."""

    bytes_in: int = 0
    bytes_out: int = 0
    bytes_back: int = 0


@define(eq=False)
class CarriedLink:
    """A meter's link while it is carried."""

    collector: str
    hint: Hint
    carriage: Carriage = field(factory=Carriage)
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    answered: Carriage = field(factory=Carriage)
    """As it was when bytes last came back."""

    def is_answered(self) -> bool:
        """Whether bytes came back since this was asked last."""
        if self.carriage.bytes_back == self.answered.bytes_back:
            return False
        self.answered = evolve(self.carriage)
        return True

    @property
    def unanswered_bytes(self) -> int:
        """That went in since bytes last came back."""
        return self.carriage.bytes_in - self.answered.bytes_in


async def _nobody_takes(_collector: str, _stream: trio.SocketStream, _handed: Handed) -> bool:
    return False


@define
class LinkDoor:
    """Meters' links, placed by their hint and given or carried to a collector."""

    place: Callable[[object, Hint, set[str]], tuple[str, str] | None]
    """(name, address) of the collector for a link with a hint, leaving out those tried; None when none can take it."""
    dial: Callable[[str], Awaitable[trio.abc.Stream]]
    left: Callable[[object], None]
    """What was placed for a link is free again."""
    give: Callable[[str, trio.SocketStream, Handed], Awaitable[bool]] = _nobody_takes
    """Whether a collector has taken the socket itself; if not, it is relayed."""
    handed_off: Callable[[object], None] = lambda _link: None
    """Of what was placed for a link nothing more will be heard."""
    name: str = ""
    limits: LinkLimits = LinkLimits()
    preamble_timeout_s: float = 5.0
    place_timeout_s: float = 10.0
    max_unplaced: int = 1000
    unplaced: int = 0
    """Links that have not said, or not found, where they go."""
    counts: DoorCounts = field(factory=DoorCounts)
    links: set[CarriedLink] = field(factory=set)
    carriage: dict[str, Carriage] = field(factory=dict)
    """By collector, of all links that it was ever given."""
    _refusals: Seldom = field(factory=Seldom)
    _turn: trio.StrictFIFOLock = field(factory=trio.StrictFIFOLock)

    async def serve(self, stream: trio.SocketStream, peer: str) -> None:
        """One link, from its preamble until either side ends it."""
        link = object()
        try:
            placed = await self._placed(link, stream, peer)
        except (LinkError, trio.TooSlowError) as error:
            # It may have been placed, and its collector not reached in time.
            self.left(link)
            self.counts.refused += 1
            reason = str(error) or "no preamble in time"
            if times := self._refusals.again(reason):
                log.warning("link refused", peer=peer, reason=reason, times=times)
            if reason == NO_ROOM:
                await self._hold(stream)
            return
        self._refusals.over(OVER_FULL)
        self._refusals.over(NO_ROOM)
        self.counts.accepted += 1
        if placed is None:
            self.counts.handed += 1
            self.handed_off(link)
        else:
            await self._carry(link, stream, *placed)

    async def _carry(
        self, link: object, stream: trio.SocketStream, carried: CarriedLink, upstream: trio.SocketStream
    ) -> None:
        self.counts.open += 1
        self.links.add(carried)
        of_all = self.carriage.setdefault(carried.collector, Carriage())
        try:
            with carried.scope:
                async with upstream:
                    await relay(stream, upstream, self.counts, carried.carriage, of_all)
        finally:
            self.links.discard(carried)
            self.counts.open -= 1
            self.left(link)

    def cut(self, collector: str) -> int:
        """Cut all links to a collector that does not work, over a while, so that they are placed anew: how many."""
        cut = [link for link in self.links if link.collector == collector]
        for link in cut:
            link.scope.deadline = trio.current_time() + random.uniform(0, CUT_WITHIN_S)
        return len(cut)

    async def _hold(self, stream: trio.SocketStream) -> None:
        """Tell a link to come back later, where that can be told in clear, and wait a moment for it to close."""
        with trio.move_on_after(HOLD_TOLD_S):
            try:
                if bytes(await stream.receive_some(MAX_HINT_BYTES))[: len(MAGIC)] == MAGIC:
                    await stream.send_all(encode_json(Frame.HOLD, {"seconds": HOLD_S, "reason": NO_ROOM}))
                    while await stream.receive_some(MAX_HINT_BYTES):
                        continue
            except trio.BrokenResourceError:
                return

    async def _placed(
        self, link: object, stream: trio.SocketStream, peer: str
    ) -> tuple[CarriedLink, trio.SocketStream] | None:
        """How a link is carried; None when its socket is a collector's now, and not to be touched any more."""
        if self.unplaced >= self.max_unplaced:
            raise LinkError(OVER_FULL, code=Close.OVERLOADED)
        self.unplaced += 1
        try:
            with trio.fail_after(self.preamble_timeout_s):
                hint = await self._peek(stream)
            try:
                with trio.fail_after(self.place_timeout_s):
                    return await self._reach(link, stream, peer, hint)
            except trio.TooSlowError:
                raise LinkError(NO_ROOM, code=Close.OVERLOADED) from None
        finally:
            self.unplaced -= 1

    async def _peek(self, stream: trio.SocketStream) -> Hint:
        """What the link's first bytes hint at; they stay where they are. Raises LinkError."""
        seen = 0
        try:
            while True:
                data = await stream.socket.recv(MAX_HINT_BYTES, socket.MSG_PEEK)
                if len(data) <= seen:
                    raise LinkError("closed before its preamble", code=0)
                hint = read_hint(data, self.limits)
                if hint is not None:
                    return hint
                seen = len(data)
                # A peek finds the same bytes again at once: the socket is to be readable when there are more.
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, seen + 1)
                await trio.lowlevel.wait_readable(stream.socket)
        finally:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    async def _reach(
        self, link: object, stream: trio.SocketStream, peer: str, hint: Hint
    ) -> tuple[CarriedLink, trio.SocketStream] | None:
        tried: set[str] = set()
        while True:
            name, address = await self._place_in_turn(link, hint, tried)
            if await self.give(name, stream, Handed("link", peer, self.name)):
                return None
            try:
                upstream = await self._relayed(address, stream, peer)
            except Unreachable as error:
                self.left(link)
                tried.add(name)
                log.info("collector not reached", collector=name, reason=str(error))
                continue
            return CarriedLink(name, hint), upstream

    async def _relayed(self, address: str, stream: trio.SocketStream, peer: str) -> trio.SocketStream:
        """A connection to a collector, which is told who is at the other end. Raises Unreachable."""
        upstream = await self.dial(address)
        assert isinstance(upstream, trio.SocketStream)
        try:
            with trio.fail_after(self.place_timeout_s):
                if peer != UNKNOWN_PEER:
                    await upstream.send_all(encode(peer, join_address(*stream.socket.getsockname()[:2])))
        except (trio.BrokenResourceError, OSError) as error:
            await trio.aclose_forcefully(upstream)
            raise Unreachable(f"{address} closed the connection at once") from error
        except BaseException:
            await trio.aclose_forcefully(upstream)
            raise
        return upstream

    async def _place_in_turn(self, link: object, hint: Hint, tried: set[str]) -> tuple[str, str]:
        """In the order that they came: while the first of them finds no collector, the others wait behind it."""
        async with self._turn:
            while True:
                placed = self.place(link, hint, tried)
                if placed is not None:
                    return placed
                tried.clear()
                await trio.sleep(PLACE_AGAIN_S)

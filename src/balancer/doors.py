"""The link door: carries meters' links without ending them. The exporter door is the meter's (`meter.exporter_door`).

It peeks at the clear preamble for a hint, places by it, and gives the socket itself to a collector of this host,
or relays the bytes to one elsewhere, and to one that cannot take the socket now.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Awaitable, Callable
from functools import partial

import structlog
import trio
from attrs import define, field, frozen

from balancer.carried_link import Carriage, CarriedLink, LeaveLink
from balancer.carry import relay
from balancer.hints import MAX_HINT_BYTES, read_hint
from sapflow.errors import LinkError, Unreachable
from sapflow.link import LinkLimits
from sapflow.link.frames import MAGIC, Close, Frame, Hint, encode_json
from sapflow.runtime.fresh import Fresh
from sapflow.runtime.giving import Settled
from sapflow.runtime.handoff import Handed
from sapflow.runtime.peek import peek
from sapflow.runtime.proxy_header import encode
from sapflow.runtime.seldom import Seldom
from sapflow.runtime.serve import UNKNOWN_PEER, own_address

log = structlog.get_logger()

OVER_FULL = "too many links wait to be placed"
NO_ROOM = "no collector can take it now"
AT_ONCE_BYTES = 2048
"""Looked at of a link that has no task yet: a preamble, or a usual ClientHello."""
PLACE_AGAIN_S = 0.05
HOLD_S = 5.0
"""A link that found no collector in time is told to come back after so long, jittered."""
HOLD_TOLD_S = 1.0
CUT_WITHIN_S = 2.0
"""Links that are cut off from one collector do not all come back at the same moment."""


@define
class DoorCounts:
    """What came through a door; never goes down, but for `open`."""

    open: int = 0
    accepted: int = 0
    handed: int = 0
    """Of those accepted: given to a collector of this host, with their socket."""
    refused: int = 0
    left: int = 0
    """Carried on by another process."""
    resumed: int = 0
    """That another process carried before."""
    bytes_in: int = 0
    bytes_out: int = 0
    bytes_back: int = 0


@frozen
class _Begun:
    """A link that was placed before it had a task."""

    door: LinkDoor
    link: object
    hint: Hint
    name: str
    address: str

    async def serve(self, stream: trio.SocketStream, peer: str) -> None:
        """It has one after all."""
        await self.door.serve(stream, peer, self)


async def _nobody_takes(_collector: str, _stream: trio.SocketStream, _handed: Handed) -> bool:
    return False


async def _nothing_is_sent(_collector: str, _descriptor: int, _handed: Handed, _settled: Settled) -> bool:
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
    offer: Callable[[str, int, Handed, Settled], Awaitable[bool]] = _nothing_is_sent
    """Whether a socket is on its way to a collector, without a task that waits for the answer."""
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
    links: dict[CarriedLink, None] = field(factory=dict)
    """In the order that they came: what is done to all is done in the same order in every run of a simulation."""
    carriage: dict[str, Carriage] = field(factory=dict)
    """By collector, of all links that it was ever given."""
    _refusals: Seldom = field(factory=Seldom)
    _turn: trio.StrictFIFOLock = field(factory=trio.StrictFIFOLock)
    _is_full: bool = False
    """Whoever's turn it is finds no collector, and waits for one."""
    _decided: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)

    async def at_once(self, fresh: Fresh) -> bool:
        """Place a link that has said where it goes, and send its socket there: one of a herd costs no task.

        False for one that has to be waited for, or waits behind others: it is for `serve`.
        """
        if self._is_full:
            return False
        hint = self._said(fresh.sock)
        if hint is None:
            return False
        link = object()
        if self._turn.locked():
            async with self._turn:
                placed = self.place(link, hint, set()) if not self._is_full else None
        else:
            placed = self.place(link, hint, set())
        if placed is None:
            return False
        begun, is_sent = _Begun(self, link, hint, *placed), False
        try:
            handed = Handed("link", fresh.peer, self.name)
            is_sent = await self.offer(begun.name, fresh.sock.fileno(), handed, partial(self._settled, fresh, begun))
        finally:
            if not is_sent:
                fresh.serve(begun.serve)
        return True

    def _said(self, sock: socket.socket) -> Hint | None:
        """What a link hints at, if all of that is here already and it is a link."""
        try:
            data = sock.recv(AT_ONCE_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            return read_hint(data, self.limits) if data else None
        except (OSError, LinkError):
            return None

    def _settled(self, fresh: Fresh, begun: _Begun, is_taken: bool) -> None:
        if not is_taken:
            fresh.serve(begun.serve)
            return
        fresh.close()
        self.counts.accepted += 1
        self.counts.handed += 1
        self.handed_off(begun.link)

    async def serve(self, stream: trio.SocketStream, peer: str, begun: _Begun | None = None) -> None:
        """One link, from its preamble until either side ends it; `begun` when it was placed already."""
        link = object() if begun is None else begun.link
        try:
            placed = await self._placed(link, stream, peer, begun)
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
        self.links[carried] = None
        of_all = self.carriage.setdefault(carried.collector, Carriage())
        try:
            async with upstream:
                while True:
                    await relay(stream, upstream, self.counts, carried.carriage, of_all, rest=carried)
                    if carried.leave is None or carried.scope is None or not carried.scope.cancelled_caught:
                        return
                    if await carried.leave(carried, stream, upstream):
                        self.counts.left += 1
                        return
                    carried.leave = None
                    self._decided.unpark_all()
        finally:
            self.links.pop(carried, None)
            self._decided.unpark_all()
            self.counts.open -= 1
            self.left(link)

    async def resume(
        self, link: object, carried: CarriedLink, stream: trio.SocketStream, upstream: trio.SocketStream
    ) -> None:
        """A link that another process has left, until either side ends it."""
        self.counts.resumed += 1
        await self._carry(link, stream, carried, upstream)

    async def leave(self, leave: LeaveLink) -> None:
        """Leave the links that are carried to a successor; returns when each is left, or carried on."""
        deciding = list(self.links)
        for link in deciding:
            link.leave = leave
            if link.scope is not None:
                link.scope.cancel()
        while any(link in self.links and link.leave is not None for link in deciding):
            await self._decided.park()

    def cut(self, collector: str) -> int:
        """Cut all links to a collector that does not work, over a while, so that they are placed anew: how many."""
        cut = [link for link in self.links if link.collector == collector]
        for link in cut:
            if link.scope is not None:
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
        self, link: object, stream: trio.SocketStream, peer: str, begun: _Begun | None
    ) -> tuple[CarriedLink, trio.SocketStream] | None:
        """How a link is carried; None when its socket is a collector's now, and not to be touched any more."""
        if self.unplaced >= self.max_unplaced:
            raise LinkError(OVER_FULL, code=Close.OVERLOADED)
        self.unplaced += 1
        try:
            if begun is None:
                with trio.fail_after(self.preamble_timeout_s):
                    hint = await self._peek(stream)
            else:
                hint = begun.hint
            try:
                with trio.fail_after(self.place_timeout_s):
                    return await self._reach(link, stream, peer, hint, begun)
            except trio.TooSlowError:
                raise LinkError(NO_ROOM, code=Close.OVERLOADED) from None
        finally:
            self.unplaced -= 1

    async def _peek(self, stream: trio.SocketStream) -> Hint:
        """What the link's first bytes hint at; they stay where they are. Raises LinkError."""
        hint = await peek(stream, lambda data: read_hint(data, self.limits), MAX_HINT_BYTES)
        if hint is None:
            raise LinkError("closed before its preamble", code=0)
        return hint

    async def _reach(
        self, link: object, stream: trio.SocketStream, peer: str, hint: Hint, begun: _Begun | None
    ) -> tuple[CarriedLink, trio.SocketStream] | None:
        tried: set[str] = set()
        while True:
            if begun is not None:
                name, address, begun = begun.name, begun.address, None
            else:
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
            return CarriedLink(name, hint, seen_as=(peer, own_address(upstream))), upstream

    async def _relayed(self, address: str, stream: trio.SocketStream, peer: str) -> trio.SocketStream:
        """A connection to a collector, which is told who is at the other end. Raises Unreachable."""
        here = own_address(stream)
        header = b"" if UNKNOWN_PEER in (peer, here) else encode(peer, here)
        upstream = await self.dial(address)
        assert isinstance(upstream, trio.SocketStream)
        try:
            await upstream.send_all(header)
        except BaseException as error:
            await trio.aclose_forcefully(upstream)
            if isinstance(error, trio.BrokenResourceError):
                raise Unreachable(f"{address} closed the connection at once") from error
            raise
        return upstream

    async def _place_in_turn(self, link: object, hint: Hint, tried: set[str]) -> tuple[str, str]:
        """In the order that they came: while the first of them finds no collector, the others wait behind it."""
        async with self._turn:
            try:
                while (placed := self.place(link, hint, tried)) is None:
                    self._is_full = True
                    tried.clear()
                    await trio.sleep(PLACE_AGAIN_S)
            finally:
                self._is_full = False
        return placed

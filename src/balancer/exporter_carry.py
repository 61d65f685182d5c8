"""The exporter door with `exporters = "carry"`: a connection is given, unread, to a collector of this host.

It is placed as a link is, by the org that its source or the name in its TLS says. One that no collector here takes is
read by the balancer itself, as without `carry`: so nothing is lost, and nothing is relayed that could be re-homed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from attrs import define

from meter.exporter_door import ExporterDoor
from sapflow.link.frames import Hint
from sapflow.runtime.addresses import split_address
from sapflow.runtime.handoff import Door, Handed


@define
class ExporterCarry:
    """Gives what it can; `door` reads the rest."""

    kind: Door
    door: ExporterDoor
    place: Callable[[object, Hint, set[str]], tuple[str, str] | None]
    beyond: Callable[[], set[str]]
    """The collectors to which no socket can be given now: none is placed there, since it would not go there."""
    give: Callable[[str, trio.SocketStream, Handed], Awaitable[bool]]
    handed_off: Callable[[object], None]
    left: Callable[[object], None]
    name: str
    handed: int = 0

    async def serve(self, stream: trio.SocketStream, peer: str) -> None:
        """One exporter's connection, until it is somebody else's or ends."""
        if not await self._is_given(stream, peer):
            await self.door.serve(stream, peer)

    async def _is_given(self, stream: trio.SocketStream, peer: str) -> bool:
        if not self.door.may_admit(peer):
            return False
        hint, link = Hint(self.door.org_of(peer) or "", split_address(peer)[0]), object()
        placed = self.place(link, hint, self.beyond())
        if placed is None:
            return False
        if await self.give(placed[0], stream, Handed(self.kind, peer, self.name)):
            self.handed += 1
            self.handed_off(link)
            return True
        self.left(link)
        return False

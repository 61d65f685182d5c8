"""A control link to each collector, apart from those that carry data: hears its load and streams, asks it for moves.

It is a link like others (role `balancer`), so it needs no other listener and no other credential; nothing but notices
goes over it, so what is asked of a collector does not wait behind data.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog
import trio
from attrs import frozen

from sapflow.errors import LinkError, SapflowError, first_of
from sapflow.link import Connection, Noticed, Ponged, Side
from sapflow.link.frames import Close, Hint
from sapflow.runtime.each import TaskEach
from sapflow.runtime.pauses import Pauses
from sapflow.runtime.session import LinkSession

log = structlog.get_logger()

IDLE_TIMEOUT_S = 10.0
"""A collector says something each second."""
BACKOFF_FIRST_S = 0.1
BACKOFF_MOST_S = 2.0
MAX_UNSENT_BYTES = 1 << 20
PEERS_SAID = 500
"""In one notice: it must fit a control frame."""


@frozen
class ToldStream:
    """A meter's stream, as its collector tells of it."""

    id: bytes
    org: str
    rate: float
    movable: bool
    exporter: str
    meter: str


@frozen
class Told:
    """What a collector last told: its load, its largest streams of meters, and which orgs have streams there."""

    bytes_per_s: float
    lag_s: float
    held_bytes: int
    budget_bytes: int
    up_s: float
    streams: tuple[ToldStream, ...]
    orgs: frozenset[str]
    draining: bool = False
    """It is about to end, and hands on what it has."""

    @classmethod
    def read(cls, fields: dict[str, Any]) -> Told:
        """From a notice. Raises LinkError when it is not what it should be."""
        try:
            streams = tuple(
                ToldStream(bytes.fromhex(id_), str(org), float(rate), bool(movable), str(exporter), str(meter))
                for id_, org, rate, movable, exporter, meter in fields["streams"]
            )
            return cls(
                float(fields["bytes_per_s"]),
                float(fields["lag_s"]),
                int(fields["held_bytes"]),
                int(fields["budget_bytes"]),
                float(fields["up_s"]),
                streams,
                frozenset(str(org) for org in fields["orgs"]),
                bool(fields.get("draining", False)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise LinkError(f"a load is not told as it should be: {error!r}", code=Close.PROTOCOL) from None


class Steering:
    """Keeps the links; `on_told` is called with what each collector tells. `run()` is its task tree."""

    def __init__(
        self,
        name: str,
        fleet_token: str,
        dial: Callable[[str], Awaitable[trio.abc.Stream]],
        on_told: Callable[[str, Told], None],
    ) -> None:
        self._hello = {"role": "balancer", "name": name, "token": fleet_token}
        self._dial = dial
        self._on_told = on_told
        self._tasks = TaskEach(self._keep)
        self._sessions: dict[str, LinkSession] = {}
        self._asked_at: dict[str, float] = {}
        """When a collector was asked for a sign that it has not given yet."""

    def collectors(self, addresses: dict[str, str]) -> None:
        """The collectors that there are now: link addresses by name."""
        self._tasks.of(addresses)

    def ask(self, collector: str, stream: bytes, to: str, address: str, *, leaves: bool = False) -> bool:
        """Have a collector ask a stream's meter to take it to another one. False when there is no link to it now.

        `leaves`: the collector does not work, so that it goes however lately it came.
        """
        session = self._sessions.get(collector)
        if session is not None:
            fields = {"stream": stream.hex(), "to": to, "address": address, "leaves": leaves}
            session.send(session.connection.notice(kind="move", **fields))
        return session is not None

    def ask_for_signs(self, now: float) -> None:
        """Ping each collector that has answered the last one: one that reads nothing tells its loads all the same."""
        for name, session in self._sessions.items():
            if name not in self._asked_at:
                self._asked_at[name] = now
                session.send(session.connection.ping(0))

    def silent_since(self, collector: str) -> float | None:
        """When a collector was asked for a sign that it has not given yet; None when it owes none."""
        return self._asked_at.get(collector)

    def send_away(self, collector: str, peers: Sequence[str], deadline_s: float) -> bool:
        """Have a collector send links away that come from these addresses. False when there is no link to it now."""
        session = self._sessions.get(collector)
        if session is not None:
            for at in range(0, len(peers), PEERS_SAID):
                some = list(peers[at : at + PEERS_SAID])
                session.send(session.connection.notice(kind="away", peers=some, deadline_s=round(deadline_s, 3)))
        return session is not None

    async def run(self) -> None:
        """Hold a link to each collector until cancelled."""
        await self._tasks.run()

    async def _keep(self, name: str, address: str) -> None:
        pauses = Pauses(BACKOFF_FIRST_S, BACKOFF_MOST_S, IDLE_TIMEOUT_S)
        while True:
            began = trio.current_time()
            reason = "closed by the collector"
            try:
                await self._listen(name, await self._dial(address))
            except* (SapflowError, trio.BrokenResourceError) as group:
                error = first_of(group)
                reason = str(error) or type(error).__name__
            log.info("control link lost", collector=name, reason=reason)
            await trio.sleep(pauses.after(trio.current_time() - began))

    async def _listen(self, name: str, stream: trio.abc.Stream) -> None:
        session = LinkSession(
            stream,
            Connection(Side.CLIENT),
            peer=name,
            idle_timeout_s=IDLE_TIMEOUT_S,
            max_unsent_bytes=MAX_UNSENT_BYTES,
        )
        async with session.open():
            session.send(session.connection.hello(Hint(name=self._hello["name"]), **self._hello))
            try:
                async for events in session.events():
                    self._sessions[name] = session
                    for event in events:
                        if isinstance(event, Ponged):
                            self._asked_at.pop(name, None)
                        elif isinstance(event, Noticed) and event.fields.get("kind") == "load":
                            self._on_told(name, Told.read(event.fields))
            finally:
                if self._sessions.get(name) is session:
                    del self._sessions[name]
                    self._asked_at.pop(name, None)

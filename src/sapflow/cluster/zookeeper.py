"""A member's side of a coordinator in ZooKeeper, for more than one host: the same to use as the local one.

nursery ── reports: every interval its load into its node, the others' out of theirs
        ├─ reconciler: joins, reads again what is dirty, claims and lets go; level-triggered, at a limited rate
        ├─ acting: ends `held` when the session was last known to live 2/3 of its timeout ago
        └─ client: replaced when kazoo's has died

Members, claims and loads are ephemeral nodes: they end with their session. The session is known to live since the last
report that ZooKeeper took began to be sent: a write, which its leader has seen, where a read may be a cut-off
follower's. Nothing here is waited for by a task that carries data, and without ZooKeeper the last view stays.
"""

from __future__ import annotations

import json
import os
import random
import secrets
from collections.abc import Callable, Mapping, Set
from functools import partial
from typing import Any

import structlog
import trio
from kazoo.exceptions import KazooException, NoAuthError, NoNodeError

from sapflow.cluster.acting import Acting
from sapflow.cluster.claiming import Claimer
from sapflow.cluster.growth import Growth, note
from sapflow.cluster.joining import Joiner, parse_member
from sapflow.cluster.kazoo_client import Client, kazoo_client
from sapflow.cluster.paths import Paths, encode
from sapflow.cluster.reconciler import Work
from sapflow.cluster.shares import peers_in
from sapflow.cluster.view import Member, View
from sapflow.cluster.znodes import Folder, ZNodes
from sapflow.errors import ConfigurationError
from sapflow.runtime.threads import ThreadKind

log = structlog.get_logger()

RECONCILE_INTERVAL_S = 0.1
"""At least so long, jittered, between two passes."""
STOP_TIMEOUT_S = 2.0
"""A server that is silent is not waited for longer: the session ends by itself."""


class ZooKeeperCoordinator:
    """`view` is the fleet as last told, `on_change` is called with each new one. `run()` is its task.

    `session_timeout_s` is asked for; the servers make of it what they allow (by default 2 to 20 of their ticks: 4 to
    40 s). Raises ConfigurationError when it is less than three reports.
    """

    def __init__(
        self,
        *,
        name: str,
        role: str,
        addresses: dict[str, str],
        fleet: str,
        fleet_token: str,
        hosts: str,
        session_timeout_s: float,
        report_interval_s: float,
        load: Callable[[], dict[str, Any]],
        on_change: Callable[[View], None],
        reads_loads: bool = True,
        work: Work | None = None,
        pegs: Mapping[str, str] | None = None,
        connect: Callable[[str, str, float], Client] = kazoo_client,
        threads: ThreadKind | None = None,
    ) -> None:
        if session_timeout_s < 3 * report_interval_s:
            raise ConfigurationError(
                f"a session timeout of {session_timeout_s:g} s is less than three report intervals of "
                f"{report_interval_s:g} s: claims would be lost with one late report"
            )
        self.member = Member(name, role, secrets.token_hex(8), os.getpid(), addresses)
        self.view = View()
        self._session_timeout_s = session_timeout_s
        self._report_interval_s = report_interval_s
        self._load = load
        self._on_change = on_change
        self._work = work or Work()
        self._reads_loads = reads_loads
        self._connect = partial(connect, hosts, fleet_token, session_timeout_s)
        self._threads = threads or ThreadKind("kazoo", 1)
        self._paths = Paths(fleet)
        self._znodes = ZNodes(timeout_s=session_timeout_s / 3, on_session=self._session_changed, wake=self._wake)
        self._acting = Acting(self._lost)
        self._growth = Growth()
        self._joiner = Joiner(self._znodes, self._paths, self.member)
        self._members = Folder(self._znodes, self._paths.members, parse_member)
        owner = json.dumps({"name": name, "generation": self.member.generation}).encode()
        self._claimer = Claimer(self._znodes, self._paths, name, owner, self._acting.is_on, pegs or {})
        self._told_held: Set[str] = frozenset()
        self._loads: dict[str, dict[str, Any]] = {}
        self._joined: int | None = None
        """The session in which this member's node was made."""
        self._join_from = 0.0
        self._yielded_to = ""
        self._members_kept_until = 0.0
        self._news = trio.Event()
        self._report_due = trio.Event()
        self._is_failing = False

    @property
    def wanted(self) -> set[str]:
        """Orgs that this member would do the work of; `want` adds, `release` takes away."""
        return self._claimer.reconciler.wanted

    @property
    def held(self) -> Set[str]:
        """Orgs whose work this member should do now: claimed in a session that is known to live, or handed to it."""
        if not self._acting.is_on():
            return frozenset()
        return self._claimer.acted_on | self._claimer.reconciler.incoming

    @property
    def operations(self) -> int:
        """Requests sent to ZooKeeper."""
        return self._znodes.operations

    @property
    def watches(self) -> int:
        """Watches set; never more than there are paths to watch."""
        return len(self._znodes.armed)

    @property
    def operations_per_change(self) -> float:
        """Over the last ten seconds; about 1 when all is well."""
        return self._growth.per_change

    def counts(self) -> dict[str, int]:
        """Operations, and the changes that they were for, since the start."""
        return {"operations": self._znodes.operations, "changes": self._znodes.changes}

    def gauges(self) -> dict[str, float]:
        """Watches, claims held, operations per change, and whether those are an alarm."""
        return {
            "coordinator_connected": int(self._znodes.connected),
            "coordinator_watches": self.watches,
            "claims_held": len(self.held),
            **self._growth.gauges(),
        }

    def want(self, org: str) -> None:
        """Claim an org when it is free and this member's share allows. Never waits."""
        if org not in self.wanted:
            self._claimer.want(org)
            self._znodes.changes += 1
            self._wake()

    def release(self, org: str) -> None:
        """Let go of an org. Never waits."""
        if org in self.wanted:
            self._claimer.release(org)
            self._znodes.changes += 1
            self._wake()
            self._tell_claims()

    def leave(self) -> None:
        """Claim nothing more, and hand all orgs over with the next reports. Never waits."""
        self._claimer.reconciler.is_leaving = True
        self._wake()

    @property
    def has_left(self) -> bool:
        """Whether no org is this member's any more, and each that it had is claimed by another."""
        return self._claimer.reconciler.has_left

    async def run(self) -> None:
        """Stay a member until cancelled; then leave."""
        while True:
            client = self._connect()
            self._znodes.open(client)
            try:
                await self._threads.run(client.start_async)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._report)
                    nursery.start_soon(self._reconcile)
                    nursery.start_soon(self._acting.run)
                    await self._until_dead()
                    nursery.cancel_scope.cancel()
            finally:
                self._acting.stop()
                self._claimer.acted_on.clear()
                with trio.move_on_after(STOP_TIMEOUT_S, shield=True):
                    await self._threads.run(partial(_stop, client), abandon=True)

    async def _until_dead(self) -> None:
        """Return when kazoo's thread ended, as it does on what it does not expect."""
        alive_at = trio.current_time()
        while trio.current_time() < alive_at + self._session_timeout_s:
            await trio.sleep(self._report_interval_s)
            if not self._znodes.connected:
                self._failed("no connection")
            if not self._znodes.closed:
                alive_at = trio.current_time()
        log.error("coordinator client died", meaning="another is started")

    def _lost(self, reason: str) -> None:
        if self._claimer.acted_on:
            log.warning("claims not acted on", member=self.member.name, claims=len(self._told_held), reason=reason)
        self._claimer.acted_on.clear()
        self._tell_claims()

    def _tell_claims(self) -> None:
        held = self.held
        if held != self._told_held:
            self._told_held = frozenset(held)
            self._work.on_claims()

    def _session_changed(self, ended: bool) -> None:
        self._znodes.changes += len(self._claimer.reconciler.mine)
        self._claimer.doubt()
        self._report_due.set()
        if ended:
            self._acting.lose("the session ended")
            self._claimer.session_ended()
            self._joined = None
            if self.view.members:
                # The others may have lost theirs with it, and be about to join again: none is given up for that.
                self._members_kept_until = trio.current_time() + self._session_timeout_s

    # Reports.

    async def _report(self) -> None:
        while True:
            session = self._znodes.session
            if session is not None and session == self._joined and self._znodes.connected:
                try:
                    await self._tell(session)
                    await self._hear()
                    self._went_well()
                except (KazooException, trio.TooSlowError) as error:
                    self._failed(error)
                self._tell_view()
            note(self._growth, self._znodes.operations, self._znodes.changes, self.member.name)
            with trio.move_on_after(self._report_interval_s):
                await self._report_due.wait()
            self._report_due = trio.Event()

    async def _tell(self, session: int) -> None:
        load = self._load() | self._claimer.reconciler.tell(self._is_begun)
        path, data = self._paths.load(self.member.name), json.dumps(load).encode()
        sent = trio.current_time()
        self._znodes.changes += 1
        try:
            await self._znodes.ask(lambda: self._znodes.client.set_async(path, data))
        except NoNodeError:
            await self._znodes.ask(lambda: self._znodes.client.create_async(path, data, ephemeral=True))
        self._loads[self.member.name] = load
        if session == self._joined == self._znodes.session and self._acting.alive(sent, self._timeout_s()):
            self._claimer.doubt()
            self._wake()

    def _is_begun(self, org: str) -> bool:
        return self._acting.is_on() and self._work.is_begun(org)

    def _timeout_s(self) -> float:
        # One that the servers have made longer is not made use of: it was not asked for.
        return min(self._session_timeout_s, self._znodes.client.agreed_timeout_s)

    async def _hear(self) -> None:
        mine, wants = self.member, bool(self.wanted)
        others = [
            member
            for member in self._members.values.values()
            if member.name != mine.name and (self._reads_loads or (wants and member.role == mine.role))
        ]
        self._znodes.changes += len(others)
        # Without watches: loads change all the time, and a watch on each would tell of nothing else.
        get = self._znodes.client.get_async
        answers = await self._znodes.ask_all([partial(get, self._paths.load(member.name)) for member in others])
        for member, answer in zip(others, answers, strict=True):
            if isinstance(answer, Exception):
                if not isinstance(answer, NoNodeError):
                    raise answer
            elif (load := _load(answer[0])) is not None:
                self._loads[member.name] = load
        peers = peers_in(self._members.values.values(), self._loads, mine)
        self._claimer.reconciler.hear(peers, self._work.rates(), trio.current_time())
        self._tell_claims()

    def _shown(self) -> tuple[Member, ...]:
        members = {member.name: member for member in self._members.values.values()}
        if trio.current_time() < self._members_kept_until:
            members = {member.name: member for member in self.view.members} | members
        return tuple(members[name] for name in sorted(members))

    def _tell_view(self) -> None:
        members = self._shown()
        self._loads = {member.name: self._loads.get(member.name, {}) for member in members}
        self.view = View(members, dict(self._loads))
        self._on_change(self.view)

    # The reconciler.

    def _wake(self) -> None:
        self._news.set()

    async def _reconcile(self) -> None:
        failures = 0
        while True:
            with trio.move_on_after(self._report_interval_s):
                await self._news.wait()
            self._news = trio.Event()
            session = self._znodes.session
            if session is not None and self._znodes.connected:
                try:
                    await self._pass(session)
                    failures = 0
                except (KazooException, trio.TooSlowError) as error:
                    failures += 1
                    self._failed(error)
                    if isinstance(error, NoNodeError):
                        # One of the fleet's own nodes is gone: made again by joining.
                        self._joined = None
            await trio.sleep(random.uniform(1, 2) * RECONCILE_INTERVAL_S * 2 ** min(failures, 4))

    async def _pass(self, session: int) -> None:
        if self._joined != session and not await self._join(session):
            return
        await self._members.refresh()
        if self._shown() != self.view.members:
            self._tell_view()
        mine = self._members.values.get(encode(self.member.name))
        if mine is None:
            self._joined = None
            self._wake()
        elif mine.generation != self.member.generation:
            await self._yield_to(mine)
        elif self._claimer.is_used:
            if await self._claimer.step(session):
                self._wake()
            self._tell_claims()

    async def _join(self, session: int) -> bool:
        if trio.current_time() < self._join_from:
            return False
        other = await self._joiner.join(session)
        if other is not None:
            await self._yield_to(other)
        if other is not None or self._znodes.session != session:
            return False
        log.info("member joined", member=self.member.name, role=self.member.role, session=f"{session:#x}")
        self._joined = session
        self._claimer.settle(2 * self._report_interval_s)
        self._znodes.follow(self._paths.members)
        self._report_due.set()
        return True

    async def _yield_to(self, other: Member) -> None:
        """A newer process has this name: let go of everything, and look again later."""
        if other.generation != self._yielded_to:
            self._yielded_to = other.generation
            log.error("member replaced", member=self.member.name, pid=other.pid, meaning="this one claims nothing")
        self._acting.lose("another process has joined by this name")
        self._joined = None
        self._join_from = trio.current_time() + self._session_timeout_s
        await self._claimer.let_go(self._claimer.reconciler.mine)

    def _failed(self, reason: KazooException | trio.TooSlowError | str) -> None:
        if not self._is_failing:
            self._is_failing = True
            meaning = "going on as last told"
            if isinstance(reason, NoAuthError):
                meaning = f"{self._paths.root} is another fleet's, which has another token: choose another fleet.name"
            log.warning("coordinator lost", reason=str(reason) or type(reason).__name__, meaning=meaning)

    def _went_well(self) -> None:
        if self._is_failing:
            self._is_failing = False
            log.info("coordinator back", member=self.member.name)


def _stop(client: Client) -> None:
    try:
        client.stop()
        client.close()
    except KazooException as error:
        log.warning("coordinator client not stopped", reason=str(error))


def _load(data: bytes) -> dict[str, Any] | None:
    try:
        load = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return load if isinstance(load, dict) else None

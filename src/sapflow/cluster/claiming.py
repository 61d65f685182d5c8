"""A member's claims as nodes in ZooKeeper: made, let go of, and read again whenever they may be another's.

What should be claimed is decided in `reconciler.py`. A claim whose fate is not known (its answer was lost, the
connection changed) is doubtful: it is read again before anything new is claimed. `acted_on` are claims that are known
to be this session's, and empty while the member may not act (see `acting.py`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import structlog
import trio
from kazoo.exceptions import NodeExistsError, NoNodeError

from sapflow.cluster.paths import Paths, decode, encode
from sapflow.cluster.reconciler import Reconciler
from sapflow.cluster.znodes import Folder, ZNodes

log = structlog.get_logger()

MAX_CLAIMS = 1000
"""Orgs claimed in a second by one member."""
CLAIM_STEP_S = 0.2
"""The pace is kept over so long."""
READ_INTERVAL_S = 1.0
"""All claims are listed at most so often (jittered), however many change."""


class Claimer:
    """`step` makes what is so a little more like what should be. It belongs to one task."""

    def __init__(
        self,
        znodes: ZNodes,
        paths: Paths,
        name: str,
        owner: bytes,
        acting: Callable[[], bool],
        pegs: Mapping[str, str],
    ) -> None:
        self.acted_on: set[str] = set()
        self.reconciler = Reconciler(name, len(paths.claims) + 5, random.Random())
        self._znodes = znodes
        self._paths = paths
        self._name = name
        self._owner = owner
        self._acting = acting
        self._pegs = Folder(znodes, paths.pegs, _peg)
        self._configured_pegs = pegs
        self._nodes: set[str] = set()
        self._touched: set[str] = set()
        """Orgs whose claims came or went by what this member did or met since all were listed."""
        self._doubtful: set[str] = set()
        self._listed = False
        self._read_from = self._claim_from = 0.0
        self._told_full = False

    @property
    def is_used(self) -> bool:
        """Whether there is anything to do: a member that wants no orgs reads no claims."""
        return bool(self.reconciler.wanted or self.reconciler.mine or self._doubtful)

    def want(self, org: str) -> None:
        """Claim it when it may be."""
        self.reconciler.want(org)
        if org in self.reconciler.mine:
            # Released, and wanted again before its claim was let go of.
            self._doubtful.add(org)

    def release(self, org: str) -> None:
        """Do not act on it from now on; its claim is let go of with the next step."""
        self.reconciler.wanted.discard(org)
        self.acted_on.discard(org)

    def settle(self, seconds: float) -> None:
        """Claim nothing for a while, jittered, so that members who start together know of each other first."""
        self._claim_from = trio.current_time() + random.uniform(1, 1.5) * seconds

    def doubt(self) -> None:
        """Something may have happened to the claims: read them again."""
        self._doubtful |= self.reconciler.mine

    def session_ended(self) -> None:
        """All claims are gone with it."""
        self.acted_on.clear()
        self.reconciler.disown_all()
        self._doubtful.clear()
        self._listed = False

    async def step(self, session: int) -> bool:
        """Read what is dirty, claim and let go: whether more waits. Raises KazooException, TooSlowError."""
        now = trio.current_time()
        self._znodes.follow(self._paths.claims)
        self._znodes.follow(self._paths.pegs)
        if self._paths.claims in self._znodes.dirty and now >= self._read_from:
            self._read_from = now + random.uniform(0.5, 1) * READ_INTERVAL_S
            self._list(set(await self._znodes.children(self._paths.claims)))
        await self._pegs.refresh()
        pegs = {org: name for node, name in self._pegs.values.items() if (org := decode(node))}
        self.reconciler.pegs = {**self._configured_pegs, **pegs}
        await self._resolve(session)
        return await self._follow_plan(session, now)

    async def let_go(self, orgs: Iterable[str]) -> None:
        """Stop acting on these, then delete their claims. Raises KazooException, TooSlowError."""
        orgs = list(orgs)
        self.acted_on.difference_update(orgs)
        requests = [partial(self._znodes.client.delete_async, self._paths.claim(org)) for org in orgs]
        failure: Exception | None = None
        for org, answer in zip(orgs, await self._znodes.ask_all(requests), strict=True):
            if isinstance(answer, Exception) and not isinstance(answer, NoNodeError):
                self._doubtful.add(org)
                failure = answer
            else:
                self.reconciler.disown(org)
                self.reconciler.claimed.discard(org)
                self._touched.add(org)
        if failure is not None:
            raise failure

    def _list(self, nodes: set[str]) -> None:
        changed = nodes ^ self._nodes
        self._znodes.changes += len(changed)
        changed |= {encode(org) for org in self._touched}
        self._touched.clear()
        self._nodes = nodes
        for node in changed:
            org = decode(node)
            if org is None:
                continue
            if node in nodes:
                self.reconciler.claimed.add(org)
            else:
                self.reconciler.claimed.discard(org)
                self.reconciler.disown(org)
                self.acted_on.discard(org)
        self._listed = True

    async def _resolve(self, session: int) -> None:
        """Find out whose the doubtful claims are."""
        orgs = list(self._doubtful)
        if not orgs:
            return
        # A read may be answered by a server that has not seen what was created through another: it catches up first.
        await self._znodes.ask(lambda: self._znodes.client.sync_async(self._paths.claims))
        requests = [partial(self._znodes.client.get_async, self._paths.claim(org)) for org in orgs]
        answers = await self._znodes.ask_all(requests)
        if self._znodes.session != session:
            return
        failure: Exception | None = None
        for org, answer in zip(orgs, answers, strict=True):
            if isinstance(answer, Exception) and not isinstance(answer, NoNodeError):
                failure = answer
                continue
            self._doubtful.discard(org)
            if not isinstance(answer, Exception) and answer[1].ephemeralOwner == session:
                self._own(org)
            else:
                self.reconciler.disown(org)
                self.acted_on.discard(org)
        if failure is not None:
            raise failure

    async def _follow_plan(self, session: int, now: float) -> bool:
        may_claim = self._acting() and self._listed and now >= self._claim_from
        plan = self.reconciler.plan(int(MAX_CLAIMS * CLAIM_STEP_S) if may_claim else 0, now)
        if plan.full and not self._told_full:
            log.warning("claims full", member=self._name, orgs=len(self.reconciler.mine), meaning="others must claim")
        self._told_full = plan.full
        await self.let_go(plan.release)
        if plan.claim:
            self._claim_from = now + CLAIM_STEP_S
            await self._claim(plan.claim, session)
        return plan.more and may_claim

    async def _claim(self, orgs: tuple[str, ...], session: int) -> None:
        create = self._znodes.client.create_async
        requests = [partial(create, self._paths.claim(org), self._owner, ephemeral=True) for org in orgs]
        answers = await self._znodes.ask_all(requests)
        if self._znodes.session != session:
            return
        failure: Exception | None = None
        for org, answer in zip(orgs, answers, strict=True):
            if isinstance(answer, NodeExistsError):
                self.reconciler.claimed.add(org)
                self._touched.add(org)
            elif isinstance(answer, Exception):
                self._doubtful.add(org)
                failure = answer
            else:
                self._own(org)
        if failure is not None:
            raise failure

    def _own(self, org: str) -> None:
        self.reconciler.own(org, trio.current_time())
        self._touched.add(org)
        if self._acting() and org in self.reconciler.wanted:
            self.acted_on.add(org)


def _peg(_node: str, data: bytes) -> str | None:
    try:
        return data.decode() or None
    except UnicodeDecodeError:
        return None

"""A member's own node in ZooKeeper, and the nodes above it.

A name belongs to the process that took it last: one that joins for the first time takes it over from whoever has it,
and one that finds its name taken by another generation yields.
"""

from __future__ import annotations

import json
from functools import partial

import attrs
import structlog
from kazoo.exceptions import NodeExistsError
from kazoo.security import make_acl

from sapflow.cluster.paths import TOP, Paths
from sapflow.cluster.view import Member, converter
from sapflow.cluster.znodes import ZNodes

log = structlog.get_logger()


class Joiner:
    """Makes this member's node, once a session."""

    def __init__(self, znodes: ZNodes, paths: Paths, member: Member) -> None:
        self._znodes = znodes
        self._paths = paths
        self._member = member
        self._was_joined = False

    async def join(self, session: int) -> Member | None:
        """Be a member in this session: None when it is, else who has its name. Raises KazooException, TooSlowError."""
        await self._make_directories()
        other = await self._make_node(session)
        self._was_joined = self._was_joined or other is None
        return other

    async def _make_directories(self) -> None:
        create = self._znodes.client.create_async
        # Several fleets, each with a token of its own, may be under the top.
        everyone = [make_acl("world", "anyone", read=True, create=True)]
        requests = [partial(create, TOP, b"", acl=everyone)]
        requests += [partial(create, path, b"") for path in self._paths.directories()]
        self._znodes.changes += len(requests)
        for answer in await self._znodes.ask_all(requests):
            if isinstance(answer, Exception) and not isinstance(answer, NodeExistsError):
                raise answer

    async def _make_node(self, session: int) -> Member | None:
        ask, client = self._znodes.ask, self._znodes.client
        path = self._paths.member(self._member.name)
        create = partial(client.create_async, path, json.dumps(attrs.asdict(self._member)).encode(), ephemeral=True)
        try:
            await ask(create)
        except NodeExistsError:
            data, stat = await ask(lambda: client.get_async(path))
            other = parse_member(path, data)
            if stat.ephemeralOwner == session:
                return None
            if self._was_joined and other is not None and other.generation != self._member.generation:
                return other
            # A process of this name that is no more, or a session of this one's that is not quite over.
            await ask(lambda: client.delete_async(path, stat.version))
            await ask(create)
        return None


def parse_member(node: str, data: bytes) -> Member | None:
    """The member that a node's data says; None, and a line in the log, when it says none."""
    try:
        return converter.structure(json.loads(data), Member)
    except Exception as error:
        # What structuring raises has no one type; whatever it is, the node is nobody's.
        log.warning("member not understood", node=node, reason=str(error))
        return None

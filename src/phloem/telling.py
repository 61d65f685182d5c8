"""The ledger over the consume door: an org's figures, then its streams in pages, then the door closes."""

from __future__ import annotations

import json
from typing import Any

import trio

from phloem.engine.engine import Engine
from phloem.groups import Groups
from sapflow.link import Close
from sapflow.runtime.session import LinkSession
from sapflow.runtime.threads import ThreadKind

MAX_ROWS = 10_000
"""Streams that are told of at most: those heard of last."""
PAGE_BYTES = 32 << 10
"""A frame's worth of them."""
LAST_S = 30.0
GROUPS_S = 10.0
"""Groups whose backlog is not counted by then are not told."""


async def tell_ledger(
    session: LinkSession, engine: Engine, groups: Groups, counting: ThreadKind, org: str, fields: dict[str, Any]
) -> None:
    """Answer a subscription that asks for the ledger: `streams` of its streams too, and the backlog at `position`.

    Raises StorageError.
    """
    wanted = fields.get("streams")
    most = min(wanted, MAX_ROWS) if type(wanted) is int and wanted > 0 else 0
    # Asked for first, so that no group has read more than is told to be there.
    positions = {str(group["group"]): int(group["position"]) for group in await groups.figures(org)}
    ledger = await counting.run(lambda: engine.ledger(org, most_rows=most))
    position = fields.get("position")
    if type(position) is int and 0 <= position < 1 << 63:
        ledger.backlog = await counting.run(lambda: engine.backlog(org, position))
    until = trio.current_time() + GROUPS_S
    for name, at in positions.items():
        if trio.current_time() > until:
            ledger.untold_groups += 1
        else:
            ledger.groups[name] = await counting.run(lambda: engine.backlog(org, at))  # noqa: B023
    session.send(session.connection.notice(kind="ledger", ledger=ledger.as_json()))
    page: list[dict[str, Any]] = []
    size = 0
    for row in ledger.rows:
        told = row.as_json()
        length = len(json.dumps(told))
        if page and size + length > PAGE_BYTES:
            session.send(session.connection.notice(kind="streams", streams=page))
            page, size = [], 0
        page.append(told)
        size += length
    if page:
        session.send(session.connection.notice(kind="streams", streams=page))
    await session.finish(Close.NORMAL, "that is the ledger", deadline_s=LAST_S)

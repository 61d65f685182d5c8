"""The ledger over the consume door: an org's figures, then its streams in pages, then the door closes."""

from __future__ import annotations

import json
from typing import Any

from phloem.engine.engine import Engine
from sapflow.link import Close
from sapflow.runtime.session import LinkSession
from sapflow.runtime.threads import ThreadKind

MAX_ROWS = 10_000
"""Streams that are told of at most: those heard of last."""
PAGE_BYTES = 32 << 10
"""A frame's worth of them."""
LAST_S = 30.0


async def tell_ledger(
    session: LinkSession, engine: Engine, reading: ThreadKind, org: str, fields: dict[str, Any]
) -> None:
    """Answer a subscription that asks for the ledger: `streams` of its streams too, and the backlog at `position`."""
    wanted = fields.get("streams")
    most = min(wanted, MAX_ROWS) if type(wanted) is int and wanted > 0 else 0
    ledger = await reading.run(lambda: engine.ledger(org, most_rows=most))
    if ledger is None:
        await session.finish(Close.UNKNOWN, "this fleet's log (Kafka) keeps no ledger", deadline_s=LAST_S)
        return
    position = fields.get("position")
    if type(position) is int and 0 <= position < 1 << 63:
        ledger.backlog = await reading.run(lambda: engine.backlog(org, position))
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

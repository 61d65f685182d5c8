"""Asking for an org's ledger: what became of every record, from the exporters' numbers to the log."""

from __future__ import annotations

import anyio

from sapflow.client.connect import MAX_FEED_BYTES, connect, welcomed
from sapflow.errors import LinkError, Refused, Unreachable
from sapflow.ledger import OrgLedger, StreamLedger
from sapflow.link import Closed, Connection, Event, Noticed, Side
from sapflow.link.frames import Close, Hint, LinkLimits


async def ledger(
    url: str, org: str, token: str, *, streams: int = 0, position: int | None = None, timeout_s: float = 30.0
) -> OrgLedger:
    """An org's ledger, with the rows of at most so many of its streams, those heard of last; and, given the position
    up to which somebody has read, with what is left to read.

    Raises Refused for a credential or org that is not accepted, LinkError for another protocol, Unreachable when the
    door does not answer in time.
    """
    try:
        with anyio.fail_after(timeout_s):
            async with await connect(url, timeout_s=timeout_s) as stream:
                connection = Connection(Side.CLIENT, LinkLimits(max_batch_bytes=MAX_FEED_BYTES))
                await stream.send(connection.hello(Hint(org=org), role="consumer", token=token))
                await welcomed(stream, connection)
                await stream.send(connection.subscribe(org=org, ledger=True, streams=streams, position=position))
                return await _told(stream, connection)
    except (TimeoutError, anyio.BrokenResourceError):
        raise Unreachable(f"{url} did not tell its ledger within {timeout_s:g} s; is it a consume door?") from None


async def _told(stream: anyio.abc.ByteStream, connection: Connection) -> OrgLedger:
    found: OrgLedger | None = None
    while True:
        try:
            events = connection.receive(await stream.receive())
        except anyio.EndOfStream:
            raise Unreachable("the consume door closed before all of the ledger was told") from None
        for event in events:
            if isinstance(event, Closed) and event.code == Close.NORMAL and found is not None:
                return found
            found = _taken(event, found)


def _taken(event: Event, found: OrgLedger | None) -> OrgLedger:
    match event:
        case Noticed(fields) if fields.get("kind") == "ledger" and isinstance(fields.get("ledger"), dict):
            return OrgLedger.from_json(fields["ledger"])
        case Noticed(fields) if fields.get("kind") == "streams" and found is not None:
            found.rows += [StreamLedger.from_json(row) for row in fields.get("streams", [])]
            return found
        case Closed(code, reason):
            raise Refused(f"the consume door closed: {reason}", code=code)
        case _:
            raise LinkError(f"{type(event).__name__} instead of a ledger", code=Close.PROTOCOL)

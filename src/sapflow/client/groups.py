"""An org's consumer groups: what they are, and setting them elsewhere. What a group reads is `member.py`."""

from __future__ import annotations

from typing import Any

import anyio
from attrs import frozen

from sapflow.client.connect import greeted
from sapflow.errors import Refused, Unreachable
from sapflow.link import Close, Closed, Noticed


@frozen
class Extent:
    """A part of a log.

    Where orgs share a log (Kafka), positions may be other orgs' too, or of what stands there twice, and it is not known
    how many batches, bytes and records they are: those are None.
    """

    positions: int
    entries: int | None
    bytes: int | None
    records: int | None

    def __str__(self) -> str:
        if self.entries is None or self.records is None or self.bytes is None:
            return f"up to {self.positions:,} batches"
        return f"{self.entries:,} batches, {self.records:,} records, {self.bytes:,} bytes"


@frozen
class GroupFigures:
    """A consumer group, as it was when it was asked for; times in microseconds UTC."""

    org: str
    group: str
    position: int
    """All up to it was committed."""
    last: int
    """The log's last position."""
    lag: Extent
    """What is still to be read."""
    gap: Extent | None
    """What retention removed before it was read."""
    members: int
    generation: int
    quarantined: int
    """Entries that its members could not use."""
    state_bytes: int
    made_us: int
    touched_us: int
    """When a member last began or committed."""


async def list_groups(
    url: str, org: str, token: str, *, group: str | None = None, timeout_s: float = 5.0
) -> list[GroupFigures]:
    """An org's consumer groups, or the one of that name. Raises Refused, Unreachable."""
    found, _ = await _ask(url, org, token, timeout_s, do="list", group=group)
    return found


async def reset_group(
    url: str, org: str, token: str, group: str, at: str | int | dict[str, int], *, timeout_s: float = 30.0
) -> tuple[GroupFigures, int]:
    """Have a group read on from elsewhere: what it is then, and how far `at` lay beyond the log's end.

    The member that reads for it begins again there. Raises Refused, Unreachable.
    """
    found, ahead = await _ask(url, org, token, timeout_s, do="reset", group=group, at=at)
    return found[0], ahead


async def remove_group(url: str, org: str, token: str, group: str, *, timeout_s: float = 5.0) -> None:
    """Forget a group that has no members. Raises Refused, Unreachable."""
    await _ask(url, org, token, timeout_s, do="remove", group=group)


async def _ask(url: str, org: str, token: str, timeout_s: float, **fields: Any) -> tuple[list[GroupFigures], int]:
    found: list[GroupFigures] = []
    ahead = 0
    try:
        with anyio.fail_after(timeout_s):
            async with greeted(url, org, token, connect_timeout_s=timeout_s) as (stream, connection):
                await stream.send(connection.notice(kind="groups", org=org, **fields))
                while True:
                    for event in connection.receive(await stream.receive()):
                        match event:
                            case Noticed({"kind": "group"} as told):
                                found.append(_figures(told))
                                ahead = int(told["ahead"])
                            case Closed(Close.NORMAL):
                                return found, ahead
                            case Closed(code, reason):
                                raise Refused(reason, code=code)
    except (TimeoutError, anyio.EndOfStream, anyio.BrokenResourceError):
        raise Unreachable(f"{url} did not answer about the groups of '{org}' within {timeout_s:g} s") from None


def _figures(told: dict[str, Any]) -> GroupFigures:
    names = {name: told[name] for name in told.keys() - {"kind", "ahead", "lag", "gap"}}
    gap = told["gap"]
    return GroupFigures(**names, lag=Extent(**told["lag"]), gap=Extent(**gap) if gap is not None else None)

"""What a consumer may ask about its org's groups: list them, reset one, remove one."""

from __future__ import annotations

from typing import Any

from phloem.engine.groups import Declined
from phloem.groups import Groups
from sapflow.errors import LinkError
from sapflow.link import Close
from sapflow.runtime.session import LinkSession


async def answer(groups: Groups, session: LinkSession, org: str, name: str | None, fields: dict[str, Any]) -> None:
    """Do it, tell each group that it is about as it is then, and end the link. Raises LinkError, StorageError."""
    ahead = 0
    match fields.get("do"):
        case "list":
            pass
        case "reset" if name is not None:
            found = await groups.places.find_measured(org, fields.get("at"))
            ahead = found.ahead
            _made(await groups.reset(org, name, found.place))
        case "remove" if name is not None:
            _made(await groups.remove(org, name))
        case _:
            raise LinkError("of groups may be asked: list, reset NAME, remove NAME", code=Close.PROTOCOL)
    told = [one for one in await groups.figures(org) if name in (None, one["group"])]
    if name is not None and not told and fields.get("do") == "list":
        raise LinkError(f"org '{org}' has no group '{name}'; see 'sapflow groups list {org}'", code=Close.UNKNOWN)
    for one in told:
        session.send(session.connection.notice(kind="group", ahead=ahead, **one))
    await session.finish(Close.NORMAL, "that is all", deadline_s=5.0)


def _made(outcome: object) -> None:
    if isinstance(outcome, Declined):
        raise LinkError(outcome.reason, code=Close.UNKNOWN if outcome.kind == "unknown" else Close.CONFLICT)

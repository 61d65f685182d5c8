"""Whether a batch is what it says: walked as strictly as everybody behind will read it. Pure."""

from __future__ import annotations

from attrs import frozen

from sapflow.errors import LinkError
from sapflow.flows.ipfix.session import Session
from sapflow.flows.limits import FlowLimits
from sapflow.link import Batch
from sapflow.link.account import decode_account


@frozen
class Unfit:
    """Why a batch is not published: `reason` from a bounded set, for the ledger, and `what` for people."""

    reason: str
    what: str


@frozen
class Fit:
    """A batch may be published."""

    may_tell: bool
    """It may hold options data."""


def check(batch: Batch, limits: FlowLimits) -> Fit | Unfit:
    """What a batch is."""
    walk = Session(limits).walk(batch.payload)
    if walk.fault is not None:
        return Unfit(walk.fault.reason, str(walk.fault))
    if walk.taken != len(batch.payload):
        return Unfit("truncated", f"{len(batch.payload) - walk.taken} bytes of it are of no whole message")
    if walk.records != batch.records:
        return Unfit("records", f"{walk.records} records, not {batch.records}")
    try:
        decode_account(batch.account, batch.records)
    except LinkError as error:
        return Unfit("account", str(error))
    return Fit(walk.may_tell)

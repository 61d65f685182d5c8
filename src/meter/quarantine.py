"""A batch that a collector refuses, made into one that it takes: pure.

Every collector reads as strictly as the next, so a batch that one refuses would go from one to the other and stop its
stream for good. In its place in the stream's numbering goes a batch without records, whose account says how many were
refused and why: the stream goes on, and the ledger closes.
"""

from __future__ import annotations

import re

from sapflow.errors import LinkError
from sapflow.link import Batch
from sapflow.link.account import MAX_REASON_BYTES, OTHER, Account, decode_account

REFUSED_BATCH = "batch_"
"""Begins the ledger's reason for records of a batch that a collector refused; its own reason follows."""
_REASON = re.compile(rf"[a-z0-9_]{{1,{MAX_REASON_BYTES - len(REFUSED_BATCH)}}}")


def emptied(batch: Batch, reason: str) -> Batch:
    """What goes in the place of a batch that was refused for `reason`."""
    try:
        account = decode_account(batch.account, batch.records)
    except LinkError:
        account = Account.usual(batch.records)
    if not _REASON.fullmatch(reason):
        reason = OTHER
    account = account.refusing(REFUSED_BATCH + reason, batch.records)
    return Batch(batch.seq, 0, 0, batch.received_us, b"", account.encode(0))

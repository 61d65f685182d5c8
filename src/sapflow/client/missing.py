"""What a consumer is told that it is not given, or that things are not as they were: never passed over in silence."""

from __future__ import annotations

from attrs import frozen

from sapflow.errors import SapflowError


@frozen
class Gap:
    """Positions that are not in the log any more: retention removed them before they were read.

    `bytes` and `records` say how much that was, where it is known.
    """

    after: int
    next: int
    bytes: int | None = None
    records: int | None = None

    @property
    def entries(self) -> int:
        """How many stored batches are missing."""
        return self.next - self.after - 1

    def __str__(self) -> str:
        if self.records is None:
            # Where orgs share a log, positions between may be other orgs'.
            return f"up to {self.entries:,} stored batches after position {self.after} are past retention"
        much = f" ({self.records:,} records, {self.bytes:,} bytes)"
        return f"{self.entries:,} stored batches after position {self.after}{much} are past retention"


@frozen
class Corrupt:
    """An entry that is not what was written, or cannot be decoded, at its position; the others around it are given."""

    position: int
    reason: str

    def __str__(self) -> str:
        return f"the batch at position {self.position} is damaged and left out: {self.reason}"


@frozen
class Ahead:
    """What was to be read on from lies beyond the log's end: it is another log, or one that has lost its end."""

    by: int
    position: int
    """Where reading begins instead: behind this."""

    def __str__(self) -> str:
        return f"that is {self.by:,} beyond the log's end; reading on after position {self.position}"


Missing = Gap | Corrupt | Ahead


class RecordsMissing(SapflowError):
    """Records that a consumer group was to be given are not there; `what` says which.

    Iterating again goes on behind them. Give `on_missing` to be told instead.
    """

    def __init__(self, what: Missing, org: str, group: str) -> None:
        meaning = {
            Gap: "they cannot be had from this log any more. Read faster, or raise phloem.retention_s; to go on, give "
            f"on_missing=, or say: sapflow groups reset {org} {group} --at earliest",
            Ahead: "the log was replaced or restored from a copy: what it has is given again, what it lost is gone",
            Corrupt: "see docs/how-to/mend-a-log.md",
        }[type(what)]
        super().__init__(f"org {org}, group {group}: {what}; {meaning}")
        self.what = what

"""The ledger: for a stream, and for an org, what became of every record, from the exporter's numbers to the log.

    exported + repeated + uncounted = received + lost          (and the same of packets, where numbers count those)
    received = stored + refused by reason
    stored = kept + removed by retention
    stored = read + backlog                                     (of a reader, by its position)

The left and the right of each are counted by different parts of the system, so that each is a check that can fail:
`differences` says where it does, and by how much.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import asdict, define, field, frozen

from sapflow.errors import SapflowError
from sapflow.link.account import FIGURES, NOTHING, Account


@define
class StreamLedger:
    """One stream, as the log knows it; or several, folded into one."""

    account: Account = NOTHING
    """What its batches told."""
    batches: int = 0
    """In order and without a gap, those with nothing but an account among them."""
    stored: int = 0
    """Records, counted by the log as they were stored."""
    missing_batches: int = 0
    """Those before the first that this log saw: they are in another one, or lost."""
    updated_us: int = 0
    """When it was last heard of (microseconds UTC, by the log's clock)."""
    stream: str = ""
    exporter: str = ""
    unknown_batches: int = 0
    """Those that were removed from the log before they were counted: what was in them is not known."""

    def add(self, other: StreamLedger) -> None:
        """Count another's with it."""
        self.account += other.account
        self.batches += other.batches
        self.stored += other.stored
        self.missing_batches += other.missing_batches
        self.unknown_batches += other.unknown_batches
        self.updated_us = max(self.updated_us, other.updated_us)

    def differences(self) -> dict[str, int]:
        """By how much each equation does not hold; without those that do."""
        account = self.account
        packets_out = account.packets_exported + account.packets_repeated
        found = {
            "numbers": account.exported + account.repeated + account.uncounted - account.received - account.lost,
            "packets": packets_out - account.packets_received - account.packets_lost,
            "stored": account.received - sum(account.refused.values()) - self.stored,
            "missing_batches": self.missing_batches,
        }
        return {name: value for name, value in found.items() if value}

    def as_json(self) -> dict[str, Any]:
        """For people and programs."""
        return {
            "stream": self.stream,
            "exporter": self.exporter,
            **dict(zip(FIGURES, self.account.figures, strict=True)),
            "refused": dict(self.account.refused),
            "faults": dict(self.account.faults),
            "stored": self.stored,
            "batches": self.batches,
            "missing_batches": self.missing_batches,
            "unknown_batches": self.unknown_batches,
            "updated_us": self.updated_us,
            "differences": self.differences(),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> StreamLedger:
        """From what `as_json` gave. Raises SapflowError."""
        try:
            refused, faults = (
                {str(key): int(value) for key, value in fields[name].items()} for name in ("refused", "faults")
            )
            account = Account.of([int(fields[name]) for name in FIGURES], refused, faults)
            return cls(
                account,
                int(fields["batches"]),
                int(fields["stored"]),
                int(fields["missing_batches"]),
                int(fields["updated_us"]),
                str(fields["stream"]),
                str(fields["exporter"]),
                int(fields.get("unknown_batches", 0)),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SapflowError(f"this is no ledger: {error!r}") from None


@frozen
class Backlog:
    """What is left to read for a reader that has read up to a position; what retention removed counts as read."""

    position: int
    batches: int
    records: int
    uncertain: int = 0
    """So many records more may be left, where the log cannot count them in time."""

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Backlog:
        """From its fields, of which an older log does not tell the last."""
        position, batches, records = (int(fields[name]) for name in ("position", "batches", "records"))
        return cls(position, batches, records, int(fields.get("uncertain", 0)))


@define
class OrgLedger:
    """An org's, over all its streams there ever were."""

    org: str
    total: StreamLedger
    streams: int = 0
    kept: int = 0
    """Records that are in the log now."""
    removed: int = 0
    """Records that retention has removed."""
    backlog: Backlog | None = None
    """Behind the position that was asked for."""
    rows: list[StreamLedger] = field(factory=list)
    """The streams that are not folded into the sum yet, when they were asked for."""
    groups: dict[str, Backlog] = field(factory=dict)
    """Behind the position of each consumer group …"""
    untold_groups: int = 0
    """… but for so many, whose backlog could not be counted in time."""
    behind: int = 0
    """Positions at the log's end that are not counted yet; all figures are of what comes before."""
    uncertain: int = 0
    """Records that are kept or removed, where the log cannot count them in time."""
    begun: str = ""
    """Why it does not begin with the log's first entry, or missed some; empty when it does and did not."""

    def differences(self) -> dict[str, int]:
        """As a stream's; and whether what was stored is in the log, or was removed from it."""
        found = self.total.differences()
        if self.total.stored != self.kept + self.removed + self.uncertain:
            found["kept"] = self.total.stored - self.kept - self.removed - self.uncertain
        return found

    @property
    def closes(self) -> bool:
        """Whether every equation holds, to the record, for all that is counted."""
        return not self.differences()

    def as_json(self) -> dict[str, Any]:
        """For people and programs."""
        total = self.total.as_json()
        del total["stream"], total["exporter"]
        figures: dict[str, Any] = {"streams": self.streams, "kept": self.kept, "removed": self.removed}
        if self.backlog is not None:
            figures["backlog"] = asdict(self.backlog)
        figures["groups"] = {name: asdict(group) for name, group in self.groups.items()}
        figures |= {"untold_groups": self.untold_groups, "behind": self.behind, "uncertain": self.uncertain}
        figures["begun"] = self.begun
        return {"org": self.org, **total, **figures, "differences": self.differences(), "closes": self.closes}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> OrgLedger:
        """From what `as_json` gave. Raises SapflowError."""
        total = StreamLedger.from_json({**fields, "stream": "", "exporter": ""})
        try:
            streams, kept, removed = (int(fields[name]) for name in ("streams", "kept", "removed"))
            backlog = Backlog.of(fields["backlog"]) if fields.get("backlog") else None
            groups = {str(name): Backlog.of(group) for name, group in fields.get("groups", {}).items()}
            untold, behind, uncertain = (int(fields.get(name, 0)) for name in ("untold_groups", "behind", "uncertain"))
            begun = str(fields.get("begun", ""))
            org = str(fields["org"])
            return cls(org, total, streams, kept, removed, backlog, [], groups, untold, behind, uncertain, begun)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SapflowError(f"this is no ledger: {error!r}") from None

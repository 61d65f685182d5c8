"""What a log is to the rest of Phloem, whichever engine keeps it.

All calls are synchronous and may block: appending and upkeep belong to the one storage thread, reading to others.
Positions of an org ascend and begin at 1; a position names an entry, and reading goes on *behind* one. They are
contiguous in the embedded log, and not in Kafka, where orgs share a partition.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from typing import Literal, Protocol

from attrs import field, frozen

from phloem.engine.groups import Declined, Group, SharedChange
from phloem.engine.layout import Place, Tail
from sapflow.entry import LogEntry
from sapflow.ledger import Backlog, OrgLedger


@frozen(slots=True)
class Outcome:
    """What became of one batch; `mark` is the stream's highest stored number after it."""

    kind: Literal["stored", "duplicate", "refused", "conflict"]
    mark: int
    position: int = 0


@frozen(slots=True)
class Stretch:
    """A stretch of an org's log behind some position."""

    entries: list[tuple[int, bytes]] = field(repr=False)
    """Positions and entries as stored; their reader checks the CRC."""
    through: int
    """Everything up to here was looked at: reading goes on behind it. Where it began, at the log's end."""
    gap_to: int | None = None
    """The first position that is kept, where retention has removed what followed the position asked for."""


class SharedGroups(Protocol):
    """Consumer groups that members of several nodes read for; `refresh` in the thread that changes them."""

    def refresh(self) -> None:
        """Hear what other nodes did. Raises StorageError."""

    def generation(self, org: str, name: str) -> int | None:
        """Of a group, as last heard; None when there is no such group."""

    def reader(self, org: str, name: str) -> str:
        """The name of the other node whose member reads for a group, as last heard; empty when none does."""

    def is_free(self, org: str, name: str) -> bool:
        """Whether a member of this node may try to take it."""

    def mine(self) -> dict[int, tuple[str, str]]:
        """The seats of this node that read, as last heard, and for which org's group."""


class SharedLedger(Protocol):
    """The ledgers of a log that several nodes share; all calls in the thread in which ledgers are asked for."""

    def keep(self, orgs: Set[str]) -> Iterator[None]:
        """Count what these orgs have stored and make it durable, in bounded steps. Raises StorageError."""


class Engine(Protocol):
    """One node's access to the log of all orgs."""

    @property
    def is_open(self) -> bool:
        """Whether it can be appended to; `reopen` makes it so."""

    @property
    def is_shared(self) -> bool:
        """Whether other nodes may append too: readers then ask for `news`, and drop what was stored twice."""

    @property
    def measures(self) -> bool:
        """Whether it counts what lies before a place: else places have positions only."""

    @property
    def removes(self) -> bool:
        """Whether the last append removed old entries, and `look_ahead` is worth a call."""

    @property
    def shared_groups(self) -> SharedGroups | None:
        """What consumer groups need beside it, where other nodes' members may read for them; None: there are none."""

    @property
    def shared_ledger(self) -> SharedLedger | None:
        """What counts for the ledger afterwards; None where that is done as entries are stored."""

    def counts(self) -> dict[str, int]:
        """What it has done beside storing; never goes down."""

    def append(self, batches: Sequence[tuple[str, LogEntry]]) -> list[Outcome]:
        """Store batches durably, in order: what became of each.

        Raises StorageError: then nothing of this call is to be acknowledged, and `reopen` comes before the next.
        """

    def look_ahead(self) -> None:
        """Read what the next append will remove, so that it has not to wait for that. In any thread but the storage's.

        Raises StorageError.
        """

    def reopen(self) -> None:
        """At the start, or after a StorageError: start again from what is durable. Raises StorageError."""

    def forget(self, org: str) -> None:
        """This node does not append this org's batches any more; another may. Never waits, in any thread."""

    def interrupt(self) -> None:
        """This process ends: what waits for others gives up soon. Never waits, in any thread."""

    def close(self) -> None:
        """Let go of the log."""

    def upkeep(self, orgs: Set[str]) -> Iterator[int]:
        """What is to be done now and then, in bounded steps, each of which says how many entries or topics it removed.

        `orgs` are those that there are. Raises StorageError.
        """

    def stretch(self, org: str, after: int, *, max_bytes: int, max_entries: int) -> Stretch:
        """What follows position `after`, at least one entry or a step further if there is one. Raises StorageError."""

    def news(self, orgs: Set[str]) -> Set[str]:
        """Those of `orgs` that may have more than at the last call, whoever appended it. Raises StorageError."""

    def tail(self, org: str) -> Tail:
        """An org's log in figures; positions only, where it does not measure. Raises StorageError."""

    def walk(self, org: str, place: Place, through: int, *, at_most: int) -> Place:
        """From a place towards position `through`, at most so many entries on. Raises StorageError."""

    def first_position(self, org: str) -> int:
        """The oldest position that is kept. Raises StorageError."""

    def last_position(self, org: str) -> int:
        """The newest position; one less than the first when nothing is kept. Raises StorageError."""

    def position_at(self, org: str, time_us: int) -> int:
        """A position before which nothing was taken in at or after a time, as late as the engine knows."""

    def change_groups(self, changes: Sequence[SharedChange], now_us: int) -> list[Group | Declined | None]:
        """Make changes of consumer groups durably, in order: what each group is after its own.

        Raises StorageError: then none counts as made, and may be made again.
        """

    def groups(self, org: str) -> dict[str, Group]:
        """An org's consumer groups, by name. Raises StorageError."""

    def group(self, org: str, name: str) -> Group | None:
        """One of an org's consumer groups. Raises StorageError."""

    def orgs_with_groups(self) -> list[str]:
        """The orgs that have consumer groups. Raises StorageError."""

    def ledger(self, org: str, *, most_rows: int = 0) -> OrgLedger:
        """What became of an org's records, with so many rows of streams. Raises StorageError."""

    def backlog(self, org: str, position: int) -> Backlog:
        """What is kept behind a position, left to read for who has read up to it. Raises StorageError."""

    def told_streams(self, org: str) -> list[bytes]:
        """An org's streams that have told anything in options data, those that told last at the end.

        This and `told` in the thread in which ledgers are asked for, where the ledger is shared. Raises StorageError.
        """

    def told(self, org: str, stream: bytes, position: int) -> bytes | None:
        """A stream's options data that were in force at a position, as an entry of number 0; None: there were none.

        At the latest position, and at those before it for as far as versions are kept, it is exact; else the oldest
        version that is kept stands for it. Raises StorageError.
        """

    def holds(self, org: str) -> bool:
        """Whether this log is known to have anything of an org."""

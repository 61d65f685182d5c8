"""Whether a spool takes more of an org: decisions only.

Rule 1: no org holds more than its share (see `share`) of the disk, of the memory for what is not durable yet, and of
        the streams.
Rule 2: an eighth of the spool is left to exporters that cannot wait.
Rule 3: the last batch of a session is let in whatever is held. Where that is too much it waits in memory until there is
        room on disk, and holds up no other org.
"""

from __future__ import annotations

from collections import Counter

from attrs import define, field

from meter.keeping_settings import KeepingSettings
from meter.pending import Pending
from meter.share import Share
from meter.spool import Spool


@define
class Room:
    """What is held and about to be, by org, and whether there may be more."""

    spool: Spool
    settings: KeepingSettings
    pending: Pending
    all_streams: int = 0
    streams: Counter[str] = field(factory=Counter)
    """By org."""
    dropping: Counter[str] = field(factory=Counter)
    """Bytes by org that the next transaction gives up."""
    _share: Share = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._share = Share(self.settings.org_share)

    @property
    def used_bytes(self) -> int:
        """Of the spool, with what is about to be written."""
        return self.spool.held_bytes + self.pending.charge - self.dropping.total()

    def used_of(self, org: str) -> int:
        """As `used_bytes`, of one org."""
        return self.spool.held_by[org] + self.pending.charge_of(org) - self.dropping[org]

    def for_waiting(self, org: str) -> bool:
        """Whether exporters that can wait may go on."""
        return self._on_disk(org, 1, self.spool.limit_bytes // 8 * 7) and self.in_memory(org) and self.for_stream(org)

    def for_dropping(self, org: str, cost: int) -> bool:
        """Whether so much is taken of one that cannot."""
        return self._on_disk(org, cost, self.spool.limit_bytes)

    def count_stream(self, org: str, change: int) -> None:
        """So many streams more, or less."""
        self.streams[org] += change
        self.all_streams += change

    def in_memory(self, org: str) -> bool:
        """Whether there is room for more that is not durable."""
        pending = self.pending
        return self._share.fits(1, pending.bytes_of(org), pending.used_bytes, self.settings.pending_bytes)

    def for_stream(self, org: str) -> bool:
        """Whether there may be one stream more."""
        return self._share.fits(1, self.streams[org], self.all_streams, self.settings.max_streams)

    def for_telling(self, org: str) -> bool:
        """Whether a stream may be made for an account alone."""
        return self._on_disk(org, 1, self.spool.limit_bytes) and self.in_memory(org) and self.for_stream(org)

    def to_write(self, org: str, charge: int, taken: Counter[str]) -> bool:
        """Whether a transaction that has `taken` so much by org may write so much more: what was let in beyond the
        limit, since it was the last of its session, waits here."""
        held = self.spool.held_by[org] + taken[org]
        return self._share.fits(charge, held, self.spool.held_bytes + taken.total(), self.spool.most_bytes)

    def _on_disk(self, org: str, size: int, limit: int) -> bool:
        return self._share.fits(size, self.used_of(org), self.used_bytes, limit)

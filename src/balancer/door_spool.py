"""The exporter door's spool: what was read of plain exporters is on disk before it goes to a collector.

One spool for all orgs that this balancer serves, the meter's own; no org has more of it than its share. Its streams
keep their ids, numbers and orgs over a restart, and are sent again from their lowest unacknowledged batch, with the
fleet's credential as all of an intake's streams are.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import structlog
import trio
from attrs import frozen

from meter.keeping_settings import KeepingSettings
from meter.spool import DATA_FILE, Spool
from meter.spooling import Spooling
from meter.uplink import Uplink
from sapflow.config import Config

log = structlog.get_logger()

LAST_WRITE_S = 10.0
MOST_TOLD = 20
"""Orgs of which the status says what they have in the spool: those that have most."""


@frozen
class DoorSpool:
    """The spool in front of a balancer's uplink."""

    spooling: Spooling

    def counts(self) -> dict[str, Any]:
        """What has become of all that it ever took; never goes down."""
        keeping = self.spooling.keeping
        return {
            **attrs.asdict(self.spooling.spool.totals),
            "refused_batches": keeping.refused_batches,
            "refused_records": keeping.refused_records,
            "transactions": self.spooling.transactions,
        }

    def gauges(self) -> dict[str, float]:
        """What it holds now."""
        spool, keeping = self.spooling.spool, self.spooling.keeping
        oldest_us = spool.oldest_us
        return {
            "spool_held_bytes": spool.held_bytes,
            "spool_held_records": spool.totals.held_records,
            "spool_limit_bytes": spool.limit_bytes,
            "spool_oldest_s": round(time.time() - oldest_us / 1e6, 3) if oldest_us else 0.0,
            "spool_pending_bytes": keeping.pending.used_bytes,
            "spool_pending_limit_bytes": keeping.settings.pending_bytes,
            "spool_window_bytes": keeping.window.used_bytes,
            "spool_window_limit_bytes": keeping.settings.window_bytes,
            "spool_streams": len(keeping.streams),
            "spool_streams_limit": keeping.settings.max_streams,
        }

    def state(self) -> dict[str, Any]:
        """For people: where it is, what ails it, and who fills it."""
        spool = self.spooling.spool
        return {
            "path": str(spool.path),
            "when_full": self.spooling.settings.when_full,
            "error": self.spooling.last_error,
            "held_by_org": {org: held for org, held in spool.held_by.most_common(MOST_TOLD) if held},
        }


def spool_directory(config: Config, name: str) -> Path:
    """Where a balancer's spool is: each has its own, in the fleet's data directory."""
    return config.data_path / "spool" / name


@asynccontextmanager
async def door_spool(config: Config, name: str, uplink: Uplink) -> AsyncIterator[DoorSpool | None]:
    """The spool, if there is to be one; what was taken by then is in it when this ends.

    Raises ConfigurationError, StorageError.
    """
    directory = spool_directory(config, name)
    if not config.balancer.spool:
        if (directory / DATA_FILE).exists():
            log.warning(
                "spool not used",
                path=str(directory),
                meaning="what an earlier run left in it is not sent",
                advice="set balancer.spool = true to have it sent, or remove the directory",
            )
        yield None
        return
    spool = Spool.open(
        directory,
        spool_bytes=config.balancer.spool_bytes,
        holder="another balancer",
        elsewhere="a name (--name) or a data directory of its own",
    )
    try:
        spooling = Spooling(spool, uplink, _settings(config, spool))
        if spooling.keeping.streams:
            log.info("spool taken up", streams=len(spooling.keeping.streams), records=spool.totals.held_records)
        try:
            yield DoorSpool(spooling)
        finally:
            with trio.move_on_after(LAST_WRITE_S, shield=True):
                await spooling.flush()
    finally:
        spool.close()


def _settings(config: Config, spool: Spool) -> KeepingSettings:
    """An eighth of the balancer's budget is for what is not on disk yet, the rest for what is on its way.

    What was sent can not be given up for newer, so most of a small spool is not.
    """
    mine = config.balancer
    window_bytes = min(mine.budget_bytes // 8 * 7, spool.limit_bytes // 4)
    return KeepingSettings(
        window_bytes=window_bytes,
        stream_window_bytes=min(config.intake.max_unacknowledged_bytes, window_bytes // 4),
        pending_bytes=mine.budget_bytes // 8,
        segment_bytes=min(1 << 20, spool.limit_bytes // 16),
        max_streams=mine.spool_streams,
        org_share=mine.org_share,
        when_full=mine.spool_when_full,
    )

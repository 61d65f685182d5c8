"""A collector that ends gently: its streams go to others before it does.

Rule 1: balancers are told first, and place nothing here from then on; only then are links told to go away.
Rule 2: whoever has a link here moves its streams when the next one is up: make before break. So they are not told all
        at the same moment when, but until when; they spread themselves over it.
Rule 3: what was taken is still delivered to Phloem. When nothing is held any more the collector has ended, and at the
        deadline in any case: what is not acknowledged by then is sent again by those who have it.
"""

from __future__ import annotations

import structlog
import trio

from collector.exporters import Exporters
from collector.reporting import Reporting
from collector.sessions import Collector
from sapflow.runtime.drain import Drain

log = structlog.get_logger()

TOLD_S = 0.3
"""After so long balancers know that nothing is to be placed here."""


async def drain_collector(
    collector: Collector, reporting: Reporting, drain: Drain, exporters: Exporters | None = None
) -> bool:
    """Hand on all streams; whether all were, and nothing is held, before the deadline.

    The sessions of exporters whose connections it was given end once what they sent is read.
    """
    log.info("drain begins", collector=collector.settings.name, streams=collector.streams, deadline_s=drain.left_s)
    collector.drain = drain
    reporting.tell()
    with trio.move_on_at(drain.deadline) as scope:
        await trio.sleep(min(TOLD_S, drain.left_s / 4))
        collector.send_away()
        if exporters is not None:
            await exporters.drain()
        await collector.until_empty()
    held = sum(endpoint.held_bytes for endpoint in collector.endpoints.values())
    log.info("drain ends", collector=collector.settings.name, streams=collector.streams, held_bytes=held)
    return not scope.cancelled_caught

"""Figures of this process: memory, CPU, and how late its event loop is."""

from __future__ import annotations

import resource
import time
from io import BufferedReader

import trio
from attrs import define, field

LAG_INTERVAL_S = 0.1


@define
class ProcessFigures:
    """`run()` keeps the lag; the rest is read when asked for."""

    lag_s: float = 0.0
    """The worst lag of the last second or so."""
    _cpu_at: tuple[float, float] = (0.0, 0.0)
    cpu: float = 0.0
    """Share of one core over the last reading's interval."""
    _pages: BufferedReader = field(factory=lambda: open("/proc/self/statm", "rb", buffering=64))  # noqa: SIM115
    """Kept open: a process that has run out of file descriptors is one whose figures are wanted."""

    async def run(self) -> None:
        """Measure how late sleeps end, until cancelled."""
        while True:
            due = trio.current_time() + LAG_INTERVAL_S
            await trio.sleep_until(due)
            self.lag_s = max(trio.current_time() - due, self.lag_s * 0.7)

    def read(self) -> dict[str, float]:
        """rss_bytes, cpu_seconds, cpu, lag_s."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        used, now = usage.ru_utime + usage.ru_stime, time.monotonic()
        before_used, before = self._cpu_at
        if now - before > 0.5:
            self.cpu = (used - before_used) / (now - before) if before else 0.0
            self._cpu_at = (used, now)
        self._pages.seek(0)
        pages = int(self._pages.read().split()[1])
        return {
            "rss_bytes": pages * resource.getpagesize(),
            "cpu_seconds": round(used, 3),
            "cpu": round(self.cpu, 3),
            "lag_s": round(self.lag_s, 4),
        }

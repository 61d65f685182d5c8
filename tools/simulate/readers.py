"""Who reads a simulated fleet's log: consumers that follow from the beginning, and go on where they were.

Each sees every batch of its org once and in order, whatever dies between it and the log.
"""

from __future__ import annotations

import random

import trio
from attrs import define, field

from sapflow.client import ConsumedBatch, Subscription, subscribe
from sapflow.errors import SapflowError
from tools.simulate.hosts import Host, enter

CONSUME = "link://10.0.2.1:4741"


@define
class Reader:
    """One consumer of one org."""

    org: str
    token: str
    host: Host
    position: int = 0
    records: int = 0
    last: dict[bytes, int] = field(factory=dict)
    """By stream: the number of its batch read last."""
    faults: list[str] = field(factory=list)
    subscriptions: int = 0

    async def run(self) -> None:
        """Read until cancelled."""
        enter(self.host)
        while True:
            try:
                async with subscribe(CONSUME, self.org, self.token, at=self.position or "earliest") as batches:
                    self.subscriptions += 1
                    async for batch in batches:
                        self._take(batches, batch)
            except SapflowError:
                await trio.sleep(random.uniform(0, 0.5))

    def _take(self, batches: Subscription, batch: ConsumedBatch) -> None:
        if batch.position <= self.position:
            self.faults.append(f"reader of {self.org}: position {batch.position} behind {self.position}")
        if batch.seq != self.last.get(batch.stream, 0) + 1:
            self.faults.append(
                f"reader of {self.org}: batch {batch.seq} of stream {batch.stream.hex()} behind "
                f"{self.last.get(batch.stream, 0)}"
            )
        if batches.gaps or batches.corrupt or batches.repeats or batches.ahead:
            self.faults.append(
                f"reader of {self.org} at {batch.position}: {batches.gaps} {batches.corrupt}, {batches.repeats} "
                f"repeats, {batches.ahead} ahead"
            )
        self.position = batch.position
        self.last[batch.stream] = batch.seq
        self.records += batch.records

    def has(self, acknowledged: dict[bytes, int]) -> bool:
        """Whether it has read all that was acknowledged of its org."""
        return all(self.last.get(stream, 0) >= through for stream, through in acknowledged.items())

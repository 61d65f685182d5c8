"""`python -m tools.crashes.workload DIRECTORY GROUPS SEED`: stores, removes and opens again, and says what is durable.

Each line is a `Promise`: written before a removal that may begin, and after an append that has returned.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

from attrs import asdict, define, field, frozen

from phloem.engine.embedded import EmbeddedLog
from sapflow.entry import LogEntry

ORGS = ("acme", "globex")
STREAMS = 3


@frozen
class Promise:
    """What must be in the log from here on."""

    marks: dict[str, int] = field(factory=dict)
    """By `ORG/STREAM`: numbers up to it were acknowledged …"""
    removed: dict[str, int] = field(factory=dict)
    """… and by org, positions up to it may have been removed."""

    def line(self) -> bytes:
        """As the workload says it."""
        return json.dumps(asdict(self)).encode() + b"\n"


@define
class Stored:
    """What the workload has stored."""

    marks: dict[str, int] = field(factory=dict)
    removed: dict[str, int] = field(factory=dict)

    def say(self) -> None:
        """Tell the promise in force in one write."""
        os.write(1, Promise(self.marks, self.removed).line())


def entry(org: str, stream: int, seq: int) -> LogEntry:
    """The one entry of this number: the same in whoever makes it."""
    rng = random.Random(f"{org}/{stream}/{seq}")
    payload = rng.randbytes(rng.choice((10, 300, 2000, 3000, 9000, 30_000)))
    return LogEntry(bytes([stream] * 16), seq, "192.0.2.1:9", seq * 1000, 1, 2, payload)


def main(directory: Path, groups: int, seed: int) -> None:
    """Append groups of entries; now and then remove the oldest, or close and open the log."""
    rng = random.Random(seed)
    stored = Stored()
    log = EmbeddedLog.open(directory)
    for _ in range(groups):
        batch = []
        for _ in range(rng.randint(1, 5)):
            org, stream = rng.choice(ORGS), rng.randrange(STREAMS)
            key = f"{org}/{stream}"
            stored.marks[key] = seq = stored.marks.get(key, 0) + 1
            batch.append((org, entry(org, stream, seq)))
        assert all(outcome.kind == "stored" for outcome in log.append(batch))
        stored.say()
        if rng.random() < 0.3:
            org = rng.choice(ORGS)
            many = rng.randint(1, 6)
            stored.removed[org] = log.first_position(org) - 1 + many
            stored.say()
            log.remove_oldest(org, before_us=1 << 62, keep_bytes=0, at_most=many)
        if rng.random() < 0.1:
            log.close()
            log = EmbeddedLog.open(directory)
    log.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

"""Appending to the log, synced, beside a raw file synced in the same groups; and many orgs that send little."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from phloem.engine.embedded import EmbeddedLog
from sapflow.entry import LogEntry

PAYLOAD_BYTES = 64 << 10
GROUP = 32
GROUPS = 100
ROUNDS = 5
ORGS, ORG_BYTES = 10_000, 2_000
COMMIT_BYTES = 1 << 20


def run() -> list[dict[str, Any]]:
    """Medians of rounds that alternate; groups of 2 MiB, each synced."""
    payload = os.urandom(PAYLOAD_BYTES)
    ours, raw = [], []
    with tempfile.TemporaryDirectory(prefix="sapflow-bench-", dir=".") as directory:
        log = EmbeddedLog.open(Path(directory) / "log")
        for number in range(ROUNDS):
            ours.append(_log(log, payload, number))
            raw.append(_raw(Path(directory) / f"raw{number}", payload))
        log.close()
        log = EmbeddedLog.open(Path(directory) / "orgs")
        rounds = [_round(log, number) for number in range(ROUNDS)]
        log.close()
    mine, theirs = sorted(ours)[ROUNDS // 2], sorted(raw)[ROUNDS // 2]
    took, cpu = sorted(rounds)[ROUNDS // 2]
    orgs = f"log, {ORGS:,} orgs of {ORG_BYTES / 1000:g} kB each, synced per 1 MiB group"
    return [
        {
            "what": "log, synced per 2 MiB group",
            "MB/s": round(mine),
            "ratio to raw": round(mine / theirs, 2),
            "of a core": "-",
        },
        {"what": "raw file, write + fdatasync", "MB/s": round(theirs), "ratio to raw": 1.0, "of a core": "-"},
        {
            "what": orgs,
            "MB/s": round(ORGS * ORG_BYTES / took / 1e6),
            "ratio to raw": "-",
            "of a core": f"{cpu:.0%} when once a second",
        },
    ]


def _round(log: EmbeddedLog, number: int) -> tuple[float, float]:
    """A batch of every org: seconds that it took, and of CPU."""
    payload = os.urandom(ORG_BYTES)
    began, cpu = time.perf_counter(), time.process_time()
    step = COMMIT_BYTES // ORG_BYTES
    for first in range(0, ORGS, step):
        group = range(first, min(ORGS, first + step))
        entries = [(f"org-{n}", LogEntry(n.to_bytes(16, "big"), number + 1, "x", 1, 1, 35, payload)) for n in group]
        assert all(outcome.kind == "stored" for outcome in log.append(entries))
    return time.perf_counter() - began, time.process_time() - cpu


def _log(log: EmbeddedLog, payload: bytes, number: int) -> float:
    began = time.perf_counter()
    for group in range(GROUPS):
        outcomes = log.append(
            [
                (f"org{index % 4}", LogEntry(bytes([number, index] * 8), group + 1, "x", 1, 48, 1000, payload))
                for index in range(GROUP)
            ]
        )
        assert all(outcome.kind == "stored" for outcome in outcomes)
    return GROUPS * GROUP * PAYLOAD_BYTES / (time.perf_counter() - began) / 1e6


def _raw(path: Path, payload: bytes) -> float:
    group = payload * GROUP
    began = time.perf_counter()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    for _ in range(GROUPS):
        os.write(descriptor, group)
        os.fdatasync(descriptor)
    took = time.perf_counter() - began
    os.close(descriptor)
    path.unlink()
    return GROUPS * len(group) / took / 1e6

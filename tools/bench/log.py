"""Appending to the log, synced, beside a raw file written and synced in the same groups."""

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
    mine, theirs = sorted(ours)[ROUNDS // 2], sorted(raw)[ROUNDS // 2]
    return [
        {"what": "log, synced per 2 MiB group", "MB/s": round(mine), "ratio to raw": round(mine / theirs, 2)},
        {"what": "raw file, write + fdatasync", "MB/s": round(theirs), "ratio to raw": 1.0},
    ]


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

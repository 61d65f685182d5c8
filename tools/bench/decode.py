"""Decoding the reference work on one core: walked, to columns, to JSON lines."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

from sapflow.flows.columns import decode
from sapflow.flows.formats import open_writer
from sapflow.flows.records import Context
from sapflow.flows.reference import reference_work
from sapflow.flows.session import Session

CHUNK_MESSAGES = 200
"""Decoded as they come from the log: a few hundred KiB at a time."""


def run() -> list[dict[str, Any]]:
    """The median of five runs each, in millions of records per second."""
    work = reference_work()
    template_bytes, message_bytes = len(work) - 20_000 * 1364, 1364
    first = template_bytes + CHUNK_MESSAGES * message_bytes
    step = CHUNK_MESSAGES * message_bytes
    chunks = [work[:first], *(work[at : at + step] for at in range(first, len(work), step))]
    small = reference_work(1000)

    def columns() -> int:
        session = Session()
        return sum(batch.records for chunk in chunks for batch in decode(chunk, session))

    def walk() -> int:
        return Session().walk(work).records

    def lines() -> int:
        return open_writer("jsonl", io.BytesIO()).write(small, Context("acme"))

    return [
        {"what": what, "M records/s": round(_median(work_of) / 1e6, 2), "goal": goal}
        for what, work_of, goal in (
            ("walk (headers, lengths, counts)", walk, "-"),
            ("decode to columns, 270 KiB at a time", columns, "10"),
            ("JSON lines", lines, "0.3 (later)"),
        )
    ]


def _median(work: Callable[[], int]) -> float:
    rates = []
    for _ in range(6):
        began = time.perf_counter()
        records = work()
        rates.append(records / (time.perf_counter() - began))
    return sorted(rates[1:])[2]

"""Decoding on one core, in CPU time: walked, to columns, to the view of flows, to each output format.

Fixed length and variable, one template and ten thousand in turn, small messages and large ones. Ten thousand templates
are exporters' that send the same fields under many ids, or fields of FEW_LAYOUTS kinds, or (no exporter does) all of
them different ones.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from attrs import define

from meter.batching import Batcher
from sapflow.flows.columns.batches import decode
from sapflow.flows.columns.records import Context
from sapflow.flows.formats import open_writer
from sapflow.flows.ipfix.encode import Encoder, make_template, make_variable
from sapflow.flows.ipfix.framing import in_parts
from sapflow.flows.ipfix.session import Session
from sapflow.flows.ipfix.templates import Template
from sapflow.flows.limits import FlowLimits
from sapflow.flows.meaning.stages import Stage
from sapflow.flows.meaning.view import View, views
from sapflow.flows.reference import EXPORT_TIME, REFERENCE_FIELDS, reference_records, reference_work
from sapflow.flows.wire import VARIABLE_LENGTH

CHUNK_BYTES = 270_000
"""Decoded as they come from the log: a few hundred KiB at a time."""
CHUNK_MESSAGES = 200
"""As many of the reference work are about so much."""
MESSAGES = 10_000
FEW_LAYOUTS = 50
BATCH_BYTES = 64 << 10
"""Of messages, with the templates that they need before them: as they come from the log."""
VARIABLE_FIELDS = (
    *REFERENCE_FIELDS[:4],
    (0, 82, VARIABLE_LENGTH),
    *REFERENCE_FIELDS[10:12],
    (0, 96, VARIABLE_LENGTH),
    *REFERENCE_FIELDS[12:],
    (0, 371, VARIABLE_LENGTH),
    (0, 459, VARIABLE_LENGTH),
)
"""Addresses, ports, an interface's name, octets, packets, an application's name, start, end, a user, a method."""


@define
class Work:
    """Messages of some templates, a chunk at a time."""

    templates: list[Template]
    chunks: list[bytes]

    def session(self) -> Session:
        """One that knows the templates and no data yet."""
        # All templates of the work are more bytes than a session is to hold.
        session = Session(FlowLimits(max_templates=MESSAGES, max_template_bytes=16 << 20))
        for template in self.templates:
            session.walk(Encoder(1).templates([template], export_time=EXPORT_TIME))
        return session


def run() -> list[dict[str, Any]]:
    """The median of five runs each, in millions of records per second of CPU time."""
    one, many, runs = fixed(1), fixed(MESSAGES), fixed(MESSAGES, run=200)
    few, different, batched = fixed(MESSAGES, layouts=FEW_LAYOUTS), fixed(MESSAGES, layouts=MESSAGES), batches(many)
    small, large = variable(18), variable(800)
    turns = f"{MESSAGES:,} templates in turn"
    return [
        {"what": what, "M records/s": round(rate / 1e6, 2), "goal": goal}
        for what, rate, goal in (
            ("walk: one template, 24 records a message", _median(one, walked), "-"),
            (f"walk: {turns}", _median(many, walked), "flat"),
            (f"walk: {turns}, all different", _median(different, walked), "flat"),
            ("walk: four elements of variable length, 18 records a message", _median(small, walked), "-"),
            ("walk: four elements of variable length, 800 records a message", _median(large, walked), "-"),
            ("columns: one template, 24 records a message", _median(one, decoded), "10"),
            (f"columns: {MESSAGES:,} templates, 200 messages of each at a time", _median(runs, decoded), "flat"),
            (f"columns: {turns}", _median(many, decoded), "flat"),
            (f"columns: {turns}, in batches of 64 KiB with their templates", _median(batched, decoded_alone), "-"),
            (f"columns: {turns}, of {FEW_LAYOUTS} kinds", _median(few, decoded), "-"),
            (f"columns: {turns}, all different", _median(different, decoded), "-"),
            ("columns: four elements of variable length, 18 records a message", _median(small, decoded), "2"),
            ("columns: four elements of variable length, 800 records a message", _median(large, decoded), "2"),
            ("view: one template, 24 records a message", _median(one, viewed), "-"),
            (f"view: {turns}", _median(many, viewed), "flat"),
            (f"view: {turns}, of {FEW_LAYOUTS} kinds", _median(few, viewed), "-"),
            (f"view: {turns}, all different", _median(different, viewed), "-"),
            *((f"{name} of the reference work", _median(one, writing(name)), goal) for name, goal in FORMATS),
            ("jsonl of the view of the reference work", _median(one, writing("jsonl", View())), "-"),
        )
    ]


FORMATS = (("jsonl", "0.3"), ("csv", "-"), ("arrow", "-"), ("parquet", "-"))


def walked(session: Session, work: Work) -> int:
    """Headers, lengths and counts."""
    return sum(session.walk(chunk).records for chunk in work.chunks)


def decoded(session: Session, work: Work) -> int:
    """To numpy columns."""
    return sum(batch.records for chunk in work.chunks for batch in decode(chunk, session))


def decoded_alone(_session: Session, work: Work) -> int:
    """To numpy columns, each chunk by what it says itself."""
    return sum(batch.records for chunk in work.chunks for batch in decode(chunk))


def viewed(session: Session, work: Work) -> int:
    """To the columns of the view of flows."""
    return sum(views(decode(chunk, session)).records for chunk in work.chunks)


def writing(name: str, *stages: Stage) -> Callable[[Session, Work], int]:
    """To an output format, a tenth of the work, a chunk at a time."""
    data = reference_work(CHUNK_MESSAGES)
    context = Context("acme", "192.0.2.1:4739", "ab" * 16, 5)

    def written(_session: Session, _work: Work) -> int:
        writer = open_writer(name, io.BytesIO(), None, stages)
        records = sum(writer.write(data, context) for _ in range(MESSAGES // 10 // CHUNK_MESSAGES))
        writer.close()
        return records

    return written


def fixed(templates: int, run: int = 1, layouts: int = 1) -> Work:
    """Messages of 24 records, of so many templates in turn, `run` messages of each.

    They have the elements of the reference template, in so many orders.
    """
    random = np.random.default_rng(1)
    orders = [list(REFERENCE_FIELDS), *(random.permutation(REFERENCE_FIELDS).tolist() for _ in range(layouts - 1))]
    known = [make_template(256 + number, orders[number % layouts]) for number in range(templates)]
    encoder = Encoder(1)
    size = known[0].record_bytes
    octets = reference_records(24)
    records = [octets[at : at + size] for at in range(0, len(octets), size)]
    messages = (
        encoder.records(known[turn // run % templates], records, export_time=EXPORT_TIME) for turn in range(MESSAGES)
    )
    return Work(known, list(_chunks(messages)))


def batches(work: Work) -> Work:
    """The same messages, a few at a time, as an intake makes batches of them."""
    batcher = Batcher(FlowLimits(max_templates=MESSAGES, max_template_bytes=16 << 20), batch_bytes=1 << 30)
    for template in work.templates:
        batcher.feed(Encoder(1).templates([template], export_time=EXPORT_TIME))
    batcher.flush()
    made = []
    for chunk in work.chunks:
        for part in in_parts(chunk, BATCH_BYTES):
            batcher.feed(part)
            draft = batcher.flush()
            assert draft is not None
            made.append(draft.payload)
    return Work(work.templates, made)


def variable(each: int) -> Work:
    """Messages of so many records whose four texts have 3 to 24 octets."""
    template = make_template(256, VARIABLE_FIELDS)
    random = np.random.default_rng(1)
    letters = random.integers(97, 123, 4096, dtype=np.uint8).tobytes()
    start = bytes(12)

    def text(length: int) -> bytes:
        return make_variable(letters[length : 2 * length])

    records = [
        start + text(a) + start[:8] * 2 + text(b) + start[:8] * 2 + text(c) + text(d)
        for a, b, c, d in random.integers(3, 25, (50_000, 4)).tolist()
    ]
    encoder = Encoder(1)
    parts: Iterator[Sequence[bytes]] = (records[at : at + each] for at in range(0, len(records), each))
    return Work([template], list(_chunks(encoder.records(template, part, export_time=EXPORT_TIME) for part in parts)))


def _chunks(messages: Iterator[bytes]) -> Iterator[bytes]:
    pending: list[bytes] = []
    size = 0
    for message in messages:
        pending.append(message)
        size += len(message)
        if size >= CHUNK_BYTES:
            yield b"".join(pending)
            pending, size = [], 0
    yield b"".join(pending)


def _median(work: Work, task: Callable[[Session, Work], int]) -> float:
    rates = []
    for _ in range(6):
        session = work.session()
        began = time.process_time()
        records = task(session, work)
        rates.append(records / (time.process_time() - began))
    return sorted(rates[1:])[2]

"""The reference work of the benchmarks: one template of 14 fixed-length elements, 56 bytes a record."""

from __future__ import annotations

import numpy as np

from sapflow.flows.ipfix.encode import Encoder, make_template
from sapflow.flows.ipfix.templates import Template
from sapflow.flows.wire import MESSAGE_HEADER, SET_HEADER, VERSION

REFERENCE_FIELDS = (
    (0, 8, 4),
    (0, 12, 4),
    (0, 7, 2),
    (0, 11, 2),
    (0, 4, 1),
    (0, 6, 1),
    (0, 5, 1),
    (0, 61, 1),
    (0, 10, 4),
    (0, 14, 4),
    (0, 1, 8),
    (0, 2, 8),
    (0, 152, 8),
    (0, 153, 8),
)
EXPORT_TIME = 1_750_000_000


def reference_template(number: int = 256) -> Template:
    """Addresses, ports, protocol, flags, class, direction, interfaces, octets, packets, start and end."""
    return make_template(number, REFERENCE_FIELDS)


def reference_records(count: int, *, seed: int = 1) -> bytes:
    """Records in their wire form, the same for the same seed."""
    random = np.random.default_rng(seed)
    rows = np.zeros(
        count,
        dtype=[(f"f{index}", ">u" + str(length)) for index, (_, _, length) in enumerate(REFERENCE_FIELDS)],
    )
    for index, most in enumerate((1 << 32, 1 << 32, 65_536, 65_536, 0, 256, 64, 2, 48, 48, 1 << 24, 4096)):
        rows[f"f{index}"] = random.integers(0, most, count) if most else random.choice((1, 6, 17), count)
    start = EXPORT_TIME * 1000 - random.integers(0, 60_000, count)
    rows["f12"] = start
    rows["f13"] = start + random.integers(0, 30_000, count)
    return rows.tobytes()


def reference_work(
    messages: int = 20_000, records: int = 24, *, domain: int = 1, seed: int = 1, sequence: int = 0, define: bool = True
) -> bytes:
    """`messages` IPFIX messages of `records` data records each, after one that defines the template."""
    template = reference_template()
    size = template.record_bytes * records
    rows = np.frombuffer(reference_records(messages * records, seed=seed), dtype=np.uint8).reshape(messages, size)
    length = MESSAGE_HEADER.size + SET_HEADER.size + size
    head = np.zeros(
        messages,
        dtype=[(name, f">u{width}") for name, width in zip("vltsdig", (2, 2, 4, 4, 4, 2, 2), strict=True)],
    )
    head["v"], head["l"], head["t"], head["d"] = VERSION, length, EXPORT_TIME, domain
    head["s"] = (sequence + np.arange(messages, dtype=np.uint64) * records) & 0xFFFFFFFF
    head["i"], head["g"] = template.id, SET_HEADER.size + size
    whole = np.concatenate([head.view(np.uint8).reshape(messages, 20), rows], axis=1).tobytes()
    if not define:
        return whole
    return Encoder(domain, sequence).templates([template], export_time=EXPORT_TIME) + whole

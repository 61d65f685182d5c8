"""What a hostile or broken exporter may send in 64 KiB: the worst cases of structure, each a list of messages.

The last message of a case is the one that costs; those before it set the stage (templates).
"""

import gc
import io
import json
import struct
import time
from typing import Any

from sapflow.flows.columns import layouts
from sapflow.flows.columns.records import Context
from sapflow.flows.datagrams import netflow9_layouts
from sapflow.flows.formats import open_writer
from sapflow.flows.ipfix import shapes
from sapflow.flows.ipfix.encode import make_message, make_set, make_template, make_variable
from sapflow.flows.wire import VARIABLE_LENGTH

ROOM = 65_535 - 20
"""Bytes of one set's body in the largest message."""


def forget() -> None:
    """Let go what is kept of templates: whoever comes first pays for it all."""
    for kept in (shapes._shapes, layouts._layouts, netflow9_layouts._plans):
        kept.clear()
    layouts.kind_of.cache_clear()


def tick() -> float:
    """CPU seconds that some known work takes now: 8 to 20 ms on the two virtual cores that the figures are of."""
    # What other tests left behind is not to be looked through in it.
    gc.disable()
    try:
        began = time.process_time()
        made = {number: (number, str(number)) for number in range(30_000)}
        assert len([number for number, _ in made.values()]) == 30_000
        return time.process_time() - began
    finally:
        gc.enable()


def records_of(payload: bytes) -> list[dict[str, Any]]:
    """The records of messages as their JSON says them, without their context."""
    out = io.BytesIO()
    open_writer("jsonl", out).write(payload, Context())
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    return [{name: value for name, value in row.items() if name[0] != "_"} for row in rows]


def _filled(set_id: int, record: bytes) -> bytes:
    return make_message(make_set(set_id, record * (ROOM // len(record))))


def _defined(*fields: tuple[int, int, int], number: int = 256, scopes: int = 0) -> bytes:
    template = make_template(number, fields, scopes=scopes)
    return make_message(make_set(template.set_id, template.raw))


def _many_templates(count: int = 4096) -> list[bytes]:
    raws = [make_template(256 + n, [(0, 4, 1)]).raw for n in range(count)]
    return [make_message(make_set(2, b"".join(raws)))]


def _nested(levels: int) -> bytes:
    """basicLists of basicLists, as deep as bytes allow."""
    data = b""
    for _ in range(levels):
        data = struct.pack("!BHH", 255, 291, VARIABLE_LENGTH) + make_variable(data) if data else bytes(5)
    return data


def worst_cases() -> dict[str, list[bytes]]:
    """By name."""
    withdraw_all = make_set(2, struct.pack("!HH", 2, 0))
    one = make_template(256, [(0, 4, 1)])
    lists = (0, 292, VARIABLE_LENGTH)
    raws = [make_template(256 + n, [(0, 4, 1)]).raw for n in range(4096)]
    different = [make_template(256 + n, [(0, 4, 1), (0, 1 + n // 50, 1), (0, 1 + n % 50, 1)]).raw for n in range(1500)]
    single = [make_template(256 + n, [(0, 1 + n % 500, 1 + n // 500)]).raw for n in range(4096)]
    varying = [
        make_template(256 + n, [(0, 1 + n % 500, VARIABLE_LENGTH), (0, 1 + n // 500, 1)]).raw for n in range(4096)
    ]
    options = b"".join(make_template(5000 + n, [(0, 10, 4)], scopes=1).raw for n in range(2000))
    return {
        "one-byte records": [_defined((0, 4, 1)), _filled(256, b"\x06")],
        "empty values": [_defined((0, 82, VARIABLE_LENGTH)), _filled(256, b"\0")],
        "four empty values a record": [_defined(*[(0, 82, VARIABLE_LENGTH)] * 4), _filled(256, bytes(4))],
        "values of three length bytes": [_defined((0, 82, VARIABLE_LENGTH)), _filled(256, b"\xff\0\0")],
        "one value of all the bytes": [
            _defined((0, 82, VARIABLE_LENGTH)),
            make_message(make_set(256, make_variable(bytes(ROOM - 3)))),
        ],
        "a value that runs past behind 65,000": [
            _defined((0, 82, VARIABLE_LENGTH)),
            make_message(make_set(256, bytes(65_000) + b"\xff\xff\xff" + bytes(9))),
        ],
        "2,048 elements of one byte": [_defined(*[(0, 4, 1)] * 2048), _filled(256, bytes(2048))],
        "2,048 elements that vary": [_defined(*[(0, 82, VARIABLE_LENGTH)] * 2048), _filled(256, bytes(2048))],
        "2,047 elements of no length": [_defined((0, 4, 1), *[(0, 8, 0)] * 2047), _filled(256, b"\x06")],
        "no length among what varies": [
            _defined((0, 82, VARIABLE_LENGTH), *[(0, 8, 0)] * 2047),
            _filled(256, b"\0"),
        ],
        "the most values": [
            _defined((0, 4, 1), *[(0, 8, 0)] * 2047),
            make_message(make_set(256, bytes(63))),
        ],
        "empty sets": [_defined((0, 4, 1)), make_message(make_set(256, b"") * 16_379)],
        "sets of one record": [_defined((0, 4, 1)), make_message(make_set(256, b"\x06") * 13_103)],
        "sets of unknown templates": [make_message(b"".join(make_set(256 + n, b"a") for n in range(13_103)))],
        "reserved sets": [make_message(make_set(9, b"") * 16_379)],
        "templates of one element": _many_templates(),
        "a set for each of 4,096 templates": [
            *_many_templates(),
            make_message(b"".join(make_set(256 + n % 4096, b"\x06") for n in range(13_103))),
        ],
        "a set for each of 1,500 templates of different fields": [
            make_message(make_set(2, b"".join(different))),
            make_message(b"".join(make_set(256 + n % 1500, b"abc") for n in range(9285))),
        ],
        "a set for each of 4,096 templates of another element": [
            make_message(make_set(2, b"".join(single))),
            make_message(b"".join(make_set(256 + n % 4096, bytes(9)) for n in range(5039))),
        ],
        "a set for each of 4,096 templates of another element that varies": [
            make_message(make_set(2, b"".join(varying))),
            make_message(b"".join(make_set(256 + n % 4096, b"\x02abc") for n in range(8189))),
        ],
        "a template set for each template": [
            make_message(b"".join(make_set(2, make_template(256 + n, [(0, 4, 1)]).raw) for n in range(4096)))
        ],
        "one template defined again and again": [
            *_many_templates(),
            make_message(make_set(2, one.raw) * 5459),
        ],
        "a template and a record, again and again": [
            make_message((make_set(2, one.raw) + make_set(256, b"\x06")) * 3854),
        ],
        "all withdrawn again and again": [
            *_many_templates(2000),
            make_message(make_set(3, options)),
            make_message(withdraw_all * 8189),
        ],
        "withdrawn and defined, again and again": [
            *_many_templates(),
            make_message((withdraw_all + make_set(2, one.raw)) * 3275),
        ],
        "withdrawals of what is unknown": [
            make_message(make_set(2, b"".join(struct.pack("!HH", 256 + n, 0) for n in range(16_378))))
        ],
        "templates that cannot be used": [
            make_message(make_set(2, b"".join(struct.pack("!HHHH", 256 + n % 65_280, 1, 8, 0) for n in range(8189))))
        ],
        "padding that ends with another byte": [make_message(make_set(2, bytes(ROOM - 1) + b"\x01"))],
        "one template as wide as a message": [
            make_message(make_set(2, struct.pack("!HH", 256, 16_377) + bytes(ROOM - 7)))
        ],
        "lists nested as deep as they go": [
            _defined((0, 291, VARIABLE_LENGTH)),
            make_message(make_set(256, make_variable(_nested(7_000)))),
        ],
        "empty lists": [_defined(lists), _filled(256, b"\x03\xff\x01\x00")],
        "lists of lists of lists": [
            _defined(lists),
            _filled(
                256, make_variable(b"\xff\x01\x00" + make_variable(b"\xff\x01\x00" + make_variable(b"\xff\x01\x00")))
            ),
        ],
        "one list of empty values": [
            _defined((0, 291, VARIABLE_LENGTH)),
            make_message(make_set(256, make_variable(struct.pack("!BHH", 255, 82, VARIABLE_LENGTH) + bytes(ROOM - 8)))),
        ],
        "a list whose template changes with every set": [
            _defined(lists),
            make_message(
                (make_set(2, make_template(300, [(0, 4, 1)]).raw) + make_set(256, b"\x03\xff\x01\x2c")) * 3000
            ),
        ],
        "a list whose template changes with every set, among thousands": [
            _defined(lists, number=5000),
            *_many_templates(4000),
            make_message(
                b"".join(
                    make_set(2, make_template(300, [(0, 4 + n % 2, 1)]).raw) + make_set(5000, b"\x03\xff\x01\x2c")
                    for n in range(3000)
                )
            ),
        ],
        "a list whose template is changed and changed back": [
            _defined(lists, number=5000),
            *_many_templates(4000),
            make_message(
                (
                    make_set(2, make_template(300, [(0, 5, 1)]).raw)
                    + make_set(2, make_template(300, [(0, 4, 1)]).raw)
                    + make_set(5000, b"\x03\xff\x01\x2c")
                )
                * 2000
            ),
        ],
        "a new template and a record, again and again": [
            make_message(b"".join(make_set(2, raw) + make_set(256 + n, b"\x06") for n, raw in enumerate(raws[:3800])))
        ],
        "templates defined and then unusable": [
            make_message(
                make_set(2, b"".join(raws[:4000]))
                + make_set(2, b"".join(struct.pack("!HHHH", 256 + n, 1, 4, 0) for n in range(4000)))
            )
        ],
        "all withdrawn again and again beside a record": [
            *_many_templates(2000),
            make_message(make_set(3, options)),
            make_message(make_set(256, b"\x06") + withdraw_all * 8180),
        ],
        "headers alone": [make_message(b"") * 4095],
        "domains": [b"".join(make_message(b"", domain=n) for n in range(1024))],
    }

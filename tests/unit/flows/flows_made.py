"""Batches of records made from names and values, through the wire and back."""

from collections.abc import Mapping, Sequence
from ipaddress import ip_address

from sapflow.flows.columns.batches import FlowBatch, decode
from sapflow.flows.columns.records import values_of
from sapflow.flows.ipfix.encode import Encoder, make_template, make_variable
from sapflow.flows.meaning.fields import number_of
from sapflow.flows.registry import built_in
from sapflow.flows.wire import VARIABLE_LENGTH

EXPORTED = 1_750_000_000
WIDTHS = {
    "unsigned8": 1,
    "unsigned16": 2,
    "unsigned32": 4,
    "unsigned64": 8,
    "dateTimeSeconds": 4,
    "dateTimeMilliseconds": 8,
    "dateTimeMicroseconds": 8,
    "dateTimeNanoseconds": 8,
    "boolean": 1,
}
Value = int | str | bytes
Record = Mapping[str, Value]


def messages(
    *records: Record, scopes: int = 0, domain: int = 1, exported: int = EXPORTED, template: int = 300
) -> bytes:
    """IPFIX messages of records that have the same elements: integers, addresses as text, octets, other text."""
    fields = [_field(name, value) for name, value in records[0].items()]
    made = make_template(template, fields, scopes=scopes)
    encoder = Encoder(domain=domain)
    rows = [b"".join(_octets(name, record[name]) for name in records[0]) for record in records]
    return encoder.templates([made], export_time=exported) + encoder.records(made, rows, export_time=exported)


def a_batch(*records: Record, scopes: int = 0, domain: int = 1, exported: int = EXPORTED) -> FlowBatch:
    """The same, decoded."""
    (batch,) = decode(messages(*records, scopes=scopes, domain=domain, exported=exported))
    return batch


def ntp(seconds: int, fraction: int = 0) -> int:
    """A time as RFC 7011, 6.1.9 has it: seconds since 1900 and a binary fraction."""
    return (seconds + 2_208_988_800) << 32 | fraction


def _field(name: str, value: Value) -> tuple[int, int, int]:
    octets = _octets(name, value)
    return (*number_of(name), VARIABLE_LENGTH if _varies(name, value) else len(octets))


def _varies(name: str, value: Value) -> bool:
    return isinstance(value, str) and built_in().lookup(*number_of(name)).type == "string"


def _octets(name: str, value: Value) -> bytes:
    kind = built_in().lookup(*number_of(name)).type
    if isinstance(value, bytes):
        return value
    if isinstance(value, int):
        return value.to_bytes(WIDTHS[kind], "big")
    return make_variable(value.encode()) if kind == "string" else ip_address(value).packed


def seen(batches: Sequence[FlowBatch]) -> list[dict[str, object]]:
    """Rows as text formats have them, without nulls."""
    rows = []
    for batch in batches:
        values = values_of(batch)
        rows += [
            {name: value for name, value in zip(values, row, strict=True) if value is not None}
            for row in zip(*values.values(), strict=True)
        ]
    return rows

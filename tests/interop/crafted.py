"""Flow exports crafted with scapy: what no exporter at hand sends, or not side by side.

scapy 2.8 needs help: it leaves its version out of an IPFIX message's length, and cannot pad an options template of
which it has to work out the lengths.
"""

from __future__ import annotations

from typing import Any

from scapy.layers.netflow import (
    GetNetflowRecordV9,
    NetflowDataflowsetV9,
    NetflowFlowsetV9,
    NetflowHeader,
    NetflowHeaderV5,
    NetflowHeaderV9,
    NetflowHeaderV10,
    NetflowOptionsFlowset10,
    NetflowOptionsFlowsetOptionV9,
    NetflowOptionsFlowsetScopeV9,
    NetflowOptionsFlowsetV9,
    NetflowRecordV5,
    NetflowTemplateFieldV9,
    NetflowTemplateV9,
)
from scapy.packet import Packet

EXPORTED_S = 1_750_000_000
UPTIME_MS = 600_000
Fields = list[tuple[int, int]]
"""Element and length."""

FLOW: Fields = [(8, 4), (12, 4), (7, 2), (11, 2), (4, 1), (5, 1), (6, 1), (10, 4), (14, 4), (16, 4), (17, 4)]
COUNTERS: Fields = [(1, 4), (2, 4)]
UPTIMES: Fields = [(22, 4), (21, 4)]
WIDE: Fields = [(27, 16), (28, 16), (4, 1), (58, 2), (56, 6), (61, 1)]
SAMPLER: Fields = [(48, 4), (49, 1), (50, 4)]
INTERFACE: Fields = [(82, 12), (83, 20)]


def netflow5() -> list[bytes]:
    """Two engines, sampled 1 in 100 and 1 in 1000; ICMP, AS numbers, masks, a next hop."""
    return [_datagram5(engine, mode << 14 | rate) for engine, mode, rate in ((1, 1, 100), (2, 2, 1000))]


def _datagram5(engine: int, sampling: int) -> bytes:
    packet = NetflowHeader(version=5) / NetflowHeaderV5(
        count=3,
        sysUptime=UPTIME_MS,
        unixSecs=EXPORTED_S,
        unixNanoSeconds=250_000_000,
        flowSequence=0,
        engineType=1,
        engineID=engine,
        samplingInterval=sampling,
    )
    for number, (protocol, port) in enumerate(((6, 443), (17, 53), (1, 0x0800))):
        packet /= NetflowRecordV5(
            src=f"192.0.2.{number + 1}",
            dst=f"198.51.100.{number + 1}",
            nexthop="203.0.113.1",
            input=number + 1,
            output=number + 11,
            dpkts=1000 + number,
            dOctets=4_000_000_000 + number,
            first=UPTIME_MS - 5_000 - number,
            last=UPTIME_MS - 1_000 - number,
            srcport=0 if protocol == 1 else 1024 + number,
            dstport=port,
            tcpFlags=0x1B if protocol == 6 else 0,
            prot=protocol,
            tos=0xB8,
            src_as=64_496 + number,
            dst_as=64_500 + number,
            src_mask=24,
            dst_mask=25,
        )
    return bytes(packet)


def netflow9() -> list[bytes]:
    """Templates, options templates with both scopes, and their data, in one datagram; data alone in another."""
    flow, wide = FLOW + COUNTERS + UPTIMES, WIDE + COUNTERS + UPTIMES
    definitions = NetflowFlowsetV9(templates=[_template(300, flow), _template(301, wide)])
    sets = [
        definitions,
        _options9(400, [(1, 4)], SAMPLER),
        _options9(401, [(2, 4)], INTERFACE),
        _data(400, [(1, 4), *SAMPLER], [_sampler(1), _sampler(2)]),
        _data(401, [(2, 4), *INTERFACE], [_interface(number) for number in (1, 2, 3)]),
        _data(300, flow, [_flow(number) | _switched(number) for number in range(5)]),
    ]
    more = [
        _data(301, wide, [_wide(number) | _switched(number) for number in range(4)]),
        _data(300, flow, [_flow(number) | _switched(number) for number in range(5, 8)]),
    ]
    return [_packet9(sets, 14, 0), _packet9(more, 7, 1)]


def _packet9(sets: list[Packet], count: int, number: int) -> bytes:
    head = NetflowHeaderV9(
        count=count, sysUptime=UPTIME_MS, unixSecs=EXPORTED_S, packageSequence=number, SourceID=0x01000007
    )
    return bytes(NetflowHeader(version=9) / head) + b"".join(map(bytes, sets))


def ipfix() -> list[bytes]:
    """An element of an enterprise, counters of 8 octets, absolute times, options by two scopes; two domains."""
    return [part for domain in (1, 2) for part in _ipfix_of(domain)]


def _ipfix_of(domain: int) -> list[bytes]:
    flow = [*FLOW, (1, 8), (2, 8), (152, 8), (153, 8)]
    own = NetflowTemplateFieldV9(enterpriseBit=1, fieldType=7, fieldLength=4, enterpriseNumber=32473)
    template = _template(300, flow)
    template.template_fields = [*template.template_fields, own]
    first = [
        NetflowFlowsetV9(flowSetID=2, templates=[template]),
        _options10(400, [(149, 4), (302, 8)], [(304, 2), (305, 4), (306, 4)]),
        _data(400, [(149, 4), (302, 8), (304, 2), (305, 4), (306, 4)], [_selector(domain, n) for n in (1, 2)]),
    ]
    records = [
        bytes(record) + number.to_bytes(4, "big")
        for number in range(6)
        for record in [_record(flow)(**_names(flow, _flow(number) | _absolute(number)))]
    ]
    body = b"".join(records)
    second = (300).to_bytes(2, "big") + (4 + len(body)).to_bytes(2, "big") + body
    return [_message(b"".join(map(bytes, first)), domain, 0), _message(second, domain, 2)]


def _message(body: bytes, domain: int, number: int) -> bytes:
    head = NetflowHeaderV10(
        length=16 + len(body), ExportTime=EXPORTED_S, flowSequence=number, ObservationDomainID=domain
    )
    return bytes(NetflowHeader(version=10) / head) + body


def _template(number: int, fields: Fields) -> Packet:
    specifiers = [NetflowTemplateFieldV9(fieldType=kind, fieldLength=length) for kind, length in fields]
    return NetflowTemplateV9(templateID=number, template_fields=specifiers)


def _options9(number: int, scopes: Fields, fields: Fields) -> Packet:
    return NetflowOptionsFlowsetV9(
        templateID=number,
        pad=bytes(-(10 + 4 * len(scopes + fields)) % 4),
        scopes=[NetflowOptionsFlowsetScopeV9(scopeFieldType=kind, scopeFieldlength=size) for kind, size in scopes],
        options=[NetflowOptionsFlowsetOptionV9(optionFieldType=kind, optionFieldlength=size) for kind, size in fields],
    )


def _options10(number: int, scopes: Fields, fields: Fields) -> Packet:
    return NetflowOptionsFlowset10(
        templateID=number,
        field_count=len(scopes + fields),
        scope_field_count=len(scopes),
        pad=b"",
        scopes=[NetflowOptionsFlowsetScopeV9(scopeFieldType=kind, scopeFieldlength=size) for kind, size in scopes],
        options=[NetflowOptionsFlowsetOptionV9(optionFieldType=kind, optionFieldlength=size) for kind, size in fields],
    )


def _record(fields: Fields) -> type[Packet]:
    made: type[Packet] = GetNetflowRecordV9(NetflowFlowsetV9(templates=[_template(300, fields)]))
    return made


def _names(fields: Fields, values: dict[int, Any]) -> dict[str, Any]:
    """By scapy's own names of fields; integers become octets where scapy has a text."""
    named = {}
    for (kind, length), field in zip(fields, _record(fields).fields_desc, strict=True):
        value = values[kind]
        is_text = type(field).__name__ == "_CustomStrFixedLenField"
        named[field.name] = value.to_bytes(length, "big") if is_text and isinstance(value, int) else value
    return named


def _data(number: int, fields: Fields, records: list[dict[int, Any]]) -> Packet:
    kind = _record(fields)
    return NetflowDataflowsetV9(templateID=number, records=[kind(**_names(fields, values)) for values in records])


def _flow(number: int) -> dict[int, Any]:
    return {
        8: f"192.0.2.{number + 1}",
        12: f"198.51.100.{number + 1}",
        7: 1024 + number,
        11: 443,
        4: 6,
        5: 0xB8,
        6: 0x1B,
        10: number + 1,
        14: number + 11,
        16: 4_200_000_000 + number,
        17: 64_500 + number,
        1: 4_000_000_000 + number,
        2: 3_000 + number,
    }


def _wide(number: int) -> dict[int, Any]:
    addresses = {27: f"2001:db8::{number + 1}", 28: f"2001:db8:1::{number + 1}"}
    return addresses | {4: 58, 58: 100 + number, 56: f"02:00:00:00:00:{number:02x}", 61: 1, 1: 500 + number, 2: 5}


def _switched(number: int) -> dict[int, Any]:
    return {22: UPTIME_MS - 5_000 - number, 21: UPTIME_MS - 1_000 - number}


def _absolute(number: int) -> dict[int, Any]:
    return {152: EXPORTED_S * 1000 - 5_000 - number, 153: EXPORTED_S * 1000 - 1_000 - number}


def _sampler(number: int) -> dict[int, Any]:
    return {1: 7, 48: number, 49: 2, 50: 100 * number}


def _interface(number: int) -> dict[int, Any]:
    return {2: number, 82: f"eth{number}".ljust(12, "\0").encode(), 83: f"uplink {number}".ljust(20, "\0").encode()}


def _selector(domain: int, number: int) -> dict[int, Any]:
    return {149: domain, 302: number, 304: 1, 305: 1, 306: 99 * number}

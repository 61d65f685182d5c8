"""What ipfixDump, libfixbuf's own reader, reads in an IPFIX File: records as `sapflow decode` writes them.

ipfixDump 2.4.1 has its ways: fractions of micro- and nanoseconds are zeros (tshark has them right), a boolean is its
octet, and what is longer than its element (samplerId in four octets, as v9 has it), or of no element that it knows, is
an integer with its octets turned around. How members of a list relate is in its text, but not in ours.
"""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from sapflow.flows.registry import registry
from tests.interop.exporters import program

Row = dict[str, Any]

_FIELD = re.compile(r"\((?:(\d+)/)?(\d+)\)(?: \(S\))?\s+\S+ : ?(.*)")
_MEMBER = re.compile(r"\d+\s*: (.*)")
_TEMPLATE = re.compile(r"count: \d+\s+tid:\s+(\d+)")
_BASIC = re.compile(r"count: (\d+)\s+semantic: \S+\s+ie: \((?:(\d+)/)?(\d+)\)")
_LISTS = ("basicList", "subTemplateList", "subTemplateMultiList")
_OF_EXAMPLES: dict[int, Callable[[str], bytes]] = {
    1: str.encode,
    2: lambda text: int(text).to_bytes(8, "big"),
    3: lambda text: int(text).to_bytes(4, "big", signed=True),
    4: lambda text: struct.pack("!d", float(text)),
    5: lambda text: bytes.fromhex(text.removeprefix("0x")),
    7: lambda text: int(text).to_bytes(4, "little"),
}
"""The elements of `fixbuf_exporter.c` and `crafted.py`, which no registry has: we give their octets."""
_EXAMPLES = 32473


def records(path: Path) -> list[Row]:
    """Every data record of an IPFIX File."""
    command = [program("ipfixDump"), "--in", str(path), "--data", "--rfc5610", "--yaf", "--hexdump=65535"]
    text = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True).stdout
    parts = re.split(r"^--- data record \d+ ---\n", text, flags=re.MULTILINE)[1:]
    return [_Lines(part.splitlines()).record(0) for part in parts]


class _Lines:
    """The lines of a record; what a line belongs to is told by the tabs before it."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = [(len(line) - len(line.lstrip("\t")), line.strip("\t")) for line in lines]
        self._at = 0

    def record(self, depth: int) -> Row:
        """One record whose fields are a tab deeper than `depth`."""
        row: Row = {}
        assert self._next(depth) == "header:"
        template = _TEMPLATE.match(self._next(depth + 1))
        assert template is not None
        row["_template"] = int(template[1])
        assert self._next(depth) == "fields:"
        while (field := self._peek(depth + 1, _FIELD)) is not None:
            self._at += 1
            pen, number, text = int(field[1] or 0), int(field[2]), field[3]
            element = registry().lookup(pen, number)
            name = element.name
            times = sum(known == name or re.fullmatch(rf"{name}_\d+", known) is not None for known in row)
            row[name if not times else f"{name}_{times + 1}"] = (
                self._list(depth + 2) if element.type in _LISTS else _value(pen, number, text)
            )
        return row

    def _list(self, depth: int) -> list[Row]:
        kind = self._next(depth)
        head = self._next(depth + 1)
        if kind == "+++ basicList +++":
            return self._basic(head, depth + 1)
        members: list[Row] = []
        if kind == "+++ subTemplateList +++":
            members += self._members(depth)
        while self._peek(depth, re.compile(r"\+\+\+ subTemplateMultiListEntry")):
            self._at += 2
            members += self._members(depth)
        return members

    def _members(self, depth: int) -> list[Row]:
        members = []
        while self._peek(depth, re.compile("--- data record")):
            self._at += 1
            member = self.record(depth)
            del member["_template"]
            members.append(member)
        return members

    def _basic(self, head: str, depth: int) -> list[Row]:
        said = _BASIC.match(head)
        assert said is not None
        pen, number = int(said[2] or 0), int(said[3])
        members = []
        for _ in range(int(said[1])):
            member = _MEMBER.match(self._next(depth))
            assert member is not None
            members.append({registry().lookup(pen, number).name: _value(pen, number, member[1])})
        return members

    def _next(self, depth: int) -> str:
        found, text = self._lines[self._at]
        assert found == depth, (depth, self._lines[self._at])
        self._at += 1
        return text

    def _peek(self, depth: int, pattern: re.Pattern[str]) -> re.Match[str] | None:
        if self._at == len(self._lines) or self._lines[self._at][0] != depth:
            return None
        return pattern.match(self._lines[self._at][1])


def _value(pen: int, number: int, text: str) -> Any:
    text = re.sub(r"^\(len: \d+\) ?", "", text)
    if pen == _EXAMPLES:
        return _OF_EXAMPLES[number](text).hex()
    kind = registry().lookup(pen, number).type
    if kind in ("string", "macAddress"):
        return text
    if kind.startswith("dateTime"):
        return text.replace(" ", "T") + "Z"
    if kind in ("ipv4Address", "ipv6Address"):
        return str(ip_address(text)) if kind == "ipv6Address" else text
    if kind == "boolean":
        return text == "1"
    if kind == "octetArray":
        return text.removeprefix("0x")
    return int(text)


def as_printed(row: Row) -> Row:
    """A record of ours, without what ipfixDump does not print."""
    return {name: _as_printed(name, value) for name, value in row.items() if name[0] != "_" or name == "_template"}


def _as_printed(name: str, value: Any) -> Any:
    if name == "samplerId":
        return int.from_bytes(value.to_bytes(4, "big"), "little")
    if isinstance(value, str) and (match := re.fullmatch(r"(\d{4}-\d\d-\d\dT[\d:]{8}\.)(\d{6}|\d{9})Z", value)):
        return match[1] + "0" * len(match[2]) + "Z"
    if isinstance(value, list):
        return [as_printed(member) for member in value]
    return value

"""Elements of vendors as Wireshark knows them: numbers and names from `tshark -G values`, types from `-G fields`.

Wireshark lists an element's number with a name, and elsewhere a display field with a name and a type. Names that agree
join the two; between two elements that agree, as many fields as elements belong to each other in order. An element
without a field of its own is left out: its type would be a guess.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Sequence

from attrs import frozen

from sapflow.flows.registry import InformationElement

TYPES = {
    "FT_UINT8": "unsigned8",
    "FT_UINT16": "unsigned16",
    "FT_UINT24": "unsigned32",
    "FT_UINT32": "unsigned32",
    "FT_UINT64": "unsigned64",
    "FT_INT32": "signed32",
    "FT_STRING": "string",
    "FT_STRINGZ": "string",
    "FT_IPv4": "ipv4Address",
    "FT_IPv6": "ipv6Address",
    "FT_ETHER": "macAddress",
    "FT_FLOAT": "float32",
    "FT_DOUBLE": "float64",
    "FT_BYTES": "octetArray",
    "FT_GUID": "octetArray",
    # Of 4 octets they are seconds; of another length our decoder gives the octets as they are.
    "FT_ABSOLUTE_TIME": "dateTimeSeconds",
}
"""Types that say what the octets are; those of lists and of durations (their unit is not told) are left out."""


@frozen
class Vendor:
    """Where Wireshark has a vendor's elements; their names get the prefix, so that IANA's are not taken for them."""

    file: str
    pen: int
    values: str
    fields: str
    prefix: str


VENDORS = (
    Vendor("ntop", 35632, "ntop", "ntop", ""),
    Vendor("ixia", 3054, "ixia", "ixia", "ixia"),
    Vendor("gigamon", 26866, "gigamon", "gigamon", "gigamon"),
    Vendor("barracuda", 10704, "barracuda", "barracuda", "barracuda"),
    Vendor("niagara", 47729, "niagara_networks", "niagaranetworks", "niagara"),
    Vendor("plixer", 13745, "plixer", "plixer", "plixer"),
)


def elements_of(vendor: Vendor, values: str, fields: str) -> list[InformationElement]:
    """A vendor's elements, of the text that tshark gives."""
    listed = _listed(values, vendor.values)
    shown = _shown(fields, vendor.fields)
    return [
        InformationElement(vendor.pen, number, _name(vendor, title), TYPES[kind], "", "", "current")
        for (number, title), kind in _joined(listed, shown)
        if kind in TYPES
    ]


def dump(what: str) -> str:
    """What `tshark -G` says of values or of fields."""
    done = subprocess.run(["tshark", "-G", what], capture_output=True, check=True)
    return done.stdout.decode(errors="replace")


def _listed(values: str, vendor: str) -> list[tuple[int, str]]:
    rows = (line.split("\t") for line in values.splitlines() if line.startswith("V\t"))
    return [(int(row[2], 0), row[3]) for row in rows if row[1] == f"cflow.template_{vendor}_field_type"]


def _shown(fields: str, vendor: str) -> list[tuple[str, str, str]]:
    """Title, short name and type of each display field."""
    rows = (line.split("\t") for line in fields.splitlines() if line.startswith("F\tcflow") or "\tcflow.pie." in line)
    begin = f"cflow.pie.{vendor}."
    return [(row[1], row[2].removeprefix(begin), row[3]) for row in rows if row[2].startswith(begin)]


def _joined(
    listed: Sequence[tuple[int, str]], shown: Sequence[tuple[str, str, str]]
) -> Iterable[tuple[tuple[int, str], str]]:
    places = {_plain(text): at for at, (title, short, _) in reversed(list(enumerate(shown))) for text in (title, short)}
    found = [places.get(_plain(title)) for _, title in listed]
    at = 0
    while at < len(listed):
        place = found[at]
        if place is not None:
            yield listed[at], shown[place][2]
            at += 1
            continue
        stop = next((later for later in range(at, len(found)) if found[later] is not None), len(found))
        before = found[at - 1] if at else -1
        after = found[stop] if stop < len(found) else len(shown)
        if before is not None and after is not None and after - before - 1 == stop - at:
            for offset in range(stop - at):
                yield listed[at + offset], shown[before + 1 + offset][2]
        at = stop


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _name(vendor: Vendor, title: str) -> str:
    if not vendor.prefix:
        return title
    words = [word for word in re.split(r"[^A-Za-z0-9]+", title) if word]
    return (vendor.prefix + "".join(word[0].upper() + word[1:] for word in words))[:64]

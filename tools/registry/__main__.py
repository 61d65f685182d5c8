"""`python -m tools.registry check` looks every data file over; `wireshark` makes those anew that tshark knows."""

from __future__ import annotations

import argparse
import csv
import sys
from importlib import resources
from pathlib import Path

from sapflow.flows.registry import COLUMNS, InformationElement
from tools.registry.check import faults
from tools.registry.wireshark import VENDORS, dump, elements_of

FOLDER = Path(str(resources.files("sapflow.flows"))) / "elements"


def main() -> int:
    """Exit code 1 when a file has a fault."""
    parser = argparse.ArgumentParser(prog="tools.registry", description=__doc__)
    parser.add_argument("what", choices=["check", "wireshark"])
    if parser.parse_args().what == "wireshark":
        values, fields = dump("values"), dump("fields")
        for vendor in VENDORS:
            write(FOLDER / f"{vendor.file}.csv", elements_of(vendor, values, fields))
    found = faults(FOLDER)
    print("\n".join(found) or "all files are in order", file=sys.stderr if found else sys.stdout)
    return 1 if found else 0


def write(path: Path, elements: list[InformationElement]) -> None:
    """A data file, in the order of its numbers."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        for item in sorted(elements, key=lambda element: (element.pen, element.id)):
            rows.writerow([item.pen, item.id, item.name, item.type, item.semantics, item.units, item.status])


if __name__ == "__main__":
    sys.exit(main())

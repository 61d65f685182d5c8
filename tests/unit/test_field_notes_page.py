"""Every row of the page on bad input names tests that there are, and every case of the hostile world has one."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "reference" / "field-notes.md").read_text()
NAMED = re.compile(r"`((?:unit|property|interop|chaos)/[\w/]+)`")
ROWS = [
    line
    for line in PAGE.splitlines()
    if line.startswith("| ") and not re.match(r"\| (-|what|case|rule|exporter) ", line)
]


@pytest.mark.parametrize("named", sorted(set(NAMED.findall(PAGE))))
def test_a_test_that_the_page_names_is_there(named: str) -> None:
    assert (TESTS / f"{named}.py").exists()


@pytest.mark.parametrize("row", [row for row in ROWS if row.count("|") > 3 and "| counted" not in row])
def test_every_row_names_a_test(row: str) -> None:
    costs = PAGE.split("## What a fault costs")[1].split("\n## ")[0]
    assert row in costs or NAMED.search(row) or "as above" in row


@pytest.mark.parametrize("number", range(1, 35))
def test_every_case_is_in_a_test_that_says_so(number: int) -> None:
    case = f"F{number:02}"
    (row,) = [row for row in ROWS if case in row.split("|")[1]]
    files = [(TESTS / f"{named}.py").read_text() for named in NAMED.findall(row)]
    assert any(re.search(rf"\b(test_\w*?)?{case}(\b|_)", text, re.IGNORECASE) for text in files)

"""The pages that are made from the code say what the code does."""

import pytest
from tools.reference import PAGES, PLACE


@pytest.mark.parametrize("name", PAGES)
def test_a_reference_page_is_in_step_with_the_code(name: str) -> None:
    assert (PLACE / name).read_text() == PAGES[name]().rstrip() + "\n", "say: python -m tools.reference"


def test_every_setting_says_what_it_is() -> None:
    rows = [line for line in PAGES["configuration.md"]().splitlines() if line.startswith("| `")]
    assert len(rows) > 40
    assert not [row for row in rows if row.endswith("|  |")]

"""Every decoder fed with mutations of what it knows, the same each time; and again with what once broke one of them."""

import time
from itertools import islice
from pathlib import Path
from random import Random

import pytest
from tools.fuzz.mutate import mutations
from tools.fuzz.seeds import parted, together
from tools.fuzz.targets import TARGETS

CRASHES = Path(__file__).parents[1] / "fuzz_crashes"
ROUND_S = 0.4


@pytest.mark.parametrize("name", TARGETS)
def test_only_declared_errors_get_out_of_a_decoder(name: str) -> None:
    target = TARGETS[name]
    for data in target.seeds():
        target.run(data)
    until = time.monotonic() + ROUND_S
    for number, data in enumerate(islice(mutations(target.seeds(), Random(1)), 5000)):
        # At least some however slow the machine is.
        if number > 100 and time.monotonic() > until:
            break
        target.run(data)


@pytest.mark.parametrize("path", sorted(CRASHES.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_once_broke_a_decoder_does_so_no_more(path: Path) -> None:
    began = time.monotonic()
    TARGETS[path.parent.name].run(path.read_bytes())
    assert time.monotonic() - began < 5


def test_seeds_of_parts_are_taken_apart_as_they_were_put_together() -> None:
    parts = [b"", b"a", bytes(300)]
    assert parted(together(parts)) == parts


def test_mutations_are_the_same_for_the_same_seed() -> None:
    seeds = TARGETS["walk"].seeds()
    first, again, other = (list(islice(mutations(seeds, Random(number)), 20)) for number in (1, 1, 2))
    assert first == again != other

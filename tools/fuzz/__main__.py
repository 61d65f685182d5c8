"""`python -m tools.fuzz TARGET [--seconds N]`: coverage-guided with atheris, or by plain mutations without it.

Inputs that broke a target are kept in `tests/fuzz_crashes/TARGET/`, where the tests run each of them again.
atheris comes with `uv sync --group fuzz`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from tools.fuzz.targets import Target

CRASHES = Path(__file__).parents[2] / "tests" / "fuzz_crashes"
SLOW_S = 2.0
"""An input that takes longer is kept as well: no decoder may."""


@click.command()
@click.argument("name", metavar="TARGET")
@click.option("--seconds", default=60, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the plain mutations.")
@click.option("--plain", is_flag=True, help="Mutations without coverage, also where atheris is there.")
@click.option("--max-bytes", default=16_384, show_default=True, help="The longest input that atheris makes.")
def main(name: str, seconds: int, seed: int, plain: bool, max_bytes: int) -> None:
    """Feed a decoder until it breaks or the time is over."""
    guided = not plain and importlib.util.find_spec("atheris") is not None
    if guided:
        import atheris

        with atheris.instrument_imports(include=["sapflow", "meter", "balancer"]):
            from tools.fuzz.targets import TARGETS
    else:
        from tools.fuzz.targets import TARGETS
    if name not in TARGETS:
        raise click.UsageError(f"no target '{name}'; there are {', '.join(TARGETS)}")
    target = TARGETS[name]
    if guided:
        _guided(name, target, seconds, max_bytes)
    else:
        _plain(name, target, seconds, seed)


def _plain(name: str, target: Target, seconds: int, seed: int) -> None:
    from tools.fuzz.mutate import mutations

    until = time.monotonic() + seconds
    runs = 0
    for data in mutations(target.seeds(), Random(seed)):
        _one(name, target, data)
        runs += 1
        if time.monotonic() >= until:
            break
    click.echo(f"{name}: {runs:,} inputs, none broke it")


def _guided(name: str, target: Target, seconds: int, max_bytes: int) -> None:
    import atheris

    with tempfile.TemporaryDirectory() as directory:
        for number, data in enumerate(target.seeds()):
            Path(directory, f"seed-{number}").write_bytes(data)
        options = [f"-max_total_time={seconds}", f"-max_len={max_bytes}", "-verbosity=0", "-print_final_stats=1"]
        atheris.Setup([sys.argv[0], *options, directory], lambda data: _one(name, target, data))
        atheris.Fuzz()


def _one(name: str, target: Target, data: bytes) -> None:
    began = time.monotonic()
    try:
        target.run(data)
    except BaseException:
        _keep(name, data)
        raise
    took = time.monotonic() - began
    if took > SLOW_S:
        _keep(name, data)
        click.echo(f"{name}: {len(data):,} bytes took {took:.1f} s", err=True)


def _keep(name: str, data: bytes) -> None:
    directory = CRASHES / name
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / hashlib.sha256(data).hexdigest()[:16]
    path.write_bytes(data)
    click.echo(f"{name}: kept {os.path.relpath(path)}", err=True)


if __name__ == "__main__":
    main()

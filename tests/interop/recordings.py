"""What exporters sent, recorded once a session, all at the same time."""

from __future__ import annotations

import io
import json
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from attrs import define
from click.testing import CliRunner

from sapflow.cli import cli
from sapflow.flows.formats import open_writer
from sapflow.flows.records import Context
from tests.interop.exporters import EXPORTERS, a_capture_of
from tests.peers import needs, needs_root

Row = dict[str, Any]
"""A record as `sapflow decode` gives it."""


def sapflow(*words: object) -> bytes:
    """What the command prints; it must succeed."""
    result = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout_bytes


def decoded(path: Path) -> list[Row]:
    """The records of a file."""
    return [json.loads(line) for line in sapflow("decode", path).splitlines()]


def undescribed(path: Path) -> list[Row]:
    """The records of a file, without what they say of their own elements (RFC 5610): as other readers have them."""
    out = io.BytesIO()
    writer = open_writer("jsonl", out)
    writer.write(sapflow("decode", path, "--format", "ipfix"), Context())
    writer.close()
    return [json.loads(line) for line in out.getvalue().splitlines()]


@define(slots=False)
class Recording:
    """What one exporter sent."""

    directory: Path
    datagrams: list[bytes]
    describes: bool
    """Whether it tells of its own elements, which other readers leave without a name."""

    @cached_property
    def capture(self) -> Path:
        """A capture of it."""
        return a_capture_of(self.datagrams, self.directory / "sent.pcap")

    @cached_property
    def rows(self) -> list[Row]:
        """The records, as we read them."""
        return undescribed(self.capture) if self.describes else decoded(self.capture)


class Recordings:
    """Recordings by the exporters' names; those that are wanted are made together."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._pool = ThreadPoolExecutor(max_workers=len(EXPORTERS))
        self._made: dict[str, Future[Recording]] = {}

    def begin(self, *names: str) -> None:
        """Make these, if they are not made or begun."""
        for name in names:
            if name not in self._made:
                self._made[name] = self._pool.submit(self._record, name)

    def __getitem__(self, name: str) -> Recording:
        self.begin(name)
        return self._made[name].result()

    def _record(self, name: str) -> Recording:
        directory = self._directory / name.replace(" ", "-")
        exporter = EXPORTERS[name]
        return Recording(directory, exporter.record(directory), exporter.describes)


def of_each(*names: str) -> pytest.MarkDecorator:
    """A test for each of these exporters, or of all; it skips where one is missing."""
    chosen = names or tuple(EXPORTERS)
    return pytest.mark.parametrize("exporter", [pytest.param(name, marks=_marks(name), id=name) for name in chosen])


def _marks(name: str) -> list[pytest.MarkDecorator]:
    exporter = EXPORTERS[name]
    root = [needs_root(f"{name} captures on an interface")] if exporter.needs_root else []
    return [needs(*exporter.needs), *root]

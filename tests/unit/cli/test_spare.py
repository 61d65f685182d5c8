"""A spare knows whether what it loaded is what is installed."""

import os
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from sapflow.cli.spare import loaded_files


def test_the_files_of_all_loaded_modules_are_known() -> None:
    found = loaded_files()
    assert {sys.modules[name].__file__ for name in ("sapflow.cli.spare", "trio", "json")} <= found.keys()
    assert loaded_files(found) == found


def written_anew(path: Path) -> None:
    another = path.with_suffix(".new")
    another.write_text("x = 2\n")
    stamp = path.stat()
    os.utime(another, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    another.rename(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_text("x = 12\n"),
        lambda path: os.utime(path, (1, 1)),
        lambda path: path.unlink(),
        written_anew,
    ],
    ids=["longer", "another time", "gone", "another of its length and time"],
)
def test_a_file_that_is_not_what_was_loaded_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object]
) -> None:
    path = tmp_path / "spare_that_is_loaded.py"
    path.write_text("x = 1\n")
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    monkeypatch.setitem(sys.modules, path.stem, module_from_spec(spec))
    loaded = loaded_files()
    assert str(path) in loaded
    change(path)
    assert loaded_files(loaded) != loaded

"""The information elements in force: ours, and those of files that the configuration and the user name.

Apart from `meaning.py`, since every role needs it, and numpy only those that decode.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sapflow.config import Config
from sapflow.errors import ConfigurationError
from sapflow.flows.registry import InformationElement, Registry, load_elements, registry


def registry_of(config: Config, files: Sequence[Path] = ()) -> Registry:
    """Our registry with the elements of the configuration's files, and of these.

    Raises ConfigurationError, with file and line, for one that is broken, or that says otherwise than another.
    """
    found: dict[tuple[int, int], tuple[Path, InformationElement]] = {}
    for path in (*(Path(name) for name in config.elements), *files):
        for element in load_elements(path):
            before = found.setdefault((element.pen, element.id), (path, element))
            if before[1] != element:
                what = f"element {element.id} of enterprise {element.pen} is {element.name}, {element.type}"
                raise ConfigurationError(
                    f"{path}: {what}, but {before[1].name}, {before[1].type}, in {before[0]}; keep one of them"
                )
    return registry().extended(element for _, element in found.values())

"""What `decode` and `tail` do beyond decoding: elements' names, sampling, joined names, the view of flows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from pathlib import Path
from typing import Any

import click
from attrs import define, field

from sapflow.cli.elements import registry_of
from sapflow.config_file import load
from sapflow.flows.columns.batches import decode
from sapflow.flows.columns.records import Context
from sapflow.flows.meaning.names import Names
from sapflow.flows.meaning.sampling import Sampling
from sapflow.flows.meaning.stages import Stage, staged
from sapflow.flows.meaning.typeinfo import Dictionaries
from sapflow.flows.meaning.view import View
from sapflow.flows.registry import Registry, using

VIEWS = ("flow",)
_OPTIONS = (
    click.option("--view", type=click.Choice(VIEWS), help="Flows under common names, the same for every exporter."),
    click.option("--scaled", is_flag=True, help="Counters scaled by sampling rates as well, under names of their own."),
    click.option(
        "--names", is_flag=True, help="Names that exporters tell of interfaces, VRFs, applications, samplers, users."
    ),
    click.option(
        "--elements",
        multiple=True,
        type=click.Path(path_type=Path),
        help="A CSV file of information elements of your own; may be given more than once.",
    ),
    click.option("--config", "config_path", type=click.Path(path_type=Path), help="A TOML file, for its 'elements'."),
)


@define
class Meaning:
    """What was asked for, and what it has learned so far."""

    stages: Sequence[Stage] = ()
    sampling: Sampling | None = None
    dictionaries: Dictionaries = field(factory=Dictionaries)

    def reading(self, context: Context, data: bytes) -> AbstractContextManager[None]:
        """Within, the exporter's messages are decoded with the names that it and the user's files give to elements."""
        return using(self.dictionaries.registry_for(context, data))

    def learn(self, context: Context, data: bytes) -> None:
        """Take in options data that are to be in no output. Raises MalformedMessage."""
        with self.reading(context, data):
            staged(decode(data), context, self.stages)

    def tell(self) -> None:
        """Say at the end, on standard error, what could not be done."""
        note = self.sampling.note() if self.sampling is not None else None
        if note:
            click.echo(f"sapflow: {note}", err=True)


def meaning_of(view: str | None, scaled: bool, names: bool, elements: Registry) -> Meaning:
    """What the options ask for."""
    stages: list[Stage] = []
    sampling = Sampling(scale=scaled) if scaled or view else None
    if sampling is not None:
        stages.append(sampling)
    if names:
        stages.append(Names())
    if view:
        stages.append(View(scale=scaled, names=names))
    return Meaning(stages, sampling, Dictionaries(elements))


def meaning_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options, given to a command as one argument `meaning`."""

    @wraps(command)
    def wrapped(
        *args: Any,
        view: str | None,
        scaled: bool,
        names: bool,
        elements: tuple[Path, ...],
        config_path: Path | None,
        **kwargs: Any,
    ) -> Any:
        config = load(config_path or _config_of_fleet(kwargs))
        meaning = meaning_of(view, scaled, names, registry_of(config, elements))
        return command(*args, meaning=meaning, **kwargs)

    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


def _config_of_fleet(arguments: dict[str, Any]) -> Path | None:
    """The configuration that the fleet in --data wrote of itself, if the command has one."""
    path = Path(arguments["data"]) / "fleet.toml" if "data" in arguments else None
    return path if path is not None and path.exists() else None

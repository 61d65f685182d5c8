"""docs/reference/commands.md and configuration.md, made from the commands and the configuration schema themselves.

python -m tools.reference            write them
python -m tools.reference --check    exit 1 when they are not what would be written
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import click

from sapflow import balancer_config, config
from sapflow.cli import cli

TABLES: dict[str, dict[str, type]] = {
    "balancer": {"tls_names": config.TlsNameConfig},
    "phloem": {"exits": config.ExitConfig},
}
"""Keys of a section that are tables, any number of each."""
PLACE = Path(__file__).parents[1] / "docs" / "reference"


def commands() -> str:
    """Every command with its options."""
    lines = ["# Commands", "", "Exit codes: 0 done, 1 the work failed (with a clear reason), 2 wrong use.", ""]
    for name, command in _commands(cli, "sapflow"):
        context = click.Context(command, info_name=name)
        usage = " ".join(command.collect_usage_pieces(context))
        lines += [f"## {name}", "", f"    {name} {usage}", "", inspect.cleandoc(command.help or ""), ""]
        options = [found for parameter in command.params if (found := parameter.get_help_record(context)) is not None]
        if options:
            lines += ["| option | what |", "| --- | --- |"]
            lines += [f"| `{_cell(option)}` | {_cell(what)} |" for option, what in options]
            lines.append("")
    return "\n".join(lines)


def _commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from _commands(command, f"{path} {name}")
        elif not command.hidden:
            yield f"{path} {name}", command


def settings() -> str:
    """Every setting with its default and what it means."""
    lines = [
        "# Configuration",
        "",
        "One TOML file, given with `--config`; every key is optional. `sapflow config check FILE` names what is wrong",
        "in it, `sapflow config show` what is in force. Sizes are in bytes, times in seconds; a bound that is reached",
        "gives backpressure or a clear error, never an exit.",
        "",
    ]
    meanings = _meanings()
    plain = [item for item in attrs.fields(config.Config) if not attrs.has(_type(item))]
    sections = [item for item in attrs.fields(config.Config) if attrs.has(_type(item))]
    lines += [*_table("Config", plain, config.Config(), meanings), ""]
    for section in sections:
        kind = _type(section)
        lines += [f"## [{section.name}]", "", meanings[kind.__name__, ""], ""]
        lines += [*_table(kind.__name__, attrs.fields(kind), kind(), meanings), ""]
        for key, each in TABLES.get(section.name, {}).items():
            lines += [f"### [[{section.name}.{key}]]", "", meanings[each.__name__, ""], ""]
            lines += [*_table(each.__name__, attrs.fields(each), None, meanings), ""]
    return "\n".join(lines)


def _table(owner: str, items: Any, defaults: Any, meanings: dict[tuple[str, str], str]) -> list[str]:
    rows = [
        f"| `{item.name}` | {_default(item, defaults)} | {_cell(meanings.get((owner, item.name), ''))} |"
        for item in items
    ]
    return ["| key | default | what |", "| --- | --- | --- |", *rows]


def _default(item: attrs.Attribute[Any], defaults: Any) -> str:
    """As a cell; of a table that may stand any number of times some keys have none."""
    if item.default is attrs.NOTHING:
        return "(needed)"
    value = getattr(defaults, item.name) if defaults is not None else _made(item.default)
    return f"`{_cell(_toml(value))}`"


def _made(default: Any) -> Any:
    return default.factory() if hasattr(default, "factory") else default


def _toml(value: Any) -> str:
    """A default as one line of TOML."""
    if attrs.has(type(value)):
        return f"{{ {', '.join(f'{key} = {_toml(inner)}' for key, inner in attrs.asdict(value).items())} }}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _type(item: attrs.Attribute[Any]) -> type:
    return type(getattr(config.Config(), item.name))


def _meanings() -> dict[tuple[str, str], str]:
    """What the schema's own text says of each class ("") and each of its fields."""
    found: dict[tuple[str, str], str] = {}
    for node in (node for module in (config, balancer_config) for node in ast.parse(inspect.getsource(module)).body):
        if not isinstance(node, ast.ClassDef):
            continue
        found[node.name, ""] = ast.get_docstring(node) or ""
        for before, after in zip(node.body, node.body[1:], strict=False):
            if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name):
                found[node.name, before.target.id] = _text(after)
    return found


def _text(node: ast.stmt) -> str:
    value = node.value.value if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) else ""
    return inspect.cleandoc(value) if isinstance(value, str) else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


PAGES = {"commands.md": commands, "configuration.md": settings}


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit 1 when a page is out of step.")
def main(check: bool) -> None:
    """Write the pages, or check them."""
    stale = []
    for name, make in PAGES.items():
        path, text = PLACE / name, make().rstrip() + "\n"
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if not check:
                path.write_text(text)
    if check and stale:
        click.echo(f"out of step: {', '.join(stale)}; say: python -m tools.reference", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()

"""The configuration's file: TOML to settings and back, and all that can be wrong in it, named by file and key."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from difflib import get_close_matches
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import attrs
import cattrs
import tomli_w
from cattrs.errors import (
    ClassValidationError,
    ForbiddenExtraKeysError,
    IterableValidationError,
    IterableValidationNote,
)

from sapflow.config import Config, FleetConfig, PhloemConfig, TlsNameConfig
from sapflow.errors import ConfigurationError
from sapflow.exit_limits import exit_faults
from sapflow.limits import faults
from sapflow.orgs import ORG_NAME
from sapflow.runtime.addresses import are_hosts, split_address

_ADDRESSES = {"coordinator_address", "ipfix_tcp", "udp", "link", "live", "control", "consume"}

KAFKA_PROPERTIES = ("security.", "ssl.", "sasl.")
"""Beginnings of librdkafka's properties that are the operator's."""

_converter = cattrs.Converter(forbid_extra_keys=True)


def _strictly(value: Any, kind: type) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        words = {int: "an integer", float: "a number", str: "a text in quotes", bool: "true or false"}
        raise ValueError(f"expected {words[kind]}, got {value!r}")
    return value


for _kind in (int, float, str, bool):
    _converter.register_structure_hook(_kind, _strictly)


def load(path: Path | None) -> Config:
    """The configuration of a file over the defaults. Raises ConfigurationError that names the file and the key."""
    if path is None:
        return Config()
    try:
        with path.open("rb") as file:
            config = from_dict(tomllib.load(file), str(path))
        return attrs.evolve(config, elements=tuple(str(path.parent.absolute() / name) for name in config.elements))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not TOML: {error}") from error


def from_dict(data: dict[str, Any], where: str) -> Config:
    """As `load`, from what a TOML parser gave."""
    try:
        config = _converter.structure(data, Config)
    except ClassValidationError as group:
        raise ConfigurationError("; ".join(f"{where}: {line}" for line in _explain(group, Config))) from group
    check(config, where)
    return config


def check(config: Config, where: str) -> None:
    """Whether it can be used, read from `where`. Raises ConfigurationError that names all that cannot be."""
    found = list(faults({key: value for key, value, _default in describe(config)}))
    if found:
        raise ConfigurationError("; ".join(f"{where}: {key}: {what}" for key, what in found))
    if config.balancer.ipfix_tls and not config.balancer.tls_certificate:
        raise ConfigurationError(f"{where}: balancer.tls_certificate: balancer.ipfix_tls needs one, a PEM file")
    for key, value, _default in describe(config):
        if value and key.rpartition(".")[2] in _ADDRESSES:
            _addressed(value, f"{where}: {key}")
    for role, prefixes in (("balancer", config.balancer.proxy_from), ("collector", config.collector.proxy_from)):
        for prefix in prefixes:
            _check_network(prefix, f"{where}: {role}.proxy_from")
    for number, source in enumerate(config.balancer.sources, 1):
        _check_network(source.prefix, f"{where}: balancer.sources, number {number}: prefix")
        if not ORG_NAME.fullmatch(source.org):
            raise ConfigurationError(f"{where}: balancer.sources, number {number}: '{source.org}' is no org's name")
    for name in config.balancer.tls_names:
        _named(name, f"{where}: balancer.tls_names: '{name.name}'")
    _coordinated(config.fleet, where)
    _stored(config.phloem, config.phloems, where)
    if wrong := [f"{where}: phloem.exits, {key}: {what}" for key, what in exit_faults(config.phloem.exits)]:
        raise ConfigurationError("; ".join(wrong))


def _named(name: TlsNameConfig, where: str) -> None:
    if not name.name or not name.name.isascii() or any(not part for part in name.name.split(".")):
        raise ConfigurationError(f"{where} is no host name")
    if not ORG_NAME.fullmatch(name.org):
        raise ConfigurationError(f"{where}: '{name.org}' is no org's name")
    if not name.sources and not name.authority:
        raise ConfigurationError(
            f"{where}: anybody can ask for a name; say where its exporters are (sources), or who signs their "
            "certificates (authority)"
        )
    for prefix in name.sources:
        _check_network(prefix, f"{where}: sources")


def _coordinated(fleet: FleetConfig, where: str) -> None:
    if fleet.coordinator not in ("local", "zookeeper"):
        raise ConfigurationError(
            f"{where}: fleet.coordinator: 'local' or 'zookeeper', is {fleet.coordinator!r}"
            " (the local one's address is fleet.coordinator_address)"
        )
    if fleet.coordinator == "zookeeper":
        _check_hosts(fleet.zookeeper, f"{where}: fleet.zookeeper")
        if fleet.session_timeout_s < 3 * fleet.report_interval_s:
            raise ConfigurationError(
                f"{where}: fleet.session_timeout_s: at least three times fleet.report_interval_s, or one late report"
                f" would end a session; is {fleet.session_timeout_s:g}"
            )


def _stored(phloem: PhloemConfig, phloems: int, where: str) -> None:
    if phloem.engine == "kafka":
        _check_hosts(phloem.kafka, f"{where}: phloem.kafka")
    elif phloems > 1:
        raise ConfigurationError(
            f"{where}: phloems: the embedded engine has exactly one Phloem node, since its log is one process's; is "
            f"{phloems}. For more set phloem.engine = 'kafka'"
        )
    for key in phloem.kafka_properties:
        if not key.startswith(KAFKA_PROPERTIES):
            raise ConfigurationError(
                f"{where}: phloem.kafka_properties: {key}: what may be set begins with {', '.join(KAFKA_PROPERTIES)}; "
                "the rest decides whether records are kept"
            )


def _addressed(address: str, where: str) -> None:
    try:
        split_address(address)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from None


def _check_network(prefix: str, where: str) -> None:
    try:
        ip_network(prefix)
    except ValueError as error:
        raise ConfigurationError(f"{where}: {error}") from None


def _check_hosts(hosts: str, where: str) -> None:
    if not are_hosts(hosts.partition("/")[0]):
        raise ConfigurationError(f"{where}: HOST:PORT, several with commas between, is {hosts!r}")


def _explain(group: ClassValidationError, cls: type, prefix: str = "") -> Iterator[str]:
    for error in group.exceptions:
        notes = [note for note in getattr(error, "__notes__", []) if hasattr(note, "name")]
        key = prefix + (notes[0].name if notes else "")
        if isinstance(error, ForbiddenExtraKeysError):
            known = [field.name for field in attrs.fields(error.cl)]
            for extra in sorted(error.extra_fields):
                near = get_close_matches(extra, known, 1)
                hint = f"; did you mean '{near[0]}'?" if near else f"; known here: {', '.join(known)}"
                yield f"{prefix}{extra}: no such setting{hint}"
        elif isinstance(error, ClassValidationError):
            yield from _explain(error, cls, f"{key}.")
        elif isinstance(error, IterableValidationError):
            for each in error.exceptions:
                (number,) = [note.index for note in each.__notes__ if isinstance(note, IterableValidationNote)]
                if isinstance(each, ClassValidationError):
                    yield from _explain(each, cls, f"{key}, number {int(number) + 1}: ")
                else:
                    yield f"{key}, number {int(number) + 1}: {each}"
        elif isinstance(error, BaseExceptionGroup):
            yield f"{key}: {error.exceptions[0]}"
        elif isinstance(error, KeyError):
            yield f"{key}: is needed"
        else:
            yield f"{key}: {error}"


def describe(config: Config) -> Iterator[tuple[str, Any, Any]]:
    """Every setting: its key, its value, its default."""
    yield from _describe(config, Config(), "")


def _describe(value: Any, default: Any, prefix: str) -> Iterator[tuple[str, Any, Any]]:
    for field in attrs.fields(type(value)):
        mine, theirs = getattr(value, field.name), getattr(default, field.name)
        if attrs.has(type(mine)):
            yield from _describe(mine, theirs, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", mine, theirs


def dumps(config: Config) -> str:
    """The configuration as TOML, every setting written out."""
    return tomli_w.dumps(_converter.unstructure(config))

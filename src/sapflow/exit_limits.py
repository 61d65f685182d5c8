"""What an exit's settings may be: all that can be told of them without its Kafka."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from sapflow.config import ExitConfig
from sapflow.orgs import ORG_NAME
from sapflow.runtime.addresses import are_hosts

MAX_EXITS = 64
"""Of a fleet: each has a thread, a producer with a thread for each broker, and a window in memory."""
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,57}")
"""With its prefix it is the name of a consumer group."""
TOPIC = re.compile(r"(?!\.\.?$)[A-Za-z0-9._-]{1,249}")

FILE_PROPERTIES = ("ssl.ca.location", "ssl.certificate.location", "ssl.key.location", "ssl.crl.location")
PROPERTIES: Mapping[str, str] = {
    "security.protocol": "PLAINTEXT|SSL|SASL_PLAINTEXT|SASL_SSL",
    "sasl.mechanism": "PLAIN|SCRAM-SHA-256|SCRAM-SHA-512",
    "sasl.mechanisms": "PLAIN|SCRAM-SHA-256|SCRAM-SHA-512",
    "sasl.username": ".+",
    **dict.fromkeys(FILE_PROPERTIES, ".+"),
    "ssl.endpoint.identification.algorithm": "none|https",
    "ssl.cipher.suites": ".+",
    "ssl.curves.list": ".+",
    "ssl.sigalgs.list": ".+",
    "enable.ssl.certificate.verification": "true|false",
}
"""librdkafka's properties that an exit may set, and what they may be: none that runs a command or loads a library."""
SECRETS = ("sasl.password", "ssl.key.password")
"""Those whose value stands in a file of its own."""

BOUNDS: Mapping[str, tuple[float, float]] = {
    "window_bytes": (64 << 10, 256 << 20),
    "max_message_bytes": (1000, 64 << 20),
    "timeout_s": (1.0, 3600.0),
    "backoff_most_s": (1.0, 3600.0),
}


def exit_faults(exits: Sequence[ExitConfig]) -> Iterator[tuple[str, str]]:
    """Each setting that cannot be, by the exit's number and its key, with what is wrong."""
    if len(exits) > MAX_EXITS:
        yield f"number {MAX_EXITS + 1}", f"at most {MAX_EXITS} exits, are {len(exits)}"
    for number, one in enumerate(exits, 1):
        for key, what in _faults(one):
            yield f"number {number}: {key}", what
    for (org, name), count in Counter((one.org, one.name) for one in exits).items():
        if count > 1:
            yield "name", f"org '{org}' has {count} exits named '{name}'; each has its own position by its name"


def _faults(one: ExitConfig) -> Iterator[tuple[str, str]]:
    if not NAME.fullmatch(one.name):
        yield "name", f"'{one.name}': lower-case letters, digits, '.', '_' and '-', up to 58, a letter or digit first"
    if not ORG_NAME.fullmatch(one.org):
        yield "org", f"'{one.org}' is no org's name"
    if not are_hosts(one.brokers):
        yield "brokers", f"HOST:PORT, several with commas between, is {one.brokers!r}"
    if not TOPIC.fullmatch(one.topic):
        yield "topic", f"'{one.topic}' is no topic's name: letters, digits, '.', '_' and '-', up to 249"
    if not all(one.fields):
        yield "fields", "a name that is empty"
    for key, (least, most) in BOUNDS.items():
        value = getattr(one, key)
        if not math.isfinite(value) or not least <= value <= most:
            yield key, f"from {least:,} to {most:,}, is {value:,}"
    if one.max_message_bytes > one.window_bytes:
        yield "max_message_bytes", f"at most window_bytes, which is {one.window_bytes:,}; is {one.max_message_bytes:,}"
    yield from _security(one)


def _security(one: ExitConfig) -> Iterator[tuple[str, str]]:
    for key, value in one.properties.items():
        if key in SECRETS:
            yield (
                f"properties: {key}",
                f'is a secret: put it into a file and write secrets = {{ "{key}" = "/the/file" }}',
            )
        elif key not in PROPERTIES:
            yield f"properties: {key}", f"what may be set is {', '.join(PROPERTIES)}"
        elif not re.fullmatch(PROPERTIES[key], value):
            yield f"properties: {key}", f"{PROPERTIES[key].replace('|', ', ')}; is {value!r}"
    for key in one.secrets:
        if key not in SECRETS:
            yield f"secrets: {key}", f"what may stand in a file is {', '.join(SECRETS)}"
    protocol = one.properties.get("security.protocol", "PLAINTEXT")
    needed = {"sasl.username": one.properties, "sasl.password": one.secrets}
    if protocol.startswith("SASL"):
        for key, where in needed.items():
            if key not in where:
                yield "properties: security.protocol", f"{protocol} needs {key}"
        if not {"sasl.mechanism", "sasl.mechanisms"} & one.properties.keys():
            yield "properties: security.protocol", f"{protocol} needs sasl.mechanism: {PROPERTIES['sasl.mechanism']}"
    elif any(key.startswith("sasl.") for key in (*one.properties, *one.secrets)):
        yield "properties", "sasl.… has no effect without security.protocol SASL_SSL or SASL_PLAINTEXT"
    if not protocol.endswith("SSL") and any(key.startswith("ssl.") for key in (*one.properties, *one.secrets)):
        yield "properties", "ssl.… has no effect without security.protocol SSL or SASL_SSL"

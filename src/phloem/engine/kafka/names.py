"""Where an org's entries are in Kafka; pure.

One topic for the whole fleet, in which an org's key decides its partition (as librdkafka's `consistent` partitioner
has it: CRC-32); or a topic for each org. No two orgs, of one fleet or of two, have one topic: all but letters and
digits is escaped as `_` and the bytes in hex, so a `-` stands only between fleet and org, and there is no `.`, which
Kafka's metrics take for a `_`.
"""

from __future__ import annotations

import re
import zlib
from hashlib import sha256

from attrs import frozen

MAX_TOPIC_CHARS = 249
TELLS = "tells"
"""The header of an entry that may tell something in options data; others have none of that name."""
_ESCAPED = re.compile(r"[^A-Za-z0-9]")


@frozen(slots=True)
class Place:
    """A partition of a topic."""

    topic: str
    partition: int


def topic_of(fleet: str, org: str | None = None) -> str:
    """The topic of a fleet, or of one org of it."""
    return _fitting(_escape(fleet) if org is None else f"{_escape(fleet)}-{_escape(org)}")


def groups_topic_of(fleet: str) -> str:
    """The topic of a fleet's consumer groups."""
    return _fitting(f"{_escape(fleet)}--groups")


def ledger_topic_of(fleet: str) -> str:
    """The topic of a fleet's ledgers."""
    return _fitting(f"{_escape(fleet)}--ledger")


def options_topic_of(fleet: str) -> str:
    """The topic of what a fleet's exporters told in options data."""
    return _fitting(f"{_escape(fleet)}--options")


def beside(place: Place, topic: str, partitions: int, *, per_org: bool) -> Place:
    """Where in a topic of the fleet's own, of so many partitions, is kept what is known of a place in the log."""
    number = partition_of(place.topic, partitions) if per_org else place.partition
    return Place(topic, number % partitions)


def _fitting(name: str) -> str:
    if len(name) <= MAX_TOPIC_CHARS:
        return name
    # Two dashes are in no org's topic; what is cut off is in the hash, which no other name ends with.
    digest = sha256(name.encode()).hexdigest()
    return f"{name[: MAX_TOPIC_CHARS - 2 - len(digest)]}--{digest}"


def is_topic_of_an_org(fleet: str, topic: str) -> bool:
    """Whether a topic is one org's of this fleet (as far as a fleet's name is not too long for one)."""
    own = f"{_escape(fleet)}-"
    return topic.startswith(own) and not topic.startswith(f"{own}-")


def partition_of(org: str, partitions: int) -> int:
    """Which partition of the fleet's topic is an org's."""
    return zlib.crc32(org.encode()) % partitions


def _escape(name: str) -> str:
    return _ESCAPED.sub(lambda found: "".join(f"_{byte:02x}" for byte in found[0].encode(errors="surrogatepass")), name)

"""What a link tells its owner: values only, made by `connection`."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from sapflow.link.frames import Hint, StreamId

EMPTY_BYTES = 256
"""What a batch counts for that holds nothing but an account: about what it takes in memory."""


def size_of(payload: bytes, account: bytes) -> int:
    """Bytes of a batch that count against credit and budgets; never 0."""
    return (len(payload) or EMPTY_BYTES) + len(account)


@frozen(slots=True)
class Batch:
    """Some whole IPFIX messages of one stream, self-contained, with their number in it."""

    seq: int
    messages: int
    records: int
    received_us: int
    payload: bytes
    account: bytes = b""
    """What became of the exporter's records since the batch before, as `account` writes it."""
    tells: bool = False
    """It may hold options data that say what no batch before it said; a collector finds that out."""

    @property
    def size(self) -> int:
        """Bytes that count against credit and budgets."""
        return size_of(self.payload, self.account)


@frozen
class HelloReceived:
    hint: Hint
    fields: dict[str, Any]


@frozen
class Welcomed:
    fields: dict[str, Any]


@frozen
class Opened:
    handle: int
    stream: StreamId
    org: str
    exporter: str


@frozen(slots=True)
class BatchReceived:
    handle: int
    batch: Batch


@frozen
class Acknowledged:
    handle: int
    through: int


@frozen
class CreditWanted:
    handle: int
    limit: int


@frozen
class CreditGranted:
    handle: int
    limit: int


@frozen
class Rewound:
    """The far end's mark is `mark`: send again from the lowest unacknowledged batch."""

    handle: int
    mark: int


@frozen
class BatchRefused:
    """The far end does not take batch `seq`, nor what comes behind it, until it comes in another form."""

    handle: int
    seq: int
    reason: str


@frozen
class StreamEnded:
    handle: int


@frozen
class Moved:
    handle: int
    to: str
    address: str


@frozen
class GoAway:
    deadline_s: float
    reason: str


@frozen
class Hold:
    seconds: float
    reason: str


@frozen
class Subscribed:
    fields: dict[str, Any]


@frozen
class Noticed:
    fields: dict[str, Any]


@frozen
class Ponged:
    nonce: int


@frozen
class Closed:
    code: int
    reason: str


Event = (
    HelloReceived
    | Welcomed
    | Opened
    | BatchReceived
    | Acknowledged
    | CreditWanted
    | CreditGranted
    | Rewound
    | BatchRefused
    | StreamEnded
    | Moved
    | GoAway
    | Hold
    | Subscribed
    | Noticed
    | Ponged
    | Closed
)

"""Our own protocol between two processes: many streams, batches, acknowledgements when durable, byte credit.

Pure: no sockets, no clock, no tasks. `frames` is the wire form, `connection` the state machine of one end, `events`
what it tells its owner, `credit` a receiver's budget granted in fair turns, `outbox` a sender's unacknowledged batches.
"""

from sapflow.link.connection import Connection, Side
from sapflow.link.credit import CreditPool
from sapflow.link.events import (
    Acknowledged,
    Batch,
    BatchReceived,
    BatchRefused,
    Closed,
    CreditGranted,
    CreditWanted,
    Event,
    GoAway,
    HelloReceived,
    Hold,
    Moved,
    Noticed,
    Opened,
    Ponged,
    Rewound,
    StreamEnded,
    Subscribed,
    Welcomed,
)
from sapflow.link.frames import Close, LinkLimits, StreamId
from sapflow.link.outbox import Cursor, Outbox
from sapflow.link.sender import Sender
from sapflow.link.traffic import Traffic

__all__ = [
    "Acknowledged",
    "Batch",
    "BatchReceived",
    "BatchRefused",
    "Close",
    "Closed",
    "Connection",
    "CreditGranted",
    "CreditPool",
    "CreditWanted",
    "Cursor",
    "Event",
    "GoAway",
    "HelloReceived",
    "Hold",
    "LinkLimits",
    "Moved",
    "Noticed",
    "Opened",
    "Outbox",
    "Ponged",
    "Rewound",
    "Sender",
    "Side",
    "StreamEnded",
    "StreamId",
    "Subscribed",
    "Traffic",
    "Welcomed",
]

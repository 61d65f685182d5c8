"""A meter's link as a balancer leaves it to its successor, beside the two sockets between which it is carried; pure.

length of the head u32 | head, JSON | what goes to the collector first | what goes back to the meter first
"""

from __future__ import annotations

import json
import struct

from attrs import frozen

from sapflow.errors import LinkError
from sapflow.link.frames import Close, Hint

VERSION = 1
_HEAD = struct.Struct("!I")


@frozen
class LeftLink:
    """What is said of it."""

    collector: str
    hint: Hint
    peer: str
    seen_as: tuple[str, ...] = ()
    into: bytes = b""
    back: bytes = b""
    """What was read on either side and is to be written to the other before all else."""

    def encode(self) -> bytes:
        """As bytes, for another process."""
        hint = self.hint
        head = {
            "version": VERSION,
            "collector": self.collector,
            "hint": [hint.org, hint.name, hint.want],
            "peer": self.peer,
            "seen_as": self.seen_as,
            "into": len(self.into),
            "back": len(self.back),
        }
        packed = json.dumps(head).encode()
        return b"".join((_HEAD.pack(len(packed)), packed, self.into, self.back))

    @classmethod
    def decode(cls, data: bytes) -> LeftLink:
        """From what `encode` gave. Raises LinkError when it is no such, or of a version that is not known."""
        try:
            (size,) = _HEAD.unpack_from(data)
            body = _HEAD.size + size
            head = json.loads(data[_HEAD.size : body])
            if head["version"] != VERSION:
                raise ValueError(f"it is of version {head['version']}")
            org, name, want = map(str, head["hint"])
            into, back = data[body : body + head["into"]], data[body + head["into"] :]
            if (len(into), len(back)) != (head["into"], head["back"]):
                raise ValueError("it is cut off")
            seen_as = tuple(map(str, head["seen_as"]))
            return cls(str(head["collector"]), Hint(org, name, want), str(head["peer"]), seen_as, into, back)
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise LinkError(f"a link that was left cannot be read: {error}", code=Close.PROTOCOL) from None

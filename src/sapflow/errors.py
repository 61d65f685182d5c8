"""The few error types that callers tell apart.

Each says what happened, where, what it means for the reader's data, and what to do. They are for the world's
faults; our own bugs are assertions.
"""

from __future__ import annotations


class SapflowError(Exception):
    """What every error of sapflow's own is."""


class MalformedMessage(SapflowError):
    """Bytes that are not the IPFIX they claim to be.

    `offset` is the byte offset of the fault: in the data walked, or in the transport stream where the raiser
    knows it. `reason` is a short label from a bounded set, for counters.
    """

    def __init__(self, what: str, *, offset: int, reason: str) -> None:
        super().__init__(f"{what} (at byte {offset:,})")
        self.what = what
        self.offset = offset
        self.reason = reason


class LinkError(SapflowError):
    """The other end of a link broke its protocol; only that link ends. `code` goes into our close frame."""

    def __init__(self, what: str, *, code: int) -> None:
        super().__init__(what)
        self.code = code


class Refused(SapflowError):
    """The other end said no: wrong credential, unknown org, conflict. Trying again as is will not help."""

    def __init__(self, what: str, *, code: int = 0) -> None:
        super().__init__(what)
        self.code = code


class Overloaded(SapflowError):
    """A bound was reached; try again after `retry_after_s` seconds (jittered by the caller)."""

    def __init__(self, what: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(what)
        self.retry_after_s = retry_after_s


class Unreachable(SapflowError):
    """A peer could not be connected to within its timeout."""


class ConfigurationError(SapflowError):
    """A configuration that cannot be used: names the file and the key."""


class StorageError(SapflowError):
    """The disk or the log on it could not do what was asked; nothing that was acknowledged is affected."""


class EngineLocked(StorageError):
    """Another process has this embedded log open."""


class Fenced(SapflowError):
    """A consumer group's position was not committed: another member has taken over, or the group was reset.

    What was read since the last commit is given again, to whoever reads for the group now.
    """


def first_of(error: BaseException) -> BaseException:
    """Of a group, however deep, its first error: what one line of a log, or a person, is told."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

"""A crash state is opened as a node would: it must open, hold what was acknowledged, and take what comes next."""

from __future__ import annotations

import tempfile
from pathlib import Path

from phloem.engine.embedded import EmbeddedLog
from sapflow.entry import CorruptEntry, decode_entry
from sapflow.errors import StorageError
from tools.crashes.states import State
from tools.crashes.workload import ORGS, STREAMS, entry


def fault_of(state: State) -> str | None:
    """What is wrong with the log that a crash left; None when nothing is."""
    with tempfile.TemporaryDirectory(prefix="sapflow-crash-", dir=_memory()) as directory:
        for name, data in state.files.items():
            path = Path(directory, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        try:
            log = EmbeddedLog.open(Path(directory))
        except StorageError as error:
            return f"it does not open: {error}"
        try:
            for org in ORGS:
                fault = _org(log, org, state)
                if fault is not None:
                    return f"{org}: {fault}"
        except StorageError as error:
            return f"it does not work: {error}"
        finally:
            log.close()
    return None


def _org(log: EmbeddedLog, org: str, state: State) -> str | None:
    marks, first = log.marks(org), log.first_position(org)
    if first > state.promise.removed.get(org, 0) + 1:
        return f"position {first} is the first, and only {state.promise.removed.get(org, 0)} were to be removed"
    found: dict[int, list[int]] = {stream: [] for stream in range(STREAMS)}
    after = first - 1
    while entries := log.read(org, after, max_bytes=1 << 20, max_entries=1000):
        for position, data in entries:
            if position != after + 1:
                return f"position {position} follows {after}"
            after = position
            try:
                read = decode_entry(data)
            except CorruptEntry as error:
                return f"position {position}: {error}"
            stream = read.stream[0]
            if read != entry(org, stream, read.seq):
                return f"position {position} is not what was stored"
            found[stream].append(read.seq)
    if after != log.last_position(org):
        return f"position {log.last_position(org)} is said to be the last, and {after} is"
    ledger = log.ledger(org)
    if not ledger.closes or ledger.total.batches != sum(marks.values()):
        return f"its ledger tells of {ledger.total.batches} batches, and differs by {ledger.differences()}"
    for stream, numbers in found.items():
        fault = _stream(org, stream, numbers, marks.get(bytes([stream] * 16), 0), log, state)
        if fault is not None:
            return f"stream {stream}: {fault}"
    return None


def _stream(org: str, stream: int, numbers: list[int], mark: int, log: EmbeddedLog, state: State) -> str | None:
    promised = state.promise.marks.get(f"{org}/{stream}", 0)
    if mark < promised:
        return f"{promised} was acknowledged, and its mark is {mark}"
    if numbers and numbers != list(range(numbers[0], mark + 1)):
        return f"it holds {numbers}, and its mark is {mark}"
    outcome = log.append([(org, entry(org, stream, mark + 1))])[0]
    if outcome.kind != "stored":
        return f"{mark + 1} is next, and it is {outcome.kind}"
    return None


def _memory() -> str | None:
    """Where files need no disk, if there is such a place."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None

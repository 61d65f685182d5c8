"""The workload under strace: its system calls as a list of events.

A write through a descriptor opened with O_DSYNC is durable when it returns (LMDB's meta pages); any other once its
file was synced.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from attrs import frozen

from tools.crashes.workload import Promise

CALLS = "openat,close,pwrite64,pwritev,writev,write,lseek,fdatasync,fsync,ftruncate,truncate,rename,msync"
TIMEOUT_S = 120
FILES = ("data.mdb", "synced-length", "new/data.mdb")

_CALL = re.compile(r"^\d+ +(\w+)\((.*)\) += (\d+)")
_BYTES = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


@frozen
class Write:
    """Bytes put at an offset of a file."""

    file: str
    at: int
    data: bytes
    durable: bool = False
    """Synced by itself when it has returned."""


@frozen
class Resized:
    """A file was made so long."""

    file: str
    size: int


@frozen
class Synced:
    """All that was written to a file is durable."""

    file: str


@frozen
class Renamed:
    """A file that is synced has another name, and the directory is synced."""

    file: str
    to: str


Event = Write | Resized | Synced | Renamed | Promise


def record(directory: Path, *, groups: int, seed: int) -> list[Event]:
    """Run the workload in `directory`: what it wrote, synced and promised. Raises RuntimeError when it failed."""
    trace = directory / "trace"
    ran = subprocess.run(
        [
            *("strace", "-f", "-y", "-xx", "-s", "10000000", "-e", f"trace={CALLS}", "-o", str(trace)),
            *(sys.executable, "-m", "tools.crashes.workload", str(directory / "log"), str(groups), str(seed)),
        ],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if ran.returncode:
        raise RuntimeError(f"the workload ended with {ran.returncode}: {ran.stderr[-500:]}")
    reader = _Reader(str(directory / "log"))
    with trace.open() as lines:
        for line in lines:
            reader.line(line)
    said = sum(isinstance(event, Promise) for event in reader.events)
    if said != len(ran.stdout.splitlines()):
        raise RuntimeError(
            f"of {len(ran.stdout.splitlines())} promises strace shows {said}: its output is not understood"
        )
    return reader.events


class _Reader:
    """Lines of strace into events."""

    def __init__(self, directory: str) -> None:
        self.events: list[Event] = []
        self._directory = directory
        self._at: dict[int, int] = {}
        self._durable: set[int] = set()

    def line(self, line: str) -> None:
        found = _CALL.match(line)
        if found is None:
            return
        call, arguments, answer = found[1], found[2], int(found[3])
        if call == "openat":
            self._opened(answer, arguments)
            return
        number, file = _descriptor(arguments)
        data = b"".join(map(_octets, _BYTES.findall(arguments)))
        if call == "write" and number == 1:
            self.events.append(Promise(**json.loads(data)))
        elif (name := file.removeprefix(f"{self._directory}/")) in FILES:
            self._on_file(call, number, name, arguments, data, answer)
        elif call == "rename":
            self._renamed(arguments)
        elif call in ("truncate", "msync"):
            raise RuntimeError(f"the log calls {call}, which is not replayed")

    def _opened(self, number: int, arguments: str) -> None:
        self._at[number] = 0
        (self._durable.add if "O_DSYNC" in arguments else self._durable.discard)(number)

    def _on_file(self, call: str, number: int, name: str, arguments: str, data: bytes, answer: int) -> None:
        match call:
            case "lseek":
                self._at[number] = answer
            case "pwrite64" | "pwritev":
                self._wrote(number, name, int(arguments.rsplit(", ", 1)[1]), data, answer)
            case "write" | "writev":
                self._wrote(number, name, self._at[number], data, answer)
                self._at[number] += answer
            case "ftruncate":
                self.events.append(Resized(name, int(arguments.rsplit(", ", 1)[1])))
            case "fdatasync" | "fsync":
                self.events.append(Synced(name))

    def _renamed(self, arguments: str) -> None:
        names = [_octets(part).decode().removeprefix(f"{self._directory}/") for part in _BYTES.findall(arguments)]
        if len(names) == 2 and names[0] in FILES:
            self.events.append(Renamed(*names))

    def _wrote(self, number: int, name: str, at: int, data: bytes, answer: int) -> None:
        if len(data) != answer:
            raise RuntimeError(f"strace shows {len(data)} of the {answer} bytes written to {name}")
        self.events.append(Write(name, at, data, durable=number in self._durable))


def _descriptor(arguments: str) -> tuple[int, str]:
    """Of `6<\\x2f…>, …` the number and the file."""
    found = re.match(r"(\d+)<((?:\\x[0-9a-f]{2})*)>", arguments)
    if found is None:
        return -1, ""
    return int(found[1]), _octets(found[2]).decode()


def _octets(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))

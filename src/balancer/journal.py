"""Why streams are where they are: the last decisions about each, with their reasons, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Any

from attrs import define, field, frozen

MAX_SUBJECTS = 4096
MAX_ENTRIES = 12
MAX_FOUND = 20


@frozen
class Entry:
    """A decision; `at` in seconds UTC."""

    at: float
    what: str


@define
class Subject:
    """A stream, or a meter's link: who it is, and what was decided about it."""

    key: str
    org: str
    names: tuple[str, ...]
    """What people may call it: its exporter's address, its meter's name."""
    entries: deque[Entry] = field(factory=lambda: deque(maxlen=MAX_ENTRIES))

    def as_fields(self) -> dict[str, Any]:
        """For JSON."""
        history = [{"at": round(entry.at, 3), "what": entry.what} for entry in self.entries]
        return {"key": self.key, "org": self.org, "names": list(self.names), "history": history}


@define
class Journal:
    """Subjects by key; those that nothing was decided about for longest are forgotten first."""

    _subjects: OrderedDict[str, Subject] = field(factory=OrderedDict)

    def note(self, key: str, org: str, names: tuple[str, ...], what: str, at: float) -> None:
        """Something was decided."""
        subject = self._subjects.pop(key, None) or Subject(key, org, names)
        subject.names = names or subject.names
        # A link that waits is refused again and again: once is enough.
        if not subject.entries or subject.entries[-1].what != what:
            subject.entries.append(Entry(at, what))
        self._subjects[key] = subject
        if len(self._subjects) > MAX_SUBJECTS:
            self._subjects.popitem(last=False)

    def find(self, wanted: str) -> list[Subject]:
        """Those whose key begins so, or that are called so; the latest first, at most `MAX_FOUND`."""
        found: list[Subject] = []
        for subject in self._matching(wanted):
            found.append(subject)
            if len(found) == MAX_FOUND:
                break
        return found

    def _matching(self, wanted: str) -> Iterator[Subject]:
        for subject in reversed(self._subjects.values()):
            if subject.key.startswith(wanted) or any(_is_called(name, wanted) for name in subject.names):
                yield subject


def _is_called(name: str, wanted: str) -> bool:
    """An exporter may be named with its port or without."""
    return name == wanted or name.rpartition(":")[0] == wanted

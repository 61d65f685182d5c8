"""The sets of one message: every length checked, records counted, template changes noted, before any of it counts.

What a set of an intact message cannot be read for costs the set when the session mends, and else the message. An id
whose template record cannot be used means nothing from there on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping

from sapflow.errors import MalformedMessage
from sapflow.flows.ipfix.mending import Cut, set_around, withdrawal
from sapflow.flows.ipfix.templates import Template, Withdrawal, count_variable, read_template_set
from sapflow.flows.limits import FlowLimits
from sapflow.flows.wire import FIRST_DATA_SET, MESSAGE_HEADER, OPTIONS_TEMPLATE_SET, SET_HEADER, TEMPLATE_SET


class MessageSets:
    """The sets of one message, read without changing anything of its session.

    `held` are the session's templates, by domain << 16 | id; `keys` those of this domain, if that is known; `used`
    those that the batch has needed before.
    """

    def __init__(
        self,
        domain_id: int,
        held: Mapping[int, Template],
        keys: Collection[int] | None,
        used: Container[int],
        limits: FlowLimits,
        *,
        mends: bool,
    ) -> None:
        self.records = 0
        self.kept = 0
        """Sets of which something was, or may be, of use."""
        self.uncounted = 0
        """Data sets whose records cannot be counted."""
        self.undecodable = 0
        """Of them, those whose template is not known."""
        self.ignored = 0
        self.stray_withdrawals = 0
        self.cuts: list[Cut] = []
        self.changes: dict[int, Template | None] = {}
        """Templates defined, and withdrawn (None)."""
        self.used: dict[int, Template | None] = {}
        """Templates that its data needed first in their batch (None: defined in the batch itself)."""
        self.domain_id = domain_id
        self.export_time = 0
        self._held = held
        self._keys = keys
        self._used_before = used
        self._limits = limits
        self._mends = mends
        self._on_data: OnData | None = None
        self._altered = 0
        """Changes of what an id means."""
        self._start = 0
        self._values = 0
        self._live: dict[int, dict[int, Template]] | None = None
        """Templates in force at this place, by the id of their set: kept once one message withdraws all of them."""

    @property
    def place(self) -> tuple[int, int]:
        """What tells the templates in force at this place from those at others: (-1, 0) when they are those held."""
        return (self._start, self._altered) if self._altered else (-1, 0)

    def in_force(self) -> dict[int, Template]:
        """The templates of this domain in force at this place, by id."""
        known = {**{key: self._held[key] for key in self._keys or ()}, **self.changes}
        return {key & 0xFFFF: template for key, template in known.items() if template is not None}

    def read(self, data: bytes, start: int, stop: int, on_data: OnData | None = None) -> None:
        """Check every length of the message `data[start:stop]`, count every record. Raises MalformedMessage."""
        self._start = start
        self._on_data = on_data
        (_, _, self.export_time, _, _) = MESSAGE_HEADER.unpack_from(data, start)
        at = start + MESSAGE_HEADER.size
        while at < stop:
            if stop - at < SET_HEADER.size:
                raise MalformedMessage(f"{stop - at} bytes after the last set", offset=at, reason="set")
            set_id, length = SET_HEADER.unpack_from(data, at)
            if length < SET_HEADER.size or length > stop - at:
                what = f"set {set_id} says {length:,} bytes, but {stop - at:,} are left of its message"
                raise MalformedMessage(what, offset=at, reason="set")
            end = at + length
            if set_id >= FIRST_DATA_SET:
                self._data(data, at, end, set_id)
            elif set_id in (TEMPLATE_SET, OPTIONS_TEMPLATE_SET):
                self._definitions(data, at, end, set_id)
            else:
                self.ignored += 1
                self.kept += 1
            at = end

    def _data(self, data: bytes, start: int, end: int, set_id: int) -> None:
        key = self.domain_id << 16 | set_id
        body = start + SET_HEADER.size
        template = self.changes[key] if key in self.changes else self._held.get(key)
        if template is None:
            self.undecodable += end > body
            self.uncounted += end > body
            self.kept += 1
            return
        try:
            count = self._count(data, body, end, template)
        except MalformedMessage as fault:
            self._refuse(fault, Cut(self._start, start, end, b"", fault))
            self.uncounted += 1
            return
        self.records += count
        self.kept += 1
        if self._on_data is not None:
            self._on_data(self, template, body, end)
        elif key not in self._used_before and key not in self.used:
            self.used[key] = template

    def _count(self, data: bytes, body: int, end: int, template: Template) -> int:
        if template.record_bytes:
            count = (end - body) // template.record_bytes
        else:
            count = count_variable(data, body, end, template)
        if template.shape.sparse:
            values = self._values + count * len(template.fields)
            if values > self._limits.max_values_per_message:
                what = f"{values:,} values in one message (limit {self._limits.max_values_per_message:,}): records of "
                what += f"template {template.id} have {len(template.fields):,} elements, most of length 0"
                raise MalformedMessage(what, offset=body, reason="values")
            self._values = values
        return count

    def _refuse(self, fault: MalformedMessage, cut: Cut) -> None:
        if not self._mends:
            raise fault
        self.cuts.append(cut)

    def _definitions(self, data: bytes, start: int, end: int, set_id: int) -> None:
        kept: list[Template | Withdrawal] = []
        fault: MalformedMessage | None = None
        empty = True
        domain = self.domain_id << 16
        for item in read_template_set(data, start + SET_HEADER.size, end, set_id, self._limits):
            if isinstance(item, Template):
                empty = False
                self._change(domain | item.id, item)
                kept.append(item)
            elif isinstance(item, Withdrawal):
                empty = False
                self._withdraw(domain | item.id, item)
                kept.append(item)
            else:
                fault = fault or item.fault
                key = domain | item.id
                if key in self._held or key in self.changes:
                    self._change(key, None)
                    kept.append(Withdrawal(item.id))
        self.kept += fault is None or not empty
        if fault is not None:
            records = [item.raw if isinstance(item, Template) else withdrawal(item.id) for item in kept]
            self._refuse(fault, Cut(self._start, start, end, set_around(set_id, records), fault))

    def _withdraw(self, key: int, item: Withdrawal) -> None:
        if item.id >= FIRST_DATA_SET:
            known = self.changes[key] if key in self.changes else self._held.get(key)
            if known is None:
                self.stray_withdrawals += 1
            else:
                self._change(key, None)
            return
        if self._live is None:
            self._live = {TEMPLATE_SET: {}, OPTIONS_TEMPLATE_SET: {}}
            keys = self._keys
            if keys is None:
                keys = [each for each in self._held if each >> 16 == self.domain_id]
            for each in (*keys, *self.changes):
                template = self.changes[each] if each in self.changes else self._held[each]
                if template is not None:
                    self._live[template.set_id][each] = template
        for each in list(self._live[item.id]):
            self._change(each, None)

    def _change(self, key: int, template: Template | None) -> None:
        if self._on_data is not None:
            before = self.changes[key] if key in self.changes else self._held.get(key)
            self._altered += template is not before and not (template and before and template.same_as(before))
        self.changes[key] = template
        if self._live is not None:
            for live in self._live.values():
                live.pop(key, None)
            if template is not None:
                self._live[template.set_id][key] = template
        if self._on_data is None and key not in self._used_before:
            # From here on the batch itself says what this id means; data before it in the batch had its own.
            self.used.setdefault(key, None)


OnData = Callable[[MessageSets, Template, int, int], None]
"""Hears of a data set: its message as it stands at this place, its template, where its body begins and ends."""

"""Records of ever other combinations of fields into IPFIX: a template for each combination, defined when first used.

A domain has so many templates and no more: for a further combination the one longest unused is withdrawn, and its
number is used again.
"""

from __future__ import annotations

import struct

from attrs import define, field, frozen

from sapflow.flows.datagrams.packets import Fields
from sapflow.flows.ipfix.encode import Encoder, make_message, make_set, make_template
from sapflow.flows.ipfix.templates import Template
from sapflow.flows.registry import registry
from sapflow.flows.wire import FIRST_DATA_SET, TEMPLATE_SET


@frozen
class _Layout:
    """A combination of fields and its template."""

    names: tuple[str, ...]
    template: Template

    def record(self, fields: Fields) -> bytes:
        """The data record of these fields."""
        record = b"".join([fields[name] for name in self.names])
        assert len(record) == self.template.record_bytes
        return record


@define
class LayoutDomain:
    """One observation domain's templates, and the numbers of its messages."""

    encoder: Encoder
    max_layouts: int
    _layouts: dict[frozenset[str], _Layout] = field(factory=dict)
    """The one longest unused first."""

    def messages(self, rows: list[Fields], export_time: int) -> bytes:
        """IPFIX messages of records, those of the same fields together; a template is defined before its first."""
        alike: dict[frozenset[str], list[Fields]] = {}
        for fields in rows:
            alike.setdefault(frozenset(fields), []).append(fields)
        made: list[bytes] = []
        for key, group in alike.items():
            layout = self._layouts.pop(key, None)
            if layout is None:
                layout = self._new(group[0], export_time, made)
            self._layouts[key] = layout
            records = [layout.record(fields) for fields in group]
            made.append(self.encoder.records(layout.template, records, export_time=export_time))
        return b"".join(made)

    def _new(self, fields: Fields, export_time: int, made: list[bytes]) -> _Layout:
        number = FIRST_DATA_SET + len(self._layouts)
        if len(self._layouts) >= self.max_layouts:
            number = self._layouts.pop(next(iter(self._layouts))).template.id
            withdrawal = make_set(TEMPLATE_SET, struct.pack("!HH", number, 0))
            domain, sequence = self.encoder.domain, self.encoder.sequence
            made.append(make_message(withdrawal, domain=domain, sequence=sequence, export_time=export_time))
        numbers = {name: registry().by_name(name).id for name in fields}
        names = tuple(sorted(fields, key=numbers.__getitem__))
        template = make_template(number, [(0, numbers[name], len(fields[name])) for name in names])
        made.append(self.encoder.templates([template], export_time=export_time))
        return _Layout(names, template)

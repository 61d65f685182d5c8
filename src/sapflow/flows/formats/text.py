"""JSON lines and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from sapflow.flows.columns import decode
from sapflow.flows.records import Context, values_of
from sapflow.flows.stages import Stage, options_first, staged

CONTEXT_FIELDS = ("_org", "_exporter", "_stream", "_domain", "_template", "_position")


def rows_of(data: bytes, context: Context, stages: Sequence[Stage] = ()) -> Iterator[dict[str, Any]]:
    """Records in the order they came, the context's fields first."""
    ordered: list[tuple[int, dict[str, Any]]] = []
    for batch in (staged(batch, context, stages) for batch in options_first(decode(data))):
        head = {
            "_org": context.org,
            "_exporter": context.exporter,
            "_stream": context.stream,
            "_domain": batch.domain,
            "_template": batch.template.id,
            "_position": context.position,
        }
        values = values_of(batch)
        names = list(values)
        for ordinal, row in zip(batch.order.tolist(), zip(*values.values(), strict=True), strict=True):
            ordered.append((ordinal, {**head, **dict(zip(names, row, strict=True))}))
    ordered.sort(key=lambda pair: pair[0])
    return (row for _, row in ordered)


class JsonLinesWriter:
    """One JSON object a line."""

    def __init__(self, out: BinaryIO, fields: Sequence[str] | None = None, stages: Sequence[Stage] = ()) -> None:
        self._out = out
        self._fields = fields
        self._stages = stages

    def write(self, data: bytes, context: Context, limit: int | None = None) -> int:
        """Write records: returns how many."""
        lines: list[str] = []
        for row in rows_of(data, context, self._stages):
            if limit is not None and len(lines) >= limit:
                break
            chosen = row if self._fields is None else {name: row[name] for name in self._fields if name in row}
            lines.append(json.dumps(chosen, separators=(",", ":")))
        if lines:
            self._out.write(("\n".join(lines) + "\n").encode())
        return len(lines)

    def close(self) -> None:
        """Nothing is due."""
        self._out.flush()


class CsvWriter:
    """One header, then one row a record.

    Without fields named, the header is that of the first record; `left_out` then names what later records had beside
    it, which a fixed header has no place for.
    """

    def __init__(self, out: BinaryIO, fields: Sequence[str] | None = None, stages: Sequence[Stage] = ()) -> None:
        self.left_out: set[str] = set()
        self._out = out
        self._named = fields is not None
        self._fields: Sequence[str] | None = fields
        self._begun = False
        self._stages = stages

    def write(self, data: bytes, context: Context, limit: int | None = None) -> int:
        """Write records: returns how many."""
        text = io.StringIO(newline="")
        rows = csv.writer(text)
        count = 0
        for row in rows_of(data, context, self._stages):
            if limit is not None and count >= limit:
                break
            if self._fields is None:
                self._fields = tuple(row)
            if not self._begun:
                rows.writerow(self._fields)
                self._begun = True
            if not self._named:
                self.left_out |= row.keys() - set(self._fields)
            rows.writerow([row.get(name) for name in self._fields])
            count += 1
        self._out.write(text.getvalue().encode())
        return count

    def close(self) -> None:
        """A file with named fields has its header even when it has no record."""
        if not self._begun and self._fields is not None:
            csv.writer(text := io.StringIO(newline="")).writerow(self._fields)
            self._out.write(text.getvalue().encode())
        self._out.flush()

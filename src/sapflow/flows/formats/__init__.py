"""Output formats: each writes whole messages, with the context they stand in, as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO, Protocol

from sapflow.errors import ConfigurationError
from sapflow.flows.formats.ipfix import IpfixWriter
from sapflow.flows.formats.text import CsvWriter, JsonLinesWriter
from sapflow.flows.records import Context
from sapflow.flows.stages import Stage

FORMATS = ("jsonl", "csv", "ipfix", "arrow", "parquet")


class Writer(Protocol):
    """What every format is."""

    left_out: set[str]
    """Elements that records had and the output has no place for."""

    def write(self, data: bytes, context: Context, limit: int | None = None) -> int:
        """Write the records of self-contained messages, at most `limit`: returns how many."""

    def close(self) -> None:
        """Write what is due at the end."""


def open_writer(name: str, out: BinaryIO, fields: Sequence[str] | None = None, stages: Sequence[Stage] = ()) -> Writer:
    """A writer by its format's name; `stages` are applied to what is decoded. Raises ConfigurationError."""
    match name:
        case "jsonl":
            return JsonLinesWriter(out, fields, stages)
        case "csv":
            return CsvWriter(out, fields, stages)
        case "ipfix":
            if fields is not None or stages:
                raise ConfigurationError("ipfix output holds whole records as they were; leave fields and stages out")
            return IpfixWriter(out)
        case "arrow" | "parquet":
            # pyarrow is loaded where it is used, and nowhere else.
            from sapflow.flows.formats.tables import TableWriter, arrow_stream, parquet_file

            open_sink = arrow_stream if name == "arrow" else parquet_file
            return TableWriter(out, fields, stages, open_sink=open_sink)
        case _:
            raise ConfigurationError(f"no format '{name}'; there are {', '.join(FORMATS)}")

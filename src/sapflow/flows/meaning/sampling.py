"""Sampling rates: one packet (or flow) in how many a record stands for, and counters scaled by it, on request.

A rate comes from the record itself, else from options data of its exporter: of the record's sampler, of the interface
it came in by, of its template, of the whole observation domain, of the whole exporter; where a record names no sampler
and all samplers of its domain have one rate, that. What options data say of another port of the same address counts
where the session said nothing. A rate of 0 says nothing, and a record whose rate nobody told has none.

Counters stay as they are; scaled ones stand beside them under other names (`scaledOctetDeltaCount`), and are null where
the rate is not known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import numpy as np
from attrs import define, field
from numpy.typing import NDArray

from sapflow.flows.columns.batches import FlowBatch
from sapflow.flows.columns.records import Context
from sapflow.flows.ipfix.telling import says_rates
from sapflow.flows.meaning.fields import (
    REVERSE,
    Fields,
    Found,
    Made,
    made_column,
    made_element,
    number_of,
    with_columns,
)
from sapflow.flows.meaning.told import Told, address_of, places
from sapflow.flows.registry import InformationElement, built_in

Rates = NDArray[np.float64]
"""One rate for each record; NaN where none is known."""
Key = tuple[str, int] | None
"""What of an exporter or domain a rate holds for: a sampler, an interface, a template; None: all of it."""

RATE = "samplingRate"
_RATE_ELEMENT = made_element(RATE, "float64")
MAX_RATE = 2.0**63
SAMPLERS = ("selectorId", "samplerId")
_WHOLE_EXPORTER = {number_of(name) for name in ("exportingProcessId", "exporterIPv4Address", "exporterIPv6Address")}
COUNTERS = tuple(
    prefix + built_in().lookup(0, number).name
    for number in (1, 2, 85, 86, 23, 24, 171, 172, 352, 353, 231, 232, 298, 299)
    for prefix in ("", REVERSE)
)
"""What is scaled: octets and packets of a flow."""


def own_rates(fields: Fields) -> Rates:
    """The rates that records say themselves, from whichever elements they have."""
    rates = np.full(fields.records, np.nan)
    for found in _candidates(fields):
        rates = np.where(np.isnan(rates) & (found > 0) & (found < MAX_RATE), found, rates)
    return rates


def _candidates(fields: Fields) -> Iterable[Rates]:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for interval, space in (
            ("samplingPacketInterval", "samplingPacketSpace"),
            ("samplingFlowInterval", "samplingFlowSpacing"),
        ):
            taken, skipped = fields.floats(interval), fields.floats(space)
            if taken is not None:
                # An interval alone can only mean one in so many (RFC 5477 would have it take every packet).
                yield taken if skipped is None else np.where(np.isnan(skipped), taken, (taken + skipped) / taken)
        size, population = fields.floats("samplingSize"), fields.floats("samplingPopulation")
        if size is not None and population is not None:
            yield population / size
        if (probability := fields.floats("samplingProbability")) is not None:
            yield np.where((probability > 0) & (probability <= 1), 1 / probability, np.nan)
        for name in ("samplerRandomInterval", "samplingInterval"):
            if (found := fields.floats(name)) is not None:
                yield found


@define
class SamplingRates:
    """What exporters told of their sampling."""

    told: Told[Key, float] = field(factory=Told)

    def learn(self, batch: FlowBatch, context: Context) -> None:
        """Take in a batch of options data; any other changes nothing."""
        if not says_rates(batch.template):
            return
        fields = Fields([batch])
        scopes = {(spec.pen, spec.id) for spec in batch.template.fields[: batch.template.scope_count]}
        keys = _keys(fields, scopes)
        for key, rate in zip(keys, own_rates(fields).tolist(), strict=True):
            if rate == rate:
                self.told.put(context, batch.domain, key, rate)
                if scopes & _WHOLE_EXPORTER:
                    self.told.put(context, None, key, rate)

    def rates(self, fields: Fields, context: Context) -> Rates:
        """The rate of each record."""
        rates = own_rates(fields)
        unknown = np.isnan(rates)
        if not unknown.any():
            return rates
        known = {
            domain: [told for place in places(context, domain) if (told := self.told.at(place))]
            for domain in {batch.domain for batch in fields.batches}
        }
        if any(known.values()):
            kinds, which = np.unique(_kinds(fields, known)[unknown], axis=0, return_inverse=True)
            found = [_rate(known[domain], *kind) for domain, *kind in kinds.tolist()]
            rates[unknown] = np.array(found)[which.reshape(-1)]
        return rates


def _keys(fields: Fields, scopes: set[tuple[int, int]]) -> list[Key]:
    samplers = _samplers(fields)
    if samplers is not None:
        return [("sampler", number) for number in samplers.values.tolist()]
    for name, what in (("ingressInterface", "interface"), ("templateId", "template")):
        found = fields.integers(name) if number_of(name) in scopes else None
        if found is not None:
            return [(what, number) for number in found.values.tolist()]
    return [None] * fields.records


def _samplers(fields: Fields) -> Found | None:
    """The sampler that records name: by the first of the elements that they have."""
    samplers = None
    for name in SAMPLERS:
        found = fields.integers(name)
        if found is not None and samplers is not None:
            found = Found(np.where(samplers.told, samplers.values, found.values), samplers.told | found.told)
        samplers = found or samplers
    return samplers


def _kinds(fields: Fields, known: Mapping[int, list[dict[Key, float]]]) -> NDArray[np.int64]:
    """Each record's domain and sampler (-1: it names none), and its interface and template where rates were told by
    them."""
    kinds = np.zeros((fields.records, 4), np.int64)
    kinds[:, 0] = fields.domains()
    samplers, interfaces = _samplers(fields), fields.integers("ingressInterface")
    kinds[:, 1] = -1 if samplers is None else np.where(samplers.told, samplers.values.astype(np.int64), -1)
    every = [told for domain in known.values() for told in domain]
    if interfaces is not None and any(_are_of("interface", told) for told in every):
        kinds[:, 2] = interfaces.values.astype(np.int64)
    if any(_are_of("template", told) for told in every):
        kinds[:, 3] = fields.template_ids()
    return kinds


def _are_of(what: str, told: Mapping[Key, float]) -> bool:
    return any(key is not None and key[0] == what for key in told)


def _rate(known: list[dict[Key, float]], sampler: int, interface: int, template: int) -> float:
    """The rate of records of one sampler (-1: none named) and interface."""
    for told in known:
        for key in (("sampler", sampler), ("interface", interface), ("template", template), None):
            if key in told:
                return told[key]
        rates = set(told.values())
        if sampler < 0 and len(rates) == 1:
            return rates.pop()
    return float("nan")


_MOST_COUNT = np.uint64((1 << 64) - 1)


def scaled(counter: Made, rates: Rates) -> Made:
    """A counter times the rate of each record, rounded: unsigned64, masked where no rate is known or none fits."""
    unknown = np.isnan(rates)
    rate = np.where(unknown, 1.0, rates)
    # Whole rates are multiplied as integers: above 2**53 floats have gaps, and round up to what does not fit.
    whole = rate == np.rint(rate)
    count, factor = counter.astype(np.uint64), np.where(whole, rate, 1).astype(np.uint64)
    product = counter.astype(np.float64) * rate
    fits = np.where(whole, count <= _MOST_COUNT // np.maximum(factor, 1), product < 2.0**64)
    rounded = np.rint(np.where(fits & ~whole, product, 0)).astype(np.uint64)
    return np.ma.array(np.where(whole, count * factor, rounded), mask=unknown | ~fits)


@define
class Sampling:
    """The stage: `samplingRate` beside each record, and with `scale` its counters scaled."""

    joins: ClassVar[bool] = False

    scale: bool = False
    known: SamplingRates = field(factory=SamplingRates)
    unknown: Counter[str] = field(factory=Counter)
    """Records whose rate nobody told, by exporter's address."""
    max_exporters: int = 1000

    def apply(self, batches: Sequence[FlowBatch], context: Context) -> list[FlowBatch]:
        """Options data are learned from and go on as they are; a batch that has rates already is left alone."""
        made = list(batches)
        flows = []
        for at, batch in enumerate(batches):
            if batch.template.scope_count or says_rates(batch.template):
                self.known.learn(batch, context)
            elif made_column(batch, RATE) is None:
                flows.append(at)
        if flows:
            fields = Fields([batches[at] for at in flows])
            for at, columns in zip(flows, self._made(fields, context), strict=True):
                made[at] = with_columns(batches[at], columns)
        return made

    def _made(self, fields: Fields, context: Context) -> list[dict[str, tuple[InformationElement, Made]]]:
        """Columns for each batch."""
        rates = self.known.rates(fields, context)
        self._count(rates, context)
        made: list[dict[str, tuple[InformationElement, Made]]]
        made = [{RATE: (_RATE_ELEMENT, own)} for own in fields.slices(rates)]
        for name in COUNTERS if self.scale else ():
            counter = fields.integers(name)
            if counter is None:
                continue
            column = scaled(counter.values, rates)
            for at, element, _ in fields.parts(name):
                own = fields.rows(at)
                if counter.told[own].all():
                    title = f"scaled{element.name[0].upper()}{element.name[1:]}"
                    kind = made_element(title, "unsigned64", element.semantics, element.units)
                    made[at][title] = (kind, column[own])
        return made

    def _count(self, rates: Rates, context: Context) -> None:
        count = int(np.isnan(rates).sum())
        if count:
            address = address_of(context.exporter)
            known = address in self.unknown or len(self.unknown) < self.max_exporters
            self.unknown[address if known else "others"] += count

    def note(self) -> str | None:
        """What is to be told at the end: how many records are not scaled, and whose."""
        if not self.scale or not self.unknown:
            return None
        most = ", ".join(f"{name or '(unnamed)'} ({count:,})" for name, count in self.unknown.most_common(5))
        more = f" and {len(self.unknown) - 5:,} more exporters" if len(self.unknown) > 5 else ""
        return (
            f"{self.unknown.total():,} records have no sampling rate that their exporter told, and are not scaled: "
            f"{most}{more}"
        )

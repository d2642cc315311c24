"""Simulators: complete labels made partial, reproducibly.

What stays known is decided by one 64-bit key for each cell, drawn from PCG64's raw stream in the order of
`PartialLabels.cells()`: the raw stream is all that numpy promises to keep the same across machines and
versions. Where a number of cells is wanted, those with the smallest keys stay, ties by index; where a chance
is wanted, a cell stays if its key lies below an integer threshold.

Give a seed that nothing else uses (`randomness.derive_seed`): labels that were themselves drawn from
`np.random.default_rng(0)` share its stream, and simulating with seed 0 would choose by label.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from plbench.data.labels import IntArray, PartialLabels
from plbench.errors import PlbenchError, did_you_mean

BoolArray = npt.NDArray[np.bool_]
KeyArray = npt.NDArray[np.uint64]
FloatArray = npt.NDArray[np.float64]

CHANCE_BITS = 40  # a chance is taken to the nearest multiple of 2^-40: exact at 0 and 1, deaf to last bits


class _Parameter(NamedTuple):
    """A number that a simulator takes: its name in texts, its name in messages, and what is valid."""

    label: str
    argument: str
    low: float
    high: float = math.inf
    default: float = math.nan  # where one must be given
    whole: bool = False

    def read(self, number: str) -> float:
        try:
            value = float(number)
        except ValueError:
            raise PlbenchError(f"{self.label} needs a number, not {number!r}") from None
        if not self.low <= value <= self.high or math.isinf(value) or (self.whole and value != int(value)):
            kind = "a whole number" if self.whole else "a number"
            bounds = f"of at least {self.low}" if math.isinf(self.high) else f"from {self.low} to {self.high}"
            raise PlbenchError(f"{self.argument} must be {kind} {bounds}, not {_number_text(value)}")
        return int(value) if self.whole else value + 0.0  # -0.0 becomes 0.0


def _fixed_per_class(labels: PartialLabels, keys: KeyArray, num_per_class: int) -> BoolArray:
    """Keep a fixed number of positives of each class, and as many negatives (CSL, FPC); all where it has fewer."""
    _, columns, values = labels.cells()
    # more than there are images means all of them, and may not fit into int64
    quotas = np.full(2 * labels.num_classes, min(num_per_class, labels.num_images), dtype=np.int64)
    return _smallest_of_group(keys, 2 * columns + (values > 0), quotas)


def _random_per_annotation(labels: PartialLabels, keys: KeyArray, drop_probability: float) -> BoolArray:
    """Drop each annotation with the same probability, independently (CSL, RPA). Class frequencies stay."""
    return ~_happens(keys, np.float64(drop_probability))


def _single_positive(labels: PartialLabels, keys: KeyArray) -> BoolArray:
    """Keep one present label of each image, if it has any, and no absent one (Cole et al. 2021)."""
    rows, _, values = labels.cells()
    kept = values > 0
    one_each = np.ones(labels.num_images, dtype=np.int64)
    kept[kept] = _smallest_of_group(keys[kept], rows[kept], one_each)
    return kept


def _positive_only(labels: PartialLabels, keys: KeyArray, keep_probability: float) -> BoolArray:
    """Keep each present label with the same probability, and no absent one."""
    return (labels.cells()[2] > 0) & _happens(keys, np.float64(keep_probability))


def _frequency_biased(
    labels: PartialLabels, keys: KeyArray, keep_probability: float, bias: float, negatives_per_positive: float
) -> BoolArray:
    """Keep present labels with a chance that falls with the frequency of their class.

    The chance for a class with n positives is proportional to n^-bias, capped at 1, and scaled so that the expected
    share of all positives that stay is `keep_probability`: bias 0 keeps the class frequencies, 1 expects equally many
    of each class, up to the cap. `negatives_per_positive` times the kept positives of a class, rounded half to even,
    is how many of its negatives stay, at most all of them.
    """
    _, columns, values = labels.cells()
    present = values > 0
    positives, negatives = labels.counts()
    kept = present & _happens(keys, _annotation_chance(positives, keep_probability, bias)[columns])
    num_kept = np.bincount(columns[kept], minlength=labels.num_classes)
    quotas = np.minimum(np.rint(negatives_per_positive * num_kept), negatives).astype(np.int64)
    kept[~present] = _smallest_of_group(keys[~present], columns[~present], quotas)
    return kept


class _Kind(NamedTuple):
    """What gives the cells [K] that stay, and its parameters, the one that follows the kind's name first."""

    choose: Callable[..., BoolArray]
    parameters: tuple[_Parameter, ...] = ()


_KINDS = {
    "none": _Kind(lambda labels, keys: np.ones(len(keys), np.bool_)),
    "fpc": _Kind(_fixed_per_class, (_Parameter("fpc", "num_per_class", 1, whole=True),)),
    "rpa": _Kind(_random_per_annotation, (_Parameter("rpa", "drop_probability", 0, 1),)),
    "single-positive": _Kind(_single_positive),
    "positive-only": _Kind(_positive_only, (_Parameter("positive-only", "keep_probability", 0, 1),)),
    "frequency-biased": _Kind(
        _frequency_biased,
        (
            _Parameter("frequency-biased", "keep_probability", 0, 1),
            _Parameter("bias", "bias", 0, 4, 1.0),
            _Parameter("negatives", "negatives_per_positive", 0, default=1.0),
        ),
    ),
}


@dataclass(frozen=True)
class Simulation:
    """A way to make labels partial, as protocols name it. Comes from `parse`.

    Attributes:
        kind: "none", "fpc", "rpa", "single-positive", "positive-only" or "frequency-biased".
        numbers: the kind's parameters in the order of its text form, all of them.
    """

    kind: str
    numbers: tuple[float, ...] = ()

    @property
    def text(self) -> str:
        """Canonical text, such as "fpc=300"; every parameter is spelled out, so that defaults may change."""
        parameters = _KINDS[self.kind].parameters
        terms = [f"{p.label}={_number_text(n)}" for p, n in zip(parameters, self.numbers, strict=True)]
        return ",".join(terms) or self.kind

    @property
    def slug(self) -> str:
        """The text as part of a protocol's name, such as "fpc300"; "complete" where nothing is hidden."""
        return "complete" if self.kind == "none" else self.text.replace("=", "").replace(",", "-")

    def apply(self, labels: PartialLabels, seed: int) -> PartialLabels:
        """Return partial labels from complete ones; "none" gives back whatever labels it gets.

        Args:
            labels: complete labels [N, C]; any, for "none".
            seed: at least 0.

        Returns:
            [N, C], a subset of the cells.

        Raises:
            PlbenchError: if the labels are not complete.
        """
        if self.kind == "none":
            return labels
        if not labels.is_complete:
            raise PlbenchError(
                f"a simulation needs complete labels, but only {labels.num_known} of "
                f"{labels.num_images * labels.num_classes} cells are known; labels that are partial as they come "
                'take `simulate="none"`'
            )
        return labels.keep(_KINDS[self.kind].choose(labels, _keys(seed, labels.num_known), *self.numbers))


def parse(text: str) -> Simulation:
    """Read a simulation from text such as "none", "fpc=300" or "frequency-biased=0.1,bias=0.5,negatives=3".

    Args:
        text: the kind, or terms NAME=NUMBER with the kind's own number first; numbers left out take their defaults.

    Returns:
        The simulation with all of its numbers.

    Raises:
        PlbenchError: if there is no such simulation, or a number is missing, malformed or out of range.
    """
    terms = [[part.strip() for part in term.partition("=")] for term in text.split(",")]
    kind, names = terms[0][0], [term[0] for term in terms]
    if kind not in _KINDS:
        raise PlbenchError(f"there is no simulation {kind!r}; {did_you_mean(kind, _KINDS)}")
    parameters = {p.label: p for p in _KINDS[kind].parameters}
    if not parameters:
        if text.strip() != kind:
            raise PlbenchError(f"simulation {text!r}: {kind} takes no numbers; write {kind}")
        return Simulation(kind)
    first, *others = (f"{p.label}={p.argument.upper()}" for p in parameters.values())
    usage = ",".join([first, *(f"[{term}]" for term in others)])
    if unknown := [name for name in names if name not in parameters]:
        raise PlbenchError(f"simulation {text!r}: {kind} has no {unknown[0]!r}; write {usage}")
    if repeated := [name for name in names if names.count(name) > 1]:
        raise PlbenchError(f"simulation {text!r} gives {repeated[0]} more than once; write {usage}")
    numbers = {name: p.default for name, p in parameters.items()}
    try:
        numbers |= {name: parameters[name].read(number) for name, _, number in terms}
    except PlbenchError as error:
        raise PlbenchError(f"simulation {text!r}: {error}") from None
    return Simulation(kind, tuple(numbers.values()))


def _number_text(value: float) -> str:
    """Return shortest text that reads back as the same number, without a trailing .0."""
    return repr(float(value)).removesuffix(".0")


def _keys(seed: int, count: int) -> KeyArray:
    if seed < 0:
        raise PlbenchError(f"the seed of a simulation must be at least 0, not {seed}")
    return np.random.PCG64(seed).random_raw(count)


def _happens(keys: KeyArray, chance: FloatArray | np.float64) -> BoolArray:
    """Return which keys fall to events of these chances (in [0, 1]): none where 0, all where 1."""
    # whole numbers: where a chance differs in its last bits, from machine to machine, the same cells are chosen
    thresholds = np.rint(np.ldexp(chance, CHANCE_BITS)).astype(np.uint64)
    return keys >> np.uint64(64 - CHANCE_BITS) < thresholds


def _smallest_of_group(keys: KeyArray, groups: IntArray, quotas: IntArray) -> BoolArray:
    """Mark in each group g the quotas[g] cells with the smallest keys, ties by index; at most all."""
    order = np.lexsort((keys, groups))  # a stable sort: by group, then key, then index
    sizes = np.bincount(groups, minlength=len(quotas))
    ends_of_quota = np.cumsum(sizes) - sizes + quotas
    kept = np.zeros(len(keys), dtype=np.bool_)
    kept[order[np.arange(len(keys)) < np.repeat(ends_of_quota, sizes)]] = True
    return kept


def _annotation_chance(positives: IntArray, keep_probability: float, bias: float) -> FloatArray:
    """Return chance [C] of each class, proportional to positives^-bias, whose expected sum is the wanted share.

    Water-filling: from rare to frequent, the first k classes are full (chance 1) and the others share the
    rest, for the smallest k where none of those overflows. Powers are rounded to float32 because maths
    libraries differ in the last bits of float64; sums in fixed order, products and quotients do not.
    """
    if not positives.any():
        return np.zeros(len(positives))
    powers = np.maximum(positives, 1).astype(np.float64) ** -bias
    weights = powers.astype(np.float32).astype(np.float64)
    order = np.argsort(positives, kind="stable")
    counts, ordered = positives[order].astype(np.float64), weights[order]
    full = np.cumsum(counts) - counts
    shared = np.cumsum((counts * ordered)[::-1])[::-1]
    scales = (keep_probability * positives.sum() - full) / shared
    fits = scales * ordered <= 1.0
    fits[-1] = True  # in exact arithmetic the last class always fits
    chances: npt.NDArray[np.float64] = np.minimum(scales[np.argmax(fits)] * weights, 1.0)
    return chances

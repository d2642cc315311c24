"""Simulators that make complete labels partial, reproducibly.

Known labels are chosen by one 64-bit key per cell, taken from PCG64's raw stream in the order of
`PartialLabels.cells()`, since numpy only guarantees the raw stream across machines and versions. For a fixed number of
cells, those with the smallest keys stay known, ties by index; for a probability, a cell stays known if its key is below
an integer threshold.

Use a seed that nothing else uses (`randomness.derive_seed`): labels that were themselves sampled from
`np.random.default_rng(0)` share its stream, so simulating with seed 0 would depend on the labels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from scipy import sparse

from plbench.data.labels import Int8Array, IntArray, PartialLabels
from plbench.data.published_masks import COLE_SHARE, known_of_mlr_pl, single_positive_of_cole
from plbench.errors import PlbenchError, did_you_mean

if TYPE_CHECKING:
    from plbench.data.label_file import Zero  # imports pandas

BoolArray = npt.NDArray[np.bool_]
KeyArray = npt.NDArray[np.uint64]
FloatArray = npt.NDArray[np.float64]

CHANCE_BITS = 40  # probabilities are rounded to multiples of 2^-40: exact at 0 and 1

_BLOCK = 2**15  # keys at once, to fit the CPU cache
_ALL_KEYS = np.uint64(2**64 - 1)


class _Parameter(NamedTuple):
    """A numeric parameter of a simulator: its name in text, its name in code, and its valid range."""

    label: str
    argument: str
    low: float
    high: float = math.inf
    default: float = math.nan  # NaN: required
    whole: bool = False

    def check(self, value: float) -> None:
        if not self.low <= value <= self.high or math.isinf(value) or (self.whole and value != int(value)):
            kind = "a whole number" if self.whole else "a number"
            bounds = f"of at least {self.low}" if math.isinf(self.high) else f"from {self.low} to {self.high}"
            raise PlbenchError(f"{self.argument} must be {kind} {bounds}, not {_number_text(value)}")


_NUM_PER_CLASS = _Parameter("fpc", "num_per_class", 1, whole=True)
_DROP = _Parameter("rpa", "drop_probability", 0, 1)
_KEEP = _Parameter("positive-only", "keep_probability", 0, 1)
_BIASED_KEEP = _Parameter("frequency-biased", "keep_probability", 0, 1)
_BIAS = _Parameter("bias", "bias", 0, 4, 1.0)
_NEGATIVES = _Parameter("negatives", "negatives_per_positive", 0, math.inf, 1.0)
_UNLABELLED = _Parameter("unlabelled", "unlabelled_share", 0, 1)
_KNOWN_SHARE = _Parameter("mlr-pl", "known_share", 0, 1)
_SIZE_KEEP = _Parameter("size-biased", "keep_probability", 0, 1)
_PLACE_KEEP = _Parameter("place-biased", "keep_probability", 0, 1)
_SIZE_BIAS = _Parameter("single-positive-size", "bias", 0, 4)
_PLACE_BIAS = _Parameter("single-positive-place", "bias", 0, 4)


def fixed_per_class(labels: PartialLabels, num_per_class: int, *, seed: int) -> PartialLabels:
    """Keep a fixed number of positives of each class known, and as many negatives (CSL, FPC).

    Args:
        labels: complete labels [N, C].
        num_per_class: N_s >= 1; if a class has fewer positives or negatives, all of them stay known.
        seed: at least 0; of the raw stream.

    Returns:
        [N, C], a subset of the cells.

    Raises:
        PlbenchError: if `num_per_class` is out of range or the labels are not complete.
    """
    _NUM_PER_CLASS.check(num_per_class)
    _require_complete(labels)
    # a larger number than that of images means all of them, and may not fit into int64
    return labels.keep(_smallest_of_class(labels, min(num_per_class, labels.num_images), seed))


def random_per_annotation(labels: PartialLabels, drop_probability: float, *, seed: int) -> PartialLabels:
    """Drop each annotation with the same probability, independently (CSL, RPA). This keeps class frequencies.

    Args:
        labels: complete labels [N, C].
        drop_probability: in [0, 1].
        seed: at least 0.

    Returns:
        [N, C], a subset of the cells.

    Raises:
        PlbenchError: if `drop_probability` is out of range or the labels are not complete.
    """
    _DROP.check(drop_probability)
    _require_complete(labels)
    return labels.keep(_survive(labels.num_known, drop_probability, seed))


def single_positive(labels: PartialLabels, *, seed: int) -> PartialLabels:
    """Keep one present label of each image known, and no absent one (Cole et al. 2021).

    Args:
        labels: complete labels [N, C].
        seed: at least 0.

    Returns:
        [N, C]; images without a present label have no known label.

    Raises:
        PlbenchError: if the labels are not complete.
    """
    rows, _, values = _complete_cells(labels)
    present = values > 0
    kept = np.zeros(len(values), dtype=np.bool_)
    one_each = np.ones(labels.num_images, dtype=np.int64)
    kept[present] = _smallest_of_group(_keys(seed, len(values))[present], rows[present], one_each)
    return labels.keep(kept)


def positive_only(labels: PartialLabels, keep_probability: float, *, seed: int) -> PartialLabels:
    """Keep each present label known with the same probability, and no absent one.

    Args:
        labels: complete labels [N, C].
        keep_probability: in [0, 1].
        seed: at least 0.

    Returns:
        [N, C], a subset of the present cells.

    Raises:
        PlbenchError: if `keep_probability` is out of range or the labels are not complete.
    """
    _KEEP.check(keep_probability)
    _, _, values = _complete_cells(labels)
    return labels.keep((values > 0) & _happens(_keys(seed, len(values)), np.float64(keep_probability)))


def frequency_biased(
    labels: PartialLabels,
    keep_probability: float,
    *,
    bias: float = 1.0,
    negatives_per_positive: float = 1.0,
    seed: int,
) -> PartialLabels:
    """Annotate present labels with a probability that decreases with the frequency of their class.

    The probability for a class with n positives is proportional to n^-bias, capped at 1, and scaled so that the
    expected share of all positives that stay known is `keep_probability`.

    Args:
        labels: complete labels [N, C].
        keep_probability: in [0, 1].
        bias: in [0, 4]; 0 keeps the class frequencies, 1 gives the same expected number for each class, up to the cap.
        negatives_per_positive: at least 0; this times the number of known positives of a class, rounded half to even,
            is the number of its negatives that stay known, if there are as many.
        seed: at least 0.

    Returns:
        [N, C], a subset of the cells.

    Raises:
        PlbenchError: if a number is out of range or the labels are not complete.
    """
    _BIASED_KEEP.check(keep_probability)
    _BIAS.check(bias)
    _NEGATIVES.check(negatives_per_positive)
    _, columns, values = _complete_cells(labels)
    keys, present = _keys(seed, len(values)), values > 0
    positives, negatives = labels.counts()
    kept = present & _happens(keys, _annotation_chance(positives, keep_probability, bias)[columns])
    num_kept = np.bincount(columns[kept], minlength=labels.num_classes)
    quotas = np.minimum(np.rint(negatives_per_positive * num_kept), negatives).astype(np.int64)
    kept[~present] = _smallest_of_group(keys[~present], columns[~present], quotas)
    return labels.keep(kept)


def unlabelled_images(labels: PartialLabels, unlabelled_share: float, *, seed: int) -> PartialLabels:
    """Hide all labels of some images, and keep all labels of the others (semi-supervised multi-label learning).

    Args:
        labels: complete labels [N, C].
        unlabelled_share: of the images, in [0, 1]; their number is rounded half to even.
        seed: at least 0.

    Returns:
        [N, C], a subset of the cells.

    Raises:
        PlbenchError: if `unlabelled_share` is out of range or the labels are not complete.
    """
    _UNLABELLED.check(unlabelled_share)
    rows, _, _ = _complete_cells(labels)
    quota = np.array([labels.num_images - round(unlabelled_share * labels.num_images)])
    labelled = _smallest_of_group(_keys(seed, labels.num_images), np.zeros(labels.num_images, np.int64), quota)
    return labels.keep(labelled[rows])


def object_biased(
    labels: PartialLabels, keep_probability: float, *, bias: float = 1.0, prominence: sparse.csr_array, seed: int
) -> PartialLabels:
    """Keep present labels of prominent objects known more often; small or off-centre objects are hidden more often.

    The probability of a present label is proportional to prominence^bias, capped at 1, and scaled so that the expected
    share of all present labels that stay known is `keep_probability`. Absent labels stay known with that probability,
    so that bias 0 gives the labels of `random_per_annotation`.

    Args:
        labels: complete labels [N, C].
        keep_probability: in [0, 1].
        bias: in [0, 4].
        prominence: [N, C] of the present cells, above 0 (`plbench.data.dataset.Dataset.prominence`).
        seed: at least 0.

    Returns:
        [N, C], a subset of the cells.

    Raises:
        PlbenchError: if a number is out of range or the labels are not complete.
    """
    _SIZE_KEEP.check(keep_probability)
    _BIAS.check(bias)
    _, _, values = _complete_cells(labels)
    weights = _weights(labels, prominence, bias)
    chance = np.full(len(values), float(keep_probability))
    chance[values > 0] = _shared_out(weights, np.ones(len(weights), np.int64), keep_probability)
    return labels.keep(~_happens(_keys(seed, len(values)), 1.0 - chance))


def single_positive_biased(
    labels: PartialLabels, bias: float, *, prominence: sparse.csr_array, seed: int
) -> PartialLabels:
    """Keep one present label of each image known, a prominent one more often (Arroyo, Perona & Cole, 2023).

    A present label is chosen with probability proportional to prominence^bias among those of its image; bias 1 is their
    model, and bias 0 gives the labels of `single_positive`.

    Args:
        labels: complete labels [N, C].
        bias: in [0, 4].
        prominence: [N, C] of the present cells, above 0 (`plbench.data.dataset.Dataset.prominence`).
        seed: at least 0.

    Returns:
        [N, C]; images without a present label have no known label.

    Raises:
        PlbenchError: if `bias` is out of range or the labels are not complete.
    """
    _BIAS.check(bias)
    rows, _, values = _complete_cells(labels)
    present = values > 0
    # among exponential waiting times, each is the smallest with probability proportional to its rate, the weight
    uniform = (_keys(seed, len(values))[present] >> np.uint64(11)).astype(np.float64) * 2.0**-53
    waiting = -np.log1p(-uniform) / _weights(labels, prominence, bias)
    kept = np.zeros(len(values), dtype=np.bool_)
    kept[present] = _smallest_of_group_plain(waiting, rows[present], np.ones(labels.num_images, dtype=np.int64))
    return labels.keep(kept)


def cole2021(labels: PartialLabels, *, rows: IntArray, num_rows: int) -> PartialLabels:
    """Keep one positive of each image known, as sampled by the code of Cole et al. (CVPR 2021).

    Args:
        labels: complete labels [N, C].
        rows: [N] position of each image in their order. num_rows: number of images in it, which may be larger.

    Returns:
        [N, C], a subset of the present cells.

    Raises:
        PlbenchError: if the labels are not complete, or their order contains images that are not among these.
    """
    _, columns, values = _complete_cells(labels)
    if num_rows != labels.num_images:
        raise PlbenchError(
            f"cole2021 needs all {num_rows:,} images, not {labels.num_images:,}: one draw depends on those before it"
        )
    present = np.zeros((num_rows, labels.num_classes), bool)
    present[np.repeat(rows, labels.num_classes), columns] = values > 0
    return labels.keep(single_positive_of_cole(present)[rows].ravel())


def mlr_pl(labels: PartialLabels, known_share: float, *, rows: IntArray, num_rows: int) -> PartialLabels:
    """Keep the labels known that SST and SARB (AAAI 2022) use: a share of all cells, nested in larger shares.

    Args:
        labels: complete labels [N, C].
        known_share: in [0, 1].
        rows: [N] position of each image in their order. num_rows: number of images in it, including unannotated ones.

    Returns:
        [N, C], a subset of the cells.

    Raises:
        PlbenchError: if `known_share` is out of range or the labels are not complete.
    """
    _KNOWN_SHARE.check(known_share)
    _complete_cells(labels)
    return labels.keep(known_of_mlr_pl(num_rows, labels.num_classes, known_share)[rows].ravel())


class _Kind(NamedTuple):
    """A simulator and its parameters, first the one that follows the kind's name.

    Attributes:
        is_published: whether it reproduces published masks: it takes the rows of the published order instead of a seed.
        objects: information on objects that the annotations must provide, passed as `prominence`.
    """

    simulator: Callable[..., PartialLabels]
    parameters: tuple[_Parameter, ...] = ()
    is_published: bool = False
    objects: Literal["size", "place"] | None = None


_KINDS = {
    "none": _Kind(lambda labels, *, seed: labels),
    "fpc": _Kind(fixed_per_class, (_NUM_PER_CLASS,)),
    "rpa": _Kind(random_per_annotation, (_DROP,)),
    "single-positive": _Kind(single_positive),
    "positive-only": _Kind(positive_only, (_KEEP,)),
    "frequency-biased": _Kind(frequency_biased, (_BIASED_KEEP, _BIAS, _NEGATIVES)),
    "unlabelled": _Kind(unlabelled_images, (_UNLABELLED,)),
    "size-biased": _Kind(object_biased, (_SIZE_KEEP, _BIAS), objects="size"),
    "place-biased": _Kind(object_biased, (_PLACE_KEEP, _BIAS), objects="place"),
    "single-positive-size": _Kind(single_positive_biased, (_SIZE_BIAS,), objects="size"),
    "single-positive-place": _Kind(single_positive_biased, (_PLACE_BIAS,), objects="place"),
    "cole2021": _Kind(cole2021, is_published=True),
    "mlr-pl": _Kind(mlr_pl, (_KNOWN_SHARE,), is_published=True),
}


WITHOUT_NEGATIVES = frozenset(
    {"single-positive", "single-positive-size", "single-positive-place", "positive-only", "cole2021"}
)
"""Kinds without known negatives, so that only complete labels can validate."""

LABEL_FILE = "labels-file"
"""The kind whose labels are in a file; protocols name it by the file's sha256 and suffix."""


@dataclass(frozen=True)
class Simulation:
    """A way to make labels partial, as named in protocols; made by `parse`.

    Attributes:
        kind: "labels-file", or a name of `_KINDS`, such as "fpc".
        numbers: all parameters of the kind, in the order of its text form.
        file, zero: of "labels-file": the label file, and the meaning of 0 if it is ambiguous.
    """

    kind: str
    numbers: tuple[float, ...] = ()
    file: str = ""
    zero: Zero | None = None

    @property
    def text(self) -> str:
        """Canonical text, such as "fpc=300", with all parameters, so that defaults may change."""
        if self.kind == LABEL_FILE:
            return f"{LABEL_FILE}={self.file}" + ("" if self.zero is None else f",zero={self.zero}")
        parameters = _KINDS[self.kind].parameters
        terms = [f"{p.label}={_number_text(n)}" for p, n in zip(parameters, self.numbers, strict=True)]
        return ",".join(terms) or self.kind

    @property
    def slug(self) -> str:
        """The text as part of a protocol's name, such as "fpc300"; "complete" if nothing is hidden."""
        if self.kind == LABEL_FILE:
            return f"{LABEL_FILE}-{self.file[:8]}"
        return "complete" if self.kind == "none" else self.text.replace("=", "").replace(",", "-")

    @property
    def is_published(self) -> bool:
        """Whether it reproduces published masks, which do not depend on a seed."""
        return self.kind == LABEL_FILE or _KINDS[self.kind].is_published

    @property
    def rules(self) -> dict[str, Any]:
        """The protocol fields that it determines: its text, seed and validation part."""
        fixed = self.kind == "none" or self.is_published
        share = {"validation_share": COLE_SHARE} if self.kind == "cole2021" else {}
        return {
            "simulation": self.text,
            "simulation_seed": 0 if fixed else None,
            "validation_labels": "complete" if self.kind in WITHOUT_NEGATIVES else "partial",
            **share,
        }

    @property
    def objects(self) -> Literal["size", "place"] | None:
        """The information on objects that it needs; None for none."""
        return None if self.kind == LABEL_FILE else _KINDS[self.kind].objects

    def apply(
        self,
        labels: PartialLabels,
        seed: int,
        published: tuple[IntArray, int] | None = None,
        prominence: sparse.csr_array | None = None,
    ) -> PartialLabels:
        """Return partial labels from complete ones; "none" returns any labels unchanged.

        Args:
            labels: complete labels [N, C]; any labels for "none".
            seed: at least 0; ignored by published masks.
            published: rows [N] of the images in the order of published masks, and the number of all rows there; None
                for the order of `labels`.
            prominence: [N, C] of the present cells, by the measure in `objects`; None if that is None.

        Returns:
            [N, C], a subset of the cells.

        Raises:
            PlbenchError: if the labels are not complete.
        """
        kind = _KINDS[self.kind]
        arguments: dict[str, Any] = {p.argument: n for p, n in zip(kind.parameters, self.numbers, strict=True)}
        if kind.objects is not None:
            arguments["prominence"] = prominence
        if not kind.is_published:
            return kind.simulator(labels, **arguments, seed=seed)
        rows, num_rows = published or (np.arange(labels.num_images), labels.num_images)
        return kind.simulator(labels, **arguments, rows=rows, num_rows=num_rows)


_LABEL_FILE = re.compile(rf"{LABEL_FILE}\s*=\s*(?P<file>.+?)(?:,\s*zero\s*=\s*(?P<zero>absent|unknown))?")


def parse(text: str) -> Simulation:
    """Read a simulation from text such as "none", "fpc=300" or "frequency-biased=0.1,bias=0.5,negatives=3".

    Args:
        text: the kind, or terms NAME=NUMBER with the kind's own number first; omitted numbers have their defaults. Or
            "labels-file=FILE", followed by ",zero=absent" or ",zero=unknown" if 0 is ambiguous.

    Returns:
        The simulation with all of its numbers.

    Raises:
        PlbenchError: if there is no such simulation, or a number is missing, malformed or out of range.
    """
    if match := _LABEL_FILE.fullmatch(text.strip()):
        return Simulation(LABEL_FILE, (), match["file"], cast("Zero | None", match["zero"]))
    terms = [[part.strip() for part in term.partition("=")] for term in text.split(",")]
    kind, names = terms[0][0], [term[0] for term in terms]
    if kind == LABEL_FILE:
        raise PlbenchError(f"simulation {text!r} names no file; write {LABEL_FILE}=FILE[,zero=absent]")
    if kind not in _KINDS:
        raise PlbenchError(f"there is no simulation {kind!r}; {did_you_mean(kind, [*_KINDS, LABEL_FILE])}")
    parameters = {p.label: p for p in _KINDS[kind].parameters}
    if not parameters and text.strip() != kind:
        raise PlbenchError(f"simulation {text!r}: {kind} takes no numbers; write {kind}")
    if not parameters:
        return Simulation(kind)
    if unknown := [name for name in names if name not in parameters]:
        raise PlbenchError(f"simulation {text!r}: {kind} has no {unknown[0]!r}; write {_usage(kind)}")
    if repeated := [name for name in names if names.count(name) > 1]:
        raise PlbenchError(f"simulation {text!r} gives {repeated[0]} more than once; write {_usage(kind)}")
    numbers = {name: p.default for name, p in parameters.items()}
    numbers |= {name: _read(parameters[name], number, text) for name, _, number in terms}
    return Simulation(kind, tuple(numbers.values()))


def _read(parameter: _Parameter, number: str, text: str) -> float:
    """Return the value of one parameter of the simulation `text`."""
    try:
        value = float(number)
    except ValueError:
        raise PlbenchError(f"simulation {text!r}: {parameter.label} needs a number, not {number!r}") from None
    try:
        parameter.check(value)
    except PlbenchError as error:
        raise PlbenchError(f"simulation {text!r}: {error}") from None
    return int(value) if parameter.whole else value + 0.0  # -0.0 becomes 0.0


def _usage(kind: str) -> str:
    """Return the text form of a kind, such as fpc=NUM_PER_CLASS."""
    terms = [f"{p.label}={p.argument.upper()}" for p in _KINDS[kind].parameters]
    return ",".join([*terms[:1], *(f"[{term}]" for term in terms[1:])]) or kind


def _number_text(value: float) -> str:
    """Return the shortest text that parses to the same number, without a trailing .0."""
    return repr(float(value)).removesuffix(".0")


def _complete_cells(labels: PartialLabels) -> tuple[IntArray, IntArray, Int8Array]:
    """Return all cells; raise if the labels are not complete."""
    _require_complete(labels)
    return labels.cells()


def _require_complete(labels: PartialLabels) -> None:
    if not labels.is_complete:
        raise PlbenchError(
            f"a simulation needs complete labels, but only {labels.num_known} of "
            f"{labels.num_images * labels.num_classes} cells are known; labels that are partial as they come "
            'take `simulate="none"`'
        )


def _keys(seed: int, count: int) -> KeyArray:
    return _stream(seed).random_raw(count)


def _key_blocks(seed: int, count: int, size: int) -> Iterator[tuple[slice, KeyArray]]:
    """Yield the keys of `_keys` and their cells block by block, to limit memory on OpenImages."""
    stream = _stream(seed)
    for start in range(0, count, size):
        stop = min(start + size, count)
        yield slice(start, stop), stream.random_raw(stop - start)


def _stream(seed: int) -> np.random.PCG64:
    if seed < 0:
        raise PlbenchError(f"the seed of a simulation must be at least 0, not {seed}")
    return np.random.PCG64(seed)


def _survive(count: int, drop_probability: float, seed: int) -> BoolArray:
    """Return a mask of those of `count` cells that are not dropped."""
    kept = np.empty(count, np.bool_)
    for block, keys in _key_blocks(seed, count, _BLOCK):
        kept[block] = ~_happens(keys, np.float64(drop_probability))
    return kept


def _happens(keys: KeyArray, chance: FloatArray | np.float64) -> BoolArray:
    """Return a mask of the keys that select events with these probabilities in [0, 1]: none for 0, all for 1."""
    # integers, so that differences in a probability's last bits between machines do not change the selection
    thresholds = np.rint(np.ldexp(chance, CHANCE_BITS)).astype(np.uint64)
    return keys >> np.uint64(64 - CHANCE_BITS) < thresholds


def _smallest_of_class(labels: PartialLabels, quota: int, seed: int) -> BoolArray:
    """Mark in each class the `quota` positives and the `quota` negatives with the smallest keys, ties by index.

    Keys are uniform, so most cells of a large group can be excluded by a limit seven standard deviations above the
    expected one, which practically always leaves at least `quota` keys. Only the remaining cells are sorted.

    Args:
        labels: complete labels [N, C].
        quota: at most N.
        seed: of the keys.

    Returns:
        [N * C] in the order of the cells.
    """
    kept = np.zeros(labels.num_known, np.bool_)
    if not kept.size:
        return kept
    num_images, num_classes = labels.matrix.shape
    present = labels.matrix.data > 0
    positives = np.count_nonzero(present.reshape(num_images, num_classes), axis=0)
    sizes = np.stack([num_images - positives, positives])  # [2, C] of absent and present cells
    share = (quota + 7 * math.sqrt(quota) + 7) / np.maximum(sizes, 1)
    limits = np.where(share < 1, np.ldexp(np.minimum(share, 1 - 2**-53), 64).astype(np.uint64), _ALL_KEYS)
    rows_at_once = max(1, _BLOCK // num_classes)
    absent_limit, present_limit = np.tile(limits, rows_at_once)
    found, found_keys = [], []
    for block, keys in _key_blocks(seed, labels.num_known, rows_at_once * num_classes):
        is_near = present[block] & (keys <= present_limit[: keys.size])
        is_near |= keys <= absent_limit[: keys.size]  # a few extra present cells do no harm
        near = np.flatnonzero(is_near)
        found.append(block.start + near)
        found_keys.append(keys[near])
    cells = np.concatenate(found)
    groups, quotas = 2 * (cells % num_classes) + present[cells], np.minimum(sizes.T.ravel(), quota)
    if (np.bincount(groups, minlength=len(quotas)) < quotas).any():
        return _smallest_of_class_plain(labels, quota, seed)
    kept[cells[_smallest_of_group(np.concatenate(found_keys), groups, quotas)]] = True
    return kept


def _smallest_of_class_plain(labels: PartialLabels, quota: int, seed: int) -> BoolArray:
    """Compute `_smallest_of_class` from the keys of all cells."""
    _, columns, values = labels.cells()
    quotas = np.full(2 * labels.num_classes, quota)
    return _smallest_of_group(_keys(seed, len(values)), 2 * columns + (values > 0), quotas)


def _smallest_of_group(keys: KeyArray, groups: IntArray, quotas: IntArray) -> BoolArray:
    """Mark in each group g the quotas[g] cells with the smallest keys, ties by index; at most all.

    Sorting single integers, made of the group and the leading bits of the key, is many times as fast as sorting two
    columns. If the leading bits do not determine the selection, the two-column sort is used.
    """
    if not keys.size:
        return np.zeros(0, np.bool_)
    room = np.uint64(64 - len(quotas).bit_length())
    packed = (groups.astype(np.uint64) << room) | (keys >> (np.uint64(64) - room))
    ordered = np.sort(packed)
    sizes = np.bincount(groups, minlength=len(quotas))
    first_out = np.cumsum(sizes) - sizes + quotas
    is_short = quotas < sizes
    bounds = np.arange(1, len(quotas) + 1, dtype=np.uint64) << room  # of groups that are kept completely
    bounds[is_short] = ordered[first_out[is_short]]
    is_decided = ordered[first_out[is_short] - 1] < bounds[is_short]
    if not np.all(is_decided | (quotas[is_short] == 0)):
        return _smallest_of_group_plain(keys, groups, quotas)
    return packed < bounds[groups]


def _smallest_of_group_plain(keys: KeyArray | FloatArray, groups: IntArray, quotas: IntArray) -> BoolArray:
    """Compute `_smallest_of_group` for numbers of any type."""
    order = np.lexsort((keys, groups))  # a stable sort: by group, then key, then index
    sizes = np.bincount(groups, minlength=len(quotas))
    ends_of_quota = np.cumsum(sizes) - sizes + quotas
    kept = np.zeros(len(keys), dtype=np.bool_)
    kept[order[np.arange(len(keys)) < np.repeat(ends_of_quota, sizes)]] = True
    return kept


def _annotation_chance(positives: IntArray, keep_probability: float, bias: float) -> FloatArray:
    """Return probabilities [C] of the classes, proportional to positives^-bias, with the wanted expected share."""
    return _shared_out(_powers(np.maximum(positives, 1), -bias), positives, keep_probability)


def _weights(labels: PartialLabels, prominence: sparse.csr_array, bias: float) -> FloatArray:
    """Return the weight of each present cell, in the order of the cells."""
    assert prominence.nnz == labels.counts()[0].sum(), "one for each present cell"
    return _powers(prominence.data, bias)


def _powers(values: npt.ArrayLike, exponent: float) -> FloatArray:
    """Return values^exponent, rounded to float32, since math libraries differ in the last bits of float64."""
    return (np.asarray(values, np.float64) ** exponent).astype(np.float32).astype(np.float64)


def _shared_out(weights: FloatArray, counts: IntArray, share: float) -> FloatArray:
    """Return probabilities [G] of groups of cells, proportional to weights up to 1, with an expected total `share`.

    Water-filling: in descending order of weight, the first k groups are full (probability 1) and the others share the
    rest, for the smallest k for which none of those exceeds 1. Sums are in a fixed order, and equal on every machine.

    Args:
        weights: [G] weight of a cell of each group, above 0.
        counts: [G] number of cells in each group.
    """
    if not counts.any():
        return np.zeros(len(counts))
    order = np.lexsort((counts, -weights))
    sizes, ordered = counts[order].astype(np.float64), weights[order]
    full = np.cumsum(sizes) - sizes
    shared = np.cumsum((sizes * ordered)[::-1])[::-1]
    scales = (share * counts.sum() - full) / shared
    fits = scales * ordered <= 1.0
    fits[-1] = True  # in exact arithmetic the last group always fits
    chances: FloatArray = np.minimum(scales[np.argmax(fits)] * weights, 1.0)
    return chances

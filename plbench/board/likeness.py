"""Plausibility of a board's records: copies of others, and replicates that do not fit those of other methods.

Thresholds are far outside the range of the 2,130 records on the boards in November 2026, so that no genuine record is
rejected. Forgers who know them can stay within: they catch crude copies, and cells catch the rest.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from plbench.board.entries import Entry
from plbench.comparison.identity import row_key
from plbench.runs.findings import Problem, printable
from plbench.runs.store import CELLS
from plbench.runs.summary import HEADLINE
from plbench.runs.tables import PER_CLASS, REPLICATES
from plbench.spec import RunSpec

NEAR = 0.02
"""Difference, in percentage points of every class's AP or of every replicate, below which two records are one training.

Of all pairs of records on one board with different seeds or methods, the two most similar differ by 0.22 in some class,
and by 0.06 in some replicate.
"""

MIN_PEERS = 20
"""Minimum number of records of other methods under one protocol to compare replicates with."""

LEAST_CORRELATION = 0.14
"""Minimum correlation with the most similar record of another method; on the boards, at least 0.32 for mAP(C) and 0.48
for mAP(O), and 0.25 and 0.15 for zero-shot, which errs unlike trained methods. Of shuffled replicates one in 1,000
reaches it: the maximum of 300 correlations with mean 0 and standard deviation 0.03."""

SPREADS = {"map_c": (0.22, 2.5), "map_o": (0.4, 3.5)}
"""Valid standard deviations, as a share of the median over peers. On the boards, 0.65 to 1.26 of what the classes' AP
predict for mAP(C), and 0.30 for a method near chance; 0.69 to 2.07 for mAP(O)."""

SHIFTS = (-2.0, 2.5)
"""Valid differences between the replicates' mean and the figure, minus those of peers, in standard deviations; on the
boards, -0.80 to 1.24. Resampling increases AP, more so if it is low."""

_NEAR_CHANCE = 0.5  # share of the expected spread below which mAP(C) is noise, and its correlation meaningless
_NEAR_BEST = 99.0  # percent
_LEAST_DEVIATION = 0.05  # points; replicates are rounded to 0.01
_MIN_CLASSES, _MIN_POSITIVES = 5, 20  # with fewer, two trainings may well agree
_MIN_VALUES = 50  # distinct ones among replicates

Rows = dict[str, dict[int, set[str]]]


def check_copies(entries: Sequence[Entry], learns: Callable[[str], bool]) -> list[Problem]:
    """Reject tables or replicates that a record of another seed or method has as well; of two records, the later one.

    Two methods may be the same model under two names, since losses coincide for some values of their parameters. In
    that case the cells of all their seeds are the same, and the board shows them as one row.

    Args:
        entries: in order of addition, oldest first.
        learns: whether results of the method with this name may depend on the seed.
    """
    rows: Rows = defaultdict(lambda: defaultdict(set))
    for entry in entries:
        rows[row_key(entry.record)][entry.record.spec.seed] |= {_cells_of(entry)} - {""}
    problems = []
    for members in _by_protocol(entries).values():
        for later, earlier, what in _copies(members):
            if not _may_be_equal(later, earlier, rows, learns):
                spec = earlier.record.spec
                whose = f"those of record {earlier.key}, of {spec.method.name} with seed {spec.seed}"
                problems.append(Problem(later.key, what, printable(whose), "other ones for another seed or method"))
    return problems


def check_replicates(entries: Sequence[Entry]) -> list[Problem]:
    """Reject replicates unlike those of all other methods under the same protocol, which resample the same images.

    Nothing is compared with fewer than `MIN_PEERS` records of other methods.
    """
    problems: list[Problem] = []
    for members in _by_protocol(entries).values():
        names = np.array([entry.record.spec.method.name for entry in members])
        others = names[:, None] != names
        judged = np.flatnonzero(others.sum(axis=1) >= MIN_PEERS)
        if not judged.size:
            continue
        for metric in HEADLINE:
            drawn = _Drawn.of(members, metric)
            for place in judged.tolist():
                problems += drawn.unlike(members[place].key, place, others[place])
    return problems


@dataclass(frozen=True)
class _Drawn:
    """Replicates of one metric, of all records of one protocol.

    Attributes:
        metric: its name. correlations: [E, E]. spreads: [E], standard deviations as a share of the expected ones.
        bias: [E], expected difference between mean and figure, up to a factor. offsets: [E], actual difference.
        deviations: [E], standard deviations. values: [E], the figures.
    """

    metric: str
    correlations: np.ndarray
    spreads: np.ndarray
    bias: np.ndarray
    offsets: np.ndarray
    deviations: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, entries: Sequence[Entry], metric: str) -> _Drawn:
        drawn = np.nan_to_num(np.stack([entry.replicates[metric] for entry in entries]))
        values = np.array([entry.record.test.estimates[metric].value or 0.0 for entry in entries])
        deviations = drawn.std(axis=1)
        scaled = (drawn - drawn.mean(axis=1, keepdims=True)) / np.maximum(deviations, 1e-9)[:, None]
        expected = (
            np.stack([_expected(entry) for entry in entries]) if metric == "map_c" else np.ones((len(entries), 2))
        )
        return cls(
            metric,
            scaled @ scaled.T / drawn.shape[1],
            deviations / expected[:, 0],
            expected[:, 1],
            drawn.mean(axis=1) - values,
            deviations,
            values,
        )

    def unlike(self, key: str, place: int, others: np.ndarray) -> Iterator[Problem]:
        """Yield differences between the replicates of one record and those of others."""
        where = f"{REPLICATES}.{self.metric}"
        spread = self.spreads[place] / np.median(self.spreads[others])
        if self.values[place] > _NEAR_BEST or np.median(self.deviations[others]) < _LEAST_DEVIATION:
            return  # almost perfect ranking: the variation is rounding
        least, most = SPREADS[self.metric]
        if not least <= spread <= most:
            words = f"between {least} and {most} times that"
            yield Problem(key, where, f"of a spread {spread:.3f} times what other methods' let expect", words)
        nearest = self.correlations[place][others].max()
        if nearest < LEAST_CORRELATION and spread >= _NEAR_CHANCE:
            words = f"at least {LEAST_CORRELATION}: all records of a protocol resample the same images"
            yield Problem(key, where, f"correlated to at most {nearest:.2f} with any other method's", words)
        usual = np.median(self.offsets[others] / self.bias[others]) * self.bias[place]
        shift = (self.offsets[place] - usual) / max(self.deviations[place], 1e-9)
        if not SHIFTS[0] <= shift <= SHIFTS[1] and spread >= least:
            words = f"between {SHIFTS[0]} and {SHIFTS[1]}"
            yield Problem(key, where, f"{shift:.1f} standard deviations off the figure, other methods' apart", words)


def _expected(entry: Entry) -> np.ndarray:
    """Return expected spread and bias of mAP(C), [2] in points up to a factor, from the classes' AP and positives."""
    table = [(row.ap / 100, row.positives) for row in entry.per_class if row.ap is not None and row.positives]
    ap, positives = np.array(table or [(0.5, 1)]).T
    noise = np.maximum(ap * (1 - ap), 1e-6) / positives
    return np.array([100 * np.sqrt(noise.sum()) / len(ap), 100 * noise.mean()])


def _by_protocol(entries: Sequence[Entry]) -> dict[tuple[str, str], list[Entry]]:
    """Group records by the seed of their resamples; those without replicates are left out, and rejected elsewhere."""
    groups: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    lengths = Counter(len(one) for entry in entries for one in entry.replicates.values())
    usual = max(lengths, key=lambda length: lengths[length], default=0)
    whole = [entry for entry in entries if all(len(entry.replicates.get(name, ())) == usual for name in HEADLINE)]
    for entry in whole:
        protocol = entry.record.spec.protocol
        groups[protocol.sha256(), protocol.test_split].append(entry)
    return groups


def _copies(entries: Sequence[Entry]) -> Iterator[tuple[Entry, Entry, str]]:
    """Yield records that copy an earlier one of another seed or method, with that record and the name of the file."""
    ids = np.array([f"{one.seed} {one.method.name} {_setting(one)}" for one in (e.record.spec for e in entries)])
    tables = [entry.sha256[PER_CLASS] for entry in entries]
    cells = [_cells_of(entry) for entry in entries]
    ap, tells = _class_table(entries)
    # if every class is ranked perfectly, only thresholds distinguish two trainings
    has_thresholds = [all(row.threshold is not None for row in entry.per_class) for entry in entries]
    drawn = [np.nan_to_num(np.stack([entry.replicates[name] for entry in entries])) for name in HEADLINE]
    varied = np.array([min(len(np.unique(values)) for values in of_one) for of_one in zip(*drawn, strict=True)])
    for place in range(1, len(entries)):
        other = ids[:place] != ids[place]
        found = {
            f"files.{CELLS}": np.array([bool(one) and one == cells[place] for one in cells[:place]]),
            PER_CLASS: (has_thresholds[place] & np.array([one == tables[place] for one in tables[:place]]))
            | (tells[place] & (np.abs(ap[:place] - ap[place]).max(axis=1, initial=0.0) < NEAR)),
            REPLICATES: (varied[place] >= _MIN_VALUES)
            & np.all([np.abs(one[:place] - one[place]).max(axis=1, initial=0.0) < NEAR for one in drawn], axis=0),
        }
        for what, is_equal in found.items():
            if (places := np.flatnonzero(is_equal & other)).size:
                yield entries[place], entries[places[0]], what


def _class_table(entries: Sequence[Entry]) -> tuple[np.ndarray, np.ndarray]:
    """Return AP [E, C], and whether it identifies a training, [E]: enough classes are below 100."""
    size = len(entries[0].per_class)
    ap = np.full((len(entries), size), -1.0)
    tells = np.zeros(len(entries), bool)
    for place, entry in enumerate(entries):
        if len(entry.per_class) != size:
            ap[place] = -place - 2.0  # another test set, which is rejected elsewhere
            continue
        ap[place] = [-1.0 if row.ap is None else row.ap for row in entry.per_class]
        telling = [row.positives >= _MIN_POSITIVES and row.ap is not None and row.ap < 99.9 for row in entry.per_class]
        tells[place] = sum(telling) >= _MIN_CLASSES
    return ap, tells


def _cells_of(entry: Entry) -> str:
    stated = entry.record.files.get(CELLS)
    return "" if stated is None else stated.sha256


def _setting(spec: RunSpec) -> str:
    return f"{spec.regime} {spec.model.model_dump_json()}"


def _may_be_equal(later: Entry, earlier: Entry, rows: Rows, learns: Callable[[str], bool]) -> bool:
    """Return whether two records may be the same model: of a deterministic method, or in identical rows."""
    one, other = later.record.spec, earlier.record.spec
    if one.seed != other.seed or _setting(one) != _setting(other):
        return one.method.name == other.method.name and not learns(one.method.name)
    own, theirs = rows[row_key(later.record)], rows[row_key(earlier.record)]
    shared = own.keys() & theirs.keys()
    return all(own[seed] & theirs[seed] for seed in shared)

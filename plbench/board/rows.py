"""A board's rows: records that differ only in seed and tuning study, with their ranks.

Rows are ranked within one regime, model and configuration (default, tuned or custom), by the rules of
`plbench.metrics.statistics`. Rows with fewer than five seeds are provisional and have no rank. The ceiling, withdrawn
rows, rows whose backbone has seen the test images, and those that use a vision-language model have none either.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np

from plbench.board.boards import RECORDS, BoardFolder, Quotation
from plbench.board.entries import Entry, parse_whole_entry
from plbench.board.packs import records_of
from plbench.board.text import status
from plbench.comparison.compare import model_words, row_labels
from plbench.comparison.identity import row_key
from plbench.comparison.scores import RowScores, merge_identical
from plbench.metrics.statistics import MIN_SEEDS_RANKED, compare_pairs

_DIGITS = 4  # decimals of percentages in files: far finer than any interval

Values = dict[str, Any]


class _Row(RowScores[Entry]):
    """A row of a table under construction."""

    def __init__(self, label: str, entries: Sequence[Entry], folder: BoardFolder) -> None:
        super().__init__(label, entries)
        first = self.runs[0]
        self.is_ceiling = first.record.spec.protocol.sha256() == folder.board.ceiling_sha256
        self.why_withdrawn = folder.withdrawn.get(first.key)
        self.rank: int | None = None
        self.rank_at_cost: int | None = None
        self.to_best: Values | None = None

    @property
    def is_ranked(self) -> bool:
        apart = self.is_ceiling or self.is_provisional or self.why_withdrawn is not None
        return not apart and self.why_unranked is None

    @property
    def status(self) -> str:
        """Why the row has no rank, in a word; "ranked" if it may have one."""
        return status(
            {
                "withdrawn": self.why_withdrawn,
                "ceiling": self.is_ceiling,
                "unranked": self.why_unranked,
                "provisional": self.is_provisional,
            }
        )

    @property
    def why_unranked(self) -> str | None:
        """Why the row's figures do not answer the board's question: what its models may have seen before."""
        if any(record.spec.embeddings is not None for record in self.records):
            return "it uses embeddings of another model, and whether that model has seen the test images is unknown"
        return next((why for record in self.records if (why := record.test_seen_in_pretraining)), None)

    @cached_property
    def cost(self) -> Values:
        """Standard cost of one run (the mean, since seeds may select different epochs), and time measured alone."""
        first, costs = self.records[0], [record.cost for record in self.records if record.cost is not None]
        alone = [cost for cost in costs if cost.measured_alone]
        standard = [cost.standard for cost in costs if cost.standard is not None]
        trials = first.tuning.num_trials if first.tuning is not None and first.configuration == "tuned" else 0
        return {
            "image_passes": round(float(np.mean([cost.image_passes for cost in standard]))) if standard else None,
            "head_images": round(float(np.mean([cost.head for cost in standard]))) if standard else None,
            "trainings": max(cost.trainings for cost in standard) if standard else None,
            "trials": trials * max(self.num_studies, 1),
            "hours": _rounded(float(np.mean([cost.seconds["total"] for cost in alone])) / 3600) if alone else None,
            "images_per_second": round(float(np.median([cost.images_per_second for cost in alone]))) if alone else None,
            "device": first.environment.get("device"),
            "machine": first.environment.get("cpu") if first.environment.get("device") == "cpu" else None,
        }

    def costs_no_more_than(self, other: _Row) -> bool:
        """Return whether none of this row's costs exceeds the other's: passes, head images, tuning trials."""
        pairs = [(self.cost[name], other.cost[name]) for name in ("image_passes", "head_images", "trials")]
        return all(own is not None and limit is not None and own <= limit for own, limit in pairs)

    @property
    def is_provisional(self) -> bool:
        return len(self.seeds) < MIN_SEEDS_RANKED

    @property
    def is_tuned_here(self) -> bool:
        return any(one.configuration == "default" and one.defaults_tuned_here for one in self.records)


def board_values(folder: BoardFolder) -> Values:
    """Return all values of a board's tables and page as plain JSON; equal records give equal values.

    Raises:
        PlbenchError: if an accepted record or the quotations cannot be read.
    """
    # custom values last: most readers look for default and tuned ones
    sections = dict(sorted(_sections(folder).items(), key=lambda section: (section[0][-1] == "custom", section[0])))
    entries = sorted((entry for members in sections.values() for entry in members), key=lambda entry: entry.key)
    example = next((entry for entry in entries if entry.key not in folder.withdrawn), None)
    return {
        **folder.board.model_dump(
            mode="json", exclude={"ceiling_sha256", "dataset_fingerprint", "max_trials", "order"}
        ),
        "groups": [] if example is None else list(example.record.test.groups),
        "classes": [] if example is None else _classes(example),
        "sections": [_section(key, members, folder) for key, members in sections.items()],
        "published": [_quoted(quotation) for quotation in folder.quotations()],
    }


def labelled_entries(folder: BoardFolder) -> list[tuple[Entry, Values]]:
    """Return every record of a board, in ascending order of key, with its row's section, label and status.

    Raises:
        PlbenchError: if an accepted record cannot be read.
    """
    found = []
    for key, members in _sections(folder).items():
        section = _section_title(members[0], key[-1])
        for row in _rows(members, folder):
            found += [(entry, {"section": section, "row": row.label, "status": row.status}) for entry in row.runs]
    return sorted(found, key=lambda item: item[0].key)


def _sections(folder: BoardFolder) -> dict[tuple[str, ...], list[Entry]]:
    """Group a board's records into sections, within which rows are ranked."""
    place = folder.path / RECORDS
    sections: dict[tuple[str, ...], list[Entry]] = defaultdict(list)
    for name, files in sorted(records_of(folder).items()):
        entry = parse_whole_entry(files, place / name)
        spec = entry.record.spec
        key = (spec.regime, spec.model.backbone, spec.model.model_dump_json(), entry.record.configuration)
        sections[key].append(entry)
    return sections


def _section_title(example: Entry, configuration: str) -> str:
    spec = example.record.spec
    return f"{spec.regime}, {model_words(spec)}, {configuration} values"


def _rows(members: Sequence[Entry], folder: BoardFolder) -> list[_Row]:
    """Return the rows of a section's records; withdrawn records form separate rows."""
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in members:
        groups[f"{entry.key in folder.withdrawn} {row_key(entry.record)}"].append(entry)
    labels = row_labels([group[0].record for group in groups.values()])
    return [_Row(label, group, folder) for group, label in zip(groups.values(), labels, strict=True)]


def _quoted(quotation: Quotation) -> Values:
    figures = dict(quotation.figures)
    headline = {name: figures.pop(name, None) for name in ("map_c", "map_o")}
    return {**quotation.model_dump(mode="json"), **headline, "figures": figures}


def _section(key: tuple[str, ...], members: Sequence[Entry], folder: BoardFolder) -> Values:
    every = _rows(members, folder)
    standing = [row for row in every if row.is_ranked]
    kept = merge_identical(standing)  # bit-identical rows become one; withdrawn ones stay separate
    rows = [row for row in every if row not in standing or row in kept]
    rows.sort(key=lambda row: (not row.is_ceiling, row.why_withdrawn is not None, -row.value, row.label))
    ranked = [row for row in rows if row.is_ranked]
    detectable = _rank(ranked)
    spec, configuration = members[0].record.spec, key[-1]
    return {
        "id": f"{folder.board.name}-{spec.regime}-{spec.model.backbone}-{configuration}".replace("_", "-"),
        "title": _section_title(members[0], configuration),
        "regime": spec.regime,
        "backbone": spec.model.backbone,
        "model": model_words(spec),
        "configuration": configuration,
        "ranked": bool(ranked),
        "detectable": detectable,
        "notes": _notes(rows, configuration, detectable),
        "rows": [_values(row, folder) for row in rows],
    }


def _rank(rows: Sequence[_Row]) -> float | None:
    """Set each row's rank and difference to the best; `rows` are sorted, best first.

    Returns:
        The difference from the best row that is detected with a power of 80 %; None if nothing is tested.
    """
    pairs = compare_pairs([row.sample("map_c") for row in rows])
    for place, (row, rank) in enumerate(zip(rows, pairs.ranks, strict=True)):
        row.rank = rank
        better = [other for other, is_better in zip(rows, pairs.is_better[:, place], strict=True) if is_better]
        row.rank_at_cost = 1 + sum(other.costs_no_more_than(row) for other in better)
        if place:
            gap, reach = float(pairs.differences[place, 0]), float(pairs.reach[place, 0])
            p_value = float(pairs.p_values[place, 0])
            numbers = {"difference": gap, "low": gap - reach, "high": gap + reach}
            row.to_best = {name: _rounded(value) for name, value in numbers.items()} | {"p": float(f"{p_value:.6g}")}
    return _rounded(pairs.detectable)


def _notes(rows: Sequence[_Row], configuration: str, detectable: float | None) -> list[str]:
    """Return notes that are required for comparing a section's rows."""
    records = [record for row in rows for record in row.records]
    notes = []
    if any(record.tuning is not None and record.tuning.labels == "complete" for record in records):
        notes.append(
            "Oracle selection: studies chose these values by the complete labels that the simulation hid, which are "
            "not available in practice."
        )
    elif any(record.selection is not None and record.selection.labels == "complete" for record in records):
        notes.append("Oracle selection: the epoch was chosen by the complete labels that the simulation hid.")
    if configuration == "tuned":
        studies = sorted({row.num_studies for row in rows if row.num_studies})
        rests = f"is the mean over {' to '.join(map(str, studies))} tuning studies, each with its own seeds"
        if studies == [1]:
            rests = "rests on one tuning study, so its interval does not include the variation between studies"
        notes.append(f"Tuned on this dataset, on the held-out part of train: a row {rests}.")
    if any(row.is_tuned_here for row in rows):
        notes.append("*: the default values of this method were chosen by scores on this same dataset.")
    notes += [f"Not ranked: {row.label}: {row.why_unranked}." for row in rows if row.why_unranked]
    same = [(row.label, ", ".join(row.same)) for row in rows if row.same]
    notes += [f"{label} also stands for {others}: the scores are bit-identical." for label, others in same]
    if detectable is not None:
        notes.append(
            f"Statistical power: a difference of {detectable:.1f} points from the best row is detected with a "
            "probability of 80 %; smaller ones are easily missed."
        )
    return notes


def _values(row: _Row, folder: BoardFolder) -> Values:
    first = row.runs[0].record
    test, spec = first.test, first.spec
    keys = [entry.key for entry in row.runs]
    told = ("plbench", "python", "system", "packages", "device", "cuda", "cpu", "cpu_cores")
    ap = np.array([[np.nan if one.ap is None else one.ap for one in entry.per_class] for entry in row.runs])
    return {
        "id": keys[0],
        "method": spec.method.name,
        "title": first.title,
        "label": f"{first.title}, complete labels" if row.is_ceiling else row.label,
        "same": list(row.same),
        "paper": first.paper,
        "source_file": first.source_file,
        "tier": "verified" if folder.verified & set(keys) else "self-reported",
        "provisional": row.is_provisional,
        "ceiling": row.is_ceiling,
        "withdrawn": row.why_withdrawn,
        "unranked": row.why_unranked,
        "tuned_here": row.is_tuned_here,
        "seeds": list(row.seeds),
        "studies": row.num_studies,
        "keys": keys,
        "rank": row.rank,
        "rank_at_cost": row.rank_at_cost,
        "figures": {metric: {n: _rounded(v) for n, v in asdict(row.figure(metric)).items()} for metric in row.metrics},
        "num_classes_scored": test.num_classes_scored,
        "num_classes": test.num_classes,
        "to_best": row.to_best,
        "cost": row.cost,
        "params": spec.method.params,
        "plan": spec.plan.model_dump(mode="json"),
        "environment": {name: first.environment[name] for name in told if name in first.environment},
        "commit": first.environment.get("git_commit"),
        "ap": [_rounded(float(mean)) for mean in ap.mean(axis=0)],
    }


def _classes(entry: Entry) -> list[Values]:
    return [
        {
            "id": row.class_id,
            "name": row.class_name,
            "positives": row.positives,
            "negatives": row.negatives,
            "groups": list(row.groups),
        }
        for row in entry.per_class
    ]


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, _DIGITS)

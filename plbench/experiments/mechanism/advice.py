"""Recommend a treatment of unknown labels for a user's data, by placing them on the map from `which-mode`.

The truth behind partial labels is unknown, so the placement is an estimate; if the labels do not identify it, the
answer says so. Only the training part is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import PositiveFloat, ValidationError, model_validator

from plbench.comparison.candidates import Candidate
from plbench.comparison.plan import plan_comparison
from plbench.data.labels import PartialLabels
from plbench.errors import PlbenchError, TrainingError, first_invalid
from plbench.experiments.mechanism.phase_map import IGNORE, MODES, NEGATIVE, SELECTIVE, estimated
from plbench.experiments.mechanism.placement import MIN_KNOWN, Placement, place, spread
from plbench.files.plain_json import parse_json
from plbench.losses.priors import spearman_by_depth
from plbench.runs.plan.label_check import check_learnable, notes_on
from plbench.runs.plan.resolve import Request
from plbench.runs.protocol import ProtocolData, choose_protocol
from plbench.runs.schedule import run_here
from plbench.runs.workspace import Workspace, open_dataset
from plbench.spec import Frozen

NEAR = 2.0
"""Factor in each coordinate within which a setting of the map counts as near."""

OWN_LABELS = "table"
"""The dataset that reads a user's own labels."""

_MAX_FACTOR = 4.0  # ratio between the estimates of seeds above which no advice is given
_MAX_CLASSES = 10
METHODS = {
    IGNORE: ("ce-ignore", "wce-ignore"),
    NEGATIVE: ("ce-negative", "asl-negative", "pasl-negative"),
    SELECTIVE: ("selective", "selective:likelihood"),
}
ONE_OF_EACH = tuple(METHODS[mode][0] for mode in MODES)
WITHOUT_NEGATIVES = ("ce-negative", "selective:likelihood", "wan", "hill", "splc", "em-apl", "role")


class MapCell(Frozen):
    """One mechanism of the map and the results of each mode there, mAP(C) in percent.

    Attributes:
        share, advantage, negatives: true placement, see `Placement`.
        estimated: placement estimated from its partial labels alone, as for a user's data; None if not identifiable.
    """

    share: PositiveFloat
    advantage: PositiveFloat
    negatives: PositiveFloat
    estimated: Placement | None
    means: dict[str, float]
    best: str
    tied: list[str]

    @model_validator(mode="after")
    def _of_modes(self) -> Self:
        if not {self.best, *self.tied} <= self.means.keys() <= {*MODES}:
            raise ValueError(f"expected figures of {', '.join(MODES)}, the best and those tied with it among them")
        return self


class ModeMap(Frozen):
    """The map of one dataset, named in `made_on`."""

    made_on: dict[str, str]
    cells: list[MapCell]

    @property
    def dataset(self) -> str:
        """Name of the map's dataset."""
        return self.made_on.get("dataset", "?")

    def near(self, low: Placement, high: Placement) -> list[tuple[MapCell, Placement]]:
        """Return the settings near a range of estimates, each with its estimated placement."""
        return [(cell, seen) for cell in self.cells if (seen := cell.estimated) and _is_near(seen, low, high)]


@dataclass(frozen=True)
class Advice:
    """Advice for the user.

    Attributes:
        low, high: range of placements over seeds; None if not identifiable.
        modes: that win nearby, with the share of nearby settings in which no mode is better.
        methods: to try. rivals: of modes that do not win nearby, so that a comparison can refute the map.
        answer: in words.
        classes: those with the highest estimates: name, known positives, estimated positives.
        notes: on how the labels were read.
    """

    num_images: int
    num_classes: int
    positives: int
    negatives: int
    low: Placement | None = None
    high: Placement | None = None
    modes: Mapping[str, float] = field(default_factory=dict)
    methods: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()
    answer: tuple[str, ...] = ()
    classes: tuple[tuple[str, int, int | None], ...] = ()
    notes: tuple[str, ...] = ()


def read_maps(paths: Sequence[Path] = ()) -> list[ModeMap]:
    """Return the maps included in plbench, one per dataset, or others written by `plbench study which-mode`.

    Raises:
        PlbenchError: if a file is not a map.
    """
    shipped = resources.files("plbench.experiments.mechanism") / "maps"
    sources: Sequence[Traversable] = paths or sorted(shipped.iterdir(), key=lambda file: file.name)
    found = []
    for source in sources:
        try:
            found.append(ModeMap.model_validate(parse_json(source.read_bytes())))
        except ValidationError as error:
            field, why, *_ = first_invalid(error)
            raise PlbenchError(
                f"{source} is not a map of modes ({field}: {why}); plbench study which-mode writes map.json"
            ) from error
        except (OSError, ValueError) as error:
            raise PlbenchError(
                f"{source} is not a map of modes ({error}); plbench study which-mode writes map.json"
            ) from error
    return found


def advise(request: Request, workspace: Workspace, maps: Sequence[ModeMap], *, num_seeds: int = 3) -> Advice:
    """Estimate what was hidden, place the labels on the map, and recommend methods.

    Args:
        request: data and model; its method is not used.
        workspace: where and how.
        maps: from `read_maps`.
        num_seeds: models for the estimate.

    Raises:
        PlbenchError: if the data cannot be read, or no label is known.
    """
    dataset = open_dataset(request.dataset, workspace)
    protocol_data = ProtocolData(dataset, choose_protocol(dataset, request.simulate, request.simulation_seed))
    check_learnable(protocol_data, "train")
    labels, notes = protocol_data.train().labels, notes_on(protocol_data)
    for note in notes:
        workspace.reporter.note(note)
    positives, negatives = labels.counts()
    bare = Advice(labels.num_images, labels.num_classes, int(positives.sum()), int(negatives.sum()), notes=notes)
    if labels.is_complete:
        return replace(
            bare, methods=("ce-negative",), answer=("Every label is known, so there are no unknown labels to treat.",)
        )
    if problem := _without_looking(positives, negatives):
        return _refusal(bare, problem)
    # models trained on known labels alone; test is not used here
    candidates = [Candidate("ce-ignore", named=True)]
    plans = plan_comparison(replace(request, scores_test=False), candidates, num_seeds, workspace).plans
    for result in run_here(plans, workspace):
        if isinstance(result, TrainingError):
            raise result
    estimates = [estimated(plan, workspace) for plan in plans]
    mean = np.mean(np.stack(estimates), axis=0)
    bare = replace(bare, classes=_classes(labels, mean))
    own = [plan.protocol_data.train().labels for plan in plans]  # simulated labels differ between seeds
    placements = [f for seen, estimate in zip(own, estimates, strict=True) if (f := place(seen, estimate)) is not None]
    if len(placements) < num_seeds:
        return _refusal(bare, f"too few classes have {MIN_KNOWN} known positives and negatives")
    low, high = spread(placements)
    if high.share / low.share > _MAX_FACTOR:
        between = f"from {low.share:.1%} to {high.share:.1%}"
        return _refusal(bare, f"models with different seeds estimate the share of known positives anywhere {between}")
    return _by_map(replace(bare, low=low, high=high), low, high, maps, labels, mean)


def _without_looking(positives: np.ndarray, negatives: np.ndarray) -> str | None:
    """Return why counts alone rule out an estimate; None if they do not."""
    if negatives.sum() == 0:
        return (
            "there is no verified negative, and positives alone do not show whether a class is rare or seldom annotated"
        )
    if positives.sum() == 0:
        return "there is no known positive"
    usable = int(((positives >= MIN_KNOWN) & (negatives >= MIN_KNOWN)).sum())
    if usable < 4:
        return f"{usable} of {len(positives)} classes have {MIN_KNOWN} known positives and negatives each; 4 are needed"
    return None


def _refusal(bare: Advice, why: str) -> Advice:
    """Return the advice if nothing is identifiable: methods that need no estimate."""
    hint = (
        "So which treatment of unknown labels suits these data cannot be predicted; compare treatments on a test "
        "part whose labels are known."
    )
    methods = WITHOUT_NEGATIVES if bare.negatives == 0 else ONE_OF_EACH
    return replace(bare, methods=methods, answer=(f"Not identifiable: {why}.", hint))


def _classes(labels: PartialLabels, estimate: np.ndarray) -> tuple[tuple[str, int, int | None], ...]:
    """Return the classes with the highest estimated number of positives."""
    known = labels.counts()[0]
    order = np.argsort(-np.nan_to_num(estimate, nan=-1.0), kind="stable")[:_MAX_CLASSES]
    return tuple(
        (labels.class_names[c], int(known[c]), None if math.isnan(estimate[c]) else round(float(estimate[c])))
        for c in order
    )


def _by_map(
    placed: Advice,
    low: Placement,
    high: Placement,
    maps: Sequence[ModeMap],
    labels: PartialLabels,
    estimate: np.ndarray,
) -> Advice:
    said = [
        f"About {_range(low.share, high.share, '.0%')} of all positives are annotated; those of the rarer half of "
        f"classes are {_range(low.advantage, high.advantage, '.1f')} times as likely to be annotated as those of the "
        f"frequent half; there are {low.negatives:.2g} verified negatives per positive."
    ]
    usable = ~np.isnan(estimate)
    ranks = float(spearman_by_depth(labels.counts()[0][usable], estimate[usable], [int(usable.sum())])[0])
    if not math.isnan(ranks):
        said.append(f"Annotation counts and the estimate rank the classes with a Spearman correlation of {ranks:.2f}.")
    # their truth is known, and so is the error of the estimated share
    near = {known.dataset: found for known in maps if (found := known.near(low, high))}
    if not near:
        said.append("No setting of the maps is close to this; compare all modes.")
        return replace(placed, methods=ONE_OF_EACH, answer=tuple(said))
    modes = winners(maps, low, high)
    wins = "; ".join(f"{mode} in {share:.0%}" for mode, share in modes.items())
    ratios = [cell.share / seen.share for found in near.values() for cell, seen in found]
    counts = ", ".join(f"{len(found)} of {name}" for name, found in near.items())
    alike = " (datasets weighted equally)" if len(near) > 1 else ""
    said += [
        f"In nearby settings of the maps ({counts}), no mode is better than: {wins}{alike}.",
        f"In these settings the true share was {_range(min(ratios), max(ratios), '.2g')} times the estimated one.",
        "The maps are a hint; the comparison below measures it on your data.",
    ]
    return replace(
        placed,
        modes=modes,
        methods=tuple(method for mode in modes for method in METHODS[mode]),
        rivals=tuple(METHODS[mode][0] for mode in MODES if mode not in modes),
        answer=tuple(said),
    )


def winners(maps: Sequence[ModeMap], low: Placement, high: Placement) -> dict[str, float]:
    """Return the modes that win near a range of estimates, in descending order; empty if no setting is near.

    Returns:
        Share of the near settings in which no mode is better, averaged over the datasets that have any, so that maps
        with many settings do not count more.
    """
    found = [near for known in maps if (near := known.near(low, high))]
    shares = {
        mode: sum(sum(mode in cell.tied for cell, _ in near) / len(near) for near in found) / max(len(found), 1)
        for mode in MODES
    }
    return {mode: share for mode, share in sorted(shares.items(), key=lambda item: -item[1]) if share > 0}


@dataclass(frozen=True)
class LeftOut:
    """Quality of the maps' advice for a dataset that they were not made on.

    Attributes:
        settings: number of settings of the dataset's own map that can be placed. near: those with a near setting on the
            other maps.
        right: number of near ones in which no mode is better than the recommended one.
        loss: mean difference of mAP(C) between the best and the recommended mode, in percentage points.
        always: the same for always choosing one mode, by mode.
    """

    dataset: str
    settings: int
    near: int
    right: int
    loss: float
    always: Mapping[str, float]


def leave_one_out(maps: Sequence[ModeMap]) -> list[LeftOut]:
    """Use the maps of all other datasets for each setting of each map, placed by its partial labels alone.

    Args:
        maps: of at least two datasets.
    """
    found = []
    for own in maps:
        others = [other for other in maps if other.dataset != own.dataset]
        compared = [cell for cell in own.cells if cell.means.keys() == {*MODES}]  # others have a failed run
        placed = [(cell, cell.estimated) for cell in compared if cell.estimated is not None]
        asked = [(cell, modes) for cell, seen in placed if (modes := winners(others, seen, seen))]
        firsts = [(cell, next(iter(modes))) for cell, modes in asked]
        always = {mode: _mean_loss([(cell, mode) for cell, _ in asked]) for mode in MODES}
        right = sum(first in cell.tied for cell, first in firsts)
        found.append(LeftOut(own.dataset, len(placed), len(asked), right, _mean_loss(firsts), always))
    return found


def _mean_loss(chosen: Sequence[tuple[MapCell, str]]) -> float:
    return float(np.mean([cell.means[cell.best] - cell.means[mode] for cell, mode in chosen] or [math.nan]))


def _range(low: float, high: float, style: str) -> str:
    ends = format(low, style), format(high, style)
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _is_near(seen: Placement, low: Placement, high: Placement) -> bool:
    """Return whether a setting is within a factor of `NEAR` of the range of estimates, in each coordinate.

    Estimates are compared with estimates of the setting, not with its truth, since both have the same bias: the share
    is underestimated if verified negatives are few, and so is a large advantage of rare classes.
    """
    value, bottom, top = (np.log(astuple(placement)) for placement in (seen, low, high))
    return bool(max((bottom - value).max(), (value - top).max()) <= math.log(NEAR) + 1e-9)

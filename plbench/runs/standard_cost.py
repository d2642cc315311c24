"""What a run takes in counts that are the same on every machine, alone or in a stack."""

from __future__ import annotations

from collections.abc import Sequence

from plbench.runs.active import ActiveRun
from plbench.runs.record import StandardCost, read_record
from plbench.runs.store import RECORD


def count_cost(active: ActiveRun) -> StandardCost | None:
    """Return the standard cost of a run that is trained, with all runs that it needed.

    None where one of these was recorded before there was such a cost.
    """
    # of its stages, and of the run that chose its epoch
    folders = [active.workspace.store.run_folder(first.spec.key) for first in active.plan.prerequisites]
    needed = [read_record(folder) for folder in folders if (folder / RECORD).is_file()]
    costs = [record.cost.standard for record in needed if record.cost is not None]
    known = [cost for cost in costs if cost is not None]
    return _sum([_own_cost(active), *known]) if len(known) == len(needed) else None


def _own_cost(active: ActiveRun) -> StandardCost:
    spec, protocol_data, state = active.spec, active.plan.protocol_data, active.state
    head = state.epoch * len(active.train_inputs)
    if spec.regime == "probe":
        protocol = spec.protocol
        splits = {protocol.train_split, active.scored_part.split}
        extracted = {split: len(protocol_data.whole(split).images) for split in sorted(splits)}
        return StandardCost(trainings=1, extracted=extracted, head=head)
    # a point of the curve has its epoch and a value by weights
    num_scorings = 1 + sum(len(point) - 1 for point in active.best.curve)
    forward = num_scorings * len(active.scored_inputs) + state.images_viewed
    forward += len(active.plan.stages) * len(active.train_inputs)  # from each trained model one pass over train
    return StandardCost(trainings=1, forward=forward, trained=state.images_trained, head=state.images_trained)


def _sum(costs: Sequence[StandardCost]) -> StandardCost:
    """Return what runs take together; features of a split are computed once."""
    extracted: dict[str, int] = {}
    for cost in costs:
        extracted |= cost.extracted
    return StandardCost(
        trainings=sum(cost.trainings for cost in costs),
        extracted=dict(sorted(extracted.items())),
        forward=sum(cost.forward for cost in costs),
        trained=sum(cost.trained for cost in costs),
        head=sum(cost.head for cost in costs),
    )

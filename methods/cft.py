"""Category-wise fine-tuning: a trained model's last layer is refitted class by class, on known labels (Chong 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from plbench.api import Batch, Loss, Method, MethodParams, PlbenchError, Progress, Stage, Task, TrainView, tunable
from plbench.losses import partial_asymmetric_loss
from plbench.losses.sample_state import check_state_size
from plbench.losses.single_positive import known_cross_entropy
from plbench.metrics import average_precision

from .asl_negative import ASLNegative
from .ce_ignore import CEIgnore
from .ce_negative import CENegative
from .focal import Focal
from .hill import Hill
from .pasl_negative import PASLNegative
from .splc import SPLC

_BASES: tuple[type[Method], ...] = (ASLNegative, CEIgnore, CENegative, Focal, Hill, PASLNegative, SPLC)
BASES = {kind.name: kind for kind in _BASES}
"""Methods whose model can be refitted: those that are a loss of single images, and no more."""


class CFT(Method):
    """Refit each class's weights and bias in the last layer of a model that `base` trained; all else stays fixed.

    Where pseudo-labels such as assumed negatives were wrong, known labels alone correct the class. By `bp`, the
    training goes down the gradient of the asymmetric loss of known labels, `-sum_P log p - sum_N q^gamma- log(1 - q)`,
    `q = max(p - m, 0)`. By `ga`, a genetic search raises the average precision on known labels, which has no gradient:
    of a population that begins as copies of the class's weights, parents are drawn with chances in proportion to their
    precision, a child takes each weight from one of two, half of the children are shifted at random, and the best stays
    as it is. Either way a class keeps the weights with the highest average precision on known labels that were held
    out, those of `base` included; so does one that has no known positive or no known negative on either side. Classes
    do not touch each other: Adam's steps are a weight's own.

    Evaluation uses what was kept. Average precision does not see a class's scale and offset, which the search leaves
    where they were: by `ga`, the training fits these two to the cross-entropy of known labels, which changes no order.

    Ours: no validation set is at hand in training, so a share of the training images is held out, from `base` too, and
    their known labels are used for the choice alone; the released code chooses on the complete labels that it then
    reports on. By `bp` a choice is made after each epoch of the training plan, from averaged
    weights under the plan's rate and batches; the code takes up to 5,000 steps of Adam on all images at once, at 1e-4.
    The search has 100 generations; the code goes on up to 5,000, until 300 have brought nothing.
    """

    name = "cft"
    title = "CFT"
    paper = "Chong et al., 2024, arXiv 2401.16991"
    needs = frozenset({"negatives"})
    tags = frozenset({"reference"})
    variants: ClassVar = {"ga": {"by": "ga"}}

    class Params(MethodParams):
        """Those of the released code, whose base is asl-negative; held_out and the number of generations are ours."""

        base: str = Field("asl-negative", description="whose loss trains the model to refit, at its defaults")
        only_base: bool = Field(False, description="train that model alone: the stage that the refit starts from")
        by: Literal["bp", "ga"] = Field("bp", description="gradient, or genetic search on average precision")
        held_out: float = Field(0.2, gt=0.0, lt=1.0, description="share of images on which weights are chosen; ours")
        gamma_neg: float = tunable(
            4.0, 0.0, 6.0, when={"by": ("bp",)}, ge=0.0, description="gamma-, focusing of negatives, by bp"
        )
        clip: float = Field(0.05, ge=0.0, lt=1.0, description="m, the asymmetric shift of negatives, by bp")
        population: int = Field(50, ge=2, description="individuals of the search")
        crossover: float = Field(0.2, ge=0.0, le=1.0, description="chance of a weight to come from the first parent")
        mutation: float = Field(0.5, ge=0.0, le=1.0, description="chance of a child to be shifted")
        mutation_range: float = tunable(
            0.001, 0.0002, 0.02, log=True, when={"by": ("ga",)}, gt=0.0, description="largest shift of a weight"
        )
        generations: int = Field(100, ge=1, description="generations of the search; ours")

    def __init__(self, params: Any, task: Task) -> None:
        """Choose which images are held out: the same in the run of the stage and in the one that refits.

        Raises:
            PlbenchError: if `base` is none that can be refitted.
        """
        super().__init__(params, task)
        if params.base not in BASES:
            raise PlbenchError(f"base {params.base!r} of method 'cft' is none of {', '.join(BASES)}")
        self.base = BASES[params.base](BASES[params.base].Params(), task)
        number = min(max(1, round(params.held_out * task.num_train)), task.num_train - 1)
        self.is_held = torch.zeros(task.num_train, dtype=torch.bool)
        self.is_held[torch.randperm(task.num_train, generator=task.generator)[:number]] = True

    @classmethod
    def stages(cls, params: Any, task: Task) -> Sequence[Stage]:
        """Return the run whose model is refitted."""
        alone = {"base": params.base, "held_out": params.held_out, "only_base": True}
        return () if params.only_base else (Stage("base", method=cls.name, reduce=whole_state, params=alone),)

    def build(self, backbone: nn.Module, make_head: Callable[[], nn.Module]) -> nn.Module:
        """Return the model of `base`, of which the last layer alone can change.

        Raises:
            PlbenchError: if its head does not end in a linear layer.
        """
        if self.params.only_base:
            return super().build(backbone, make_head)
        head = make_head()
        if not isinstance(head, nn.Sequential) or not isinstance(head[-1], nn.Linear):
            raise PlbenchError("method 'cft' refits the linear layer that a head ends in, and this one ends otherwise")
        values = list(nn.Sequential(backbone, head).state_dict().values())
        parts = self.task.artifacts["base"].split([value.numel() for value in values])
        for value, part in zip(values, parts, strict=True):
            value.copy_(part.view_as(value))
        return Refitted(nn.Sequential(backbone, *list(head)[:-1]), head[-1], rescales=self.params.by == "ga")

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return the last layer, or a scale and an offset of each class."""
        return [{"params": [parameter for parameter in model.parameters() if parameter.requires_grad]}]

    def epoch_start(self, view: TrainView, progress: Progress) -> None:
        """Keep the weights of `base`, before the training; by `ga`, search for better ones."""
        if progress.step or self.params.only_base:
            return
        precision = self._precision(view)
        precision[~self._can_be_refitted(view) | np.isnan(precision)] = 1.0  # which nothing exceeds
        self._keep(view, np.ones(len(precision), bool), precision)
        if self.params.by == "ga":
            self._search(view, precision)

    def epoch_end(self, view: TrainView, progress: Progress) -> None:
        """Keep the weights that the epoch led to, where they are better on held-out images."""
        if self.params.by == "bp" and not self.params.only_base:
            precision, kept = self._precision(view), _refitted(view).kept_precision.cpu().numpy()
            self.marked.add(torch.from_numpy(precision > kept)[None])
            self._keep(view, precision > kept, np.fmax(precision, kept))

    def _precision(self, view: TrainView) -> np.ndarray:
        """Return the average precision of each class by its present weights on held-out images, [C]; NaN for none."""
        found: list[tuple[np.ndarray, ...]] = [(np.empty(0, int), np.empty(0, np.float32), np.empty(0, bool))]
        for rows, logits in view.compute(lambda model, inputs: model.last(model.features(inputs))):  # type: ignore[operator]
            held = self.is_held[rows]
            labels = view.labels.rows(rows[held].numpy())
            row, column = np.nonzero(labels)
            found.append((column, logits[held].numpy()[row, column], labels[row, column] > 0))
        columns, scores, positives = (np.concatenate(part) for part in zip(*found, strict=True))
        return average_precision(columns, scores, positives, self.task.num_classes)

    def _can_be_refitted(self, view: TrainView) -> np.ndarray:
        """Return which classes are known to be present in an image that is not held out, and absent in another, [C]."""
        rows, columns, values = view.labels.cells()
        own = ~self.is_held.numpy()[rows]
        shown, not_shown = (
            np.bincount(columns[own & (values == sign)], minlength=self.task.num_classes) for sign in (1, -1)
        )
        return (shown > 0) & (not_shown > 0)

    def _keep(self, view: TrainView, which: np.ndarray, precision: np.ndarray) -> None:
        """Keep the present averaged weights of some classes, in the model that trains and in its average."""
        now, classes = _refitted(view).last, torch.from_numpy(which)
        weight, bias = now.weight.detach()[classes], now.bias.detach()[classes]
        for model in (_refitted(view, "raw"), _refitted(view)):
            model.kept_weight[classes] = weight
            model.kept_bias[classes] = bias
            model.kept_precision.copy_(torch.from_numpy(precision))

    def _search(self, view: TrainView, precision: np.ndarray) -> None:
        """Keep what the genetic search finds for each class that can be refitted."""
        chunks = []
        for _, chunk in view.compute(lambda model, inputs: model.features(inputs)):  # type: ignore[operator]
            check_state_size(
                4 * self.task.num_train * chunk.shape[1],
                method=self.name,
                keeps=f"{chunk.shape[1]:,} features of each of {self.task.num_train:,} images while it searches",
                cure="give -P by=bp, which keeps none",
            )
            chunks.append(chunk)
        features = F.pad(torch.cat(chunks), (0, 1), value=1.0)  # a last one for the bias
        start = _refitted(view)
        for column, sides in self._known(view):
            if precision[column] == 1.0:
                continue
            origin = torch.cat([start.kept_weight[column], start.kept_bias[column, None]]).detach().cpu().float()
            own, held = ((features[rows], positives) for rows, positives in sides)
            best, value = evolved(origin, own, held, float(precision[column]), self.params, self.task.generator)
            if value > precision[column]:
                self.marked.add(torch.ones(1, 1, dtype=torch.bool))
                for model in (_refitted(view, "raw"), start):
                    model.kept_weight[column] = best[:-1].to(model.kept_weight)
                    model.kept_bias[column] = best[-1].to(model.kept_bias)
                    model.kept_precision[column] = value

    def _known(self, view: TrainView) -> Iterator[tuple[int, list[tuple[Tensor, Tensor]]]]:
        """Yield each class with rows and signs of its known labels, of images that are not held out, and that are."""
        columns = view.labels.matrix.tocsc()
        for column in range(self.task.num_classes):
            cells = slice(columns.indptr[column], columns.indptr[column + 1])
            rows, positives = torch.from_numpy(columns.indices[cells]).long(), torch.from_numpy(columns.data[cells] > 0)
            held = self.is_held[rows]
            yield column, [(rows[side], positives[side]) for side in (~held, held)]

    def loss(self, output: Any, batch: Batch, progress: Progress) -> Loss:
        """Return the loss of images that are not held out: of `base`, or of their known labels."""
        held = self.is_held[batch.index.cpu()].to(batch.labels.device)
        if self.params.only_base:
            own = Batch(batch.inputs[~held], batch.labels[~held], batch.index[~held])
            return self.base.loss(output[~held], own, progress)
        labels = torch.where(held[:, None], 0, batch.labels)
        if self.params.by == "ga":
            return Loss.of_images(known_cross_entropy(output[0], labels))
        per_image = partial_asymmetric_loss(
            output[0],
            labels,
            gamma_pos=0.0,
            gamma_neg=self.params.gamma_neg,
            gamma_unann=0.0,
            clip=self.params.clip,
            unann_weight=0.0,
        )
        return Loss.of_images(per_image)

    def scores(self, output: Any) -> Tensor:
        """Return the sigmoid of the logits by what was kept."""
        return torch.sigmoid(output if self.params.only_base else output[1])

    def idle(self) -> list[str]:
        """Say that no class was refitted."""
        if self.params.only_base or self.marked.total():
            return []
        return [f"no class had a higher average precision on held-out images than {self.params.base}'s, so all stayed"]


class Refitted(nn.Module):
    """A fixed body and its last layer: with the weights that are trained, and with those that were kept."""

    kept_weight: Tensor
    kept_bias: Tensor
    kept_precision: Tensor

    def __init__(self, body: nn.Module, last: nn.Linear, *, rescales: bool) -> None:
        """With `rescales`, the last layer is fixed, too, and a scale and an offset of each class's logit learn."""
        super().__init__()
        self.body, self.last, self.rescales = body.requires_grad_(False), last.requires_grad_(not rescales), rescales
        self.register_buffer("kept_weight", last.weight.detach().clone())
        self.register_buffer("kept_bias", last.bias.detach().clone())
        self.register_buffer("kept_precision", torch.zeros(last.out_features, dtype=torch.float64))
        if rescales:
            self.log_scale = nn.Parameter(torch.zeros(last.out_features))
            self.offset = nn.Parameter(torch.zeros(last.out_features))

    def train(self, mode: bool = True) -> Refitted:
        """Switch the mode, but for the body, which always evaluates: what is refitted are its features as they are."""
        super().train(mode)
        self.body.eval()
        return self

    def features(self, inputs: Tensor) -> Tensor:
        """Return what the last layer is given, [B, D]."""
        with torch.no_grad():
            features: Tensor = self.body(inputs)
        return features

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [B, C] by what is trained, and by what was kept."""
        features = self.features(inputs)
        kept = F.linear(features, self.kept_weight, self.kept_bias)
        if self.rescales:
            kept = kept * self.log_scale.exp() + self.offset
            return kept, kept
        return self.last(features), kept


def whole_state(view: TrainView) -> Tensor:
    """Return all that a model has learnt, averaged, as one vector."""
    return torch.cat([value.flatten() for value in view.model().state_dict().values()])


def evolved(
    origin: Tensor,
    own: tuple[Tensor, Tensor],
    held: tuple[Tensor, Tensor],
    precision: float,
    params: CFT.Params,
    generator: torch.Generator,
) -> tuple[Tensor, float]:
    """Search one class's weights by a genetic algorithm, for the average precision on known labels.

    Args:
        origin: [D], which the population begins as copies of.
        own: features [n, D] and whether the class is present [n], which fitness is measured on.
        held: the same of images on which the best of each generation is judged.
        precision: of `origin` on the latter.

    Returns:
        The first weights with the highest precision on `held`, and that; `origin` where none exceeds it.
    """
    population, best = origin.repeat(params.population, 1), origin
    for _ in range(params.generations):
        fitness = precisions(population @ own[0].T, own[1])
        champion = population[fitness.argmax()]
        value = float(precisions((champion @ held[0].T)[None], held[1]))
        if value > precision:
            best, precision = champion, value
        parents = torch.multinomial(fitness, 2 * len(population), replacement=True, generator=generator)
        first, second = population[parents].chunk(2)
        from_first = torch.rand(first.shape, generator=generator) < params.crossover
        shift = params.mutation_range * (2 * torch.rand(first.shape, generator=generator) - 1)
        is_shifted = torch.rand(len(first), 1, generator=generator) < params.mutation
        children = torch.where(from_first, first, second) + torch.where(is_shifted, shift, 0.0)
        population = torch.cat([champion[None], children[1:]])
    return best, precision


def precisions(scores: Tensor, positives: Tensor) -> Tensor:
    """Return the average precision of each row of scores [P, n] for the same labels, bool [n]; ties are one threshold.

    Of each positive: how many positives score as much or more, of all that do.
    """
    every, present = (torch.from_numpy(np.sort(part.numpy(), axis=1)) for part in (scores, scores[:, positives]))
    above, present_above = (part.shape[1] - torch.searchsorted(part, present) for part in (every, present))
    return (present_above.double() / above).mean(dim=1)


def _refitted(view: TrainView, weights: Literal["ema", "raw"] = "ema") -> Refitted:
    model = view.model(weights)
    assert isinstance(model, Refitted)
    return model

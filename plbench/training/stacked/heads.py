"""Many heads trained in one pass over cached features: one matrix product where there were H small ones.

A head's parameters, gradients and averaged weights become slices of tensors that hold those of all heads. All else of
a training stays its own: optimiser, schedule, history, method. Each head takes the steps that it would take alone.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plbench.data.labels import PartialLabels
from plbench.errors import PluginError, TrainingError
from plbench.method import Batch, Method, Progress
from plbench.spec import Plan
from plbench.training.dropout import Dropout
from plbench.training.execution import Execution, widened
from plbench.training.hooks import Guarded
from plbench.training.inputs import FeatureInputs
from plbench.training.optimizer import FusedSteps, apply_gradients
from plbench.training.stacked.layers import StackedLinear, layers_of
from plbench.training.state import FitState

BLOCK_BYTES = 64 << 20
"""Parameters of heads whose products are one, at most."""

HEADS_PER_THREAD = 4
"""Heads of one order that are worth a thread of their own: fewer, and what they would share is computed too often."""

AHEAD = 2
"""Batches of an order that wait for its threads, or are worked on, at most."""

Lane = list[Executor]
"""Threads, one in each executor, that take the steps of one order at a time: what is handed to one is done in turn."""

_OWN_HOOKS = ("build", "transform", "mixture", "forward", "epoch_start", "epoch_end", "state_dict", "load_state_dict")
_LOGIT_TENSORS = 24  # of the logits' size that a loss holds, about


@dataclass(eq=False)
class Head:
    """One training among those of a stack.

    Attributes:
        state: where it stands; all heads of a stack stand at one epoch.
        plan: equal for all but in rate and decay.
        seed: of its order of images and its dropout.
        stop_after: epochs, where fewer than the plan's.
        after_epoch: called at the end of each epoch, when `state` is complete.
        labels: that it learns from, of the rows of the inputs; None for the labels of the inputs.
        error: why it was given up.
        seconds: its share of the time that the stack trained.
    """

    state: FitState
    plan: Plan
    seed: int
    stop_after: int | None = None
    after_epoch: Callable[[FitState], None] = lambda state: None
    labels: PartialLabels | None = None
    error: TrainingError | None = None
    seconds: float = 0.0

    @property
    def is_done(self) -> bool:
        """Whether it has nothing left to train."""
        return self.error is not None or self.state.epoch >= (self.stop_after or self.plan.epochs)


def is_stackable(method: type[Method]) -> bool:
    """Return whether heads of a method can train together.

    Raises:
        PluginError: if it says so but has hooks of its own that a stack would not call.
    """
    if not method.stackable:
        return False
    own = [name for name in _OWN_HOOKS if getattr(method, name) is not getattr(Method, name)]
    if own:
        raise PluginError(
            f"method {method.name!r} declares stackable = True but has its own {', '.join(own)}; set it to False"
        )
    return True


def bytes_per_head(model: nn.Module, batch_size: int) -> int:
    """Return memory that a head takes in a stack: parameters with gradient, moments and average, and activations."""
    widths = sum(layer.out_features for layer in layers_of(model) or () if isinstance(layer, nn.Linear))
    return 5 * _parameter_bytes(model) + 4 * _LOGIT_TENSORS * batch_size * widths


def fit_together(
    heads: Sequence[Head],
    inputs: FeatureInputs,
    execution: Execution,
    *,
    report: Callable[[int, int], None] = lambda done, total: None,
    between_epochs: Callable[[], None] = lambda: None,
) -> None:
    """Train all heads to the end of their plans, or until they stop.

    A head whose loss is no longer finite is given up at the end of that epoch and keeps its error; the others go on.

    Args:
        inputs: features and labels; each head sees them in the order of its own seed, with its own labels if it has
            some.
        report: called with steps done and steps in all, counted over the orders.
        between_epochs: called when all heads have ended an epoch; what it raises ends the training.
    """
    # stacked anew whenever a head is done, so that no work goes into heads that need none
    while active := [head for head in heads if not head.is_done]:
        num_lanes, num_threads = _shape(active, execution.device)
        orders = [_Order(members, inputs, execution, num_threads) for members in _by_order(active)]
        try:
            with _lanes(num_lanes, num_threads) as lanes:  # whose threads have ended before heads are taken apart
                while not any(head.is_done for head in active):
                    _train_epoch(active, orders, lanes, report)
                    between_epochs()
        finally:
            for order in orders:
                order.release()


def _train_epoch(
    heads: list[Head], orders: list[_Order], lanes: list[Lane], report: Callable[[int, int], None]
) -> None:
    start, steps = time.perf_counter(), orders[0].steps_per_epoch * len(orders)
    last = max(head.stop_after or head.plan.epochs for head in heads)
    done = heads[0].state.epoch * steps

    def one_by_one(number: int) -> Iterator[int]:
        for order in orders[number :: len(lanes)]:
            yield from order.train_epoch(lanes[number])

    # a step in each lane, in turn
    for taken in itertools.zip_longest(*map(one_by_one, range(len(lanes))), fillvalue=0):
        done += sum(taken)
        report(done, last * steps)
    # equal shares: in one pass over many heads no time is a single head's
    seconds = (time.perf_counter() - start) / len(heads)
    for head in heads:
        head.seconds += seconds
        head.state.epoch += 1
        head.state.history[-1]["seconds"] = seconds
        if head.error is None:
            head.after_epoch(head.state)


def _shape(heads: Sequence[Head], device: torch.device) -> tuple[int, int]:
    """Return number of lanes in which orders train side by side, and of threads in each.

    Small operations leave all cores but one idle. Heads need nothing of one another between two batches, so that many
    heads of one order are split over the threads of one lane; where they are few, orders take a lane each, more of them
    than there are cores, as three lanes keep two cores busier than two.
    """
    if device.type != "cpu":
        return 1, 1
    cores, groups = torch.get_num_threads(), _by_order(heads)
    num_threads = max(1, min(cores, max(len(members) for members in groups) // HEADS_PER_THREAD))
    # where one order's threads take all cores, orders side by side gain nothing
    return (min(len(groups), 2 * cores // num_threads) if num_threads < cores else 1), num_threads


@contextlib.contextmanager
def _lanes(number: int, num_threads: int) -> Iterator[list[Lane]]:
    """Open so many lanes of so many threads, which together use the cores that torch used, until the scope ends."""
    cores = torch.get_num_threads()
    torch.set_num_threads(max(1, cores // (number * num_threads)))
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, cores)
        # of one thread each: the steps of a block must be taken in order
        executors: list[Executor] = [
            stack.enter_context(ThreadPoolExecutor(1, "heads")) for _ in range(number * num_threads)
        ]
        yield [executors[lane::number] for lane in range(number)]


def _by_order(heads: Sequence[Head]) -> list[list[Head]]:
    """Return heads that see the same batches: of one seed, and with the very same labels."""
    groups: dict[tuple[int, int], list[Head]] = defaultdict(list)
    for head in heads:
        groups[head.seed, id(head.labels)].append(head)
    return list(groups.values())


class _Order:
    """Heads that see the same batches. What does not depend on the head is done once for all."""

    def __init__(self, heads: Sequence[Head], inputs: FeatureInputs, execution: Execution, num_blocks: int) -> None:
        """Stack the heads, in so many blocks or more."""
        self.seed, self.execution = heads[0].seed, execution
        self.inputs = inputs.reseeded(self.seed, heads[0].labels)
        self.plan, self.state = heads[0].plan, heads[0].state
        self.steps_per_epoch = math.ceil(len(inputs) / self.plan.batch_size)
        self.dtype = torch.float32 if execution.precision == "float32" else getattr(torch, execution.precision)
        # in float64, too, stacks must equal heads that train alone: there they are compared to 1e-8
        if next(self.state.model.parameters()).dtype == torch.float64:
            self.dtype = torch.float64
        self.dropout = Dropout(self.seed, self.state.model)
        layers = layers_of(self.state.model) or []
        first = next(number for number, layer in enumerate(layers) if isinstance(layer, nn.Linear))
        self.shared, self.own = layers[:first], layers[first:]  # layers before the first linear one have no parameters
        self.blocks = [_Block(members, execution, self.dtype, first) for members in _blocks(heads, num_blocks)]

    def train_epoch(self, lane: Lane) -> Iterator[int]:
        """Yield one pass over the images; yields 1 for each step handed out."""
        epoch, num_epochs = self.state.epoch, self.plan.epochs
        under_way: deque[list[Future[None]]] = deque()
        for number, batch in enumerate(self.inputs.shuffled(self.plan.batch_size, epoch)):
            step = epoch * self.steps_per_epoch + number
            prepared, noise = self._prepared(batch, step)  # while the blocks are busy with those before
            progress = Progress(step, num_epochs * self.steps_per_epoch, epoch, num_epochs)
            threads = zip(self.blocks, itertools.cycle(lane), strict=False)
            under_way.append([thread.submit(block.step, prepared, noise, progress) for block, thread in threads])
            _wait_until(under_way, AHEAD)
            yield 1
        _wait_until(under_way, 0)
        for block in self.blocks:
            block.end_epoch(self.steps_per_epoch)

    def release(self) -> None:
        """Give every head its parameters back."""
        for layer in itertools.chain.from_iterable(block.stacks for block in self.blocks):
            layer.release()

    def _prepared(self, batch: Batch, step: int) -> tuple[Batch, list[Tensor]]:
        """Return a batch whose inputs went through the layers that heads share, and the noise of their own layers."""
        batch = self.execution.move(batch)
        inputs = batch.inputs
        with self.dropout.drawing(step, 0, len(batch.index)):  # the layers in the order of a forward pass
            for layer in self.shared:
                if not isinstance(layer, nn.Dropout):
                    inputs = F.relu(inputs)
                elif layer.p:
                    inputs = inputs * self.dropout.factors(layer, inputs.shape, layer.p, inputs)
            # factors [B, width] of each later layer that drops anything, as a head alone would draw them
            noise: list[Tensor] = []
            width, like = 0, inputs.new_empty((), dtype=self.dtype)
            for layer in self.own:
                if isinstance(layer, nn.Linear):
                    width = layer.out_features
                elif isinstance(layer, nn.Dropout) and layer.p:
                    noise.append(self.dropout.factors(layer, (len(inputs), width), layer.p, like))
        return Batch(inputs, batch.labels[None], batch.index), noise


def _wait_until(under_way: deque[list[Future[None]]], most: int) -> None:
    """Wait for the oldest until no more than so many are under way."""
    while len(under_way) > most:
        for future in under_way.popleft():
            # not only waited for: what a step raised in its thread is raised here
            future.result()


class _Block:
    """Heads whose products are one."""

    def __init__(self, heads: Sequence[Head], execution: Execution, dtype: torch.dtype, first: int) -> None:
        """Take over the parameters of the heads, whose first linear layer is layer number `first`."""
        self.heads = heads
        models = [(layers_of(head.state.model) or [])[first:] for head in heads]
        averages = [(layers_of(head.state.ema.module) or [])[first:] for head in heads if head.state.ema is not None]
        self.layers: list[StackedLinear | nn.Module] = []
        for number, layer in enumerate(models[0]):
            linear, averaged = (
                [own for model in of_each if isinstance(own := model[number], nn.Linear)]
                for of_each in (models, averages)
            )
            # layers without parameters are the same for all heads of one model: any head's will do
            self.layers.append(StackedLinear(linear, averaged, dtype) if linear else layer)
        self.stacks = [layer for layer in self.layers if isinstance(layer, StackedLinear)]
        self.parts: list[tuple[slice, Method]] = []
        for _, run in itertools.groupby(heads, key=_side):  # heads whose methods can be stacked
            methods = [head.state.method for head in run]
            start = self.parts[-1][0].stop if self.parts else 0
            self.parts.append((slice(start, start + len(methods)), type(methods[0]).stack(methods)))
        self.fused: FusedSteps | None = None
        self.loss_sum = torch.zeros(len(heads), dtype=torch.float64, device=execution.device)
        self.bad_step = torch.full((len(heads),), -1, device=execution.device)

    def step(self, batch: Batch, noise: Sequence[Tensor], progress: Progress) -> None:
        """Take one optimiser step of every head, on inputs [B, D] and labels [1, B, C]."""
        num_images = len(batch.index)
        logits = widened(self._logits(batch.inputs, noise))
        totals, weights = [], []
        for rows, method in self.parts:
            loss = Guarded(method).loss(logits[rows], batch, progress, (rows.stop - rows.start,))
            totals.append(loss.total)
            # one number where it follows from the labels alone, which the heads share
            weights.append(torch.as_tensor(loss.weight, device=logits.device).expand(rows.stop - rows.start))
        total, weight = torch.cat(totals), torch.cat(weights)
        # heads have no parameter in common, so that the sum's gradient is each head's own;
        # no zero_grad: the products are written over the last step's gradients
        (total.sum() / num_images).backward()
        total = total.detach()
        self.loss_sum += torch.where(weight > 0, total / weight, 0.0)
        # steps go on to the end of the epoch: they spoil none but the head's own parameters
        newly_bad = ~torch.isfinite(total) & (self.bad_step < 0)
        self.bad_step[newly_bad] = progress.step
        self._update(weight.tolist(), num_images)

    def end_epoch(self, num_steps: int) -> None:
        """Write the epoch into each head's history, and errors into those that failed."""
        for head, total, bad in zip(self.heads, self.loss_sum.tolist(), self.bad_step.tolist(), strict=True):
            state, epoch = head.state, head.state.epoch + 1
            rate = state.schedule.get_last_lr()[0]
            state.history.append({"epoch": epoch, "step": state.step, "loss": total / num_steps, "lr": rate})
            if bad >= 0:
                lost = f"the loss of method {state.method.name!r} is no longer finite"
                head.error = TrainingError(f"{lost} at step {bad} (epoch {epoch})")
        self.loss_sum.zero_()

    def _logits(self, values: Tensor, noise: Sequence[Tensor]) -> Tensor:
        factors = iter(noise)
        for layer in self.layers:
            if isinstance(layer, StackedLinear):
                values = layer(values)
            elif not isinstance(layer, nn.Dropout):
                values = F.relu(values)
            elif layer.p:
                values = values * next(factors)
        return values.contiguous()

    def _update(self, weights: Sequence[float], num_images: int) -> None:
        moved = [number for number, weight in enumerate(weights) if weight > 0]
        plan = self.heads[0].plan
        # nothing to clip or to rescale: Adam's kernels can step along the gradients as they are
        plain = plan.clip_grad is None and plan.optimizer != "sgd" and all(weight == num_images for weight in weights)
        if plain and self.fused is not None:
            self.fused.step()
        else:
            for number in moved:
                apply_gradients(self.heads[number].state, self.heads[number].plan, num_images / weights[number])
            if plain:
                # only now: the step above has made the optimisers' states, which it collects
                self.fused = FusedSteps([head.state.optimizer for head in self.heads])
        average = self.heads[0].state.ema
        if average is not None:
            # all heads stand at one step of equal plans, and so at one decay
            share = 1.0 - average.get_decay(self.heads[0].state.step)
            for layer in self.stacks:
                layer.move_average(share, None if len(moved) == len(self.heads) else moved)
        # those without weight, too: a training alone counts such a step and moves its schedule
        for head in self.heads:
            head.state.schedule.step()
            head.state.step += 1


def _blocks(heads: Sequence[Head], least: int) -> Iterator[list[Head]]:
    """Yield heads in so many blocks or more, of about one size; those whose methods can be stacked side by side."""
    sides: dict[Hashable, list[Head]] = defaultdict(list)
    for head in heads:
        sides[_side(head)].append(head)
    ordered = [head for side in sides.values() for head in side]
    most = max(1, BLOCK_BYTES // _parameter_bytes(heads[0].state.model))
    # a multiple of the number of threads, so that none is idle while others have a block left
    number = min(len(heads), least * math.ceil(len(heads) / (least * most)))
    for block in range(number):
        yield ordered[len(heads) * block // number : len(heads) * (block + 1) // number]


def _side(head: Head) -> Hashable:
    return type(head.state.method), head.state.method.stack_key()


def _parameter_bytes(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())

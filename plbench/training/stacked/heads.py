"""Many heads trained in one pass over cached features, with one matrix product instead of H small ones.

A head's parameters, gradients and averaged weights become slices of tensors for all heads. Everything else remains
separate: optimiser, schedule, history, method. Each head takes the same steps as when trained alone.
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
"""Maximum size of the parameters of heads that share one product."""

HEADS_PER_THREAD = 4
"""Minimum number of heads of one order per thread; with fewer, shared work is repeated too often."""

AHEAD = 2
"""Maximum number of batches of an order that are queued or in progress."""

Lane = list[Executor]
"""Threads for the steps of one order: each executor has one thread, and runs its steps in order."""

_OWN_HOOKS = ("build", "transform", "mixture", "forward", "epoch_start", "epoch_end", "state_dict", "load_state_dict")
_LOGIT_TENSORS = 24  # approximate number of tensors of the logits' size in a loss


@dataclass(eq=False)
class Head:
    """One training in a stack.

    Attributes:
        state: its training state; all heads of a stack are at the same epoch.
        plan: equal for all heads except rate and decay.
        seed: of its order of images and its dropout.
        stop_after: number of epochs, if fewer than the plan's.
        after_epoch: called at the end of each epoch, when `state` is complete.
        labels: its training labels; None for the labels of the inputs.
        error: why it was stopped.
        seconds: its share of the stack's training time.
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
        """Whether it has finished."""
        return self.error is not None or self.state.epoch >= (self.stop_after or self.plan.epochs)


def is_stackable(method: type[Method]) -> bool:
    """Return whether heads of a method can train together.

    Raises:
        PluginError: if it is declared stackable but overrides hooks that a stack would not call.
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
    """Return the memory of a head in a stack: parameters with gradient, moments and average, and activations."""
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

    A head whose loss becomes non-finite is stopped at the end of that epoch with an error; the others continue.

    Args:
        inputs: features and labels; each head sees them in the order of its seed, with its own labels if it has any.
        report: called with steps done and total steps, over all orders.
        between_epochs: called when all heads have finished an epoch; an exception in it ends the training.
    """
    # restacked whenever a head is done, so that no work is wasted on finished heads
    while active := [head for head in heads if not head.is_done]:
        num_lanes, num_threads = _shape(active, execution.device)
        orders = [_Order(members, inputs, execution, num_threads) for members in _by_order(active)]
        try:
            with _lanes(num_lanes, num_threads) as lanes:  # their threads end before heads are unstacked
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
    # equal shares: time cannot be attributed to single heads
    seconds = (time.perf_counter() - start) / len(heads)
    for head in heads:
        head.seconds += seconds
        head.state.epoch += 1
        head.state.history[-1]["seconds"] = seconds
        if head.error is None:
            head.after_epoch(head.state)


def _shape(heads: Sequence[Head], device: torch.device) -> tuple[int, int]:
    """Return the number of lanes in which orders train in parallel, and of threads per lane.

    Small operations use only one core. Heads are independent between batches, so many heads of one order are split over
    the threads of one lane. If there are few, each order has its own lane, with more lanes than cores, since three
    lanes keep two cores busier than two do.
    """
    if device.type != "cpu":
        return 1, 1
    cores, groups = torch.get_num_threads(), _by_order(heads)
    num_threads = max(1, min(cores, max(len(members) for members in groups) // HEADS_PER_THREAD))
    # if one order's threads use all cores, parallel orders gain nothing
    return (min(len(groups), 2 * cores // num_threads) if num_threads < cores else 1), num_threads


@contextlib.contextmanager
def _lanes(number: int, num_threads: int) -> Iterator[list[Lane]]:
    """Open lanes with this number of threads each, which share torch's cores, until the scope ends."""
    cores = torch.get_num_threads()
    torch.set_num_threads(max(1, cores // (number * num_threads)))
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, cores)
        # one thread each: the steps of a block must run in order
        executors: list[Executor] = [
            stack.enter_context(ThreadPoolExecutor(1, "heads")) for _ in range(number * num_threads)
        ]
        yield [executors[lane::number] for lane in range(number)]


def _by_order(heads: Sequence[Head]) -> list[list[Head]]:
    """Group heads that see the same batches: with the same seed and labels."""
    groups: dict[tuple[int, int], list[Head]] = defaultdict(list)
    for head in heads:
        groups[head.seed, id(head.labels)].append(head)
    return list(groups.values())


class _Order:
    """Heads that see the same batches; work that does not depend on the head is done once."""

    def __init__(self, heads: Sequence[Head], inputs: FeatureInputs, execution: Execution, num_blocks: int) -> None:
        """Stack the heads in at least this number of blocks."""
        self.seed, self.execution = heads[0].seed, execution
        self.inputs = inputs.reseeded(self.seed, heads[0].labels)
        self.plan, self.state = heads[0].plan, heads[0].state
        self.steps_per_epoch = math.ceil(len(inputs) / self.plan.batch_size)
        self.dtype = torch.float32 if execution.precision == "float32" else getattr(torch, execution.precision)
        # in float64, stacks are compared with separately trained heads to 1e-8
        if next(self.state.model.parameters()).dtype == torch.float64:
            self.dtype = torch.float64
        self.dropout = Dropout(self.seed, self.state.model)
        layers = layers_of(self.state.model) or []
        first = next(number for number, layer in enumerate(layers) if isinstance(layer, nn.Linear))
        self.shared, self.own = layers[:first], layers[first:]  # layers before the first linear one have no parameters
        self.blocks = [_Block(members, execution, self.dtype, first) for members in _blocks(heads, num_blocks)]

    def train_epoch(self, lane: Lane) -> Iterator[int]:
        """Run one pass over the images; yields 1 for each submitted step."""
        epoch, num_epochs = self.state.epoch, self.plan.epochs
        under_way: deque[list[Future[None]]] = deque()
        for number, batch in enumerate(self.inputs.shuffled(self.plan.batch_size, epoch)):
            step = epoch * self.steps_per_epoch + number
            prepared, noise = self._prepared(batch, step)  # while the blocks process earlier batches
            progress = Progress(step, num_epochs * self.steps_per_epoch, epoch, num_epochs)
            threads = zip(self.blocks, itertools.cycle(lane), strict=False)
            under_way.append([thread.submit(block.step, prepared, noise, progress) for block, thread in threads])
            _wait_until(under_way, AHEAD)
            yield 1
        _wait_until(under_way, 0)
        for block in self.blocks:
            block.end_epoch(self.steps_per_epoch)

    def release(self) -> None:
        """Copy the parameters back to the heads."""
        for layer in itertools.chain.from_iterable(block.stacks for block in self.blocks):
            layer.release()

    def _prepared(self, batch: Batch, step: int) -> tuple[Batch, list[Tensor]]:
        """Return a batch after the shared layers, and the dropout noise of the heads' own layers."""
        batch = self.execution.move(batch)
        inputs = batch.inputs
        with self.dropout.drawing(step, 0, len(batch.index)):  # the layers in the order of a forward pass
            for layer in self.shared:
                if not isinstance(layer, nn.Dropout):
                    inputs = F.relu(inputs)
                elif layer.p:
                    inputs = inputs * self.dropout.factors(layer, inputs.shape, layer.p, inputs)
            # dropout factors [B, width] of each later layer, as for a separately trained head
            noise: list[Tensor] = []
            width, like = 0, inputs.new_empty((), dtype=self.dtype)
            for layer in self.own:
                if isinstance(layer, nn.Linear):
                    width = layer.out_features
                elif isinstance(layer, nn.Dropout) and layer.p:
                    noise.append(self.dropout.factors(layer, (len(inputs), width), layer.p, like))
        return Batch(inputs, batch.labels[None], batch.index), noise


def _wait_until(under_way: deque[list[Future[None]]], most: int) -> None:
    """Wait for the oldest futures until at most `most` are pending."""
    while len(under_way) > most:
        for future in under_way.popleft():
            # re-raises exceptions of the step's thread
            future.result()


class _Block:
    """Heads that share one product."""

    def __init__(self, heads: Sequence[Head], execution: Execution, dtype: torch.dtype, first: int) -> None:
        """Adopt the parameters of the heads; `first` is the index of the first linear layer."""
        self.heads = heads
        models = [(layers_of(head.state.model) or [])[first:] for head in heads]
        averages = [(layers_of(head.state.ema.module) or [])[first:] for head in heads if head.state.ema is not None]
        self.layers: list[StackedLinear | nn.Module] = []
        for number, layer in enumerate(models[0]):
            linear, averaged = (
                [own for model in of_each if isinstance(own := model[number], nn.Linear)]
                for of_each in (models, averages)
            )
            # layers without parameters are equal for all heads: use any head's
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
            # one number if it depends only on the labels, which the heads share
            weights.append(torch.as_tensor(loss.weight, device=logits.device).expand(rows.stop - rows.start))
        total, weight = torch.cat(totals), torch.cat(weights)
        # heads share no parameters, so the sum's gradient is each head's own; no zero_grad: products overwrite the last
        # step's gradients
        (total.sum() / num_images).backward()
        total = total.detach()
        self.loss_sum += torch.where(weight > 0, total / weight, 0.0)
        # steps continue to the end of the epoch, since they only affect this head's parameters
        newly_bad = ~torch.isfinite(total) & (self.bad_step < 0)
        self.bad_step[newly_bad] = progress.step
        self._update(weight.tolist(), num_images)

    def end_epoch(self, num_steps: int) -> None:
        """Append the epoch to each head's history, and set errors of failed heads."""
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
        # no clipping or rescaling: Adam's kernels can use the gradients directly
        plain = plan.clip_grad is None and plan.optimizer != "sgd" and all(weight == num_images for weight in weights)
        if plain and self.fused is not None:
            self.fused.step()
        else:
            for number in moved:
                apply_gradients(self.heads[number].state, self.heads[number].plan, num_images / weights[number])
            if plain:
                # only now: the step above has created the optimiser states, which this collects
                self.fused = FusedSteps([head.state.optimizer for head in self.heads])
        average = self.heads[0].state.ema
        if average is not None:
            # all heads are at the same step of equal plans, and so have equal EMA decay
            share = 1.0 - average.get_decay(self.heads[0].state.step)
            for layer in self.stacks:
                layer.move_average(share, None if len(moved) == len(self.heads) else moved)
        # including heads with weight 0: a separate training also counts such a step in its schedule
        for head in self.heads:
            head.state.schedule.step()
            head.state.step += 1


def _blocks(heads: Sequence[Head], least: int) -> Iterator[list[Head]]:
    """Yield at least `least` blocks of similar size; heads with stackable methods are adjacent."""
    sides: dict[Hashable, list[Head]] = defaultdict(list)
    for head in heads:
        sides[_side(head)].append(head)
    ordered = [head for side in sides.values() for head in side]
    most = max(1, BLOCK_BYTES // _parameter_bytes(heads[0].state.model))
    # a multiple of the number of threads, so that none is idle while others still have a block
    number = min(len(heads), least * math.ceil(len(heads) / (least * most)))
    for block in range(number):
        yield ordered[len(heads) * block // number : len(heads) * (block + 1) // number]


def _side(head: Head) -> Hashable:
    return type(head.state.method), head.state.method.stack_key()


def _parameter_bytes(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())

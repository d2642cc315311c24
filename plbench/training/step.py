"""One optimiser step, over one process or many: forward, loss, backward, and the update unless something is not finite.

The host never synchronizes with the device here. Sums and the first bad step are kept on the device and read when a log
or a checkpoint needs them.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from plbench.method import Batch, Loss, Progress
from plbench.spec import Plan
from plbench.training.clock import Clock
from plbench.training.dropout import Dropout
from plbench.training.execution import Execution, mapped, widened
from plbench.training.hooks import Guarded
from plbench.training.optimizer import scaled_gradients, update
from plbench.training.state import ControlRequest, FitState, Tally

LARGE_LOGITS_BYTES = 16 << 20
"""Minimum size of logits, in float32, for which the loss is computed in blocks of rows."""

LOSS_BLOCK_BYTES = 2 << 20
"""Approximate size of such a block; about ten intermediate tensors of it fit in the CPU cache."""

READ_EVERY = 16
"""Steps between reads of a GPU's results."""


class Network(nn.Module):
    """A method's forward pass through its model, as one module for DistributedDataParallel."""

    def __init__(self, model: nn.Module, method: Guarded) -> None:
        """Store model and method."""
        super().__init__()
        self.model = model
        self._method = method

    def forward(self, batch: Batch, progress: Progress) -> Any:
        """Return the method's output on a batch."""
        return self._method.forward(self.model, batch, progress)


@dataclass(frozen=True)
class Stepper:
    """The constant parts of a training's steps; `network` is wrapped for DDP with several processes."""

    network: nn.Module
    method: Guarded
    plan: Plan
    execution: Execution
    tally: Tally
    clock: Clock
    dropout: Dropout

    def take(self, state: FitState, batch: Batch, num_images: int, progress: Progress, request: ControlRequest) -> None:
        """Take one optimiser step.

        Args:
            batch: this process's share of the global batch, on the device; placeholder rows if it is empty.
            num_images: number of images in the global batch.
            request: of this process.
        """
        state.model.train()
        # None and not 0: the optimiser skips parameters that a step does not use
        state.optimizer.zero_grad(set_to_none=True)
        shares = self.execution.world.shares(num_images)
        total, weight = self._gradients(state.scaler, batch, shares, progress)
        sums = self.tally.vector(total, weight, request)
        self.execution.world.sum_(sums)
        if self._update(state, sums, num_images, progress):
            state.schedule.step()
            state.step += 1
        self.clock.lap("optimizer")

    def _gradients(
        self, scaler: torch.amp.GradScaler, batch: Batch, shares: list[int], progress: Progress
    ) -> tuple[Tensor, Tensor | float]:
        """Accumulate gradients, divided by the number of images; return this process's part of loss and weight."""
        world, network, num_images = self.execution.world, cast(Any, self.network), sum(shares)
        is_idle = shares[world.rank] == 0
        total: Tensor = torch.zeros((), device=self.execution.device)
        weight: Tensor | float = 0.0
        pieces = [batch]
        if not is_idle and self.plan.accumulate > 1:
            chunks = torch.arange(len(batch.index)).chunk(self.plan.accumulate)
            pieces = [_part(batch, slice(int(rows[0]), int(rows[-1]) + 1)) for rows in chunks]
        # dropout masks depend on an image's row in the global batch
        row = sum(shares[: world.rank])
        for number, piece in enumerate(pieces, 1):
            # gradients are communicated only with the last piece of a batch
            stay = isinstance(network, nn.parallel.DistributedDataParallel) and number < len(pieces)
            travelling = network.no_sync() if stay else contextlib.nullcontext()
            with travelling, self.dropout.drawing(progress.step, row, len(piece.index)):
                with self.execution.autocast():
                    output = network(piece, progress)
                # backward may recompute activations, which need the same masks
                self.dropout.rewind()
                self.clock.lap("forward")
                if self.method.batch_scope == "batch":
                    loss = self._of_whole_batch(output, piece, shares, progress)
                    # divided by the number of images, which is known in advance; the weight of the whole batch is only
                    # known after the last sum (`_update`), which converts this to a mean over weight
                    scaler.scale(loss.total / num_images).backward()
                    # every process has the loss of the whole batch, which must be counted once in the sum over
                    # processes
                    counted = loss if world.is_main else Loss(torch.zeros_like(loss.total), 0.0)
                elif is_idle:
                    # the others wait for this process's gradients, although it has none to add
                    tensors: list[Tensor] = []
                    mapped(output, tensors.append)
                    counted = Loss(torch.stack([values.float().sum() for values in tensors]).sum() * 0.0, 0.0)
                    counted.total.backward()
                else:
                    counted = self._of_share(scaler, output, piece, num_images, progress)
                self.clock.lap("backward")
            total, weight = total + counted.total.detach(), weight + counted.weight
            row += len(piece.index)
        return total, weight

    def _of_share(
        self, scaler: torch.amp.GradScaler, output: Any, batch: Batch, num_images: int, progress: Progress
    ) -> Loss:
        """Return the loss of a share of independent images; large shares are computed in blocks.

        Blocks limit memory to one gradient of the logits' size, and small temporaries stay in the cache.
        """
        rows = rows_per_block(output, len(batch.index))
        if rows is None:
            loss = self.method.loss(widened(output), batch, progress)
            self.clock.lap("loss")
            scaler.scale(loss.total / num_images).backward()
            return loss
        gradient = torch.empty_like(output)
        total, weight = widened(output.new_zeros(())), cast("Tensor | float", 0.0)
        for start in range(0, len(output), rows):
            part = slice(start, start + rows)
            # a separate leaf, so that the block's graph is freed before the next one is built
            block = output.detach()[part].requires_grad_()
            loss = self.method.loss(widened(block), _part(batch, part), progress)
            scaler.scale(loss.total / num_images).backward()
            gradient[part] = 0.0 if block.grad is None else block.grad
            total, weight = total + loss.total.detach(), weight + loss.weight
        self.clock.lap("loss")
        output.backward(gradient)
        return Loss(total, weight)

    def _of_whole_batch(self, output: Any, batch: Batch, shares: list[int], progress: Progress) -> Loss:
        """Return the loss of the global batch, equal in every process.

        Images are not gathered, since the loss only uses outputs and labels.
        """
        world = self.execution.world
        if world.size > 1:
            num_rows = len(batch.index)  # tensors without one row per image are equal in every process
            output = mapped(
                output, lambda values: world.gather(values, shares) if values.shape[:1] == (num_rows,) else values
            )
            inputs = world.gather(batch.inputs, shares) if batch.inputs.ndim == 2 else batch.inputs[:0]
            batch = Batch(inputs, world.gather(batch.labels, shares), world.gather(batch.index, shares))
        loss = self.method.loss(widened(output), batch, progress)
        self.clock.lap("loss")
        return loss

    def _update(self, state: FitState, sums: Tensor, num_images: int, progress: Progress) -> bool:
        """Update weights and their average, unless something is not finite or the weight is 0.

        Return whether the training continues, as far as the host knows.
        """
        total, weight = sums[0], sums[1]
        is_sound = torch.isfinite(total)
        moves = self.execution.reads_late  # even if the weights do not change, their average is updated
        if self.execution.reads_late:
            # a batch with weight 0 has no finite gradient after scaling, which is not an error
            is_sound &= scaled_gradients(state, self.plan, num_images / weight) | (weight == 0)
            update(state, is_sound & (weight > 0))
        elif is_sound & (weight > 0):
            is_sound &= scaled_gradients(state, self.plan, num_images / float(weight))
            moves = bool(is_sound)
            if moves:
                update(state)
        self.tally.note(sums, is_sound, progress.step)
        if moves and state.ema is not None:
            state.ema.update(state.model, step=state.step)
        return self.execution.reads_late or bool(is_sound)


def rows_per_block(output: Any, num_rows: int) -> int | None:
    """Return the number of rows per block of the loss; None to compute all `num_rows` images at once."""
    # only the method knows whether the rows of other outputs are images
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != num_rows:
        return None
    # in float32, in which the loss is computed for any dtype of logits
    size = 4 * output.numel()
    return None if size < LARGE_LOGITS_BYTES else max(1, num_rows * LOSS_BLOCK_BYTES // size)


def _part(batch: Batch, rows: slice) -> Batch:
    return Batch(batch.inputs[rows], batch.labels[rows], batch.index[rows], tuple(view[rows] for view in batch.views))

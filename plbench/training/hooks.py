"""Call a method's hooks, and turn their errors into messages with plugin, hook and fix."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plbench.errors import PlbenchError, PluginError
from plbench.method import Batch, Loss, Method, Progress, Task
from plbench.training import distributed

_SIGNATURES = {
    "constructor": "__init__(self, params, task) is given an instance of its Params and a plbench.api.Task",
    "stages": "stages(cls, params, task) returns a sequence of plbench.api.Stage, and its task has no artifacts yet",
    "build": "build(self, backbone, make_head) returns the module to train",
    "param_groups": 'param_groups(self, model) returns dictionaries with "params"',
    "transform": "transform(self, train_transform) returns a function of one image",
    "mixture": "mixture(self, index, epoch) returns rows int64 [B, K] and weights [B, K]",
    "forward": "forward(self, model, batch, progress) returns what loss and scores take",
    "loss": "loss(self, output, batch, progress) returns Loss.of_images(per_image [B]) or Loss(total, weight)",
    "scores": "scores(self, output) returns a tensor [B, C] in [0, 1]",
    "epoch_start": "epoch_start(self, view, progress) returns nothing",
    "epoch_end": "epoch_end(self, view, progress) returns nothing",
    "diagnostics": "diagnostics(self, output, batch) returns masks bool [B, C] by name",
    "idle": "idle(self) returns sentences, a list of str",
    "state_dict": "state_dict(self) returns tensors and plain values",
    "load_state_dict": "load_state_dict(self, state) takes what state_dict gave",
}


class Guarded:
    """A method, or its class, with messages for errors in its hooks; other attributes are unchanged.

    Exceptions of hooks become `PluginError`s, except `PlbenchError` and out-of-memory errors. Results of the hooks
    below are validated.
    """

    __slots__ = ("_method",)

    def __init__(self, method: Method | type[Method]) -> None:
        """Wrap a method; `isinstance` and `type` need the original."""
        self._method = method

    def __getattr__(self, name: str) -> Any:
        """Return the attribute; hooks are guarded."""
        value = getattr(self._method, name)
        return partial(_call, self._method, name, value) if name in _SIGNATURES else value

    def loss(self, output: Any, batch: Batch, progress: Progress, shape: tuple[int, ...] = ()) -> Loss:
        """Return the loss of a batch, with checks that cost nothing: its type, and that the batch is unchanged.

        Args:
            shape: of the total: () for one method, (H,) for a stacked one.
        """
        method = self._method
        given = {"labels": batch.labels, "inputs": batch.inputs, "index": batch.index}
        before = {name: _version(tensor) for name, tensor in given.items()}
        loss: Loss = _call(method, "loss", method.loss, output, batch, progress)
        if fault := _fault_of(loss, shape):
            raise _error(method, "loss", fault)
        for name, tensor in given.items():
            if _version(tensor) != before[name]:
                raise _error(
                    method,
                    "loss",
                    f"wrote to batch.{name}, which later batches and other methods see; change a copy, such as "
                    f"batch.{name}.clone(), or choose with torch.where",
                )
        return loss

    def scores(self, output: Any, shape: tuple[int, ...] | None = None) -> Tensor:
        """Return the scores of a model output, after checking that they are a tensor, of `shape` [B, C] if given."""
        scores = _call(self._method, "scores", self._method.scores, output)
        if not isinstance(scores, Tensor) or (shape is not None and tuple(scores.shape) != shape):
            what = list(scores.shape) if isinstance(scores, Tensor) else f"no tensor but {type(scores).__name__}"
            right = "[B, C]" if shape is None else f"[B, C] = {list(shape)}"
            raise _error(
                self._method,
                "scores",
                f"gave {what} where {right} is right: a score of each class for each image, from the output of forward",
            )
        return scores

    def diagnostics(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        """Return the masks by name."""
        masks = _call(self._method, "diagnostics", self._method.diagnostics, output, batch)
        if not isinstance(masks, dict) or not all(isinstance(mask, Tensor) for mask in masks.values()):
            raise _error(self._method, "diagnostics", f"gave no tensors by name; {_SIGNATURES['diagnostics']}")
        return masks

    def idle(self) -> list[str]:
        """Return sentences on parts of the method that did nothing."""
        found = _call(self._method, "idle", self._method.idle)
        if not isinstance(found, list) or not all(isinstance(sentence, str) for sentence in found):
            right = "a list of sentences is right; return [] where every part did something"
            raise _error(self._method, "idle", f"gave {found!r} where {right}")
        return found


def _call(method: Method | type[Method], hook: str, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except (PlbenchError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # plugins may raise anything
        frames, file = traceback.extract_tb(error.__traceback__), str(_file(method))
        # another process has ended, which is not the hook's fault
        if any(frame.filename == distributed.__file__ for frame in frames):
            raise
        said = (str(error).strip().splitlines() or ["(it said nothing)"])[0]
        lines = [frame.lineno for frame in frames if frame.filename == file]
        place = f" (line {lines[-1]})" if lines else ""  # the innermost line in the plugin's own file
        raise _error(method, hook, f"raised {type(error).__name__}: {said}{place}; {_SIGNATURES[hook]}") from error


def construct(kind: type[Method], params: Any, task: Task) -> Method:
    """Construct a method.

    Raises:
        PluginError: if its constructor raises, or leaves `params` or `task` unset.
    """
    method: Method = _call(kind, "constructor", kind, params, task)
    for name in ("params", "task"):
        if not hasattr(method, name):
            raise _error(kind, "constructor", f"leaves self.{name} unset; call super().__init__(params, task) first")
    return method


def mixture_of(method: Method) -> Callable[[Tensor, int], tuple[Tensor, Tensor]] | None:
    """Return the method's mixture; None if every training input is one image."""
    return None if type(method).mixture is Method.mixture else Guarded(method).mixture


def try_it(method: Method | type[Method]) -> str:
    """Return the command that shows the smallest input that fails."""
    kind = method if isinstance(method, type) else type(method)
    from_file = kind.__module__.startswith("plbench_plugin_")  # the registry's name of a plugin file
    plugin = f" --plugin {_file(method)}" if from_file else ""
    return f"plbench methods check {method.name}{plugin} shows what is wrong on the smallest input"


def _fault_of(loss: Any, shape: tuple[int, ...]) -> str:
    """Return what is wrong with a loss; "" if nothing is."""
    cure = "return Loss.of_images(per_image), where per_image is [B], summed over classes"
    if not isinstance(loss, Loss):
        what = f"a tensor {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        return f"gave {what} where a plbench.api.Loss is right; {cure}"
    total, weight = loss.total, loss.weight
    if not isinstance(total, Tensor) or tuple(total.shape) != shape:
        what = f"of shape {list(total.shape)}" if isinstance(total, Tensor) else type(total).__name__
        right = "one number (shape [])" if not shape else f"one number a head (shape {list(shape)})"
        return f"gave a total {what} where {right} is right; {cure}"
    # without gradients enabled, their absence is not an error
    if torch.is_grad_enabled() and not total.requires_grad:
        return (
            "gave a total without a gradient, so that nothing can be learnt from it; compute it from output without "
            ".detach(), .item() or torch.no_grad(), also where no label is known"
        )
    if isinstance(weight, (int, float)) or (isinstance(weight, Tensor) and weight.numel() in (1, *shape)):
        return ""
    return (
        f"gave a weight that is {type(weight).__name__}, where a number of images or of known labels is right; {cure}"
    )


def _version(tensor: Tensor) -> int:
    """Return the tensor's version, which torch increments at every write; this does not synchronize."""
    # inference tensors have no version, and torch would raise
    return -1 if tensor.is_inference() else tensor._version


def _error(method: Method | type[Method], hook: str, fault: str) -> PluginError:
    return PluginError(f"method {method.name!r} of {_file(method).name}: its {hook} {fault}", try_it(method))


def _file(method: Method | type[Method]) -> Path:
    try:
        return Path(inspect.getfile(method if isinstance(method, type) else type(method)))
    except (OSError, TypeError):
        return Path("an unknown file")

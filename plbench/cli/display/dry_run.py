"""Terminal output of a dry run."""

from __future__ import annotations

from plbench.cli.display.tables import print_copied, print_rows, print_title
from plbench.progress import counted, duration, memory
from plbench.runs.environment import device_name
from plbench.runs.estimate.estimate import Estimate


def print_dry_run(found: Estimate) -> None:
    """Print the steps of a run, its settings, and notes on the estimates."""
    print_title(found.plan.describe())
    rows = [
        {
            "what": item.what,
            "run": item.key,
            "state": f"continues after step {item.steps_done:,}" if item.steps_done else item.state,
            "time": None if item.state == "done" else f"about {duration(item.seconds)}",
        }
        for item in found.items
    ]
    print_rows(None, rows, right=("time",))
    total = f"about {duration(found.seconds)}" if found.missing else "nothing to do; all runs are finished"
    for name, text in [("Total", total), *_how(found), *(("Note", note) for note in found.notes)]:
        print_copied(name, text)


def _how(found: Estimate) -> list[tuple[str, str]]:
    plan, measured = found.plan.spec.plan, found.measured
    processes = counted(found.num_processes, "process", "processes")
    batch = f"{plan.batch_size} images"
    batch += f", in {plan.accumulate} pieces" if plan.accumulate > 1 else ""
    batch += f", over {processes}" if found.num_processes > 1 else ""
    workers = "the main process decodes images" if not found.workers else f"{found.workers} workers decode images"
    lines = [
        ("Steps", f"{found.plan.steps_per_epoch:,} in each of {plan.epochs} epochs, {found.plan.num_steps:,} in total"),
        ("Batch", batch),
        ("Computed in", f"{found.plan.spec.precision} on {device_name(found.device)}, {processes}; {workers}"),
    ]
    if measured is not None and found.peak_bytes is not None:
        frozen = measured.num_parameters - measured.num_trainable
        lines.append(("Parameters", f"{measured.num_trainable:,} trained" + (f", {frozen:,} not" if frozen else "")))
        each = " of each process" if found.num_processes > 1 else ""
        state, activations = memory(measured.state_bytes), memory(measured.activation_bytes)
        needed = (
            f"about {memory(found.peak_bytes)} at the peak{each}, including {state} for weights, gradients, "
            f"optimiser moments and weight averages, and {activations} for the activations of a step"
        )
        lines.append(("Memory", needed))
    return lines

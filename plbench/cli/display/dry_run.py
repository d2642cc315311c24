"""A run that was not made, in the terminal."""

from __future__ import annotations

from rich.text import Text

from plbench.cli.display.tables import output, print_rows
from plbench.progress import duration, memory
from plbench.runs.environment import device_name
from plbench.runs.estimate.estimate import Estimate, Item


def print_dry_run(found: Estimate) -> None:
    """Print what would be made, step by step; how; and what is known about the figures."""
    console = output()
    console.print(Text(found.plan.describe(), style="bold"))
    print_rows(None, [_row(item) for item in found.items], right=("time",))
    total = f"about {duration(found.seconds)}" if found.missing else "nothing to do: all of it is done"
    lines = [("In all", total), *_how(found)]
    lines += [("Note", note) for note in found.notes]
    for name, text in lines:
        console.print(Text(f"{name}: {text}"), soft_wrap=True)


def _row(item: Item) -> dict[str, str | None]:
    state = f"going on after step {item.steps_done:,}" if item.steps_done else item.state
    return {
        "what": item.what,
        "run": item.key,
        "state": state,
        "time": None if item.state == "done" else f"about {duration(item.seconds)}",
    }


def _how(found: Estimate) -> list[tuple[str, str]]:
    plan, measured = found.plan.spec.plan, found.measured
    batch = f"{plan.batch_size} images"
    if plan.accumulate > 1:
        batch += f", in {plan.accumulate} pieces"
    if found.num_processes > 1:
        batch += f", over {found.num_processes} processes"
    steps = f"{found.plan.steps_per_epoch:,} in each of {plan.epochs} epochs, {found.plan.num_steps:,} in all"
    workers = "images are decoded by the program itself" if not found.workers else f"{found.workers} decoding images"
    processes = "1 process" if found.num_processes == 1 else f"{found.num_processes} processes"
    lines = [
        ("Steps", steps),
        ("Batch", batch),
        ("Computed in", f"{found.plan.spec.precision} on {device_name(found.device)}, {processes}; {workers}"),
    ]
    if measured is not None and found.peak_bytes is not None:
        frozen = measured.num_parameters - measured.num_trainable
        lines.append(("Parameters", f"{measured.num_trainable:,} trained" + (f", {frozen:,} not" if frozen else "")))
        each = " of each process" if found.num_processes > 1 else ""
        lines.append(
            (
                "Memory",
                f"about {memory(found.peak_bytes)} at the peak{each}; of it {memory(measured.state_bytes)} for "
                f"weights, gradients, moments and averages, {memory(measured.activation_bytes)} for what a step "
                "keeps",
            )
        )
    return lines

"""Export a run: write it next to its target, read it back, compare it with `plbench predict`, move it into place."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from plbench.data.images import ImageFiles, files_at
from plbench.errors import PlbenchError, did_you_mean
from plbench.files import try_folder, unwritable
from plbench.loading.transforms import eval_transform
from plbench.runs.export.formats import FORMATS, Format, Source, difference
from plbench.runs.export.network import Network
from plbench.runs.trained import TrainedModel, load_model
from plbench.runs.workspace import Workspace
from plbench.training.execution import Execution

_NUM_PICTURES = 8


@dataclass(frozen=True)
class Exported:
    """Result of an export.

    Attributes:
        run: its key.
        to: the format.
        path: of the file or folder.
        num_bytes: of all its files.
        reader: the program that read it back.
        difference: largest difference of any score between what was read back and `plbench predict`, on some generated
            pictures. low, high: minimum and maximum of those scores.
        precision: of the run.
        precision_difference: the largest between `plbench predict` in that precision and in float32, in which the
            export computes; None if they are the same.
    """

    run: str
    to: str
    path: Path
    num_bytes: int
    reader: str
    difference: float
    low: float
    high: float
    precision: str
    precision_difference: float | None


def export_run(folder: Path, to: str, out: Path, workspace: Workspace) -> Exported:
    """Write the model of a run for another program, and check that it gives the same scores.

    Args:
        folder: of the run.
        to: a name in `FORMATS`.
        out: file or folder to write. A file is replaced; a folder must be empty or new.
        workspace: locations. Everything is computed on the CPU.

    Raises:
        PlbenchError: if there is no such format, its packages are not installed, or it does not support the model.
        StoreError: if the record or the weights are missing or damaged, or the target cannot be written.
    """
    chosen = _chosen(to, out)
    chosen.check_packages()
    try_folder(out.absolute().parent)
    source, precision_difference = load_source(folder, workspace)
    with _staged(out) as place:
        found = write_checked(chosen, source, place, workspace)
        files = [place, *place.rglob("*")] if place.is_dir() else [place]
        num_bytes = sum(path.stat().st_size for path in files if path.is_file())
    record = source.model.record
    low, high = source.scores.aminmax()
    return Exported(
        record.key,
        to,
        out,
        num_bytes,
        chosen.reader,
        found,
        float(low),
        float(high),
        record.spec.precision,
        precision_difference,
    )


def _chosen(to: str, out: Path) -> Format:
    if to not in FORMATS:
        raise PlbenchError(f"`to={to}` is not a format that models are exported to; {did_you_mean(to, FORMATS)}")
    chosen = FORMATS[to]
    if chosen.suffix and (out.suffix.lower() != chosen.suffix or out.is_dir()):
        raise PlbenchError(f"`out={out}`: give the name of a file that ends in {chosen.suffix}")
    if not chosen.suffix and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PlbenchError(f"`out={out}` is not an empty folder; remove it, or give another name")
    return chosen


def load_source(folder: Path, workspace: Workspace) -> tuple[Source, float | None]:
    """Return a run's model, with pictures and their scores, and `Exported.precision_difference`.

    Raises:
        StoreError: if the record or the weights are missing or damaged. PlbenchError: if the run has no model that
            scores images.
    """
    local = replace(workspace, device=torch.device("cpu"), workers=0, decode="pil")
    with workspace.reporter.patience("Loading the model and scoring pictures by it"):
        given = load_model(folder, local)
        model = _in_float32(given)
        with tempfile.TemporaryDirectory() as place:
            pictures = _draw_pictures(Path(place), model.record.spec.model.image_size)
            scores = torch.cat(list(model.scores(pictures, local)))
            rounded = scores if model is given else torch.cat(list(given.scores(pictures, local)))
            transform = eval_transform(model.record.spec.model)
            images = torch.stack([transform(pictures.load(row)) for row in range(len(pictures))])
    own = None if model is given else float((rounded - scores).abs().max())
    return Source(given, Network(model), images, scores), own


def write_checked(chosen: Format, source: Source, place: Path, workspace: Workspace) -> float:
    """Write a format to a path, read it back, and return the largest difference of a score.

    Raises:
        PlbenchError: if rounding cannot explain it, or the format does not support the model.
    """
    with workspace.reporter.patience(f"Writing {place.name}, and comparing its scores by {chosen.reader}"):
        chosen.write(source, place)
        found = difference(chosen.read(place), source)
    limit = source.network.tolerance
    if not found <= limit:
        raise PlbenchError(
            f"by {chosen.reader}, scores of the exported model differ by up to {found:.1e} from those of plbench "
            f"predict, and {limit:g} is the most that rounding explains; nothing was written: export it to another "
            "format, and report this"
        )
    return found


def _in_float32(model: TrainedModel) -> TrainedModel:
    """Return the same model with float32 computation."""
    record = model.record
    if record.spec.precision == "float32":
        return model
    spec = record.spec.model_copy(update={"precision": "float32"})
    execution = Execution(model.execution.device, "float32")
    return replace(model, record=record.model_copy(update={"spec": spec}), execution=execution)


def _draw_pictures(folder: Path, size: int) -> ImageFiles:
    """Write pictures with patches of all sizes in random colours, as lossless files."""
    draws = np.random.default_rng(0)
    for number in range(_NUM_PICTURES):
        total = np.zeros((size, size, 3), np.float32)
        cells = 1 + number % 3
        while cells <= size:
            patches = Image.fromarray(draws.integers(0, 256, (cells, cells, 3), np.uint8))
            total += np.asarray(patches.resize((size, size), Image.Resampling.BICUBIC), np.float32) - 128
            cells *= 3
        low, high = np.percentile(total, [1, 99])
        shown = np.clip((total - low) / max(high - low, 1.0) * 255, 0, 255).astype(np.uint8)
        Image.fromarray(shown).save(folder / f"{number}.png")
    return files_at([folder])


@contextlib.contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """Yield a path next to the target; it is renamed to the target if the scope ends without an error.

    Raises:
        StoreError: if the folder is not writable, or the disk is full.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as folder:
            yield (place := Path(folder) / out.name)
            place.replace(out)
    except OSError as error:
        raise unwritable(out, error) from error

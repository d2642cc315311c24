"""Features of a frozen backbone, computed once per content and shared by every run of the probe regime."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from plbench.errors import PlbenchError
from plbench.images import ImageSource, eval_transform, image_batches, image_set_id, ordered_batches
from plbench.spec import NUMERICS, ModelSpec, Precision
from plbench.store import Store, unwritable, write_json

BATCH_SIZE = 32  # small batches stay in a CPU's cache; a GPU is fed well enough
_SAVE_EVERY = 32  # batches between two notes of how far a file is filled


def features_key(
    fingerprint: str, split: str, images: ImageSource, model: ModelSpec, precision: Precision, seed: int
) -> str:
    """What the features of a split depend on, as hex sha256: pixels, which images, backbone, weights, transform.

    Args:
        seed: the run's, which random weights follow from; others do not depend on it.
    """
    backbone = model.model_dump(mode="json", exclude={"head", "head_width", "head_dropout"})
    content = [fingerprint, split, image_set_id(images), backbone, precision, NUMERICS]
    if model.weights == "random":
        content.append(seed)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def features_name(key: str) -> str:
    """Where features lie in the cache."""
    return f"features/{key[:32]}.npy"


def cached_features(
    store: Store,
    key: str,
    images: ImageSource,
    make_backbone: Callable[[], nn.Module],
    model: ModelSpec,
    *,
    device: torch.device,
    precision: Precision,
    workers: int,
    report: Callable[[int, int], None],
) -> np.ndarray:
    """Features of every image, [N, D] float32, memory-mapped from the cache; computed where they are not there.

    The file fills up batch by batch beside a note of how far it is, so that an interrupted extraction goes on.

    Raises:
        DataError: if an image cannot be read. StoreError: if the cache cannot be written.
    """
    with store.cache_lock(features_name(key)) as path:
        if stored_features(path, len(images)) is None:
            backbone = make_backbone().to(device).eval()
            try:
                _extract(path, images, backbone, model, device, precision, workers, report)
            except (OSError, PlbenchError) as error:  # what is mended may have another key, and never come back for it
                for suffix in (".partial", ".json"):
                    path.with_suffix(suffix).unlink(missing_ok=True)
                if isinstance(error, OSError):
                    raise unwritable(path, error) from error
                raise
        features = stored_features(path, len(images))
        assert features is not None
        return features


def stored_features(path: Path, num_images: int) -> np.ndarray | None:
    """Features in the cache, memory-mapped; None where there are none, or the file is not whole."""
    try:
        features = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return features if features.ndim == 2 and len(features) == num_images else None


def _extract(
    path: Path,
    images: ImageSource,
    backbone: nn.Module,
    model: ModelSpec,
    device: torch.device,
    precision: Precision,
    workers: int,
    report: Callable[[int, int], None],
) -> None:
    partial, note = path.with_suffix(".partial"), path.with_suffix(".json")
    width = int(getattr(backbone, "num_features", 0))
    done = _rows_done(partial, note, (len(images), width))
    if done == 0:
        _reserve(partial, (len(images), width))
    stored = np.lib.format.open_memmap(partial, mode="r+")
    batches = ordered_batches(len(images), BATCH_SIZE)[done // BATCH_SIZE :]
    stream = image_batches(images, eval_transform(model), batches, min_side=model.image_size, workers=workers)
    backbone = backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    report(done, len(images))
    with torch.inference_mode():
        for number, (views, rows) in enumerate(stream, 1):
            pixels = views[0].to(device, memory_format=torch.channels_last, non_blocking=True)
            with torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32"):
                features = backbone(pixels)
            stored[rows.numpy()] = features.float().cpu().numpy()
            done += len(rows)
            report(done, len(images))
            if number % _SAVE_EVERY == 0:
                stored.flush()
                write_json(note, {"rows": done})
    if not np.isfinite(stored).all():
        raise PlbenchError(f"backbone {model.backbone} gave features that are not finite; try --precision float32")
    stored.flush()
    partial.replace(path)
    note.unlink(missing_ok=True)


def _rows_done(partial: Path, note: Path, shape: tuple[int, int]) -> int:
    """Rows that an interrupted extraction had finished; 0 where there is nothing to go on from."""
    try:
        rows = int(json.loads(note.read_text())["rows"])
        stored = np.lib.format.open_memmap(partial, mode="r")
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return rows if stored.shape == shape and 0 < rows <= shape[0] and rows % BATCH_SIZE == 0 else 0


def _reserve(partial: Path, shape: tuple[int, int]) -> None:
    """Makes the file at its full size, so that a disk too small is an error now and not a crash later."""
    with partial.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(file, header)
        zeros = np.zeros(1 << 20, np.uint8)
        remaining = 4 * shape[0] * shape[1]
        while remaining > 0:
            file.write(zeros[:remaining].data)
            remaining -= zeros.size

"""Features of a frozen backbone, computed once per content and shared by all runs of the probe regime.

Pooled features are float32. Feature maps, which are much larger, are float16: on `scenes` this changed mAP(C) by at
most 0.02 points (docs/performance.md).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from plbench.data.images import ImageSource, image_set_id
from plbench.data.pixels import PIXELS
from plbench.errors import PlbenchError
from plbench.files import locked, unwritable
from plbench.files.checksums import set_aside
from plbench.loading.batches import ImageLoader
from plbench.loading.jpegs import JpegDecoder
from plbench.loading.resumable_array import PARTIAL, GrowingMatrix, find_damage, forget_damaged, open_matrix
from plbench.loading.transforms import eval_transform
from plbench.spec import NUMERICS, ModelSpec, Precision

BATCH_SIZE = 32  # small batches fit a CPU's cache
GPU_BATCH_SIZE = 256
_FORMAT = 3  # of the file; increased with changes, so that old files do not look damaged
_SAVE_EVERY = 32  # batches between two flushes with marks


def features_key(
    fingerprint: str,
    split: str,
    images: ImageSource,
    model: ModelSpec,
    precision: Precision,
    seed: int,
    decode: str = "pil",
) -> str:
    """Return the hex sha256 of everything the features of a split depend on: images, backbone, weights, transform.

    Args:
        seed: of the run; only used for random weights.
        decode: the JPEG decoder, as named by `plbench.loading.jpegs.jpeg_decoder`.
    """
    head = {name for name in ModelSpec.model_fields if name.startswith("head")}
    backbone = model.model_dump(mode="json", exclude=head)
    content = [_FORMAT, fingerprint, split, image_set_id(images), backbone, precision, NUMERICS, PIXELS]
    if model.weights == "random":
        content.append(seed)
    if decode != "pil":
        content.append(decode)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def feature_dtype(shape: tuple[int, ...]) -> str:
    """Return the numpy dtype name in which features of this shape are stored."""
    return "<f4" if len(shape) == 1 else "<f2"


def features_name(key: str) -> str:
    """Return the path of features in the cache."""
    return f"features/{key[:32]}.npy"


def cached_features(
    cache: Path,
    key: str,
    images: ImageSource,
    make_backbone: Callable[[], nn.Module],
    model: ModelSpec,
    *,
    device: torch.device,
    precision: Precision,
    workers: int,
    report: Callable[[int, int], None],
    decoder: JpegDecoder | None = None,
    rank: int = 0,
    num_ranks: int = 1,
) -> np.ndarray:
    """Return features of every image, memory-mapped from the cache, computing missing ones.

    Pooled, [N, D] float32; or feature maps, [N, D, h, w] float16, for a model without pooling.

    Checksums are not verified here: `set_damaged_aside` does so, once for all processes.

    Processes share the work if each calls this with its rank. They need no barrier: each returns when all features are
    available. Batches do not depend on the process, and the file marks finished batches, so that an interrupted
    extraction can be resumed, even with another number of processes. If a process dies, the others wait until their
    launcher ends them.

    Args:
        decoder: decodes JPEG files on the device; its name is part of the key.
        report: receives the number of images done by all processes, and the total.
        rank, num_ranks: of the processes. Rank 0 creates the file and renames it when complete.

    Raises:
        DataError: if an image cannot be read. StoreError: if the cache cannot be written. PlbenchError: if features
            are not finite, or another process failed.
    """
    name = features_name(key)
    # the main process holds the lock for all
    with locked(cache / name) if rank == 0 else contextlib.nullcontext(cache / name) as path:
        # checked under the lock, since another program may just have finished them
        if open_matrix(path, len(images)) is None:
            backbone = make_backbone().to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
            shape: tuple[int, ...] = backbone.feature_shape
            batch_rows = GPU_BATCH_SIZE if device.type == "cuda" else BATCH_SIZE
            growing = GrowingMatrix(path, (len(images), *shape), batch_rows, dtype := feature_dtype(shape))
            try:
                with growing.opened(owner=rank == 0):
                    batches = growing.batches_to_do(rank, num_ranks)
                    stream = ImageLoader(
                        images,
                        eval_transform(model),
                        min_side=model.image_size,
                        workers=workers,
                        device=device,
                        decoder=decoder,
                    ).batches([growing.rows_of(batch) for batch in batches])
                    report(growing.num_rows_done(), len(images))
                    with contextlib.closing(stream):
                        for number, (batch, (views, _)) in enumerate(zip(batches, stream, strict=True), 1):
                            growing.write(batch, extract(backbone, views[0], precision, model.backbone, dtype))
                            report(growing.num_rows_done(), len(images))
                            if number % _SAVE_EVERY == 0:
                                growing.note()
                    growing.finish(owner=rank == 0)
            except (OSError, PlbenchError) as error:
                growing.remove()  # fixing the problem may change the key, and this file would never be used
                if isinstance(error, OSError):
                    raise unwritable(path, error) from error
                raise
        features = open_matrix(path, len(images))
        assert features is not None
        return features


def set_damaged_aside(cache: Path, key: str, warn: Callable[[str], None]) -> None:
    """Verify checksums of cached features, and rename damaged files, so that they are recomputed.

    Of incomplete files, only damaged batches are discarded. `warn` receives a message in both cases. Raises StoreError
    if the cache cannot be written.
    """
    name = features_name(key)
    if not (cache / name).exists() and not (cache / name).with_suffix(PARTIAL).exists():
        return
    with locked(cache / name) as path:
        try:
            if not path.exists():
                if damage := forget_damaged(path):
                    warn(f"Cached features {path.with_suffix(PARTIAL)} are damaged: {damage}; computing them again")
                return
            damage = find_damage(path)
            if damage is not None:
                aside = set_aside(path)
                warn(f"Cached features {path} are damaged: {damage}; set aside as {aside}, computing them again")
        except FileNotFoundError:
            return  # another process set it aside
        except OSError as error:
            raise unwritable(path, error) from error


def extract(backbone: nn.Module, pixels: Tensor, precision: Precision, name: str, dtype: str) -> np.ndarray:
    """Return features of one batch of images, float32, within the range of the storage `dtype`.

    Args:
        backbone: in eval mode, on the device of `pixels`.
        pixels: [B, 3, H, W].
        precision: of the forward pass.
        name: of the backbone, for messages.
        dtype: from `feature_dtype`.

    Raises:
        PlbenchError: if they are not finite, or too large.
    """
    enabled = precision != "float32"
    with torch.inference_mode(), torch.autocast(pixels.device.type, getattr(torch, precision), enabled=enabled):
        features: np.ndarray = backbone(pixels).float().cpu().numpy()
    if not np.isfinite(features).all():
        raise PlbenchError(f'backbone {name} gave features that are not finite; try `precision="float32"`')
    if (largest := np.abs(features).max()) > np.finfo(dtype).max:
        raise PlbenchError(
            f"backbone {name} gave features of {largest:g}, which feature maps in the cache cannot hold; train "
            'with `regime="finetune"`, or take another backbone'
        )
    return features

"""Compute embedding files: a vision-language model embeds all images and class names of a dataset."""

from __future__ import annotations

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from plbench.data.embeddings import FOLDER
from plbench.data.images import ImageSource, image_set_id
from plbench.data.pixels import PIXELS
from plbench.errors import PlbenchError
from plbench.files import locked, try_folder, unwritable, write_atomically
from plbench.loading.batches import ImageLoader
from plbench.loading.resumable_array import GrowingMatrix, open_checked, open_matrix
from plbench.models.vision_language import VisionLanguageModel
from plbench.runs.workspace import Workspace, fingerprint, open_dataset

PROMPT = "a photo of a {}."
"""Template for class names, as in AEVLP."""

_FORMAT = 1  # part of the key, increased when results change
_BATCH_SIZE = 32
_SAVE_EVERY = 8  # batches between updates of the progress on disk


def embed(
    name: str, workspace: Workspace, model: str, out: Path, *, prompt: str = PROMPT, splits: Sequence[str] = ()
) -> dict[str, Any]:
    """Write the embeddings of a dataset's classes and images to a file.

    Embeddings of images are cached first, so that an interrupted command can continue; the file is written at the end.

    Args:
        name: of the dataset.
        workspace: location of its files, and device.
        model: name on the Hugging Face Hub, or a folder.
        out: the `.npz` to write.
        prompt: template for class names, with {} for the name.
        splits: to embed; empty for those that the dataset's protocols use.

    Returns:
        File, model, prompt, number of classes, number of images by split, and dimension of the embeddings.

    Raises:
        PlbenchError: if transformers, the model or the dataset is missing, or an image cannot be read. StoreError: if a
            file cannot be written.
    """
    if prompt.count("{}") != 1:
        raise PlbenchError(f"`prompt=` {prompt!r} must hold {{}} once, where a class's name goes")
    if out.suffix != ".npz":
        raise PlbenchError(f"`out={out}` does not end in .npz, as files of embeddings do")
    try_folder(out.parent)
    dataset = open_dataset(name, workspace)
    chosen = tuple(dict.fromkeys(splits)) or dataset.used_splits()
    with workspace.reporter.patience(f"Loading {model}"):
        vlm = VisionLanguageModel(model, workspace.device)
        identity = [_FORMAT, fingerprint(dataset, workspace), vlm.sha256(), PIXELS]
    labels = dataset.split(chosen[0]).labels
    texts = [prompt.replace("{}", name.replace("_", " ")) for name in labels.class_names]
    ids: list[str] = []
    matrices: list[np.ndarray] = []
    for split in chosen:
        images = dataset.split(split).images
        key = hashlib.sha256(json.dumps([*identity, split, image_set_id(images)]).encode()).hexdigest()
        path = workspace.store.cache / FOLDER / "images" / f"{key[:32]}.npy"
        with workspace.reporter.task(f"Embeddings of {len(images):,} {split} images") as report:
            matrices.append(_image_embeddings(path, images, vlm, workspace, report))
        ids += [f"{split}/{image_id}" for image_id in images.ids]
    arrays = {
        "class_ids": np.array(labels.class_ids),
        "class_embeddings": vlm.embed_texts(texts).numpy(),
        "image_ids": np.array(ids),
        "model": np.array(f"{model}, {prompt!r}"),
        **{name: np.array(value, np.float32) for name, value in vlm.logits.items()},
    }
    write_atomically(out, lambda file: _write(file, arrays, matrices))
    return {
        "file": str(out),
        "model": model,
        "prompt": prompt,
        "classes": len(labels.class_ids),
        "images": {split: len(matrix) for split, matrix in zip(chosen, matrices, strict=True)},
        "numbers": int(matrices[0].shape[1]),
    }


def _image_embeddings(
    path: Path, images: ImageSource, vlm: VisionLanguageModel, workspace: Workspace, report: Any
) -> np.ndarray:
    """Return [N, D] float32 from the cache, memory-mapped; missing ones are computed."""
    with locked(path):
        if open_checked(path, len(images)) is None:
            width = vlm.embed_images(vlm.prepare(images.load(0))[None]).shape[1]
            growing = GrowingMatrix(path, (len(images), width), _BATCH_SIZE)
            try:
                with growing.opened(owner=True):
                    batches = growing.batches_to_do(0, 1)
                    loader = ImageLoader(
                        images, vlm.prepare, min_side=0, workers=workspace.workers, device=workspace.device
                    )
                    report(growing.num_rows_done(), len(images))
                    with contextlib.closing(loader.batches([growing.rows_of(batch) for batch in batches])) as stream:
                        for number, (batch, (views, _)) in enumerate(zip(batches, stream, strict=True), 1):
                            growing.write(batch, vlm.embed_images(views[0]).numpy())
                            report(growing.num_rows_done(), len(images))
                            if number % _SAVE_EVERY == 0:
                                growing.note()
                    growing.finish(owner=True)
            except OSError as error:
                raise unwritable(path, error) from error
        found = open_matrix(path, len(images))
        assert found is not None
        return found


def _write(file: IO[bytes], arrays: Mapping[str, np.ndarray], images: Sequence[np.ndarray]) -> None:
    """Write an `.npz`; the images' embeddings, which may exceed memory, are written in blocks."""
    shape = (sum(map(len, images)), images[0].shape[1])
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        with archive.open("image_embeddings.npy", "w", force_zip64=True) as member:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(member, header)
            for matrix in images:
                for start in range(0, len(matrix), 1024):
                    member.write(np.ascontiguousarray(matrix[start : start + 1024], "<f4").tobytes())

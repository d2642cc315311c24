"""Published files of labels: what each format says, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from plbench.data.images import ImageFiles
from plbench.data.label_file import count_contradictions, read_label_file
from plbench.data.labels import PartialLabels
from plbench.data.simulation import parse
from plbench.errors import DataError, PlbenchError

IMAGES = ImageFiles(Path("root"), ("train/a_1.jpg", "train/b_2.jpg", "train/c_3.jpg"), ("1", "2", "3"))
TRUTH = PartialLabels.from_dense([[1, -1, -1], [1, 1, -1], [-1, -1, 1]], ["10", "20", "30"], ["cat", "dog", "bird"])
WANTED = np.array([[1, 0, -1], [0, 1, 0], [0, 0, 0]])


def read(path: Path, zero: str | None = None) -> np.ndarray:
    return read_label_file(path, IMAGES, TRUTH, zero).rows([0, 1, 2])  # type: ignore[arg-type]


def save(path: Path, values: object, dtype: str = "float64") -> Path:
    np.save(path, np.array(values, dtype))
    return path


@pytest.mark.parametrize("dtype", ["int8", "int64", "float32", "float64"])
def test_a_matrix_of_three_signs(tmp_path: Path, dtype: str) -> None:
    assert np.array_equal(read(save(tmp_path / "mask.npy", WANTED, dtype)), WANTED)


def test_nan_is_unknown_and_0_is_absent_then(tmp_path: Path) -> None:
    values = np.where(WANTED == 0, np.nan, (WANTED + 1) / 2)
    assert np.array_equal(read(save(tmp_path / "mask.npy", values)), WANTED)


def test_1_and_0_alone_can_be_read_in_two_ways(tmp_path: Path) -> None:
    path = save(tmp_path / "mask.npy", WANTED == 1)
    with pytest.raises(DataError, match="holds 1 and 0 alone: say with `zero=absent` or `zero=unknown`"):
        read(path)
    assert np.array_equal(read(path, "unknown"), (WANTED == 1).astype(int))
    assert np.array_equal(read(path, "absent"), np.where(WANTED == 1, 1, -1))


@pytest.mark.parametrize("content", ["tensor", "dictionary"])
def test_a_tensor_is_a_matrix(tmp_path: Path, content: str) -> None:
    tensor = torch.tensor(WANTED)
    torch.save(tensor if content == "tensor" else {"labels": tensor}, tmp_path / "mask.pt")
    assert np.array_equal(read(tmp_path / "mask.pt"), WANTED)


def test_code_in_a_tensor_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"labels": Path("x")}, tmp_path / "mask.pt")
    with pytest.raises(DataError, match="without running code"):
        read(tmp_path / "mask.pt")


def test_a_list_names_what_is_present_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("b_2.jpg, 1 0\na_1.jpg,2\nc_3.jpg,\n")
    assert np.array_equal(read(tmp_path / "list.txt"), [[0, 0, 1], [1, 1, 0], [0, 0, 0]])


def test_both_layouts_of_a_csv_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "wide.csv").write_text("image,cat,30,dog\n1,1,-1,0\ntrain/b_2.jpg,,,1\n")
    (tmp_path / "long.csv").write_text("image,label,value\na_1,cat,1\n1,bird,-1\n2,20,1\n3,dog,0\n")
    assert np.array_equal(read(tmp_path / "wide.csv"), WANTED)
    assert np.array_equal(read(tmp_path / "long.csv"), WANTED)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.txt", "d_4.jpg, 1", r"line 1: image 'd_4.jpg' is not in the train split"),
        ("list.txt", "a_1.jpg, 3", r"line 1: class 3; there are 0 to 2"),
        ("list.txt", "a_1.jpg 1", r"line 1: 'a_1.jpg 1'; expected an image, a comma, and numbers"),
        ("wide.csv", "image,cat,mouse\n1,1,1", r"'mouse' is not a class"),
        ("wide.csv", "image,cat\n1,2", r"holds 2; expected 1, -1, and 0"),
        ("long.csv", "image,label,value\n1,cat,1\n1,cat,-1", r"given more than once"),
        ("labels.csv", "file,cat\n1,2", r"has no column 'image'; it has 'file', 'cat'"),
        ("mask.npy", "no array", r"is not an array saved by numpy"),
        ("mask.json", "{}", r"does not end in .npy, .pt, .pth, .txt, .csv"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


def test_a_matrix_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"of shape \(2, 3\); expected numbers of shape \(3, 3\): train images by classes"
    ):
        read(save(tmp_path / "mask.npy", WANTED[:2]))
    with pytest.raises(DataError, match="holds the value 2; expected 1, 0, -1 or NaN"):
        read(save(tmp_path / "mask.npy", WANTED * 2))
    with pytest.raises(DataError, match="holds NaN, 0 and -1, which are one too many"):
        read(save(tmp_path / "mask.npy", np.where(WANTED == 1, np.nan, WANTED)))
    with pytest.raises(DataError, match="holds -1, so that 0 is unknown; leave out `zero=absent`"):
        read(save(tmp_path / "mask.npy", WANTED), "absent")


def test_contradictions_are_counted(tmp_path: Path) -> None:
    labels = read_label_file(save(tmp_path / "mask.npy", -TRUTH.rows([0, 1, 2])), IMAGES, TRUTH)
    assert count_contradictions(labels, TRUTH) == 9 and count_contradictions(TRUTH, TRUTH) == 0


@pytest.mark.parametrize("text", ["labels-file=a,b/mask.npy", "labels-file=mask.npy,zero=absent"])
def test_a_simulation_names_the_file(text: str) -> None:
    assert parse(text).text == text and parse(text).is_published
    assert parse("labels-file = m.npy, zero = absent").zero == "absent"
    with pytest.raises(PlbenchError, match="names no file; write labels-file=FILE"):
        parse("labels-file")

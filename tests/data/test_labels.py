"""The ternary label matrix: what goes in comes out, and what is malformed is refused."""

from pathlib import Path
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from plbench.data import labels as labels_module
from plbench.data.labels import PartialLabels
from plbench.errors import DataError

DENSE = [[1, -1, 0], [0, 0, 0], [-1, 1, 1], [0, 1, -1]]
IDS = ("/m/01", "/m/02", "/m/03")
NAMES = ("cat", "Bühne 舞台", "cat")


def example() -> PartialLabels:
    return PartialLabels.from_dense(DENSE, IDS, NAMES)


@st.composite
def dense_labels(draw: st.DrawFn) -> npt.NDArray[np.int8]:
    num_images, num_classes = draw(st.integers(0, 8)), draw(st.integers(0, 6))
    size = num_images * num_classes
    values = draw(st.lists(st.sampled_from([1, -1, 0]), min_size=size, max_size=size))
    return np.array(values, dtype=np.int8).reshape(num_images, num_classes)


def labels_of(dense: npt.NDArray[np.int8]) -> PartialLabels:
    return PartialLabels.from_dense(dense, [f"id{c}" for c in range(dense.shape[1])])


def same(one: PartialLabels, other: PartialLabels) -> bool:
    ids_agree = (one.class_ids, one.class_names) == (other.class_ids, other.class_names)
    cells_agree = all(np.array_equal(a, b) for a, b in zip(one.cells(), other.cells(), strict=True))
    return ids_agree and cells_agree and one.matrix.shape == other.matrix.shape


class TestWhatItHolds:
    @settings(max_examples=60, deadline=None)
    @given(dense_labels())
    def test_agrees_with_the_dense_matrix(self, dense: npt.NDArray[np.int8]) -> None:
        labels = labels_of(dense)
        assert (labels.num_images, labels.num_classes) == dense.shape
        assert labels.num_known == np.count_nonzero(dense)
        assert labels.density == (np.count_nonzero(dense) / dense.size if dense.size else 0.0)
        assert labels.is_complete == bool((dense != 0).all())
        positives, negatives = labels.counts()
        assert positives.dtype == negatives.dtype == np.int64
        assert positives.tolist() == (dense == 1).sum(axis=0).tolist()
        assert negatives.tolist() == (dense == -1).sum(axis=0).tolist()
        rows, columns, values = labels.cells()
        assert [rows.tolist(), columns.tolist()] == [index.tolist() for index in np.nonzero(dense)]
        assert values.tolist() == dense[dense != 0].tolist()

    @settings(max_examples=60, deadline=None)
    @given(dense_labels(), st.data())
    def test_rows_and_subset_pick_images_in_any_order(self, dense: npt.NDArray[np.int8], data: st.DataObject) -> None:
        most = 10 if len(dense) else 0
        index = data.draw(st.lists(st.integers(0, max(len(dense) - 1, 0)), max_size=most))
        labels = labels_of(dense)
        picked = labels.rows(index)
        assert picked.dtype == np.int8
        assert picked.tolist() == dense[index].tolist()
        assert same(labels.subset(index), labels_of(dense[index]))

    @settings(max_examples=60, deadline=None)
    @given(dense_labels(), st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 2**16]))
    def test_keep_leaves_the_chosen_cells_known(self, dense: npt.NDArray[np.int8], seed: int, block: int) -> None:
        labels = labels_of(dense)
        mask = np.random.default_rng(seed).random(labels.num_known) < 0.5
        expected = dense.copy()
        expected[dense != 0] *= mask
        with mock.patch.object(labels_module, "_BLOCK", block):
            kept = labels.keep(mask)
        assert same(kept, labels_of(expected))
        assert same(labels, labels_of(dense))

    def test_names_are_the_ids_where_left_out_and_may_repeat(self) -> None:
        assert PartialLabels.from_dense(DENSE, IDS).class_names == IDS
        assert example().class_names == NAMES
        assert example().keep(np.ones(7, dtype=np.bool_)).class_names == NAMES
        assert example().subset([0]).class_names == NAMES

    def test_cells_may_come_in_any_order(self) -> None:
        rows, columns, values = example().cells()
        for seed in range(5):
            order = np.random.default_rng(seed).permutation(len(rows))
            shuffled = PartialLabels.from_cells(
                rows[order], columns[order], values[order], num_rows=4, class_ids=IDS, class_names=NAMES
            )
            assert same(shuffled, example())
            assert shuffled.fingerprint() == example().fingerprint()


class TestWhatItRefuses:
    @pytest.mark.parametrize("second", [1, -1])
    def test_a_cell_given_twice(self, second: int) -> None:
        with pytest.raises(DataError, match=r"^1 \(image, class\) cells are given more than once"):
            PartialLabels.from_cells([0, 1, 0], [2, 2, 2], [1, 1, second], num_rows=2, class_ids=IDS)

    @pytest.mark.parametrize("value", [0, 2, -2, 255, 257, 1.5])
    def test_a_value_that_is_no_label(self, value: float) -> None:
        with pytest.raises(DataError, match=f"label is {value};"):
            PartialLabels.from_cells([0, 1], [0, 1], np.array([1, value]), num_rows=2, class_ids=IDS)

    @pytest.mark.parametrize(("row", "column"), [(2, 0), (-1, 0), (0, 3), (0, -1)])
    def test_a_cell_outside_the_matrix(self, row: int, column: int) -> None:
        with pytest.raises(DataError):
            PartialLabels.from_cells([row], [column], [1], num_rows=2, class_ids=IDS)

    def test_a_class_id_given_twice(self) -> None:
        with pytest.raises(DataError, match="class id 'b' appears twice"):
            PartialLabels.from_dense(DENSE, ["a", "b", "b"])

    def test_ids_and_names_that_do_not_match_the_columns(self) -> None:
        matrix = example().matrix
        with pytest.raises(DataError, match="3 columns for 2 class ids and 2 names"):
            PartialLabels(matrix, IDS[:2], NAMES[:2])
        with pytest.raises(DataError, match="3 columns for 3 class ids and 2 names"):
            PartialLabels(matrix, IDS, NAMES[:2])

    def test_a_matrix_with_stored_zeros(self) -> None:
        matrix = sparse.csr_array((np.array([1, 0], np.int8), ([0, 1], [0, 1])), shape=(2, 3))
        with pytest.raises(DataError, match="a stored label is 0"):
            PartialLabels(matrix, IDS, NAMES)


class TestFingerprint:
    def test_changes_with_whatever_matters(self) -> None:
        base = example()
        rows, columns, values = base.cells()
        flipped = values.copy()
        flipped[3] *= -1
        others = [
            PartialLabels.from_cells(rows, columns, flipped, num_rows=4, class_ids=IDS),
            PartialLabels.from_cells(rows, columns, values, num_rows=5, class_ids=IDS),
            PartialLabels.from_cells(rows, columns, values, num_rows=4, class_ids=("/m/01", "/m/03", "/m/02")),
            PartialLabels.from_cells(rows, columns, values, num_rows=4, class_ids=(*IDS, "/m/04")),
            base.keep(np.arange(base.num_known) != 3),
            base.subset([0, 2, 1, 3]),
        ]
        fingerprints = {labels.fingerprint() for labels in [base, *others]}
        assert len(fingerprints) == len(others) + 1

    def test_is_the_same_for_the_same_labels_on_every_machine(self) -> None:
        wide_index = example().matrix.copy()
        wide_index.indices, wide_index.indptr = (
            wide_index.indices.astype(np.int64),
            wide_index.indptr.astype(np.int64),
        )
        expected = "c145681de278664ea26f3fc6f88a242d72481b16179f51d2dc96a7f0f3a18929"
        assert example().fingerprint() == expected
        assert PartialLabels(wide_index, IDS, IDS).fingerprint() == expected
        assert example().subset([0, 1, 2, 3]).fingerprint() == expected


class TestOnDisk:
    @settings(max_examples=25, deadline=None)
    @given(dense_labels())
    def test_round_trip(self, tmp_path_factory: pytest.TempPathFactory, dense: npt.NDArray[np.int8]) -> None:
        path = tmp_path_factory.mktemp("labels") / "labels.npz"
        labels_of(dense).save(path)
        loaded = PartialLabels.load(path)
        assert same(loaded, labels_of(dense))
        assert loaded.matrix.data.dtype == np.int8
        assert loaded.fingerprint() == labels_of(dense).fingerprint()

    def test_names_survive(self, tmp_path: Path) -> None:
        example().save(tmp_path / "labels.npz")
        assert same(PartialLabels.load(tmp_path / "labels.npz"), example())

    def test_nothing_is_pickled(self, tmp_path: Path) -> None:
        path = tmp_path / "labels.npz"
        example().save(path)
        with np.load(path, allow_pickle=False) as stored:
            assert all(stored[name].dtype.kind in "iU" for name in stored.files)

    def test_refuses_pickles(self, tmp_path: Path) -> None:
        path = tmp_path / "labels.npz"
        with path.open("wb") as file:
            np.savez(file, indptr=np.array([0, 1]), class_ids=np.array(["a", None], dtype=object))
        with pytest.raises(DataError, match="does not hold labels written by plbench"):
            PartialLabels.load(path)

    @pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.99])
    def test_refuses_a_truncated_file(self, tmp_path: Path, share: float) -> None:
        path = tmp_path / "labels.npz"
        example().save(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(DataError, match=r"labels\.npz does not hold labels written by plbench"):
            PartialLabels.load(path)

    def test_refuses_a_damaged_file(self, tmp_path: Path) -> None:
        path = tmp_path / "labels.npz"
        example().save(path)
        content = bytearray(path.read_bytes())
        content[60:64] = bytes(255 - byte for byte in content[60:64])
        path.write_bytes(content)
        with pytest.raises(DataError, match="does not hold labels written by plbench"):
            PartialLabels.load(path)

    @pytest.mark.parametrize(
        ("indptr", "indices", "values"),
        [
            ([0, 1, 2], [0, 1_000_000], [1, 1]),
            ([0, 1, 2], [0, -1], [1, 1]),
            ([0, 2, 1], [0, 1], [1, 1]),
            ([0, 2, 2], [1, 1], [1, -1]),
            ([0, 2, 2], [2, 1], [1, -1]),
        ],
        ids=[
            "class beyond the last",
            "negative class",
            "rows that run backwards",
            "a cell twice",
            "unsorted",
        ],
    )
    def test_refuses_cells_that_cannot_be(
        self, tmp_path: Path, indptr: list[int], indices: list[int], values: list[int]
    ) -> None:
        path = tmp_path / "labels.npz"
        np.savez(
            path,
            indptr=np.array(indptr, np.int64),
            indices=np.array(indices, np.int32),
            values=np.array(values, np.int8),
            class_ids=np.array(IDS),
            class_names=np.array(IDS),
        )
        with pytest.raises(DataError, match=r"labels\.npz does not hold labels written by plbench"):
            PartialLabels.load(path)

    def test_refuses_other_files(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"absent\.npz"):
            PartialLabels.load(tmp_path / "absent.npz")
        np.save(tmp_path / "array.npy", np.zeros(3))
        with pytest.raises(DataError, match=r"array\.npy"):
            PartialLabels.load(tmp_path / "array.npy")
        np.savez(tmp_path / "other.npz", scores=np.zeros(3))
        with pytest.raises(DataError, match=r"other\.npz"):
            PartialLabels.load(tmp_path / "other.npz")

"""A mask that another program wrote is read, kept by its content, trained on and scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_cli import plbench

from plbench.data.labels import PartialLabels
from plbench.datasets.ucm17 import Ucm17
from plbench.errors import DataError
from plbench.runs.protocol import ProtocolData, choose_protocol, keep_label_file


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture of ucm17, and a mask that knows its true labels but one."""
    folder = tmp_path_factory.mktemp("ucm17")
    Ucm17(folder).make_fixture()
    return folder


def write_mask(root: Path, path: Path) -> PartialLabels:
    truth = Ucm17(root).split("train").labels
    mask = np.where(np.random.default_rng(5).random((60, 17)) < 0.5, truth.rows(np.arange(60)), 0)
    mask[0, 0] = -truth.rows([0])[0, 0]
    np.save(path, mask)
    return PartialLabels.from_dense(mask, truth.class_ids)


def test_a_mask_of_another_program_is_trained_on_and_scored(root: Path, tmp_path: Path) -> None:
    mask = write_mask(root, tmp_path / "mask.npy")
    shown = plbench(
        *("run", "-m", "ce-ignore", "-d", "ucm17", "--data-root", str(root), "--runs", str(tmp_path / "runs")),
        *("--simulate", f"labels-file={tmp_path / 'mask.npy'}", "--weights", "random", "--epochs", "1", "--json"),
        *("--image-size", "32"),
    )
    record = shown.json
    assert record["data"]["num_train_known"] == mask.num_known
    assert record["spec"]["protocol"]["name"].startswith("custom/ucm17-labels-file-")
    assert "1 labels of the file contradict the dataset's own" in record["notes"]


def test_the_name_in_a_protocol_is_the_content(root: Path, tmp_path: Path) -> None:
    mask = write_mask(root, tmp_path / "mask.npy")
    dataset = Ucm17(root, cache=tmp_path / "cache")
    protocol = choose_protocol(dataset, f"labels-file={tmp_path / 'mask.npy'}", None)
    (tmp_path / "mask.npy").unlink()  # it was kept
    assert ProtocolData(dataset, protocol).partial_labels.rows(np.arange(60)).tolist() == mask.rows(range(60)).tolist()
    again = choose_protocol(dataset, protocol.simulation, None)
    assert again == protocol and protocol.simulation_seed == 0
    skipped = (f"train/{dataset.split('train').images.ids[0]}",)
    fewer = ProtocolData(dataset, protocol, skipped).partial_labels
    assert fewer.rows(range(59)).tolist() == mask.rows(range(1, 60)).tolist()


def test_a_kept_file_that_was_changed_or_lost_is_asked_for_again(root: Path, tmp_path: Path) -> None:
    write_mask(root, tmp_path / "mask.npy")
    dataset = Ucm17(root, cache=tmp_path / "cache")
    name = keep_label_file(str(tmp_path / "mask.npy"), dataset)
    kept = tmp_path / "cache" / "labels-file" / name
    kept.write_bytes(kept.read_bytes() + b"x")
    with pytest.raises(DataError, match="was changed; give it again with `simulate='labels-file=FILE'`"):
        keep_label_file(name, dataset)
    kept.unlink()
    with pytest.raises(DataError, match="is not here; give it again"):
        keep_label_file(name, dataset)
    with pytest.raises(DataError, match=r"the file of labels nowhere.npy cannot be read: No such file"):
        keep_label_file("nowhere.npy", dataset)

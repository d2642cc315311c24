"""What COCO's files say of the size and place of objects, and labels that are hidden by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plbench.data.dataset import Dataset
from plbench.data.shards.prepared import prepared_kind
from plbench.datasets.coco import Coco2014
from plbench.errors import DataError
from plbench.runs.protocol import ProtocolData, choose_protocol

# image, category, area, box; image 9 is 30 by 40 px, half its diagonal is 25; image 5 is 100 by 100
OBJECTS = (
    (9, 7, 300.0, [0, 0, 30, 40]),  # in the very centre
    (9, 7, 60.0, [0, 0, 0, 0]),  # in the corner
    (9, 3, 12.0, [10, 5, 10, 10]),  # 10 px above the centre
    (5, 3, 0.0, [40, 40, 20, 20]),  # of no area, in the centre
)


@pytest.fixture
def coco(tmp_path: Path) -> Coco2014:
    content = {
        "images": [
            {"id": number, "file_name": f"{number}.jpg", "width": wide, "height": high}
            for number, wide, high in ((9, 30, 40), (7, 10, 10), (5, 100, 100))
        ],
        "annotations": [
            {"image_id": image, "category_id": category, "area": area, "bbox": box}
            for image, category, area, box in OBJECTS
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "bird"}],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train2014.json").write_text(json.dumps(content))
    return Coco2014(tmp_path)


def test_areas_are_summed_over_the_objects_of_a_class(coco: Coco2014) -> None:
    assert list(coco.annotations("train").image_ids) == ["5", "9"]
    assert coco.prominence("train", "size").toarray().tolist() == [[1e-6, 0], [0.01, 0.3]]


def test_inverse_distances_are_shares_of_half_the_diagonal(coco: Coco2014) -> None:
    found = coco.prominence("train", "place").toarray()
    np.testing.assert_allclose(found, [[1000, 0], [25 / 10, 1000 + 1]])


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("annotations", "bbox", None, r"missing required field `bbox` - at `\$.annotations\[0\]`"),
        ("annotations", "bbox", [1, 2, 3], "Expected `array` of length 4"),
        ("images", "width", 0, r"Expected `int` >= 1 - at `\$.images\[0\].width`"),
    ],
)
def test_a_file_without_boxes_is_read_but_refused_for_its_objects(
    coco: Coco2014, section: str, key: str, value: Any, message: str
) -> None:
    path = coco.annotation_files("train")[0]
    content = json.loads(path.read_text())
    if value is None:
        del content[section][0][key]
    else:
        content[section][0][key] = value
    path.write_text(json.dumps(content))
    assert coco.annotations("train").labels.is_complete
    with pytest.raises(DataError, match=message) as caught:
        coco.prominence("train", "size")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("simulate", ["size-biased=0.5", "place-biased=0.5", "single-positive-place=1"])
def test_a_run_draws_by_its_seed_and_skipped_images_leave_the_objects_of_others_in_place(
    simulate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = Coco2014(tmp_path)
    dataset.make_fixture()
    protocol = choose_protocol(dataset, simulate, None)
    assert protocol.name.startswith("custom/coco-") and protocol.simulation_seed is None
    assert (protocol.validation_labels == "complete") == simulate.startswith("single-positive")
    data = ProtocolData(dataset, protocol)
    calls: list[str] = []
    read = Coco2014.prominence
    monkeypatch.setattr(Coco2014, "prominence", lambda self, split, by: calls.append(by) or read(self, split, by))
    assert len({data.at_seed(seed).partial_labels.fingerprint() for seed in range(4)}) == 4 and len(calls) == 1
    skipped = ProtocolData(dataset, protocol, [f"train/{dataset.split('train').images.ids[row]}" for row in (0, 3)])
    assert skipped.whole_train.labels.num_images == data.whole_train.labels.num_images - 2
    found = skipped._prominence_of_train()
    assert found is not None
    assert np.array_equal(found.toarray() > 0, skipped.whole_train.labels.rows(np.arange(len(found.toarray()))) > 0)
    assert skipped.partial_labels.num_known > 0


def test_other_datasets_say_that_they_have_none(coco: Coco2014, tmp_path: Path) -> None:
    from plbench.datasets.ucm17 import Ucm17

    with pytest.raises(DataError, match=r"'ucm17' in .* does not say how large its objects are and where; .* boxes"):
        Ucm17(tmp_path).prominence("train", "size")
    assert prepared_kind(Coco2014).prominence is Dataset.prominence  # a prepared folder keeps no boxes

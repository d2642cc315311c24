"""L48: three lists a clip, recordings that validate, and four settings of what is known in train."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plbench.datasets.l48 import L48, L48Checklist, L48Geo, L48Target
from plbench.datasets.l48.fixture import SPECIES
from plbench.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The fixture."""
    L48(tmp_path).make_fixture()
    return tmp_path


def published(root: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((root / f"{name}.json").read_text())  # type: ignore[no-any-return]


def row_of(dataset: L48, split: str, clip: dict[str, Any]) -> dict[str, int]:
    """The labels of one clip by bird, unknown ones left out."""
    found = dataset.split(split)
    values = found.labels.rows([list(found.images.ids).index(str(clip["id"]))])[0]
    return {code: int(value) for code, value in zip(SPECIES, values, strict=True) if value}


def test_each_list_is_what_it_says_and_what_is_in_none_is_unknown(root: Path) -> None:
    dataset = L48(root)
    lacking = 0
    for clip in [clip for clip in published(root, "clips") if clip["asset_id"] < 100]:
        present, absent = clip["present_species_codes"], clip["absent_species_codes"]
        assert row_of(dataset, "train", clip) == {code: 1 if code in present else -1 for code in [*present, *absent]}
        lacking += len(SPECIES) - len({*present, *absent, *clip["unknown_species_codes"]})
    assert lacking > 3
    assert not dataset.split("train").labels.is_complete


def test_recordings_of_the_array_validate_though_their_entry_says_train(root: Path) -> None:
    assert {asset["split"] for asset in published(root, "assets") if 100 <= asset["id"] < 102} == {"train"}
    dataset = L48(root)
    sizes = {split: len(dataset.split(split).images) for split in ("train", "val", "test")}
    assert sizes == {"train": 60, "val": 8, "test": 30}
    folders = [{path.split("/")[1] for path in dataset.split(split).images.paths} for split in sizes]
    assert sum(map(len, folders)) == len(set().union(*folders)) == 23  # no recording in two splits


def test_the_published_evaluation_takes_fully_annotated_images(root: Path) -> None:
    dataset = L48(root)
    whole, full = dataset.split("test").labels, dataset.split("test-full").labels
    complete = int(np.sum(np.count_nonzero(whole.rows(np.arange(30)), axis=1) == len(SPECIES)))
    assert full.is_complete and full.num_images == complete < 30
    assert f"{complete} of 30 test images are fully annotated: the others left out" in dataset.notes()["test-full"]
    assert {protocol.test_split for kind in (L48, L48Geo) for protocol in kind.protocols} == {"test-full"}


@pytest.mark.parametrize(
    ("kind", "prior"), [(L48Target, None), (L48Geo, "possible_species_codes"), (L48Checklist, "observed_species_codes")]
)
def test_settings_of_train(root: Path, kind: type[L48], prior: str | None) -> None:
    assets = {asset["id"]: asset for asset in published(root, "assets")}
    dataset, left_out = kind(root), 0
    for clip in [clip for clip in published(root, "clips") if clip["asset_id"] < 100]:
        asset = assets[clip["asset_id"]]
        target = asset["target_species_code"]
        expected = {code: -1 for code in SPECIES if prior and code not in asset[prior]}
        if target in clip["present_species_codes"]:
            expected[target] = 1
        if expected:
            assert row_of(dataset, "train", clip) == expected
        else:
            assert str(clip["id"]) not in dataset.split("train").images.ids
            left_out += 1
    assert (left_out > 5) == (prior is None)
    said = (f"{left_out} of 60 train images have no known label: left out",) if left_out else ()
    assert dataset.notes().get("train", ()) == said
    full = L48(root).split("test-full").labels
    assert dataset.split("test-full").labels.fingerprint() == full.fingerprint()


def test_the_files_may_lie_in_the_archives_own_folder(root: Path) -> None:
    before = L48(root).split("train").labels.fingerprint()
    (root / "ml48s").mkdir()
    for name in ("clips.json", "assets.json", "taxa.csv", "images"):
        (root / name).rename(root / "ml48s" / name)
    for place in (root / "val_split.npy", root / "ml48s" / "val_split.npy"):
        if not place.exists():
            (root / "val_split.npy").rename(place)
        split = L48(root).split("train")
        assert L48(root).missing() == [] and split.images.absent() == []
        assert split.labels.fingerprint() == before


def test_birds_beyond_the_classes_and_contradictions_are_counted(root: Path) -> None:
    clips = published(root, "clips")
    clips[1]["present_species_codes"] = ["owl", SPECIES[0]]
    clips[1]["absent_species_codes"] = [SPECIES[0], SPECIES[1]]
    clips[1]["unknown_species_codes"] = []
    (root / "clips.json").write_text(json.dumps(clips))
    dataset = L48(root)
    assert row_of(dataset, "train", clips[1]) == {SPECIES[1]: -1}
    assert dataset.notes()["train"] == (
        "1 labels are of birds that are not in taxa.csv: left out",
        "1 labels are in two lists of one clip: unknown",
    )


def test_a_prior_against_the_annotation_is_counted(root: Path) -> None:
    assets = published(root, "assets")
    for asset in assets:
        asset["possible_species_codes"] = []
    (root / "assets.json").write_text(json.dumps(assets))
    dataset = L48Geo(root)
    dataset.split("train")
    assert any("labels are absent by the prior though annotated as present" in n for n in dataset.notes()["train"])


def _twice(clips: list[dict[str, Any]]) -> None:
    clips[1]["id"] = clips[0]["id"]


def _nowhere(clips: list[dict[str, Any]]) -> None:
    clips[4]["asset_id"] = 77


def _no_list(clips: list[dict[str, Any]]) -> None:
    del clips[2]["absent_species_codes"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_twice, r"\[1\].id = 0 stands there twice"),
        (_nowhere, r"\[4\].asset_id = 77 is not in assets.json"),
        (_no_list, r"missing required field `absent_species_codes` - at `\$\[2\]`"),
    ],
)
def test_a_malformed_clip_is_named(root: Path, change: Callable[[list[dict[str, Any]]], None], message: str) -> None:
    clips = published(root, "clips")
    change(clips)
    (root / "clips.json").write_text(json.dumps(clips))
    with pytest.raises(DataError, match=f"clips.json.*{message}"):
        L48(root).split("train")


def test_malformed_files_beside_the_clips_are_named(root: Path) -> None:
    np.save(root / "val_split.npy", np.array([8000]))
    with pytest.raises(DataError, match=r"val_split.npy has asset 8000; expected ids of train assets"):
        L48(root).split("train")
    (root / "val_split.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match=r"val_split.npy cannot be read as an array"):
        L48(root).split("train")
    taxa = (root / "taxa.csv").read_text()
    (root / "taxa.csv").write_text(taxa + taxa.splitlines()[1])
    with pytest.raises(DataError, match=r"taxa.csv, line 14: species_code = 'bird00'; expected a code, each once"):
        L48(root).split("train")


def test_its_official_numbers() -> None:
    assert L48.official_num_images == {"train": 85_193, "val": 12_448, "test": 31_365}
    assert L48.official_num_classes == 100

"""CheXpert and MIMIC-CXR-JPG: what -1 and blanks are taken for, views, patients, malformed files."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from plbench.data.dataset import Dataset
from plbench.data.shards.prepared import prepared_kind
from plbench.datasets.chestxray import Chexpert, ChexpertTest, MimicCxrJpg
from plbench.datasets.chestxray.files import OBSERVATIONS
from plbench.errors import DataError
from plbench.runs.protocol import ProtocolData


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three fixtures, each in a folder of its name; no test changes them."""
    folder = tmp_path_factory.mktemp("chestxray")
    for kind in (Chexpert, ChexpertTest, MimicCxrJpg):
        kind(folder / kind.name).make_fixture()
    return folder


def opened(kind: type[Dataset], root: Path, **options: str) -> Dataset:
    return kind(root, options=kind.Options.model_validate(options))


def copied(source: Path, target: Path) -> Path:
    """The CSV files of a fixture, without its pictures."""
    for path in (*source.rglob("*.csv"), *source.rglob("*.gz")):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return target


def edited(path: Path, old: str, new: str) -> None:
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    assert old in text
    content = text.replace(old, new, 1).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def values_of_train(root: Path) -> Counter[str]:
    lines = (root / "CheXpert-v1.0-small" / "train.csv").read_text().splitlines()[1:]
    return Counter(value for line in lines for value in line.split(",")[5:])


def test_each_option_takes_train_labels_for_what_it_says(written: Path) -> None:
    said = values_of_train(written / "chexpert")
    assert all(said[value] > 50 for value in ("1.0", "0.0", "-1.0", ""))
    doubts = said["-1.0"]
    for uncertain, positives, negatives in (("unknown", 0, 0), ("present", doubts, 0), ("absent", 0, doubts)):
        for unmentioned, blank in (("absent", said[""]), ("unknown", 0)):
            dataset = opened(Chexpert, written / "chexpert", uncertain=uncertain, unmentioned=unmentioned)
            known = [int(counts.sum()) for counts in dataset.split("train").labels.counts()]
            assert known == [said["1.0"] + positives, said["0.0"] + negatives + blank]
            assert dataset.notes()["train"] == (
                f"{doubts} labels are uncertain (-1): taken for {uncertain}",
                f"{said['']} labels are blank (not mentioned): taken for {unmentioned}",
            )


def test_by_default_uncertain_is_unknown_and_blank_absent(written: Path) -> None:
    found = Chexpert(written / "chexpert").split("train").labels
    assert (
        found.fingerprint()
        == (
            opened(Chexpert, written / "chexpert", uncertain="unknown", unmentioned="absent").split("train").labels
        ).fingerprint()
    )
    assert not found.is_complete


def test_test_labels_are_the_same_whatever_the_options(written: Path) -> None:
    plain = MimicCxrJpg(written / "mimic-cxr-jpg")
    other = opened(MimicCxrJpg, written / "mimic-cxr-jpg", uncertain="present", unmentioned="unknown")
    assert plain.split("test").labels.fingerprint() == other.split("test").labels.fingerprint()
    assert plain.split("train").labels.fingerprint() != other.split("train").labels.fingerprint()
    assert any("(-1): taken for unknown" in note for note in other.notes()["test"])


def test_the_test_file_has_no_prefix_and_another_order_of_columns(written: Path) -> None:
    root = written / "chexpert-test"
    header, first, *_ = (root / "CheXpert-v1.0-small" / "test.csv").read_text().splitlines()
    assert first.startswith("test/patient64741/study1/view1_frontal.jpg") and header.endswith(",No Finding")
    assert (root / "CheXpert-v1.0-small" / "train.csv").read_text().splitlines()[1].startswith("CheXpert-v1.0-small/")
    test = ChexpertTest(root).split("test")
    said = dict(zip(header.split(",")[1:], first.split(",")[1:], strict=True))
    assert test.labels.rows([0])[0].tolist() == [1 if said[name] == "1.0" else -1 for name in OBSERVATIONS]
    assert test.images.ids[0] == "patient64741/study1/view1_frontal" and test.images.absent() == []


def test_the_root_may_be_the_folder_itself_and_the_test_file_that_of_chexlocalize(written: Path) -> None:
    folder = written / "chexpert-test" / "CheXpert-v1.0-small"
    assert list(ChexpertTest(folder).split("train").images.ids) == list(
        ChexpertTest(written / "chexpert-test").split("train").images.ids
    )
    assert ChexpertTest(folder).split("train").images.absent() == []
    assert ChexpertTest(folder).missing() == []


def test_a_test_file_of_the_other_name_is_read(written: Path, tmp_path: Path) -> None:
    folder = copied(written / "chexpert-test", tmp_path) / "CheXpert-v1.0-small"
    (folder / "test.csv").rename(folder / "test_labels.csv")
    assert len(ChexpertTest(tmp_path).split("test").images) == 30


@pytest.mark.parametrize(("kind", "frontal", "lateral"), [(Chexpert, 40, 20), (MimicCxrJpg, 39, 20)])
def test_views_are_chosen_and_what_is_left_out_is_counted(
    written: Path, kind: type[Dataset], frontal: int, lateral: int
) -> None:
    for view, number in (("frontal", frontal), ("lateral", lateral), ("all", 60)):
        dataset = opened(kind, written / kind.name, views=view)
        assert len(dataset.split("train").images) == number
        left_out = f"{60 - number} of 60 images are not {view}: left out"
        assert (left_out in dataset.notes()["train"]) == (view != "all")


def test_labels_of_mimic_are_of_studies_and_images_find_them(written: Path) -> None:
    train = MimicCxrJpg(written / "mimic-cxr-jpg").split("train")
    studies = [image_id.rpartition("/")[0] for image_id in train.images.ids]
    rows = np.asarray(train.labels.rows(range(60)))
    assert studies[0] == studies[1] != studies[2] and (rows[0] == rows[1]).all() and (rows[1] != rows[2]).any()
    assert train.images.ids[0].startswith("p10000100/s50000100/") and train.images.absent() == []


def test_a_study_without_labels_is_unknown_and_not_absent(written: Path) -> None:
    dataset = MimicCxrJpg(written / "mimic-cxr-jpg")
    assert not np.asarray(dataset.split("train").labels.rows([29])).any()
    assert "14 labels are of studies that have no row: unknown" in dataset.notes()["train"]


def test_files_of_mimic_may_be_gzipped_or_not(written: Path, tmp_path: Path) -> None:
    root = copied(written / "mimic-cxr-jpg", tmp_path)
    before = MimicCxrJpg(root).split("train").labels.fingerprint()
    for path in root.glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert MimicCxrJpg(root).split("train").labels.fingerprint() == before


@pytest.mark.parametrize("kind", [Chexpert, MimicCxrJpg])
def test_no_patient_is_both_trained_and_validated_on(written: Path, kind: type[Dataset]) -> None:
    dataset = kind(written / kind.name)
    protocol = kind.protocols[0].model_copy(update={"validation_share": 0.5})
    data = ProtocolData(dataset, protocol)
    patients = [{one.partition("/")[0] for one in part.images.ids} for part in (data.train("fit"), data.validation())]
    assert len(patients[0]) > 3 and len(patients[1]) > 3 and not patients[0] & patients[1]
    assert prepared_kind(kind).validation_unit("p1/s2/x") == "p1"
    assert Dataset.validation_unit("p1/s2/x") == "p1/s2/x"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("/patient00001/study1/view1_frontal", "/patient00001/view1_frontal", "line 2: Path = 'CheXpert-v1.0-small/tr"),
        ("small/train/", "small/valid/", "line 2: Path = .*expected such as train/patient00001"),
        ("-1.0", "-2", "line .*: .* = '-2'; expected 1, 0, -1 or nothing"),
        ("Edema", "Oedema", "expected one column 'Edema'"),
        ("Female,63", "Female", "line 2: 18 fields; expected 19"),
        ("view2_lateral", "view1_frontal", "view1_frontal' is there twice"),
    ],
)
def test_a_malformed_line_of_chexpert_is_named(written: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    root = copied(written / "chexpert", tmp_path)
    edited(root / "CheXpert-v1.0-small" / "train.csv", old, new)
    with pytest.raises(DataError, match=f"train.csv.*{message}"):
        Chexpert(root).split("train")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("split.csv.gz", "10000100,train", "10000100,test", "patient 10000100 is in train, and in test on a line"),
        (
            "split.csv.gz",
            ",train",
            ",training",
            "line 2: split = 'training'; expected one of train,",
        ),
        ("metadata.csv.gz", "02faf0e4-", "12faf0e4-", "is not in mimic-cxr-2.0.0-metadata.csv.gz"),
        ("chexpert.csv", "10000100,50000102", "10000100,50000100", "study 50000100 of 10000100 again"),
    ],
)
def test_files_of_mimic_that_do_not_fit_together_are_named(
    written: Path, tmp_path: Path, name: str, old: str, new: str, message: str
) -> None:
    root = copied(written / "mimic-cxr-jpg", tmp_path)
    edited(root / f"mimic-cxr-2.0.0-{name}", old, new)
    with pytest.raises(DataError, match=message):
        MimicCxrJpg(root).split("train")


def test_a_cut_gzip_is_an_error_that_names_the_file(written: Path, tmp_path: Path) -> None:
    root = copied(written / "mimic-cxr-jpg", tmp_path)
    path = root / "mimic-cxr-2.0.0-split.csv.gz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"split\.csv\.gz cannot be read"):
        MimicCxrJpg(root).split("test")


def test_their_official_numbers_and_the_group_of_five() -> None:
    assert Chexpert.official_num_images == {"train": 223_414, "valid": 234, "test": 668}
    assert sum(MimicCxrJpg.official_num_images.values()) == 377_110
    assert {kind.official_num_classes for kind in (Chexpert, ChexpertTest, MimicCxrJpg)} == {14}
    assert ChexpertTest.used_splits() == ("train", "test") and Chexpert.used_splits() == ("train", "valid")


def test_the_five_of_the_competition_are_a_group(written: Path) -> None:
    groups = Chexpert(written / "chexpert").groups()
    assert groups == {
        "competition": ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"),
    }

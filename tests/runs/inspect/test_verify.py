"""`plbench data verify` leaves with 2 for whatever is wrong, says what, and with 0 where all is well."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_cli import Outcome, plbench

from plbench.api import Dataset, ImageFiles, RemoteFile
from plbench.data.download.remote import FileRecord, write_record
from plbench.datasets.openimages import OpenImagesV6
from plbench.progress import Reporter
from plbench.runs.inspect.verify import Check, verify_dataset
from plbench.runs.plan import image_check
from plbench.runs.plan.image_check import check_images
from plbench.runs.workspace import Workspace, open_dataset

NUM_IMAGES = {"train": 60, "validation": 16, "test": 40}
CLASS_LIST = OpenImagesV6.class_list


@pytest.fixture(scope="module")
def fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small V6, not to be written to."""
    root = tmp_path_factory.mktemp("v6")
    OpenImagesV6(root).make_fixture()
    return root


@pytest.fixture
def root(fixture: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    shutil.copytree(fixture, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def published(fixture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fixture is V6 as it was published: its numbers, and a checksum of its class list."""
    monkeypatch.setenv("PLBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(OpenImagesV6, "official_num_images", NUM_IMAGES)
    monkeypatch.setattr(OpenImagesV6, "official_num_classes", 10, raising=False)
    digest = hashlib.sha256((fixture / CLASS_LIST).read_bytes()).hexdigest()
    file = RemoteFile("https://host.test/list", CLASS_LIST, "annotations", checksum=f"sha256:{digest}")
    unfetched = replace(file, path="never-fetched.csv")
    without = replace(file, path=OpenImagesV6.descriptions, checksum=None)
    monkeypatch.setattr(OpenImagesV6, "downloads", (file, unfetched, without))


def verify(root: Path, *options: str) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and checks."""
    said = plbench("data", "verify", "openimages-v6", "--data-root", root, "--quiet", "--json", *options)
    return said.code, Outcome(0, said.out, said.err).json


def wrong(root: Path, *options: str) -> dict[str, Any]:
    """The one check that does not come out well."""
    code, checks = verify(root, *options)
    bad = [check for check in checks if check["well"] is False]
    assert code == 2 and len(bad) == 1, (code, checks)
    assert bad[0]["found"] and bad[0]["expected"] and bad[0]["fix"]
    return bad[0]


def first_image(root: Path, split: str = "train") -> Path:
    return Path(OpenImagesV6(root).split(split).images.name(3))


@pytest.mark.parametrize("options", [(), ("--decode",)])
def test_where_all_is_well(options: tuple[str, ...], fixture: Path) -> None:
    code, checks = verify(fixture, *options)
    assert code == 0 and {check["well"] for check in checks} == {True, None}
    named = {check["what"]: check for check in checks}
    assert f"checksum of {CLASS_LIST}" in named and not any("never-fetched" in what for what in named)
    for split in ("train", "test"):
        count = named[f"{split}: number of images"]
        assert count["found"] == count["expected"] == str(NUM_IMAGES[split])
        assert named[f"{split}: image files"]["found"] == ("all decode" if options else "all there")
    assert named["number of classes"]["found"] == "10"
    notes = [check["found"] for check in checks if check["what"] == "train: labels"]
    assert len(notes) == 3 and any("present and absent" in note for note in notes)


def test_the_readable_form_says_the_same(fixture: Path, root: Path) -> None:
    where = ["openimages-v6", "--quiet", "--data-root"]
    assert plbench("data", "verify", *where, fixture).code == 0
    path = first_image(root)
    path.unlink()
    said = plbench("data", "verify", *where, root)
    assert said.code == 2 and path.name in said.out.replace("\n", "")


def test_a_missing_image(root: Path) -> None:
    path = first_image(root)
    path.unlink()
    check = wrong(root)
    assert check["what"] == "train: image files" and f"{path} is missing" in check["found"]
    assert "does not exist" in wrong(root, "--decode")["found"]


def test_many_missing_images_are_counted(root: Path) -> None:
    for path in (root / "train").rglob("*.jpg"):
        path.unlink()
    check = wrong(root)
    assert check["found"].count(" is missing") == 20 and check["found"].endswith("; and 40 more")


@pytest.mark.parametrize("damage", ["cut off", "text", "empty"])
def test_a_broken_image_is_found_by_decoding(damage: str, root: Path) -> None:
    path = first_image(root)
    content = path.read_bytes()
    path.write_bytes({"cut off": content[: len(content) // 2], "text": b"no picture", "empty": b""}[damage])
    assert verify(root)[0] == 0
    check = wrong(root, "--decode")
    assert check["what"] == "train: image files" and str(path) in check["found"]
    assert "--skip-unreadable" in check["fix"]


def test_a_broken_image_in_a_tar(root: Path) -> None:
    images = OpenImagesV6(root).split("test").images
    offset = int(images.places[3, 1])  # type: ignore[attr-defined]
    with (root / "test.tar").open("rb+") as file:
        file.seek(offset)
        file.write(b"\0" * 600)
    check = wrong(root, "--decode")
    assert check["what"] == "test: image files" and images.ids[3] in check["found"]


def test_a_wrong_checksum(root: Path) -> None:
    path = root / CLASS_LIST
    path.write_text(path.read_text() + "\n")
    check = wrong(root)
    assert check["what"] == f"checksum of {CLASS_LIST}" and check["found"] != check["expected"]
    assert check["fix"] == "delete it and run plbench data download openimages-v6"


def test_a_checksum_that_was_noted_when_it_was_fetched(root: Path) -> None:
    file = OpenImagesV6.downloads[2]
    path = root / file.path
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    write_record(file, root, FileRecord(path.stat().st_size, f"md5:{digest}", "kept"))
    assert verify(root)[0] == 0
    path.write_text(path.read_text().replace("Person", "People"))
    assert wrong(root)["what"] == f"checksum of {file.path}"


def test_wrong_counts(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenImagesV6, "official_num_images", {**NUM_IMAGES, "test": 41_000})
    check = wrong(root)
    assert (check["what"], check["found"], check["expected"]) == ("test: number of images", "40", "41,000")
    assert "custom/" in check["fix"]
    monkeypatch.setattr(OpenImagesV6, "official_num_images", NUM_IMAGES)
    monkeypatch.setattr(OpenImagesV6, "official_num_classes", 9)
    assert wrong(root)["what"] == "number of classes"


@pytest.mark.parametrize("damage", ["a row", "no file"])
def test_malformed_annotations_are_a_verdict(damage: str, root: Path) -> None:
    path = root / OpenImagesV6.label_files["test"]
    path.write_text(path.read_text() + "a,b\n")
    if damage == "no file":
        path.unlink()
    said = plbench("data", "verify", "openimages-v6", "--data-root", root, "--quiet")
    assert said.code == 2 and path.name in said.err and said.err.count("\n") == 1


@pytest.fixture(scope="module")
def packed(fixture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small V6, prepared: not to be written to."""
    out = tmp_path_factory.mktemp("packed") / "v6"
    where = ["--data-root", fixture, "--out", out, "--short-side", 48, "--workers", 0, "--quiet"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PLBENCH_CACHE", str(out.parent / "cache"))
        assert plbench("data", "prepare", "openimages-v6", *where).code == 0
    return out


class TestPrepared:
    @pytest.mark.parametrize("options", [(), ("--decode",)])
    def test_where_all_is_well(self, options: tuple[str, ...], packed: Path) -> None:
        code, checks = verify(packed, *options)
        assert code == 0
        assert [check["well"] for check in checks if check["what"].endswith("shards")] == [True, True]

    @pytest.mark.parametrize("damage", ["a byte", "cut off", "gone"])
    def test_a_damaged_shard(self, damage: str, packed: Path, root: Path) -> None:
        shutil.rmtree(root)
        shutil.copytree(packed, root)
        shard = next((root / "train").glob("shard-*.arrow"))
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content[:-8] if damage == "cut off" else content)
        if damage == "gone":
            shard.unlink()
        check = wrong(root)
        assert check["what"] == "train: shards" and str(shard) in check["found"]

    def test_images_that_were_left_out(self, fixture: Path, root: Path, tmp_path: Path) -> None:
        first_image(root).write_bytes(b"")
        where = ["--data-root", root, "--out", tmp_path / "out", "--short-side", 48, "--workers", 0, "--quiet"]
        assert plbench("data", "prepare", "openimages-v6", *where).code == 0
        check = wrong(tmp_path / "out", "--decode")
        assert (check["what"], check["found"], check["expected"]) == ("train: number of images", "59", "60")


@pytest.fixture
def workspace(make_workspace: Callable[..., Workspace], root: Path) -> Workspace:
    return replace(make_workspace(), data_root=root, reporter=Reporter())


@pytest.mark.parametrize("broken", [False, True])
def test_a_run_after_it_does_not_decode_again(
    broken: bool, workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = first_image(root)
    if broken:
        path.write_bytes(b"no picture")
    checks = verify_dataset("openimages-v6", workspace, decode=True)
    assert any(check.well is False for check in checks) == broken
    decoded: list[str] = []
    load = ImageFiles.load
    monkeypatch.setattr(ImageFiles, "load", lambda i, row, **side: decoded.append(i.name(row)) or load(i, row, **side))
    dataset: Dataset = open_dataset("openimages-v6", workspace)
    unreadable = check_images(dataset, dataset.protocols[0], workspace, skip=True)
    assert unreadable == ((f"train/{path.stem}",) if broken else ())
    assert decoded == ([str(path)] if broken else [])  # what failed is looked at again: it may have been fixed


def test_a_look_without_decoding_leaves_it_to_the_run(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    verify_dataset("openimages-v6", workspace, decode=False)
    counts: list[int] = []
    find = image_check.find_unreadable
    monkeypatch.setattr(image_check, "find_unreadable", lambda i, r: counts.append(len(i)) or find(i, r))
    dataset = open_dataset("openimages-v6", workspace)
    check_images(dataset, dataset.protocols[0], workspace, skip=False)
    assert counts == [60, 40]


def test_a_check_without_expectation_is_no_verdict(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenImagesV6, "official_num_images", {})
    monkeypatch.setattr(OpenImagesV6, "official_num_classes", None)
    checks = {check.what: check for check in verify_dataset("openimages-v6", workspace, decode=False)}
    assert checks["train: number of images"] == Check("train: number of images", "60", "", None)
    assert checks["number of classes"].well is None

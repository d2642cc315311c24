"""Names from files stay below the folder they speak of, and nothing is read or written through a link."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from plbench.api import DataError, ImageFiles
from plbench.data.download.remote import RemoteFile
from plbench.errors import PlbenchError
from plbench.files.paths import UNSAFE, below, is_unsafe, read_plain, refuse_links
from plbench.files.plain_json import parse_json
from plbench.runs.store import Store

SAFE = ("a.jpg", "dogs/0001.jpg", "..a/b..c", "a b/é.png", "ab:c", "./a.jpg", "train2017/000000000009.jpg")
OUTSIDE = (
    "",
    "/etc/passwd",
    "..",
    "../a",
    "a/../../b",
    "a/..",
    "C:a",
    "c:\\a",
    "a\\..\\b",
    "\\\\host\\a",
    "a\0b",
    "a\nb",
)


@pytest.mark.parametrize("name", SAFE)
def test_a_path_below_the_folder_is_taken(name: str, tmp_path: Path) -> None:
    assert below(tmp_path, name, "list.csv") == tmp_path / name
    assert not pc.match_substring_regex(pa.array([name]), UNSAFE)[0].as_py()


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_leads_out_is_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(PlbenchError, match=r"list.csv .* leads out of its folder .*; expected a path below it"):
        below(tmp_path, name, "list.csv")
    assert is_unsafe(name) and pc.match_substring_regex(pa.array([name]), UNSAFE)[0].as_py()


@pytest.mark.parametrize("name", ["../secret.png", "{root}/secret.png", "a/../../secret.png"])
def test_no_image_is_read_outside_its_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"secret")
    images = ImageFiles(tmp_path / "images", (name.format(root=tmp_path),), ("one",))
    for read in (images.read, images.load, images.path):
        with pytest.raises(DataError, match="leads out of its folder"):
            read(0)


def test_links_are_refused_on_the_way_and_at_the_end_and_when_they_lead_nowhere(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "a", outside):
        folder.mkdir(parents=True)
    (outside / "f").write_text("secret")
    (root / "linked").symlink_to(outside)
    (root / "a" / "f").symlink_to(outside / "f")
    (root / "a" / "nowhere").symlink_to(tmp_path / "missing")
    for name in ("linked/f", "linked/new", "a/f", "a/nowhere"):
        with pytest.raises(PlbenchError, match="is a link to"):
            refuse_links(root, root / name)
        with pytest.raises(PlbenchError, match="is a link to"):
            read_plain(root, root / name, 100)
    refuse_links(root, root / "a" / "new" / "file")  # not there yet
    (tmp_path / "itself").symlink_to(root)
    refuse_links(tmp_path / "itself", tmp_path / "itself" / "a" / "new")  # a person named that one


def test_only_plain_files_of_some_size_are_read(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    assert read_plain(tmp_path, tmp_path / "f", 5) == b"12345"
    with pytest.raises(PlbenchError, match="more than 4 bytes"):
        read_plain(tmp_path, tmp_path / "f", 4)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PlbenchError, match="is not a plain file"):  # and does not wait for a writer
        read_plain(tmp_path, tmp_path / "pipe", 4)
    with pytest.raises(FileNotFoundError):
        read_plain(tmp_path, tmp_path / "missing", 4)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"map_c": 1, "map_c": 99}', "'map_c' twice"),
        ('{"a": [{"b": 1, "c": 2, "b": 3}]}', "'b' twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("[NaN]", "NaN is not a valid JSON number"),
        ("-Infinity", "-Infinity is not a valid JSON number"),
        ("1" * 5000, "digits"),
        (b"\xff", "decode"),
    ],
)
def test_json_of_two_meanings_or_none_is_refused(text: str | bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_json(text)


def test_json_is_parsed() -> None:
    assert parse_json(b'{"a": [1, 2.5, null, true, {"a": "\xc3\xa9"}]}') == {"a": [1, 2.5, None, True, {"a": "é"}]}


@pytest.mark.parametrize("name", ["0123456789abcdef", ".0123456789abcdef.lock"])
def test_no_run_is_written_through_a_link(tmp_path: Path, name: str) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "outside").write_text("mine")
    (tmp_path / "runs" / name).symlink_to(tmp_path / "outside")
    store = Store(tmp_path / "runs", tmp_path)
    with pytest.raises(PlbenchError, match="is a link to"), store.lock("0123456789abcdef", print):
        pass
    assert (tmp_path / "outside").read_text() == "mine"


@pytest.mark.parametrize("path", ["../a.zip", "/a.zip", "C:a.zip", "a\\..\\b.zip", ""])
def test_no_file_is_fetched_to_a_place_outside(path: str) -> None:
    with pytest.raises(DataError, match="leaves the dataset's root"):
        RemoteFile("https://example.org/a.zip", path, "images")

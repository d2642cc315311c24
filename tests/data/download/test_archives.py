"""Unpacking: all members or one sentence, nothing outside the folder, and no half file under a final name."""

import errno
import gzip
import io
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import plbench.data.download.archives
from plbench.data.download.archives import unpack
from plbench.errors import DataError, StoreError

KINDS = ("zip", "tar", "tar.gz")
NOISE = random.Random(0).randbytes(700_000)
TREE = {
    "train2014/1.jpg": NOISE[:300_000],
    "train2014/2.jpg": NOISE[300_000:],
    "annotations/a b.json": b'{"images": []}' * 3000,
    "empty": b"",
}
WINDOWS_NAMES = ("C:/x", "C:x", "\\\\host\\share\\x", "a\\..\\..\\x", "\\x")
BAD_NAMES = ("/etc/x", "../x", "a/../../x", "..", *WINDOWS_NAMES, "a\nb", "a\x1b[2J", "a\x85b")


def make(folder: Path, kind: str, tree: dict[str, bytes] = TREE) -> Path:
    """An archive of that kind, with its folders as members of their own."""
    archive = folder / f"archive.{kind}"
    folders = sorted({f"{Path(name).parent}/" for name in tree if name in TREE and "/" in name})
    if kind == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for name in folders:
                file.writestr(name, b"")
            for name, content in tree.items():
                file.writestr(zipfile.ZipInfo(name), content)
    else:
        with tarfile.open(archive, "w:gz" if kind == "tar.gz" else "w") as file:
            for name in folders:
                info = tarfile.TarInfo(name)
                info.type = tarfile.DIRTYPE
                file.addfile(info)
            for name, content in tree.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return archive


def tar_of(folder: Path, kind: bytes, **attributes: object) -> Path:
    """A tar with a plain file and one member of a type."""
    archive = folder / "archive.tar"
    with tarfile.open(archive, "w") as file:
        first = tarfile.TarInfo("first")
        first.size = 3
        file.addfile(first, io.BytesIO(b"abc"))
        info = tarfile.TarInfo("bad")
        info.type = kind
        for name, value in attributes.items():
            setattr(info, name, value)
        file.addfile(info)
    return archive


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
class TestWhole:
    def test_every_member_comes_out_and_nothing_else(self, tmp_path: Path, kind: str) -> None:
        reports: list[tuple[int, int]] = []
        unpack(make(tmp_path, kind), tmp_path / "out", lambda done, total: reports.append((done, total)))
        assert read_tree(tmp_path / "out") == TREE
        assert reports == sorted(reports)
        assert all(0 < done <= total for done, total in reports)

    def test_again_writes_only_what_is_missing_or_differs(self, tmp_path: Path, kind: str) -> None:
        archive, out = make(tmp_path, kind), tmp_path / "out"
        unpack(archive, out)
        (out / "empty").unlink()
        (out / "annotations/a b.json").write_bytes(TREE["annotations/a b.json"][:-1] + b"?")  # as long
        (out / "train2014/2.jpg").write_bytes(b"half")
        (out / "mine").write_bytes(b"stays")
        untouched = (out / "train2014/1.jpg").stat()
        unpack(archive, out)
        assert read_tree(out) == TREE | {"mine": b"stays"}
        again = (out / "train2014/1.jpg").stat()
        assert (again.st_ino, again.st_mtime_ns) == (untouched.st_ino, untouched.st_mtime_ns)

    @pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.7, 0.9, 0.999])
    def test_an_archive_cut_short_is_said_and_leaves_no_half_file(
        self, tmp_path: Path, kind: str, share: float
    ) -> None:
        archive = make(tmp_path, kind)
        size = archive.stat().st_size
        if kind == "tar":  # its padding may be missing
            size = len(archive.read_bytes().rstrip(b"\0"))
        os.truncate(archive, int(size * share))
        with pytest.raises(DataError, match=r"archive\..* (is damaged or cut short .*; delete it|is neither zip)"):
            unpack(archive, tmp_path / "out")
        left = read_tree(tmp_path / "out")
        assert left.items() <= TREE.items()

    def test_a_tar_or_zip_cut_between_two_members_is_said(self, tmp_path: Path, kind: str) -> None:
        if kind == "zip":
            pytest.skip("a zip's list of members lies at its end")
        plain = make(tmp_path, "tar")
        with tarfile.open(plain) as file:
            start = file.getmember("train2014/2.jpg").offset
        archive = tmp_path / "cut.tar"
        archive.write_bytes(plain.read_bytes()[:start])
        if kind == "tar.gz":
            archive.write_bytes(gzip.compress(archive.read_bytes()))
        with pytest.raises(DataError, match="cut short"):
            unpack(archive, tmp_path / "out")

    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(place=st.floats(0, 1), bit=st.integers(0, 7))
    def test_a_flipped_bit_is_said_or_harmless(self, tmp_path: Path, kind: str, place: float, bit: int) -> None:
        if kind == "tar":
            pytest.skip("a tar has checksums of its headers only")
        small = {name: content[:2000] for name, content in TREE.items()}
        content = bytearray(make(tmp_path, kind, small).read_bytes())
        content[int(place * (len(content) - 1))] ^= 1 << bit
        archive = tmp_path / f"flipped.{kind}"
        archive.write_bytes(content)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        try:
            unpack(archive, tmp_path / "out")
        except (DataError, StoreError):
            pass
        else:
            assert sorted(read_tree(tmp_path / "out").values()) == sorted(small.values())
        if kind == "zip":
            assert set(read_tree(tmp_path / "out").values()) <= set(small.values())
        else:  # whose checksum comes last
            unpack(make(tmp_path, kind, small), tmp_path / "out")
            assert read_tree(tmp_path / "out").items() >= small.items()

    def test_a_killed_unpacking_goes_on_and_ends_the_same(self, tmp_path: Path, kind: str) -> None:
        tree = {f"images/{number}.jpg": NOISE[number : number + 20_000] for number in range(40)}
        archive, out = make(tmp_path, kind, tree), tmp_path / "out"
        code = (
            "import sys, time; from pathlib import Path; from plbench.data.download.archives import unpack\n"
            "print('ready', flush=True)\n"
            "unpack(Path(sys.argv[1]), Path(sys.argv[2]), lambda done, total: time.sleep(0.004))"
        )
        draw = random.Random(1)
        for num_kills in range(100):
            process = subprocess.Popen([sys.executable, "-c", code, archive, out], stdout=subprocess.PIPE)
            assert process.stdout is not None
            process.stdout.readline()
            try:
                code_of_exit = process.wait(timeout=0.03 + 0.08 * draw.random() if num_kills < 3 else 30)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
            else:
                assert code_of_exit == 0
                break
            finally:
                process.stdout.close()
            final = {name: content for name, content in read_tree(out).items() if "unpacking" not in name}
            assert final.items() <= tree.items()
        assert num_kills >= 2, "it was too fast to be killed"
        assert read_tree(out) == tree


class TestManyMembers:
    def test_a_zip_whose_list_of_them_is_damaged_is_said(self, tmp_path: Path) -> None:
        archive = make(tmp_path, "zip", {"a": b"1", "b": b"2"})
        content = bytearray(archive.read_bytes())
        first = content.index(b"PK\x01\x02")
        content[first + 32] = len("b") + 46  # the length of its comment now takes in the second
        archive.write_bytes(content)
        with pytest.raises(DataError, match=r"damaged or cut short .*1 of its members can be read"):
            unpack(archive, tmp_path / "out")

    def test_those_of_a_zip_are_counted_beyond_what_its_old_format_can(self, tmp_path: Path) -> None:
        number = 65_600
        content = make(tmp_path, "zip", {"x": b""}).read_bytes()
        start, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
        entries = content[start:end] * number
        place = (len(entries), start)
        wide = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, number, number, *place)
        locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, start + len(entries), 1)
        narrow = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, *place, 0)
        archive = tmp_path / "many.zip"
        archive.write_bytes(content[:start] + entries + wide + locator + narrow)
        with pytest.raises(DataError, match="uses twice"):  # all of them were counted
            unpack(archive, tmp_path / "out")


class TestRefused:
    @pytest.mark.parametrize("name", BAD_NAMES)
    @pytest.mark.parametrize("kind", KINDS)
    def test_names_that_leave_the_folder_or_deceive(self, tmp_path: Path, kind: str, name: str) -> None:
        (tmp_path / "inner").mkdir()
        archive = make(tmp_path / "inner", kind, {"first": b"abc", name: b"evil"})
        with pytest.raises(DataError) as caught:
            unpack(archive, tmp_path / "inner" / "deep" / "out")
        assert repr(name) in str(caught.value)
        assert str(archive) in str(caught.value)
        assert b"evil" not in [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path != archive]

    def test_a_nul_in_a_zips_name(self, tmp_path: Path) -> None:
        archive = make(tmp_path, "zip", {"nice#.exe": b"evil"})
        archive.write_bytes(archive.read_bytes().replace(b"nice#.exe", b"nice\0.exe"))
        with pytest.raises(DataError, match="control characters"):
            unpack(archive, tmp_path / "out")

    @pytest.mark.parametrize(
        ("kind", "attributes"),
        [
            (tarfile.SYMTYPE, {"linkname": "/etc/passwd"}),
            (tarfile.LNKTYPE, {"linkname": "first"}),
            (tarfile.CHRTYPE, {}),
            (tarfile.BLKTYPE, {}),
            (tarfile.FIFOTYPE, {}),
            (b"Z", {}),
        ],
    )
    def test_links_and_devices_of_a_tar(self, tmp_path: Path, kind: bytes, attributes: dict[str, str]) -> None:
        with pytest.raises(DataError, match=r"member 'bad' with the type of a link, device"):
            unpack(tar_of(tmp_path, kind, **attributes), tmp_path / "out")
        assert read_tree(tmp_path / "out") == {"first": b"abc"}
        assert not (tmp_path / "out" / "bad").is_symlink()

    @pytest.mark.parametrize("mode", [0o120777, 0o020666, 0o010644])
    def test_links_and_devices_of_a_zip(self, tmp_path: Path, mode: int) -> None:
        archive = tmp_path / "archive.zip"
        with zipfile.ZipFile(archive, "w") as file:
            info = zipfile.ZipInfo("bad")
            info.external_attr = mode << 16
            file.writestr("first", b"abc")
            file.writestr(info, b"/etc/passwd")
        with pytest.raises(DataError, match="member 'bad' with the type of a link or device"):
            unpack(archive, tmp_path / "out")
        assert not (tmp_path / "out").exists(), "a zip is checked before its first member is written"

    def test_a_member_with_a_password(self, tmp_path: Path) -> None:
        archive = make(tmp_path, "zip", {"a": b"secret"})
        content = bytearray(archive.read_bytes())
        for start, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            content[content.index(start) + flags] |= 1
        archive.write_bytes(content)
        with pytest.raises(DataError, match="member 'a' with a password"):
            unpack(archive, tmp_path / "out")

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    @pytest.mark.parametrize("second", ["a/b", "./a//b", "a/b/c", "a"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_name_that_is_used_twice(self, tmp_path: Path, kind: str, second: str) -> None:
        archive = tmp_path / f"archive.{kind}"
        if kind == "zip":
            with zipfile.ZipFile(archive, "w") as file:
                file.writestr("a/b", b"1")
                file.writestr(second, b"2")
        else:
            with tarfile.open(archive, "w:gz" if kind == "tar.gz" else "w") as file:
                for name in ("a/b", second):
                    info = tarfile.TarInfo(name)
                    info.size = 1
                    file.addfile(info, io.BytesIO(b"1"))
        with pytest.raises(DataError, match=r"twice|a file's name as a folder's"):
            unpack(archive, tmp_path / "out")

    def test_a_bomb_writes_no_more_than_it_states(self, tmp_path: Path) -> None:
        archive = make(tmp_path, "zip", {"bomb": bytes(5_000_000)})
        content = archive.read_bytes().replace((5_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
        archive.write_bytes(content)
        with pytest.raises(DataError, match=r"damaged|more than the 1,000 bytes"):
            unpack(archive, tmp_path / "out")
        assert not read_tree(tmp_path / "out")

    def test_a_tar_header_that_would_fill_the_memory(self, tmp_path: Path) -> None:
        archive = tmp_path / "archive.tar"
        info = tarfile.TarInfo("x")
        info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
        archive.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
        with pytest.raises(DataError, match="a header of"):
            unpack(archive, tmp_path / "out")

    def test_what_is_no_archive(self, tmp_path: Path) -> None:
        (tmp_path / "page.zip").write_text("<html>")
        with pytest.raises(DataError, match=r"page\.zip is neither zip, tar nor tar\.gz; delete it"):
            unpack(tmp_path / "page.zip", tmp_path / "out")
        with pytest.raises(DataError, match=r"damaged or cut short .*No such file"):
            unpack(tmp_path / "absent.zip", tmp_path / "out")


class TestDisk:
    @pytest.mark.parametrize("kind", KINDS)
    def test_one_that_is_too_small_is_said_before(
        self, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = namedtuple("usage", "free")(250_000)
        archive = make(tmp_path, kind)
        monkeypatch.setattr(plbench.data.download.archives.shutil, "disk_usage", lambda folder: usage)
        with pytest.raises(DataError, match=r"needs .* kB more in .*, where 250 kB are free; free some space"):
            unpack(archive, tmp_path / "out")
        assert not read_tree(tmp_path / "out")

    @pytest.mark.parametrize("kind", KINDS)
    def test_one_that_fills_up_keeps_what_was_whole(
        self, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        archive, out = make(tmp_path, kind), tmp_path / "out"
        replace = Path.replace

        def full(path: Path, target: Path) -> Path:
            if Path(target).name == "2.jpg":
                raise OSError(errno.ENOSPC, "No space left on device")
            return replace(path, target)

        with monkeypatch.context() as patch, pytest.raises(StoreError, match=r"could not write .*2\.jpg: No space"):
            patch.setattr(Path, "replace", full)
            unpack(archive, out)
        assert read_tree(out) == {"train2014/1.jpg": TREE["train2014/1.jpg"]}
        unpack(archive, out)
        assert read_tree(out) == TREE

    def test_a_report_that_raises_ends_it_and_leaves_no_half_file(self, tmp_path: Path) -> None:
        def give_up(done: int, total: int) -> None:
            if done > 400_000:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            unpack(make(tmp_path, "zip"), tmp_path / "out", give_up)
        assert read_tree(tmp_path / "out") == {"train2014/1.jpg": TREE["train2014/1.jpg"]}

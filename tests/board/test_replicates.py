"""Replicates of several records in one file."""

import contextlib
import io
import lzma
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plbench.board.packs import pack_records, unpack_records
from plbench.board.replicates import DIFFERENCES, as_differences, from_differences
from plbench.runs.summary import write_replicates
from plbench.runs.tables import REPLICATES, EntryError, parse_replicates

KEYS = ["0" * 16, "1" * 16, "2" * 16]


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """As runs write them, to both ends of the scale."""
    generator = np.random.default_rng(0)
    folder, found = tmp_path_factory.mktemp("tables"), []
    for number in range(3):
        replicates = {name: generator.uniform(0, 100, 1000) for name in ("map_c", "map_o")}
        replicates["map_c"][:2] = 0, 100
        write_replicates(folder / f"{number}.csv", replicates)
        found.append((folder / f"{number}.csv").read_bytes())
    return found


def records(tables):
    return {
        key: {"record.json": b"{}", "per_class.csv": b"a", REPLICATES: table}
        for key, table in zip(KEYS, tables, strict=True)
    }


def test_tables_come_back_to_the_byte(tables):
    content = as_differences(tables)
    assert from_differences(content, 3) == tables
    assert len(content) == len("map_c,map_o\n") + 3 * 2 * 1000 * 2


def test_a_pack_holds_them_together_and_is_smaller(tmp_path):
    generator, near = np.random.default_rng(0), []
    common = generator.normal(45, 0.6, 1000)
    for _ in KEYS:
        write_replicates(tmp_path / REPLICATES, {"map_c": common + generator.normal(0, 0.15, 1000)})
        near.append((tmp_path / REPLICATES).read_bytes())
    packed = pack_records(records(near))
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(packed))) as archive:
        names = archive.getnames()
    assert DIFFERENCES in names and not any(name.endswith(REPLICATES) for name in names)
    assert unpack_records(packed) == records(near)
    assert len(packed) < 0.9 * len(lzma.compress(b"".join(near), preset=9 | lzma.PRESET_EXTREME))


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.replace(b"\n", b"\r\n"),
        lambda table: table + b"1.00,2.00\n",
        lambda table: table[:-1],
        lambda table: table.replace(b"map_o", b"other"),
        lambda table: table.replace(b"100.00", b"nan"),
        lambda table: table.replace(b"100.00", b"100"),
        lambda table: table.replace(b"100.00", b"99.999"),
        lambda table: b"",
    ],
)
def test_what_would_not_come_back_is_kept_as_it_is(tables, change):
    changed = [*tables[:2], change(tables[2])]
    assert as_differences(changed) is None
    assert unpack_records(pack_records(records(changed))) == records(changed)


@pytest.mark.parametrize("table", [b"map_c\n", b"map_c", b""])
def test_tables_without_replicates_are_kept_as_they_are(table):
    assert as_differences([table] * 3) is None


@pytest.mark.parametrize("content", [b"a" * 5000 + b"\n" + bytes(6), b"," * 5000 + b"\n" + bytes(30_006)])
def test_a_long_first_line_which_each_table_would_repeat_is_refused(content):
    with pytest.raises(EntryError, match="a first line of 5,000 bytes"):
        from_differences(content, 3)


@pytest.mark.parametrize("content", [b"", b"map_c", b"map_c\n", b"map_c\n123", b"map_c\n" + bytes(6 * 20_001)])
def test_what_is_no_whole_number_of_replicates_is_refused(content):
    with pytest.raises(EntryError, match="replicates of 3 records"):
        from_differences(content, 3)


def test_replicates_that_are_there_twice_are_refused(tables):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in {
            f"{KEYS[0]}/{REPLICATES}": tables[0],
            DIFFERENCES: as_differences(tables[:1]),
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(EntryError, match="there twice"):
        unpack_records(lzma.compress(out.getvalue()))


@settings(max_examples=50, deadline=None)
@given(place=st.integers(0, 3 * 4000), noise=st.binary(min_size=1, max_size=8))
def test_noise_is_a_table_or_refused(tables, place, noise):
    whole = as_differences(tables)
    content = whole[:place] + noise + whole[place + len(noise) :]
    with contextlib.suppress(EntryError):
        for table in from_differences(content, 3):
            parse_replicates(table)

"""Per-class tables of several records in one file."""

import contextlib
import io
import lzma
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plbench.board.class_tables import COLUMNS, as_columns, from_columns
from plbench.board.packs import pack_records, unpack_records
from plbench.data.labels import PartialLabels
from plbench.metrics.cells import Cells
from plbench.runs.summary import Thresholds, write_per_class
from plbench.runs.tables import PER_CLASS, EntryError, parse_per_class

KEYS = ["0" * 16, "1" * 16, "2" * 16]
NAMES = ["dog", "=SUM(a)", "café, big", 'the "best"', "never", "always", *(f"class {n}" for n in range(6, 40))]
LABELS = PartialLabels.from_dense([[1, -1], [-1, 1]], ["a", "b"])


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """As runs write them: names to quote, a class without positives, one without negatives, one never predicted."""
    rng = np.random.default_rng(0)
    y = np.where(rng.random((200, len(NAMES))) < 0.2, 1, -1).astype(np.int8)
    y[:, NAMES.index("never")], y[:, NAMES.index("always")] = -1, 1
    labels = PartialLabels.from_dense(y, [str(n) for n in range(len(NAMES))], NAMES)
    folder, found = tmp_path_factory.mktemp("tables"), []
    for number in range(3):
        cells = Cells.from_scores(rng.random(y.shape, np.float32) + 0.1 * (y > 0).astype(np.float32), labels)
        values = rng.random(len(NAMES), np.float32).astype(np.float64)
        values[0] = 2.0
        path, groups = folder / f"{number}.csv", {"some": ["0", "3"], "few": ["3"]}
        write_per_class(path, cells, labels, groups, rng.integers(0, 9, len(NAMES)), Thresholds(values, None))
        found.append(path.read_bytes())
    return found


def records(tables):
    return {
        key: {"record.json": b"{}", PER_CLASS: table, "replicates.csv": b"a"}
        for key, table in zip(KEYS, tables, strict=True)
    }


def test_tables_come_back_to_the_byte(tables):
    assert from_columns(as_columns(tables), 3) == tables
    assert b"never,," in tables[0] and b'"caf\xc3\xa9, big"' in tables[0]  # what the fixture is for


def test_tables_without_thresholds_come_back(tmp_path):
    cells = Cells.from_scores([[0.9, 0.2], [0.4, 0.7]], LABELS.matrix.toarray())
    write_per_class(tmp_path / PER_CLASS, cells, LABELS, {}, np.arange(2))
    table = (tmp_path / PER_CLASS).read_bytes()
    assert from_columns(as_columns([table]), 1) == [table]


def test_a_pack_holds_them_together_in_half_the_bytes(tables):
    packed = pack_records(records(tables))
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(packed))) as archive:
        names = archive.getnames()
    assert COLUMNS in names and not any(name.endswith(PER_CLASS) for name in names)
    assert unpack_records(packed) == records(tables)
    assert len(packed) < 0.6 * len(lzma.compress(b"".join(tables), preset=9 | lzma.PRESET_EXTREME))


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.replace(b"\n", b"\r\n"),
        lambda table: table[:-1],
        lambda table: table + table.splitlines(keepends=True)[1],
        lambda table: table.replace(b"class 7", b"class seven"),
        lambda table: table.replace(b"threshold", b"limit"),
        lambda table: table.replace(b"2.0,", b"2.00,"),
        lambda table: table.replace(b"2.0,", b"0.1,"),
        lambda table: table.replace(b"2.0,", b"nan,"),
        lambda table: table.replace(b"2.0,", b"1e99,"),
        lambda table: b"",
        lambda table: b"\xff",
    ],
)
def test_what_would_not_come_back_is_kept_as_it_is(tables, change):
    changed = [*tables[:2], change(tables[2])]
    assert changed != tables
    assert as_columns(changed) is None
    assert unpack_records(pack_records(records(changed))) == records(changed)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "begin with a length"),
        (b"x\n", "begin with a length"),
        (b"99999999\nabc", "too long"),
        (b"3\nabc", "table of 1 to"),
        (b"0\nabc", "no table of classes"),
        (b"2\n\xff\xff", "no table of classes"),
    ],
)
def test_what_is_no_table_is_refused(content, words):
    with pytest.raises(EntryError, match=words):
        from_columns(content, 3)


def test_other_numbers_of_records_are_refused(tables):
    with pytest.raises(EntryError, match="no columns of 2 records of 40 classes"):
        from_columns(as_columns(tables), 2)


@settings(max_examples=50, deadline=None)
@given(place=st.integers(0, 3000), noise=st.binary(min_size=1, max_size=8))
def test_noise_is_a_table_or_refused(tables, place, noise):
    whole = as_columns(tables)
    with contextlib.suppress(EntryError):
        for table in from_columns(whole[:place] + noise + whole[place + len(noise) :], 3):
            parse_per_class(table)

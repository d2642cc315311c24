"""Large CSV files are read as the csv module reads them; whatever is wrong is one sentence with file and row."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plbench.data.annotations import delimited
from plbench.data.annotations.delimited import header, text_batches
from plbench.errors import DataError

COLUMNS = {"ImageID": pa.string(), "LabelName": pa.string(), "Confidence": pa.bool_()}
FIRST = "ImageID,Source,LabelName,Confidence\n"
GOOD = [f"{number:016x},verification,/m/0{number},{number % 2}" for number in range(400)]
SIGNS = {"0": False, "0.0": False, "1": True, "1.0": True}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a few kilobytes come in many batches."""
    monkeypatch.setattr(delimited, "_BLOCK", 1024)


def rows_of(path: Path) -> list[tuple[str, str, bool]]:
    return [tuple(row.values()) for batch in text_batches(path, COLUMNS) for row in batch.to_pylist()]


def refused(path: Path) -> str:
    """The sentence for a file, after a look at its form."""
    with pytest.raises(DataError) as caught:
        rows_of(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and message.isprintable()
    assert len(message) - len(str(path)) < 500
    return message.removeprefix(str(path))


FIELD = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=6)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(FIELD, FIELD, FIELD, st.sampled_from(list(SIGNS))), max_size=12),
    order=st.permutations(["ImageID", "Source", "LabelName", "Confidence"]),
    mark=st.booleans(),
    newline=st.sampled_from(["\n", "\r\n"]),
    ends=st.booleans(),
)
def test_fields_are_those_that_the_csv_module_reads(
    rows: list[tuple[str, ...]],
    order: list[str],
    mark: bool,
    newline: str,
    ends: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Columns in any order, quoting where it is needed, with and without byte-order mark and last newline."""
    text = io.StringIO()
    writer = csv.DictWriter(text, order, lineterminator=newline)
    writer.writeheader()
    writer.writerows(dict(zip(("ImageID", "Source", "LabelName", "Confidence"), row, strict=True)) for row in rows)
    content = text.getvalue() if ends or not rows else text.getvalue().removesuffix(newline)
    path = tmp_path_factory.mktemp("csv") / "labels.csv"
    path.write_bytes(content.encode("utf-8-sig" if mark else "utf-8"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(delimited, "_BLOCK", 256)
        assert rows_of(path) == [(image, name, SIGNS[sign]) for image, _, name, sign in rows]
    assert header(path) == order


def test_rows_come_in_the_order_of_the_file(tmp_path: Path, small_blocks: None) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(FIRST + "\n".join(GOOD * 20) + "\n")
    reports: list[tuple[int, int]] = []
    batches = list(text_batches(path, COLUMNS, lambda done, total: reports.append((done, total))))
    assert len(batches) > 10
    assert [text for batch in batches for text in batch["LabelName"].to_pylist()] == [
        f"/m/0{n}" for n in range(400)
    ] * 20
    size = path.stat().st_size
    assert reports == sorted(reports) and reports[-1] == (size, size) and reports[0][0] < size


@pytest.mark.parametrize("row", [0, 1, 200, 399])
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("a,b,/m/0,2", "invalid value '2'; expected 0 or 1; fix the row"),
        ("a,b,/m/0,True", "invalid value 'True'; expected 0 or 1"),
        ("a,b,/m/0,0.5", "invalid value '0.5'; expected 0 or 1"),
        ("a,b,/m/0,-1", "invalid value '-1'; expected 0 or 1"),
        ("a,b,/m/0,1e0", "invalid value '1e0'; expected 0 or 1"),
        ("a,b,/m/0,", "column 'Confidence' is empty; expected 0 or 1"),
        ("a,b,/m/0,NaN", "column 'Confidence' is empty; expected 0 or 1"),
        ("a,b,/m/0", "Expected 4 columns, got 3: a,b,/m/0"),
        ("a,b,/m/0,1,", "Expected 4 columns, got 5: a,b,/m/0,1,"),
        ("a,b,/m/\udce9,1", "CSV conversion error to string: invalid UTF8 data"),
    ],
)
def test_a_wrong_row_is_named_by_its_number(
    wrong: str, says: str, row: int, tmp_path: Path, small_blocks: None
) -> None:
    path = tmp_path / "labels.csv"
    lines = [*GOOD[:row], wrong, *GOOD[row + 1 :]]
    path.write_bytes((FIRST + "\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))
    message = refused(path)
    assert says in message
    assert f"Row #{row + 2}:" in message  # as an editor counts: the first line has the names


WHOLE = FIRST + "\n".join(GOOD[:3]) + "\n"
FILES = {
    "no Confidence": (
        WHOLE.replace("Confidence", "IsPresent"),
        " needs one column 'Confidence'; its first line has ",
    ),
    "no LabelName": (WHOLE.replace("LabelName", "Name"), " needs one column 'LabelName'; "),
    "ImageID twice": (WHOLE.replace("Source", "ImageID"), " needs one column 'ImageID'; "),
    "another case": (
        WHOLE.replace("ImageID", "imageid"),
        " needs one column 'ImageID'; its first line has 'imageid'",
    ),
    "spaces in the first line": (
        WHOLE.replace(",Label", ", Label"),
        "first line has 'ImageID', 'Source', ' LabelN",
    ),
    "no first line": (WHOLE.removeprefix(FIRST), "'ImageID'; its first line has '0000000000000000', 'verification'"),
    "a blank first line": (f"\n{WHOLE}", " needs one column 'ImageID'; its first line has ''"),
    "empty": ("", " is empty; expected a line with the names of the columns"),
    "a byte-order mark alone": (b"\xef\xbb\xbf", "needs one column 'ImageID'; its first line has ''"),
    "UTF-16": (WHOLE.encode("utf-16"), " is written in UTF-16; save it as UTF-8"),
    "UTF-16, the other way": (b"\xfe\xff" + WHOLE.encode("utf-16-be"), " is written in UTF-16; save it as UTF-8"),
    "UTF-16 without a mark": (WHOLE.encode("utf-16-le"), " needs one column 'ImageID'; "),
    "latin-1 first line": (
        WHOLE.replace("Source", "Où").encode("latin-1"),
        "first line: byte 9 is not UTF-8; save ",
    ),
    "tabs": (WHOLE.replace(",", "\t"), r"needs one column 'ImageID'; its first line has 'ImageID\tSource\tLabelName\t"),
    "old Mac": (WHOLE.replace("\n", "\r"), r" needs one column 'Confidence'; its first line has 'ImageID', "),
    "a picture": (bytes(range(256)) * 40, " needs one column 'ImageID'; its first line has '"),
    "cut off in a field": (WHOLE[:-3], "Row #4: Expected 4 columns, got 3: 0000000000000002,verification,/m/02"),
    "cut off before a value": (WHOLE[:-2], "Row #4: column 'Confidence' is empty"),
    "cut off in the first line": (FIRST[:-1], "Empty CSV file"),
    "an unbalanced quote": (WHOLE.replace("/m/00", '"/m/00'), "Row #2: Expected 4 columns, got 3: "),
    "an unbalanced quote before": (WHOLE.replace("0000000000000001", '"1'), "Row #3: Expected 4 columns, got 1: "),
    "a long row": (WHOLE + "x" * (9 << 20), ": a row is longer than 4 MB; "),
    "many columns": ("," * 100_000 + "\n", " has a first line of more than 100,000 columns or 4 MB; "),
    "a long first line": ("x" * (5 << 20), " has a first line of more than 100,000 columns or 4 MB; "),
    "a long name": (
        f"ImageID,{'x' * 100_000}\n",
        f"its first line has 'ImageID', '{'x' * 40}'",
    ),
    "names": ("".join(f"name {number}," for number in range(50)) + "\n", "'name 7', …"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_kind_is_one_sentence(name: str, tmp_path: Path) -> None:
    content, says = FILES[name]
    path = tmp_path / "labels.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert says in refused(path)


def test_no_file_and_a_folder_are_one_sentence(tmp_path: Path) -> None:
    assert refused(tmp_path / "absent.csv") == " cannot be read: No such file or directory"
    assert refused(tmp_path) == " cannot be read: Is a directory"


def test_an_empty_id_or_name_is_left_to_the_caller(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(f"{FIRST},verification,,1\n")
    assert rows_of(tmp_path / "labels.csv") == [("", "", True)]


_BOUNDED = """
import resource, sys
from pathlib import Path
from plbench.data.annotations.delimited import text_batches
from plbench.errors import DataError
import pyarrow as pa
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    rows = sum(len(batch) for batch in text_batches(Path(sys.argv[1]), {"ImageID": pa.string()}))
except DataError as error:
    rows = error
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, rows, sep="\\n")
"""


def bounded(path: Path) -> tuple[int, str]:
    """Kilobytes by which the peak of memory grows while a file is read by another process, and what came of it."""
    done = subprocess.run([sys.executable, "-c", _BOUNDED, path], check=True, capture_output=True, text=True)
    grown, _, said = done.stdout.partition("\n")
    return int(grown), said.strip()


def test_ten_million_columns_are_refused_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    path.write_bytes(b"c," * 10_000_000 + b"ImageID\n" + b"0," * 10_000_000 + b"a\n")
    grown, said = bounded(path)
    assert said.startswith(f"{path} has a first line of more than 100,000 columns")
    assert grown < 60_000


def test_a_large_file_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    block = "\n".join(GOOD) + "\n"
    with path.open("w") as file:
        file.write(FIRST)
        for _ in range(12_000):
            file.write(block)
    grown, said = bounded(path)
    assert said == str(12_000 * len(GOOD))
    assert path.stat().st_size > 150e6 and 1024 * grown < path.stat().st_size / 2

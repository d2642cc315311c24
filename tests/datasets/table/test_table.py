from __future__ import annotations

import csv
import dataclasses
import re
import tempfile
import tracemalloc
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from plbench.data.spelling import look
from plbench.data.text_column import TextColumn
from plbench.datasets.table import Table, columns
from plbench.errors import DataError, PlbenchError
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.run import run
from plbench.runs.workspace import Workspace, open_dataset

FORMS = ("labels-long.csv", "labels-wide.csv", "labels.parquet")
LONG = "image,label,value,split\na.jpg,cat,1,train\nb.jpg,cat,0,train\nc.jpg,dog,1,test\nd.jpg,cat,-1,test\n"
WIDE = "image,split,cat,dog\na.jpg,train,1,\nb.jpg,train,0,\nc.jpg,test,,1\nd.jpg,test,-1,\n"


def own(folder: Path, content: str | bytes | pa.Table, **options: Any) -> Table:
    """A table in a file, with an empty folder of images: reading labels opens none."""
    (folder / "photos").mkdir(exist_ok=True, parents=True)
    labels = folder / ("labels.parquet" if isinstance(content, pa.Table) else "labels.csv")
    if isinstance(content, pa.Table):
        pq.write_table(content, labels)
    else:
        labels.write_bytes(content if isinstance(content, bytes) else content.encode())
    values = {"labels": labels, "images": folder / "photos", **options}
    return Table(folder, options=Table.Options.model_validate(values))


def positives(folder: Path, content: str | bytes | pa.Table, **options: Any) -> Table:
    """A long table without a column of values, of which it is said that every row is a positive."""
    return own(folder, content, value_column="none", **options)


def known(table: Table) -> dict[tuple[str, str], int]:
    """Sign of every known cell by image and class, whatever the split."""
    found = {}
    for split in table.splits:
        annotations = table.annotations(split)
        rows, columns, signs = annotations.labels.cells()
        names = annotations.labels.class_ids
        ids = list(annotations.image_ids)
        found |= {(ids[r], names[c]): int(s) for r, c, s in zip(rows, columns, signs, strict=True)}
    return found


def members(table: Table) -> dict[str, list[str]]:
    """Images of each split that has any."""
    found = {split: list(table.annotations(split).image_ids) for split in table.splits}
    return {split: ids for split, ids in found.items() if ids}


def refusal(table: Table) -> str:
    """The one sentence by which a table is refused."""
    with pytest.raises(DataError) as raised:
        table.split("train")
    text = str(raised.value)
    assert "\n" not in text and len(text) < 600, text
    return text


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture: images and three tables."""
    root = tmp_path_factory.mktemp("demo")
    Table(root).make_fixture()
    return root


class TestFixture:
    @pytest.fixture
    def forms(self, demo: Path) -> dict[str, Table]:
        options = {"images": demo / "images", "negative_value": "0"}
        return {form: Table(demo, options=Table.Options(labels=demo / form, **options)) for form in FORMS}

    def test_three_forms_say_the_same(self, forms: dict[str, Table]) -> None:
        for split, number in (("train", 60), ("test", 30), ("val", 0)):
            read = [table.split(split) for table in forms.values()]
            assert {len(part.images) for part in read} == {number}
            assert len({part.labels.fingerprint() for part in read}) == 1
            assert len({tuple(part.images.ids) for part in read}) == 1
            assert all(part.images.absent() == [] for part in read)
        assert len({table.fingerprint() for table in forms.values()}) == 3  # other bytes are other data

    def test_it_has_the_traps_that_it_promises(self, demo: Path, forms: dict[str, Table]) -> None:
        raw = (demo / "labels-long.csv").read_bytes()
        assert raw.startswith(b"\xef\xbb\xbf") and raw.count(b"\r\n") == raw.count(b"\n") and b'"lamp, street"' in raw
        notes = " ".join(forms["labels-long.csv"].annotations("train").notes)
        for said in (
            "byte-order mark",
            "12 rows repeat",
            "2 (image, class) cells",
            "-1 unknown",
            "rows say that a label",
        ):
            assert said in notes
        train, test = (forms["labels-wide.csv"].split(split).labels for split in ("train", "test"))
        for labels in (train, test):
            assert not labels.is_complete and min(map(min, labels.counts())) >= 1  # every class can be scored

    def test_it_is_the_same_wherever_it_is_made(self, demo: Path, tmp_path: Path) -> None:
        Table(tmp_path).make_fixture()
        files = sorted(path.relative_to(demo) for path in demo.rglob("*.*"))
        assert len(files) == 93
        assert all((tmp_path / path).read_bytes() == (demo / path).read_bytes() for path in files)

    @pytest.mark.parametrize("regime", ["probe", "finetune"])
    def test_a_run_from_end_to_end(
        self, regime: Any, demo: Path, make_workspace: Callable[..., Workspace], tiny_recipe: dict[str, Any]
    ) -> None:
        told = {"labels": str(demo / FORMS[0]), "images": str(demo / "images"), "negative_value": "0"}
        workspace = dataclasses.replace(make_workspace(), data_options=told)
        request = Request(dataset="table", method="ce-negative", regime=regime, **tiny_recipe)
        record = run(plan_run(request, workspace), workspace)
        assert record.status == "done" and record.spec.protocol.name == "custom/table"
        assert 0 <= record.metrics["test"].map_c.value <= 100
        again = open_dataset("table", workspace)  # from the index
        assert again.fingerprint() == record.spec.dataset_fingerprint
        assert "byte-order mark" in again.notes()["train"][0]


@pytest.fixture
def tiny_recipe() -> dict[str, Any]:
    """Changes to the quick recipe that make it a matter of a second."""
    return {
        "model": {"backbone": "test_resnet", "weights": "random", "image_size": 32},
        "plan": {"epochs": 1, "batch_size": 16},
    }


class TestValues:
    @pytest.mark.parametrize("content", [LONG, WIDE])
    @pytest.mark.parametrize(("negative", "b", "d"), [("0", -1, None), ("-1", None, -1), ("none", None, None)])
    def test_one_flag_says_what_numbers_mean(
        self, content: str, negative: str, b: int | None, d: int | None, tmp_path: Path
    ) -> None:
        table = own(tmp_path, content, negative_value=negative)
        expected = {("a.jpg", "cat"): 1, ("b.jpg", "cat"): b, ("c.jpg", "dog"): 1, ("d.jpg", "cat"): d}
        assert known(table) == {cell: sign for cell, sign in expected.items() if sign}
        assert members(table) == {"train": ["a.jpg", "b.jpg"], "test": ["c.jpg", "d.jpg"]}  # also those without labels
        assert "--negative-value" in " ".join(table.notes()["train"])

    def test_words_and_numbers_with_a_point_in_any_case(self, tmp_path: Path) -> None:
        content = LONG.replace("1,train", " Present,train").replace("0,", "ABSENT,").replace("-1,", ",")
        words = own(tmp_path / "a", content.replace("1,test", ",test"))
        assert known(words) == {("a.jpg", "cat"): 1, ("b.jpg", "cat"): -1}
        points = own(tmp_path / "b", LONG.replace("0,t", "0.0,t").replace("1,t", "1.0,t"), negative_value="0")
        assert known(points) == known(own(tmp_path / "c", LONG, negative_value="0"))

    def test_without_a_value_column_every_row_is_a_positive(self, tmp_path: Path) -> None:
        table = positives(tmp_path, "image,label,split\na.jpg,cat,train\nb.jpg,dog,test\n")
        assert known(table) == {("a.jpg", "cat"): 1, ("b.jpg", "dog"): 1}
        assert "every row says that its class is present" in " ".join(table.notes()["train"])

    def test_repeats_merge_and_contradictions_are_unknown(self, tmp_path: Path) -> None:
        rows = "a.jpg,cat,1,train\nc.jpg,dog,0,test\na.jpg,cat,1,train\n"
        table = own(tmp_path, LONG + rows, negative_value="0")
        assert known(table) == {("a.jpg", "cat"): 1, ("b.jpg", "cat"): -1}
        notes = " ".join(table.notes()["train"])
        assert "2 rows repeat" in notes and "1 (image, class) cells are called both" in notes

    @pytest.mark.parametrize(
        ("content", "options", "says"),
        [
            (
                LONG,
                {},
                ["line 3", "0 may mean verified absent or unknown", "`negative_value=`: 0 if", "-1 if", "none if"],
            ),
            (WIDE, {}, ["line 3, column 'cat'", "0 may mean", "`negative_value=`"]),
            (LONG.replace("0", "maybe"), {}, ["line 3", "'maybe' is not a value", "1, 0, -1, true, false"]),
            (LONG.replace("0", "None"), {}, ["line 3", "'None' is not a value"]),
            (LONG.replace("0", "0.5"), {}, ["line 3", "'0.5' is not a value"]),
            (LONG.replace("0", "False"), {}, ["line 3: False (false counts as 0) may mean", "`negative_value=`"]),
            (LONG.replace("0", "absent"), {"negative_value": "0"}, ["line 3", "'absent'", "both numbers and words"]),
            (WIDE.replace("0", "absent"), {"negative_value": "0"}, ["line 3, column 'cat'", "numbers and words"]),
            (WIDE.replace("0", "2"), {}, ["line 3, column 'cat'", "'2' is not a value", "`options.leave_out='cat'`"]),
        ],
    )
    def test_what_can_be_read_in_two_ways_is_refused(
        self, content: str, options: dict[str, Any], says: list[str], tmp_path: Path
    ) -> None:
        text = refusal(own(tmp_path, content, **options))
        assert all(part in text for part in says), text


HEAD = "image,label\n"
FORM = {
    "no image column": (
        "file,label\na,b\n",
        {},
        ["no column 'image'", "it has file, label", "`options.image_column='file'`"],
    ),
    "no label column": (
        LONG,
        {"layout": "long", "label_column": "kind"},
        ["no column 'kind'", "`options.label_column=`"],
    ),
    "class beside label": (
        "image,label,cat\na,b,1\n",
        {},
        ["`options.value_column='cat'`", "`options.leave_out='label'`"],
    ),
    "classes beside label": (
        "image,label,cat,dog\na,b,1,0\n",
        {},
        ["'cat'", "`options.layout='long'`", "`options.leave_out='label'`"],
    ),
    "column twice": ("image,label,label\na,b,c\n", {}, ["two columns named 'label'"]),
    "column twice but for space": ("image,cat, cat\na,1,1\n", {}, ["two columns named 'cat'"]),
    "pandas' row numbers": (",image,cat\n0,a.jpg,1\n", {}, ["column 1 has no name", "index=False"]),
    "no classes": ("image,split\na,train\n", {}, ["no column of a class", "'image' and 'split'"]),
    "long table, other name": (
        "image,class\na.jpg,cat\n",
        {},
        ["line 2, column 'class'", "`options.label_column='class'`"],
    ),
    "swapped columns": (
        HEAD + "".join(f"cat,{i}\n" for i in range(100_001)),
        {},
        ["100,000 different", "`options.label_"],
    ),
    "empty": (b"", {}, ["is empty"]),
    "only a mark": (b"\xef\xbb\xbf", {}, ["no column 'image'"]),
    "no rows": (HEAD, {}, ["a header and no rows"]),
    "no rows, no newline": ("image,label", {}, ["a header and no rows"]),
    "no rows, wide": ("image,cat\n", {}, ["a header and no rows", "per image"]),
    "few fields": (HEAD + "a,b\n\nc\n", {}, ["line 4 has 1 field;", "first line has 2 (image, label)"]),
    "many fields": (HEAD + "a,b\nc,d,e\n", {}, ["line 3 has 3 fields", "needs quotes"]),
    "few fields, wide": ("image,cat\na,1\nb\n", {}, ["line 3 has 1 field"]),
    "many fields, quoted": (HEAD + '"a\nb",c\n"d",e,f\n', {}, ["line 4 has 3 fields"]),
    "open quote": (HEAD + 'a,cat\nb,"dog\nc,cat\n', {}, ["line 3", "a quote is not closed"]),
    "open quote in a column of no use": ("image,label,by\na,b,\"me\nc,d,you\n", {}, ["line 2", "not closed"]),
    "two open quotes": (HEAD + 'a,"cat\nb,dog\nc,"cow\n', {}, ["line 2", "fix the row"]),
    "no label": (HEAD + "a,cat\nb,\n", {}, ["line 3 has no label"]),
    "no image": (HEAD + "a,cat\n ,cat\n", {}, ["line 3: the image is empty"]),
    "line break in a label": (HEAD + 'a,"c\nat"\n', {}, ["'c\\nat'", "control character"]),
    "classes that look the same": (HEAD + "a,caf\u00e9\nb,cafe\u0301\n", {}, ["look the same", "caf\\xe9"]),
    "no split": ("image,label,split\na,b,train\nc,d,\n", {}, ["line 3: split '' is not valid", "train, test or val"]),
    "split of another name": (
        "image,label,split\na,b,dev\n",
        {},
        ["line 2: split 'dev' is not valid", "`options.split_column="],
    ),
    "two splits": (LONG + "a.jpg,dog,1,test\n", {"negative_value": "0"}, ["'a.jpg' (line 2)", "train by", "test by"]),
    "no test": ("image,label,split\na,b,train\n", {}, ["of its 1 images is in split test", "name train, and test"]),
    "one image": (HEAD + "a,b\n", {}, ["is in split test", "`options.test_share="]),
    "image twice, wide": ("image,cat\na,1\nb,1\na,1\n", {}, ["line 2: image 'a' has more than one row"]),
    "UTF-16": (LONG.encode("utf-16"), {}, ["UTF-16", "`options.encoding='utf-16'`"]),
    "UTF-16 without a mark": (LONG.encode("utf-16-le"), {}, ["UTF-16", "`options.encoding='utf-16'`"]),
    "latin-1": (HEAD.encode() + b"a,cat\nb,caf\xe9\n", {}, ["line 3: byte 0xe9 is not UTF-8", "cp1252"]),
    "latin-1 in the first line": (b"image,caf\xe9\na,1\n", {}, ["line 1: byte 0xe9", "`options.encoding='cp1252'`"]),
    "latin-1, wide": (b"image,cat\na,1\n\xe9,1\n", {}, ["line 3: byte 0xe9"]),
    "two delimiters": ("file;a,b\n", {}, ["',' and ';'", "`options.delimiter='tab'`"]),
    "Excel": (b"PK\x03\x04" + bytes(99), {}, ["an Excel workbook", "save the table as CSV"]),
    "gzip": (b"\x1f\x8b" + bytes(99), {}, ["compressed with gzip"]),
    "Parquet in name": (b"PAR1 and no more", {}, ["not a complete Parquet file"]),
    "long line": (HEAD + "a," + "b" * (9 << 20) + "\nc,d\n", {}, ["line 2 is longer than 4 MB"]),
    "long name": (HEAD + "a," + "b" * 5000 + "\n", {}, ["class 'bbb", "a name of 5,000 letters"]),
    "long cell": (HEAD + "a," + '"' + "b" * 200_000 + '"\n', {}, ["line 2", "field limit"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FORM)
def test_a_malformed_table_is_one_sentence(name: str, tmp_path: Path) -> None:
    content, options, says = FORM[name]
    has_values = re.match(r"image,label(,split|,by)?($|\n)", str(content)) is None
    text = refusal((own if has_values else positives)(tmp_path, content, **options))
    assert str(tmp_path / "labels.csv") in text
    assert all(part in text for part in says), text


ODD = ["../a.jpg", "a/../../b.jpg", "/etc/a.jpg", "C:a.jpg", "a\\b.jpg", "a\x00b.jpg", "a\tb.jpg", "a\x7f.jpg", ".."]


@pytest.mark.parametrize("image", ODD)
@pytest.mark.parametrize(
    "content", ["image,label,split\nfine.jpg,cat,train\n{},cat,test\n", "image,cat\nx.jpg,1\n{},1\n"]
)
def test_an_image_outside_the_folder_is_refused(content: str, image: str, tmp_path: Path) -> None:
    text = refusal((positives if "label" in content else own)(tmp_path, content.format(image)))
    assert "line 3" in text and repr(image) in text and "no path below the folder" in text


class TestLayout:
    @pytest.mark.parametrize(
        ("delimiter", "option"), [(";", None), ("\t", None), ("|", "pipe"), ("\t", "tab"), (",", ",")]
    )
    def test_delimiters_are_told_from_the_first_line(self, delimiter: str, option: str | None, tmp_path: Path) -> None:
        for content in (LONG, WIDE):
            table = own(tmp_path, content.replace(",", delimiter), negative_value="0", delimiter=option)
            assert known(table) == known(own(tmp_path / "commas", content, negative_value="0"))

    @pytest.mark.parametrize(
        ("encoding", "mark"), [("cp1252", ""), ("latin-1", ""), ("utf-16", ""), ("utf-8", "\ufeff")]
    )
    @pytest.mark.parametrize("content", [LONG, WIDE, LONG.replace("cat", '"cat"')])
    @pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
    def test_encodings_marks_and_line_ends(
        self, encoding: str, mark: str, content: str, newline: str, tmp_path: Path
    ) -> None:
        raw = (mark + content.replace("dog", "café").replace("\n", newline)).encode(encoding)
        table = own(tmp_path, raw, encoding=encoding, negative_value="0")
        assert known(table) == {("a.jpg", "cat"): 1, ("b.jpg", "cat"): -1, ("c.jpg", "café"): 1}
        assert ("byte-order mark" in " ".join(table.notes().get("train", ()))) == bool(mark)

    def test_quoted_cells_and_white_space_around_names(self, tmp_path: Path) -> None:
        content = 'image , label,by\na.jpg,"lamp, ""old""\nand new",\n" b.jpg", cat,"x\n\ny"\nc.jpg,cat,\n'
        assert "control character" in refusal(positives(tmp_path, content))
        table = positives(tmp_path, content.replace("\nand new", ""), test_share=0.6)
        assert set(known(table)) == {("a.jpg", 'lamp, "old"'), ("b.jpg", "cat"), ("c.jpg", "cat")}
        notes = " ".join(table.notes()["train"])
        assert (
            "white space or invisible letters around 1 labels, such as ' cat', were left out" in notes
            and "left out: 'by'" in notes
        )

    def test_classes_that_differ_in_capitals_are_two_and_noted(self, tmp_path: Path) -> None:
        table = own(tmp_path, LONG.replace("dog", "Cat"), negative_value="0")
        assert table.split("train").labels.class_ids == ("Cat", "cat")
        assert "differ in capitals alone" in " ".join(table.notes()["train"])

    def test_other_columns_of_a_long_table_are_left_out_and_named(self, tmp_path: Path) -> None:
        plain = own(tmp_path / "plain", LONG, negative_value="0")
        rows = [f"{line},ann,0.25" for line in LONG.splitlines()[1:]]
        more = own(tmp_path, "\n".join(["image,label,value,split,by,certainty", *rows]), negative_value="0")
        assert known(more) == known(plain)
        assert "'by', 'certainty'" in " ".join(more.notes()["train"])

    def test_a_layout_that_is_given_is_taken(self, tmp_path: Path) -> None:
        content = "image,split,label,cat\na.jpg,train,1,1\nb.jpg,test,,1\n"
        wide = known(own(tmp_path, content, layout="wide"))
        assert wide == {("a.jpg", "label"): 1, ("a.jpg", "cat"): 1, ("b.jpg", "cat"): 1}
        long = known(positives(tmp_path, content.replace(",,", ",dog,"), layout="long"))
        assert long == {("a.jpg", "1"): 1, ("b.jpg", "dog"): 1}

    def test_columns_of_other_names(self, tmp_path: Path) -> None:
        content = LONG.replace("image,label,value,split", "file,kind,is,part")
        names = {"image_column": "file", "label_column": "kind", "value_column": "is", "split_column": "part"}
        table = own(tmp_path, content, negative_value="0", **names)
        assert known(table) == known(own(tmp_path / "usual", LONG, negative_value="0"))

    def test_a_class_known_in_one_split_is_a_class_of_all(self, tmp_path: Path) -> None:
        table = own(tmp_path, LONG, negative_value="0")
        assert table.split("train").labels.class_ids == table.split("test").labels.class_ids == ("cat", "dog")


class TestParquet:
    COLUMNS = ("image", "label", "value", "split")

    def rows(self) -> dict[str, list[Any]]:
        rows = list(csv.reader(LONG.splitlines()[1:]))
        return dict(zip(self.COLUMNS, map(list, zip(*rows, strict=True)), strict=True))

    @pytest.mark.parametrize(
        "kind", [pa.int8(), pa.float32(), pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
    )
    def test_numbers_and_text_of_any_width(self, kind: pa.DataType, tmp_path: Path) -> None:
        rows = self.rows()
        numbers = [float(value) for value in rows["value"]]
        is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
        values = pa.array(numbers if is_number else rows["value"]).cast(kind)
        content = pa.table({**rows, "value": values, "label": pa.array(rows["label"]).dictionary_encode()})
        assert known(own(tmp_path / "p", content, negative_value="0")) == known(own(tmp_path, LONG, negative_value="0"))

    def test_nan_and_null_are_unknown(self, tmp_path: Path) -> None:
        columns = {"cat": [1.0, float("nan"), None], "dog": [None, 1.0, -1.0], "none": pa.nulls(3)}
        table = own(tmp_path, pa.table({"image": ["a", "b", "c"], **columns}), negative_value="-1", test_share=0.6)
        assert known(table) == {("a", "cat"): 1, ("b", "dog"): 1, ("c", "dog"): -1}

    @pytest.mark.parametrize(
        ("columns", "says"),
        [
            (
                {"image": ["a"], "cat": [1], "when": [datetime(2024, 3, 1)]},
                ["'when' ('2024-03-01", "`options.leave_out='when'`"],
            ),
            ({"image": ["a"], "cat": [1], "dog": [[1]]}, ["'dog' ('[1]')", "`options.leave_out='dog'`"]),
            ({"image": [b"\xff"], "cat": [1]}, ["'image' is of type binary"]),
            ({"image": ["a", None], "cat": [1, 1]}, ["row 2: the image is empty"]),
            ({"image": ["a", "b"], "label": ["c", None]}, ["row 2 has no label"]),
            ({"image": ["a", "b"], "cat": [1, 5]}, ["row 2, column 'cat'", "'5' is not a value"]),
            ({"image": [], "cat": []}, ["no rows"]),
        ],
    )
    def test_what_is_wrong_is_named_by_row(self, columns: dict[str, Any], says: list[str], tmp_path: Path) -> None:
        text = refusal(own(tmp_path, pa.table(columns)))
        assert all(part in text for part in [*says, str(tmp_path / "labels.parquet")]), text

    @pytest.mark.parametrize(
        "damage", [lambda raw: raw[:-1], lambda raw: raw[: len(raw) // 2], lambda raw: raw[:8], lambda raw: b"x" + raw]
    )
    def test_a_damaged_file(self, damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
        table = own(tmp_path, pa.table(self.rows()), negative_value="0")
        path = tmp_path / "labels.parquet"
        path.write_bytes(damage(path.read_bytes()))
        assert "Parquet" in refusal(table)

    def test_damage_inside(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        table = own(tmp_path, pa.table({"image": rng.integers(0, 10**9, 5000).astype(str), "cat": [1] * 5000}))
        path = tmp_path / "labels.parquet"
        raw = path.read_bytes()
        for start in range(4, len(raw) - 8, len(raw) // 7):
            path.write_bytes(raw[:start] + bytes(64) + raw[start + 64 :])
            with pytest.raises(DataError) as raised:
                Table(tmp_path, options=table.options).split("train")
            assert str(path) in str(raised.value)


class TestSplits:
    def test_names_in_any_case(self, tmp_path: Path) -> None:
        names = ["Train", "TEST", "val", "Valid", " validation"]
        rows = "".join(f"{i}.jpg,cat,{name}\n" for i, name in enumerate(names))
        table = positives(tmp_path, "image,label,split\n" + rows)
        assert members(table) == {"train": ["0.jpg"], "test": ["1.jpg"], "val": ["2.jpg", "3.jpg", "4.jpg"]}
        assert "3 images in split val neither train nor test" in " ".join(table.notes()["train"])

    def test_validation_tests_where_nothing_else_does(self, tmp_path: Path) -> None:
        table = own(tmp_path, LONG.replace("test", "val"), negative_value="0")
        assert members(table) == {"train": ["a.jpg", "b.jpg"], "test": ["c.jpg", "d.jpg"]}
        assert "those in val test" in " ".join(table.notes()["train"])

    def test_without_the_column_a_share_tests_by_a_hash(self, tmp_path: Path) -> None:
        rows = [f"{i:03d}.jpg,cat\n" for i in range(500)]
        first = positives(tmp_path / "a", "image,label\n" + "".join(rows))
        second = positives(tmp_path / "b", "image,label\n" + "".join(rows[::-2]))
        assert 70 < len(members(first)["test"]) < 130
        assert set(members(second)["test"]) < set(members(first)["test"])  # an image stays where it is
        (note,) = (note for note in first.notes()["train"] if "test_share" in note)
        assert f"{len(members(first)['test'])} of 500 images test" in note and "0.2" in note
        assert len(members(positives(tmp_path / "c", "image,label\n" + "".join(rows), test_share=0.5))["test"]) > 200

    def test_an_image_is_in_one_split_wherever_its_rows_are(self, tmp_path: Path) -> None:
        rows = [f"{i % 40}.jpg,{'cat' if i < 40 else 'dog'},{'test' if i % 40 < 10 else 'train'}\n" for i in range(80)]
        table = positives(tmp_path, "image,label,split\n" + "".join(rows))
        assert {split: len(ids) for split, ids in members(table).items()} == {"train": 30, "test": 10}


class TestImages:
    def table(self, folder: Path, images: list[str], files: list[str]) -> Table:
        rows = [f"{image},cat,{'test' if number % 2 else 'train'}\n" for number, image in enumerate(images)]
        table = positives(folder, "image,label,split\n" + "".join(rows))
        for file in files:
            (folder / "photos" / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / "photos" / file).touch()
        return table

    def test_with_and_without_a_suffix(self, tmp_path: Path) -> None:
        files = ["a.jpg", "b.PNG", "sub/c.webp", "sub/d.x.tif", "e"]
        table = self.table(tmp_path, ["a", "b", "sub/c", "./sub//d.x", "e", "f.jpg"], files)
        parts = [table.split(split).images for split in ("train", "test")]
        paths = {image: path for part in parts for image, path in zip(part.ids, part.paths, strict=True)}
        expected = {"a": "a.jpg", "b": "b.PNG", "sub/c": "sub/c.webp", "./sub//d.x": "sub/d.x.tif", "e": "e"}
        assert paths == {**expected, "f.jpg": "f.jpg"}
        assert table.split("train").images.absent() == [] and len(table.split("test").images.absent()) == 1

    def test_the_index_is_of_the_table_not_of_the_folder(self, tmp_path: Path) -> None:
        table = self.table(tmp_path, ["a", "b"], ["a.jpg", "b.jpg"])
        kept = Table(tmp_path, cache=tmp_path / "cache", options=table.options)
        assert list(kept.split("train").images.paths) == ["a.jpg"]
        (tmp_path / "photos" / "a.jpg").rename(tmp_path / "photos" / "a.png")
        again = Table(tmp_path, cache=tmp_path / "cache", options=table.options)
        assert list(again.split("train").images.paths) == ["a.png"]

    @pytest.mark.parametrize(
        ("images", "files", "says"),
        [
            (
                ["a.jpg", "b", "c", "d"],
                ["b.txt"],
                ["image 'c' of the table (line 4)", "(1 such images", "`images=DIR`"],
            ),
            (["a", "b"], ["a.jpg", "a.png", "b.jpg"], ["'a'", "(line 2)", "a.jpg or a.png", "write the suffix"]),
            (["a", "b", "a.jpg"], ["a.jpg", "b.jpg"], ["'a' (line 2)", "'a.jpg' (line 4)", "the same file, a.jpg"]),
            (["a.jpg", "./a.jpg"], ["a.jpg"], ["'a.jpg' (line 2)", "'./a.jpg' (line 3)", "the same file"]),
        ],
    )
    def test_files_that_cannot_be_told(
        self, images: list[str], files: list[str], says: list[str], tmp_path: Path
    ) -> None:
        text = refusal(self.table(tmp_path, images, files))
        assert all(part in text for part in says), text


HERE = {"labels": __file__, "images": str(Path(__file__).parent)}


class TestOptions:
    def test_without_files_it_says_what_it_needs(
        self, tmp_path: Path, make_workspace: Callable[..., Workspace]
    ) -> None:
        needs = "dataset 'table' needs `labels=FILE` and `images=DIR`"
        with pytest.raises(DataError, match=needs):
            open_dataset("table", make_workspace())
        with pytest.raises(DataError, match=needs):
            Table(tmp_path).split("train")
        with pytest.raises(DataError, match=needs):
            open_dataset("table", dataclasses.replace(make_workspace(), data_options={"labels": "x.csv"}))

    @pytest.mark.parametrize(
        ("told", "says"),
        [
            ({"labels": "no.csv", "images": "."}, '`labels="no.csv"` does not exist'),
            ({"labels": ".", "images": "."}, '`labels="."` is a folder; expected a CSV or Parquet file'),
            ({"labels": __file__, "images": "nowhere"}, "`images='nowhere'` does not exist"),
            ({"labels": __file__, "images": __file__}, "is a file; expected the folder"),
            ({"negative_value": "2"}, "negative_value = '2' is not valid: expected '0', '-1' or 'none'"),
            ({"layout": "tall"}, "expected 'long' or 'wide'"),
            ({"test_share": "1"}, "less than 1"),
            ({"encoding": "utf-5"}, "no such encoding; expected one such as utf-8"),
            ({"delimiter": "ab"}, "expected one character"),
            ({**HERE, "label_column": "file", "value_column": "file"}, "need columns of different names"),
            ({"image_colum": "file"}, "did you mean image_column?"),
        ],
    )
    def test_what_cannot_be_is_refused(
        self, told: dict[str, str], says: str, make_workspace: Callable[..., Workspace]
    ) -> None:
        with pytest.raises(PlbenchError) as raised:
            open_dataset("table", dataclasses.replace(make_workspace(), data_options=told))
        assert says in str(raised.value)

    def test_another_place_is_the_same_data_and_another_meaning_is_not(self, tmp_path: Path) -> None:
        prints = [own(tmp_path / name, LONG, negative_value="0").fingerprint() for name in "ab"]
        assert prints[0] == prints[1] != own(tmp_path / "a", LONG, negative_value="-1").fingerprint()


def test_ten_million_columns_take_little_memory(tmp_path: Path) -> None:
    contents = {"one line": b"image" + b",cat" * 10_000_000, "one name": b"image," + b"x" * 20_000_000}
    for content in contents.values():
        table = own(tmp_path, content)
        tracemalloc.start()
        text = refusal(table)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert "first line of more than 100,000 columns or 4 MB" in text
        assert peak < 32 << 20


def test_a_table_of_many_columns_is_read(tmp_path: Path) -> None:
    names = [f"class {number:05d}" for number in range(20_000)]
    rows = [["a.jpg", "train"], ["b.jpg", "test"]]
    content = [",".join(["image", "split", *names]), *(",".join(row + ["1", ""] * 10_000) for row in rows)]
    labels = own(tmp_path, "\n".join(content)).split("test").labels
    assert labels.num_classes == 20_000 and labels.num_known == 10_000 and labels.counts()[0][::2].all()


TEXT = st.text(st.characters(blacklist_categories=("Cs", "Cc", "Cf", "Zs", "Zl", "Zp", "Mn")), min_size=1, max_size=6)
CLASS = TEXT.filter(lambda name: not columns._NO_CLASS.fullmatch(columns._letters(name)))  # such as age: asked about
VALUES = st.sampled_from(["1", "0", "-1", ""])


@settings(max_examples=60, deadline=None)
@given(
    images=st.lists(st.text("abcXYZ_-é. ", min_size=1, max_size=6).map(str.strip).filter(bool), min_size=2, max_size=6),
    classes=st.lists(CLASS, min_size=2, max_size=5, unique_by=look),
    data=st.data(),
    negative=st.sampled_from(["0", "-1", "none"]),
    delimiter=st.sampled_from([",", ";", "\t"]),
)
def test_any_table_reads_back_as_a_naive_reader_reads_it(
    images: list[str], classes: list[str], data: st.DataObject, negative: str, delimiter: str
) -> None:
    files = [f"{name}.jpg" for name in dict.fromkeys(images)]
    assume(len(files) > 1 and not {"image", "split"} & set(classes))
    values = {(file, name): data.draw(VALUES) for file in files for name in classes}
    splits = {file: "test" if number == 0 else "train" for number, file in enumerate(files)}
    wide = [["image", "split", *classes], *([f, splits[f], *(values[f, c] for c in classes)] for f in files)]
    cells = data.draw(st.permutations([[f, c, v, splits[f]] for (f, c), v in values.items()]))
    repeated = data.draw(st.lists(st.sampled_from(cells), max_size=3))
    long = [["image", "label", "value", "split"], *cells, *repeated]
    expected = {cell: 1 if value == "1" else -1 for cell, value in values.items() if value in ("1", negative)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for form, rows in (("wide", wide), ("long", long)):
            path = folder / form / "labels.csv"
            path.parent.mkdir()
            with path.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file, delimiter=delimiter).writerows(rows)
            options = {"negative_value": negative, "delimiter": delimiter, "layout": form}
            options |= {"label_separator": "none"} if form == "long" else {}
            table = own(path.parent, path.read_bytes(), **options)
            assert known(table) == expected
            assert table.split("test").labels.class_ids == tuple(sorted(classes))
            assert members(table) == {"test": files[:1], "train": sorted(files[1:])}
        columns = pa.table({title: [row[at] for row in long[1:]] for at, title in enumerate(long[0])})
        assert known(own(folder / "parquet", columns, negative_value=negative, label_separator="none")) == expected


def test_names_stay_in_the_index_as_they_are(tmp_path: Path) -> None:
    table = own(tmp_path, LONG, negative_value="0")
    kept = [Table(tmp_path, cache=tmp_path / "cache", options=table.options) for _ in range(2)]
    for again in kept:
        assert isinstance(again.split("train").images.ids, TextColumn)
        assert known(again) == known(table) and re.search("-1 unknown", again.notes()["train"][0])

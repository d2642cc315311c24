"""Tables are read as a person means them, or refused with advice that works when it is followed."""

from __future__ import annotations

import ast
import re
import unicodedata
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from test_table import LONG, WIDE, known, members, own, refusal

from plbench.data.images import ImageFiles
from plbench.data.spelling import find_alike, look, trim, trim_column
from plbench.datasets.table import Table
from plbench.datasets.table.labels import find_joined, read_list

MEANT = {("a.jpg", "cat"): 1, ("b.jpg", "cat"): -1, ("c.jpg", "dog"): 1}
SPLITS = {"train": ["a.jpg", "b.jpg"], "test": ["c.jpg", "d.jpg"]}


def follow(folder: Path, content: Any, *, choose: str = "", **options: Any) -> Table:
    """The table that comes of following advice until there is none; `choose` picks one of several."""
    for _ in range(4):
        table = own(folder, content, **options)
        try:
            table.split("train")
        except ValueError as error:
            found = re.findall(r"`options\.(\w+)=([^`]+)`", str(error))
            advice = [f"{name}={ast.literal_eval(value)}" for name, value in found]
            assert advice, error
            name, _, value = next((word for word in advice if choose and choose in word), advice[0]).partition("=")
            assert options.get(name) != value, f"advice that was followed comes again: {error}"
            options[name] = value
        else:
            return table
    raise AssertionError(f"no end of advice; last: {options}")


class TestColumns:
    @pytest.mark.parametrize("option", ["image", "label", "value", "split"])
    def test_an_option_that_names_no_column_lists_those_there_are(self, option: str, tmp_path: Path) -> None:
        for layout in (None, "long"):
            text = refusal(own(tmp_path, LONG, negative_value="0", layout=layout, **{f"{option}_column": "Subset"}))
            assert (
                f"no column 'Subset', which `options.{option}_column=` names; it has image, label, value, split" in text
            )

    @pytest.mark.parametrize("option", ["leave_out", "keep"])
    def test_columns_left_out_or_kept_must_be_there(self, option: str, tmp_path: Path) -> None:
        text = refusal(own(tmp_path, WIDE, negative_value="0", **{option: "cat,Dogs"}))
        assert (
            f"no column 'Dogs', which `options.{option}=` names; it has image, split, cat, dog; did you mean dog?"
            in text
        )

    @pytest.mark.parametrize("names", ["Image,LABEL,Value,SPLIT", "IMAGE,label,\ufeffvalue,Split\u200b"])
    def test_the_usual_names_in_other_letters_are_taken_and_said(self, names: str, tmp_path: Path) -> None:
        table = own(tmp_path, LONG.replace("image,label,value,split", names), negative_value="0")
        assert known(table) == MEANT and members(table) == SPLITS
        if "Value" in names:
            assert "column 'Value' was taken for 'value'" in table.notes()["train"]

    def test_two_names_in_other_letters_are_asked_about(self, tmp_path: Path) -> None:
        content = LONG.replace("image,label,value,split", "image,label,Value,VALUE")
        assert "'Value' and 'VALUE'; say which with `options.value_column='Value'`" in refusal(own(tmp_path, content))

    @pytest.mark.parametrize(
        ("name", "present", "absent"),
        [("present", "yes", "no"), ("state", "positive", "negative"), ("ok", "True", "False"), ("x", "1.0", "0.00")],
    )
    def test_a_column_of_values_of_another_name(self, name: str, present: str, absent: str, tmp_path: Path) -> None:
        rows = LONG.replace(",1,", f",{present},").replace(",0,", f",{absent},").replace(",-1,", ",,")
        content = rows.replace("value", name)
        text = refusal(own(tmp_path, content, negative_value="0"))
        assert "although `negative_value=` is given" in text and f"`options.value_column={name!r}`" in text
        assert known(follow(tmp_path, content, negative_value="0")) == MEANT

    def test_confidences_are_no_values(self, tmp_path: Path) -> None:
        content = LONG.replace("value", "conf").replace(",1,", ",0.92,").replace("-1", "0.5")
        text = refusal(own(tmp_path, content))
        assert "'conf' may be one" in text and "write 1, 0 or nothing" in text

    @pytest.mark.parametrize("head", ["image,label,split", "image,label,by,split"])
    def test_positives_alone_must_be_said(self, head: str, tmp_path: Path) -> None:
        by = "ann," if "by" in head else ""
        content = f"{head}\na.jpg,cat,{by}train\nb.jpg,dog,{by}test\n"
        assert "although" not in refusal(own(tmp_path, content))
        table = follow(tmp_path, content)
        assert table.options.value_column == "none"
        assert known(table) == {("a.jpg", "cat"): 1, ("b.jpg", "dog"): 1}

    def test_a_label_column_in_a_wide_table(self, tmp_path: Path) -> None:
        content = "image,split,label,cat,dog\na.jpg,train,yard,True,\nb.jpg,train,shed,False,\nc.jpg,test,yard,,True\n"
        table = follow(tmp_path, content, negative_value="0", choose="leave_out")
        assert known(table) == MEANT

    @pytest.mark.parametrize(
        ("name", "values"),
        [("part", "train,Train,TEST,test"), ("Set", "training,training,val,val"), ("dev", "train,train,test,test")],
    )
    @pytest.mark.parametrize("content", [LONG, WIDE])
    def test_a_column_of_splits_of_another_name(self, content: str, name: str, values: str, tmp_path: Path) -> None:
        content = content.replace("split", name)
        for row, value in zip("abcd", values.split(","), strict=True):
            content = re.sub(rf"(?m)^({row}\.jpg.*)\b(train|test)\b", rf"\1{value}", content)
        text = refusal(own(tmp_path, content, negative_value="0"))
        assert f"`options.split_column={name!r}`" in text and f"`options.leave_out={name!r}`" in text
        assert members(follow(tmp_path, content, negative_value="0")) == SPLITS

    @pytest.mark.parametrize(
        ("name", "train", "test"), [("is_test", "0", "1"), ("is_train", "1", "0"), ("isTraining", "True", "False")]
    )
    def test_a_flag_for_the_split(self, name: str, train: str, test: str, tmp_path: Path) -> None:
        content = WIDE.replace(",train,", f",{train},").replace(",test,", f",{test},").replace("split", name)
        table = follow(tmp_path, content, negative_value="0")
        assert members(table) == SPLITS and known(table) == MEANT
        kept = own(tmp_path, content, negative_value="0", keep=name, test_share=0.6, split_column="none")
        assert name in kept.split("train").labels.class_ids

    def test_a_share_beside_a_column_of_splits_is_refused(self, tmp_path: Path) -> None:
        assert "`options.split_column='none'`" in refusal(own(tmp_path, LONG, negative_value="0", test_share=0.4))
        table = own(tmp_path, LONG, negative_value="0", test_share=0.3, split_column="none")
        train, test = (table.split(split).images.ids for split in ("train", "test"))
        assert set(test) not in ({"c.jpg", "d.jpg"}, set()) and len(train) + len(test) == 4
        assert "no column of splits is used" in " ".join(table.notes()["train"])

    def test_columns_that_are_no_classes(self, tmp_path: Path) -> None:
        extra = {"Sex": "Male,Female,Male,Male", "Age": "40,1,0,77", "Frontal": "0,1,0,1", "AP/PA": ",,,"}
        extra |= {"annotator": "ann,bob,ann,ann", "url": "http://x/1,http://x/2,http://x/3,", "weight, kg": "70,80,7,8"}
        lines = WIDE.splitlines()
        for name, values in extra.items():
            cells = [f'"{name}"', *values.split(",")]
            lines = [f"{line},{cell}" for line, cell in zip(lines, cells, strict=True)]
        content = "\n".join(lines)
        text = refusal(own(tmp_path, content, negative_value="0"))
        assert """`options.leave_out='Sex,Age,Frontal,AP/PA,annotator,url,"weight, kg"'`""" in text and "'Age'" in text
        table = follow(tmp_path, content, negative_value="0")
        assert known(table) == MEANT and table.split("train").labels.class_ids == ("cat", "dog")
        kept = own(tmp_path, content, negative_value="0", keep="Frontal", leave_out="Sex, Age")
        assert "Frontal" not in refusal(kept).split("has columns that do not look like classes")[1]

    def test_a_long_table_whose_classes_have_another_name(self, tmp_path: Path) -> None:
        """One column of names and one of numbers: a wide table with a note in it, or a long one."""
        content = LONG.replace("label", "class", 1)
        assert "if each row is one label, name the column of classes: `options.label_column='class'`" in refusal(
            own(tmp_path, content, negative_value="0")
        )
        assert known(own(tmp_path, content, negative_value="0", label_column="class")) == MEANT

    @pytest.mark.parametrize("name", ["age", "gender", "fold", "ViewPosition", "patient_id", "width", "image-id"])
    def test_a_column_of_flags_by_its_name(self, name: str, tmp_path: Path) -> None:
        content = WIDE.replace("dog", name)
        assert f"`options.leave_out={name!r}`" in refusal(own(tmp_path, content, negative_value="0"))
        kept = own(tmp_path, content, negative_value="0", keep=name)
        assert set(kept.split("train").labels.class_ids) == {"cat", name}

    def test_names_of_things_are_classes(self, tmp_path: Path) -> None:
        names = ["train", "person", "date", "path", "Male", "worker", "weights", "street view"]
        content = f"image,{','.join(names)}\n" + "".join(f"{i}.jpg{',1' * len(names)}\n" for i in range(20))
        assert own(tmp_path, content).split("train").labels.num_classes == len(names)


class TestSeveralLabels:
    CELLS = (("mop",), ("kettle",), ("ladder",), ("kettle", "mop"), ("kettle", "ladder", "mop"), ("ladder", "mop"))

    @pytest.mark.parametrize(
        ("separator", "advice"),
        [("|", "pipe"), (";", "semicolon"), (", ", "comma"), (" ", "blank"), ("/", "slash"), (" & ", "ampersand")],
    )
    @pytest.mark.parametrize("value", [None, "1", "0"])
    def test_cells_are_taken_apart_by_what_the_refusal_names(
        self, separator: str, advice: str, value: str | None, tmp_path: Path
    ) -> None:
        content = "image,label,split" + ",value" * (value is not None) + "\n"
        for row, cell in enumerate(self.CELLS):
            content += f'{row}.jpg,"{separator.join(cell)}",{"test" if row > 3 else "train"}'
            content += "\n" if value is None else f",{value}\n"
        options = {} if value is None else {"negative_value": "0"}
        text = refusal(own(tmp_path, content, **options))
        assert "line 6" in text and f"`options.label_separator={advice!r}`" in text and "kettle" in text
        table = follow(tmp_path, content, **options)
        sign = -1 if value == "0" else 1
        assert known(table) == {(f"{row}.jpg", name): sign for row, cell in enumerate(self.CELLS) for name in cell}
        options |= {} if value else {"value_column": "none"}
        assert own(tmp_path, content, label_separator="none", **options).split("train").labels.num_classes == 6

    @pytest.mark.parametrize(
        "spelled", [repr, lambda c: str(list(c)), lambda c: "[" + ", ".join(f'"{x}"' for x in c) + "]"]
    )
    def test_lists(self, spelled: Any, tmp_path: Path) -> None:
        rows = [
            f'{row}.jpg,"{spelled(cell).replace(chr(34), chr(34) * 2)}",{"test" if row > 3 else "train"}\n'
            for row, cell in enumerate(self.CELLS)
        ]
        content = "image,label,split\n" + "".join(rows)
        assert "`options.label_separator='list'`" in refusal(own(tmp_path, content))
        table = follow(tmp_path, content)
        assert table.split("train").labels.class_ids == ("kettle", "ladder", "mop")
        assert ("4.jpg", "ladder") in known(table)

    def test_lists_in_parquet_are_lists(self, tmp_path: Path) -> None:
        columns = {"image": [f"{row}.jpg" for row in range(6)], "label": [*map(list, self.CELLS[:5]), []]}
        table = own(tmp_path, pa.table({**columns, "split": ["train", "test"] * 3}), value_column="none")
        assert known(table) == {(f"{row}.jpg", name): 1 for row, cell in enumerate(self.CELLS[:5]) for name in cell}
        assert members(table)["test"] == ["1.jpg", "3.jpg", "5.jpg"]  # an image without labels is an image

    def test_empty_pieces_and_cells(self, tmp_path: Path) -> None:
        content = "image,label,split\na.jpg,mop|,train\nb.jpg,,train\nc.jpg,mop||kettle| mop,test\n"
        table = own(tmp_path, content, label_separator="|", value_column="none")
        assert known(table) == {("a.jpg", "mop"): 1, ("c.jpg", "mop"): 1, ("c.jpg", "kettle"): 1}
        assert members(table)["train"] == ["a.jpg", "b.jpg"]

    def test_a_separator_that_is_nowhere_is_refused(self, tmp_path: Path) -> None:
        assert "has ';', which `options.label_separator=`" in refusal(
            own(tmp_path, LONG, negative_value="0", label_separator=";")
        )
        assert "no use for `options.label_separator=`" in refusal(
            own(tmp_path, WIDE, negative_value="0", label_separator=";")
        )

    @pytest.mark.parametrize(
        "labels",
        [
            {"traffic light", "fire hydrant", "stop sign", "dog", "hot dog", "teddy bear", "bear", "wine glass"},
            {"lamp, street", "tree", "tench, Tinca tinca", "goldfish, Carassius auratus"},
            {"Effusion", "No Finding", "Pleural Thickening", "1/2 inch pipe"},
            {"a(b)", "[sic", "c{d}", "R&B"},
        ],
    )
    def test_names_of_several_words_are_names(self, labels: set[str]) -> None:
        assert find_joined(labels) is None

    def test_tags_that_never_stand_alone(self) -> None:
        tags = {f"{sky} {land}" for sky in ("clear", "haze") for land in ("primary", "water", "primary water")}
        assert find_joined(tags) == ("clear primary", "blank")

    @pytest.mark.parametrize(
        ("text", "items"),
        [
            ("['a', 'b c']", ["a", "b c"]),
            ("['a' 'b']", ["a", "b"]),
            ('["a"]', ["a"]),
            ("{'a'}", ["a"]),
            ("('a', 'b')", ["a", "b"]),
            ("[a, b]", ["a", " b"]),
            ("[]", []),
            ("(left)", None),
            ("a, b", None),
            ("[" * 5000, None),
            ('{"a": 1}', None),
        ],
    )
    def test_spellings_of_a_list(self, text: str, items: list[str] | None) -> None:
        assert read_list(text) == items


HEADS = {
    "sep": ("sep=;\n" + WIDE.replace(",", ";"), "'sep=;'"),
    "sep in quotes": ('"sep=;"\r\n' + WIDE.replace(",", ";").replace("\n", "\r\n"), "'sep=;'"),
    "sep of a tab": ("SEP=\t\n" + WIDE.replace(",", "\t"), "'SEP='"),
    "comment": ("# exported by tool 1.2\n" + WIDE, "# exported"),
    "comments with commas": ("# a, b\n#\n# the image list\n\n" + LONG, "# a, b"),
    "count": ("4\n" + LONG, "'4'"),
    "blank lines": ("\n\n" + WIDE, None),
    "blanks": (LONG.replace(",", " "), None),
    "blanks in a row": (WIDE.replace(",,", ",nan,").replace(",\n", ",nan\n").replace(",", "   "), None),
    "pipes": (WIDE.replace(",", "|"), None),
    "UTF-16": (("sep=;\n" + WIDE.replace(",", ";")).encode("utf-16"), "'sep=;'"),
}


class TestFirstLines:
    @pytest.mark.parametrize("name", HEADS)
    def test_what_can_be_nothing_else_is_passed_over_and_said(self, name: str, tmp_path: Path) -> None:
        content, said = HEADS[name]
        encoding = {"encoding": "utf-16"} if name == "UTF-16" else {}
        table = own(tmp_path, content, negative_value="0", **encoding)
        assert known(table) == MEANT and members(table) == SPLITS
        assert said is None or said in " ".join(table.notes()["train"])

    @pytest.mark.parametrize(
        "content",
        [
            "Labels of the shed, exported 2024-03-01\n\n" + WIDE,
            "My images\n" + LONG,
            "one\ntwo\n\nthree words here\n" + WIDE.replace(",", ";"),
            "Labels, by Ann\n" + WIDE.replace("image,", "file,"),
            "Labels\n\n" + LONG.replace("image,", "file name,"),
        ],
    )
    def test_a_title_is_named_with_the_line_of_the_names(self, content: str, tmp_path: Path) -> None:
        line = next(n for n, text in enumerate(content.splitlines(), 1) if text.startswith(("image", "file")))
        assert f"`options.header_line={line}`" in refusal(own(tmp_path, content))
        table = follow(tmp_path, content, negative_value="0")
        assert known(table) == MEANT
        wrong = content.replace("b.jpg", "../b.jpg")
        told = table.options.model_dump(exclude={"labels", "images"}, exclude_defaults=True)
        text = refusal(own(tmp_path, wrong, **told))
        assert f"line {line + 2}" in text  # as an editor counts

    def test_a_count_then_names_without_the_first(self, tmp_path: Path) -> None:
        content = "4\ncat dog \na.jpg  1 -1\nb.jpg -1 -1\nc.jpg -1  1\nd.jpg -1 -1\n"
        table = own(tmp_path, content, negative_value="-1", test_share=0.5)
        assert known(table)["a.jpg", "cat"] == 1 and known(table)["b.jpg", "dog"] == -1 and len(known(table)) == 8
        assert "their first is taken for the image" in " ".join(table.notes()["train"])

    @pytest.mark.parametrize(
        "content",
        ['[{"id": 1, "image": "a.jpg"}]', '{"image": "a.jpg", "label": "cat"}\n{"image": "b.jpg"}\n', '["a"]'],
    )
    def test_json_is_called_json(self, content: str, tmp_path: Path) -> None:
        assert "is JSON, not CSV" in refusal(own(tmp_path, content))

    def test_the_image_column_is_guessed_by_its_files(self, tmp_path: Path) -> None:
        content = WIDE.replace("image,", "no,Image file,").replace("\n", "\n7,", 4)
        assert "`options.image_column='Image file'`" in refusal(own(tmp_path, content))
        assert known(follow(tmp_path, content, negative_value="0", leave_out="no")) == MEANT

    def test_a_header_line_that_is_not_there(self, tmp_path: Path) -> None:
        assert "no names of columns in line 99" in refusal(own(tmp_path, LONG, header_line=99))


@pytest.mark.parametrize(
    ("present", "absent", "unknown"),
    [
        ("1.00", "0.00", "nan"),
        ("TRUE", "False", ""),
        ("yes", "No", "NA"),
        ("+1", "-0.0", "null"),
        ("1e0", "0", "unknown"),
        ("Positive", "negative", " "),
        ('"1,0"', '"0,0"', "NaN"),
    ],
)
def test_plain_spellings_of_values(present: str, absent: str, unknown: str, tmp_path: Path) -> None:
    rows = LONG.replace(",1,", f",{present},").replace(",0,", f",{absent},").replace(",-1,", f",{unknown},")
    assert known(own(tmp_path, rows, negative_value="0")) == MEANT


@pytest.mark.parametrize(("kind", "make"), [(pa.bool_(), bool), (pa.decimal128(5, 2), Decimal), (pa.int64(), int)])
@pytest.mark.parametrize("is_encoded", [False, True])
def test_values_of_other_types_in_parquet(kind: pa.DataType, make: Any, is_encoded: bool, tmp_path: Path) -> None:
    values = pa.array([make(1), make(0), make(1), None], kind)
    columns = {
        "image": ["a.jpg", "b.jpg", "c.jpg", "d.jpg"],
        "label": ["cat", "cat", "dog", "cat"],
        "split": ["train", "train", "test", "test"],
        "value": values.dictionary_encode() if is_encoded else values,
    }
    assert known(own(tmp_path, pa.table(columns), negative_value="0")) == MEANT


NFC, NFD = unicodedata.normalize("NFC", "café ü"), unicodedata.normalize("NFD", "café ü")


class TestNames:
    @pytest.mark.parametrize(
        ("named", "there"),
        [
            (f"{NFC}/{NFC}.jpg", f"{NFD}/{NFD}.jpg"),
            (f"{NFD}.jpg", f"{NFC}.jpg"),
            ("a.jpg", "a.JPG"),
            ("a\u00a0b.png", "a b.PNG"),
            ("a.jpg\u200b", "a.jpg"),
            (NFC, f"{NFD}.JPeG"),
            (f"{NFC}/a", f"{NFD}/a.png"),
        ],
    )
    def test_images_are_found(self, named: str, there: str, tmp_path: Path) -> None:
        file = tmp_path / "photos" / there
        file.parent.mkdir(parents=True)
        file.write_bytes(b"bytes of the image")
        (file.parent / "other.jpg").touch()
        table = own(tmp_path, f"image,cat,split\n{named},1,train\nz.jpg,1,test\n")
        images = table.split("train").images
        assert images.absent() == [] and images.read(0) == b"bytes of the image"
        assert len(table.split("test").images.absent()) == 1
        other = images.fingerprint()
        file.write_bytes(b"")
        assert images.fingerprint() != other

    def test_two_files_that_look_the_same_are_none(self, tmp_path: Path) -> None:
        for name in ("a.JPG", "a.Jpg"):
            (tmp_path / name).touch()
        assert find_alike(tmp_path, "a.jpg") is None
        assert ImageFiles(tmp_path, ["a.jpg", "a.JPG"], ["1", "2"]).absent() == [0]

    @pytest.mark.parametrize("other", ["c\u00adat", "ｃat", "c\u200bat"])
    def test_classes_that_look_the_same_are_refused(self, other: str, tmp_path: Path) -> None:
        for content in (LONG, WIDE):
            text = refusal(own(tmp_path, content.replace("dog", other), negative_value="0"))
            assert "look the same" in text and ascii(other) in text

    @pytest.mark.parametrize("spelled", ["\ufeffcat", "cat\u200b", "\u00a0cat\u2060", "cat\u3000"])
    def test_invisible_letters_around_a_name_are_left_out(self, spelled: str, tmp_path: Path) -> None:
        table = own(tmp_path, LONG.replace("b.jpg,cat", f"b.jpg,{spelled}"), negative_value="0")
        assert known(table) == MEANT
        assert "invisible letters around 1 labels" in " ".join(table.notes()["train"])
        split = own(tmp_path, LONG.replace(",train", f",{spelled.replace('cat', 'Train')}"), negative_value="0")
        assert members(split) == SPLITS

    def test_images_that_look_the_same_are_refused(self, tmp_path: Path) -> None:
        content = f"image,label,value\n{NFC}.jpg,cat,1\n{NFD}.jpg,cat,1\n"
        text = refusal(own(tmp_path, content))
        assert "(line 2)" in text and "(line 3)" in text and "look the same" in text

    def test_trimming_is_the_same_on_columns(self) -> None:
        texts = [" a ", "\u200b\u00a0b\ufeff", "c d", "", "\u2003", "é\u200d", "\u200eم\u200f", "plain"]
        assert trim_column(pa.array(texts)).to_pylist() == [trim(text) for text in texts]
        assert look(NFC) == look(NFD) and look("a\u200db") == look("ab") and look("ＡＢ\u00a0 c") == "AB c"

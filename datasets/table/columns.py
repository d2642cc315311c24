"""Which columns of a person's own table mean what. What could be another thing is asked about, by an error."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from plbench.api import DataError
from plbench.data.spelling import look, trim

from .file import TableFile, leave_out
from .options import Layout, TableOptions
from .values import ABSENT, BAD, EMPTY, MINUS, ONE, PRESENT, ZERO, CodeOf

SPLIT_NAMES = {"train": 0, "training": 0, "test": 1, "testing": 1, "val": 2, "valid": 2, "validation": 2}
_NONE = "none"
_PANDAS_INDEX = "__index_level_"
_FLAGS = {"test": (1, 0), "train": (0, 1), "val": (2, 0)}  # split of a 1 and of a 0 in is_test, is_train, is_val
_FLAG = re.compile(r"(?:is|in|for)(test|train|val)(?:ing|id|idation)?(?:image|set|split)?")
_NO_CLASS = re.compile(
    r"age|sex|gender|ethnicity|race|frontal|lateral|appa|viewposition|orientation|fold|kfold|partition|phase|subset"
    r"|(annotator|rater|reader|worker|labell?er|user|patient|subject|study|image|img|photo|row|file|sample|camera|site)id"
    r"|annotator|annotatedby|rater|id|index|unnamed\d*|width|height|imagewidth|imageheight|url|cocourl|flickrurl|uri|md5|sha(?:1|256|512)"
    r"|confidence|score|timestamp|datetime|createdat|filename|filepath|numlabels|verified|checked|reviewed"
)
_IMAGE = re.compile(r"(?i)\.(jpe?g|png|webp|bmp|gif|tiff?)$")


@dataclass(frozen=True)
class Columns:
    """The columns that mean something; None where there is no such column.

    Attributes:
        classes: of a wide table. notes: sentences on how columns were taken.
    """

    layout: Layout
    image: str
    label: str | None = None
    value: str | None = None
    split: str | None = None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class ColumnFinder:
    """Finds the columns of one table."""

    def __init__(self, table: TableFile, options: TableOptions) -> None:
        """Read the first rows.

        Raises:
            DataError: if an option names a column that is not there, or two name the same.
        """
        self._table, self._options, self._notes = table, options, list[str]()
        asked = (options.image_column, options.label_column, options.value_column, options.split_column)
        names = [name for name in asked if name != _NONE]
        if len(set(names)) < len(names):
            raise DataError(
                "image_column, label_column, value_column and split_column need columns of different names, not "
                f"{', '.join(asked[:3])} and {asked[3]}"
            )
        for option in ("leave_out", "keep"):
            for name in getattr(options, option):
                if name not in table.columns:
                    raise self._absent(name, option, table.columns)
        self._columns = [name for name in table.columns if name not in options.leave_out]
        image, self._label = self._named("image"), self._named("label")
        self._value, self._split = self._named("value"), self._named("split")
        self._sample = table.sample()
        if image is None:
            raise DataError(
                f"{table.path} has no column {options.image_column!r}; it has {_listed(self._columns)}; name the one "
                f"with the image files, such as `options.image_column={self._guess_image()!r}`"
            )
        self._image = image
        self._codes = {name: [CodeOf()[text] for text in texts] for name, texts in self._sample.items()}

    def find(self) -> Columns:
        """Return the columns, and in which layout.

        Raises:
            DataError: if it could be another: which, and which option says so.
        """
        return self._find_long() if self._tell_layout() == "long" else self._find_wide()

    def _named(self, part: str) -> str | None:
        """Return the column that an option names, or the only one of the usual name in other capitals."""
        option = f"{part}_column"
        asked = trim(getattr(self._options, option))
        if asked in self._columns or (asked == _NONE and part in ("value", "split")):
            return asked if asked != _NONE else None
        alike = [name for name in self._columns if look(name).casefold() == look(asked).casefold()]
        if option in self._options.model_fields_set and not alike:
            raise self._absent(asked, option, self._columns)
        if len(alike) > 1:
            raise DataError(
                f"{self._table.path} has columns {' and '.join(map(repr, alike[:4]))}; say which with "
                f"`options.{option}={alike[0]!r}`"
            )
        if alike:
            self._notes.append(f"column {alike[0]!r} was taken for {asked!r}")
        return alike[0] if alike else None

    def _absent(self, name: str, option: str, columns: Sequence[str]) -> DataError:
        by_fold = {column.casefold(): column for column in reversed(columns)}
        close = difflib.get_close_matches(name.casefold(), by_fold, 1)
        found = _listed(columns) + (f"; did you mean {by_fold[close[0]]}?" if close else "")
        return DataError(f"{self._table.path} has no column {name!r}, which `options.{option}=` names; it has {found}")

    def _guess_image(self) -> str:
        for name in self._columns:
            texts = [text for text in self._sample[name] if text]
            if texts and sum(bool(_IMAGE.search(trim(text))) for text in texts) > len(texts) / 2:
                return name
        return next(filter(None, self._columns), "file")

    def _others_with_values(self) -> list[str]:
        named = ("", self._image, self._label, self._value, self._split)
        return [name for name in self._columns if name not in named and self._has_values(name)]

    def _has_values(self, name: str) -> bool:
        return BAD not in self._codes[name] and any(code != EMPTY for code in self._codes[name])

    def _tell_layout(self) -> Layout:
        asked, label = self._options.layout, self._label
        if asked == "long" and label is None:
            raise self._absent(self._options.label_column, "label_column", self._columns)
        if asked or label is None:
            return asked or "wide"
        doubtful = self._others_with_values()
        if self._value is None and self._options.value_column != _NONE and len(doubtful) < 2:
            return "long"  # which asks whether the one is its column of values
        if self._value is not None:  # a score or an annotator of each label makes no wide table
            doubtful = [name for name in doubtful if not _NO_CLASS.fullmatch(_letters(name))]
        if doubtful:
            wide = "`options.layout='wide'`" if self._has_values(label) else leave_out([label])
            raise DataError(
                f"{self._table.path} has a column {label!r}, and in {doubtful[0]!r} values as of a class; give "
                f"`options.layout='long'` if each row is one label, or {wide} if each row is one image and "
                f"{doubtful[0]!r} is a class"
            )
        return "long"

    def _find_long(self) -> Columns:
        """Return a row for every label."""
        if self._options.keep:
            raise DataError("`options.keep=` names classes of a wide table; this one is long: leave the option out")
        wanted = (self._image, self._label, self._value, self._split)
        left = [name for name in self._columns if name not in wanted]
        self._ask_for_split([name for name in left if name])
        if left:
            shown = ", ".join(map(repr, left[:8]))
            self._notes.append(f"columns that are no part of a long table were left out: {shown}")
        return Columns("long", self._image, self._label, self._value, self._split, notes=tuple(self._notes))

    def check_value(self) -> None:
        """Ask which column of a long table says present or absent, where none is known to.

        Raises:
            DataError: if there is none and nothing says that every row is a positive.
        """
        if self._value is not None or self._options.value_column == _NONE:
            return
        guess = ""
        if likely := next(iter(self._others_with_values()), None):
            guess = f"is it {likely!r}? Name it with `options.value_column={likely!r}`; or "
            if len(set(self._sample[self._image])) == len(self._sample[self._image]):
                assert self._label is not None
                guess += f"if each row is one image and {likely!r} a class, give {leave_out([self._label])}; or "
        elif sure := next(filter(self._has_shares, self._columns), None):
            guess = (
                f"{sure!r} may be one, but has numbers between 0 and 1: write 1, 0 or nothing in their place and name "
                f"it with `options.value_column={sure!r}`; or "
            )
        although = ", although `negative_value=` is given" if self._options.negative_value else ""
        raise DataError(
            f"{self._table.path} has no column {self._options.value_column!r}, which says whether a label is present "
            f"or absent{although}; it has {_listed(self._columns)}; {guess}give "
            "`options.value_column='none'` if every row says that its class is present"
        )

    def _has_shares(self, name: str) -> bool:
        """Return whether a column that means nothing else has numbers up to 1."""
        texts = list(filter(None, self._sample[name]))
        numbers = [float(text) for text in texts if re.fullmatch(r"\s*\d*\.?\d+\s*", text)]
        is_free = name not in ("", self._image, self._label, self._split)
        return is_free and bool(texts) and len(numbers) == len(texts) and max(numbers) <= 1

    def _find_wide(self) -> Columns:
        """Return a row for every image, a column for every class."""
        for option in ("label_column", "value_column", "label_separator"):
            if option in self._options.model_fields_set and getattr(self._options, option) not in (None, _NONE):
                raise DataError(
                    f"{self._table.path} is a wide table, which has no use for `options.{option}=`; leave it out"
                )
        if "" in self._columns:
            raise DataError(
                f"{self._table.path}: column {self._columns.index('') + 1} has no name; name its class, or leave it "
                "out (pandas writes row numbers so: to_csv(index=False))"
            )
        keys = [self._image, self._split] if self._split else [self._image]
        rest = [name for name in self._columns if name not in keys]
        classes = sorted(name for name in rest if not name.startswith(_PANDAS_INDEX))
        if len(classes) < len(rest):
            self._notes.append("the column of pandas' row numbers was left out")
        asked = [name for name in rest if name in classes and name not in self._options.keep]
        self._ask_for_split(asked)
        if not classes:
            raise DataError(f"{self._table.path} has no column of a class beside {' and '.join(map(repr, keys))}")
        self._ask_for_classes(classes, asked)
        if self._options.leave_out:
            left = ", ".join(map(repr, self._options.leave_out[:8]))
            self._notes.append(f"columns left out, as -D leave_out says: {left}")
        return Columns("wide", self._image, split=self._split, classes=tuple(classes), notes=tuple(self._notes))

    def _ask_for_split(self, columns: Sequence[str]) -> None:
        """Refuse a column that may say which images test: it is to be named, or left out."""
        for name in columns if self._split is None and self._options.split_column != _NONE else ():
            texts = {trim(text).lower() for text in self._sample[name]}
            is_flag = _FLAG.fullmatch(_letters(name)) is not None and self._has_values(name)
            if is_flag or (texts and texts <= SPLIT_NAMES.keys()):
                shown = f"has {' and '.join(sorted(texts)[:3])}" if not is_flag else "has flags"
                raise DataError(
                    f"{self._table.path}: does column {name!r}, which {shown}, say which images train and test? Name "
                    f"it with `options.split_column={name!r}`, or leave it out with {leave_out([name])}"
                )

    def _ask_for_classes(self, classes: Sequence[str], asked: Sequence[str]) -> None:
        """Refuse columns of a wide table that are no classes by their names or texts: to be left out, or kept."""
        odd = {}  # a text by column, where most texts are no values
        for name in asked:
            codes = self._codes[name]
            if codes.count(BAD) > (len(codes) - codes.count(EMPTY)) / 2:
                odd[name] = self._sample[name][codes.index(BAD)]
        if len(odd) == len(classes) and self._options.layout is None:
            name, text = next(iter(odd.items()))
            where = self._table.where(name, trim(text))
            raise DataError(
                f"{self._table.path}, {where}, column {name!r}: {text!r:.60} is no value; if each row is one label, "
                f"name the column of classes: `options.label_column={name!r}`; if each is one image, write 1, 0, -1 or "
                "nothing for each class"
            )
        doubtful = [name for name in asked if name in odd or _NO_CLASS.fullmatch(_letters(name))]
        if doubtful:
            shown = ", ".join(f"{name!r} ({odd[name]!r:.20})" if name in odd else repr(name) for name in doubtful[:6])
            more = f" and {len(doubtful) - 6} more" if len(doubtful) > 6 else ""
            by_name = [name for name in doubtful if name not in odd]
            keep = f", or keep what is a class, such as `options.keep={by_name[0]!r}`" if by_name else ""
            texts = [name for name in doubtful if name in odd]
            long = ""
            if len(texts) == 1 and self._options.layout is None:
                long = f"; if each row is one label, name the column of classes: `options.label_column={texts[0]!r}`"
            raise DataError(
                f"{self._table.path} has columns that do not look like classes: {shown}{more}; leave them out with "
                f"{leave_out(doubtful)}{keep}{long}"
            )


def flag_splits(column: str) -> dict[int, int] | None:
    """Read what a flag such as is_test says: the split of each code of a value; None if the name is no such flag."""
    if (match := _FLAG.fullmatch(_letters(column))) is None:
        return None
    yes, no = _FLAGS[match[1]]
    return {ONE: yes, PRESENT: yes, ZERO: no, ABSENT: no, MINUS: no}


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(name[:60] for name in columns[:12]) + (", …" if len(columns) > 12 else "")


def _letters(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()

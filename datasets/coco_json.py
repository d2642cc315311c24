"""Annotation files in COCO's JSON layout, which LVIS shares: decoded from a memory map, checked, made into arrays.

The polygons are nearly all of such a file. Types say which keys are wanted; the decoder passes over the others
without building anything, and the file's own pages are the only large memory.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Generic, Protocol, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from plbench.api import DataError, ProgressReport
from plbench.data.spelling import first_alike
from plbench.files.paths import UNSAFE

IntArray = npt.NDArray[np.int64]
Id = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]

_BOM = b"\xef\xbb\xbf"
_OUTSIDE = re.compile(rf"{UNSAFE}|/$")


class Category(msgspec.Struct, gc=False):
    """A class: its id, which has gaps, and its name."""

    id: Id
    name: str


class Image(msgspec.Struct, gc=False):
    """An image of COCO; `file_name` is relative to the split's folder."""

    id: Id
    file_name: str


class Annotation(msgspec.Struct, gc=False):
    """One object in an image, or a crowd of them: of both only the class matters here."""

    image_id: Id
    category_id: Id


class _HasId(Protocol):
    id: int


ImageType = TypeVar("ImageType")
CategoryType = TypeVar("CategoryType")


class Document(msgspec.Struct, Generic[ImageType, CategoryType]):
    """The sections of a file that are read."""

    images: list[ImageType]
    annotations: list[Annotation]
    categories: list[CategoryType]


DocumentType = TypeVar("DocumentType", bound="Document[Any, Any]")


@dataclass(frozen=True)
class AnnotationFile:
    """A JSON file of annotations, and what goes wrong in it.

    Attributes:
        dataset: name of the dataset that it belongs to.
    """

    path: Path
    dataset: str

    def decode(
        self, kind: type[DocumentType], report: ProgressReport = lambda done, total: None
    ) -> tuple[DocumentType, tuple[str, ...]]:
        """Return the file as structs, and notes on how it was read.

        Raises:
            DataError: if it cannot be read, is not JSON, or has not the keys and types of `kind`.
        """
        fix = f"if it was downloaded, delete it and run plbench data download {self.dataset}"
        try:
            with self.path.open("rb") as file:
                if not self.path.stat().st_size:
                    raise self.error(f"is empty; {fix}")
                data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            raise self.error(f"cannot be read: {error.strerror}") from error
        report(0, len(data))
        has_mark = data[:3] == _BOM
        try:
            document = msgspec.json.decode(data[len(_BOM) * has_mark :], type=kind)
        except msgspec.ValidationError as error:
            raise self.error(f": {error}") from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self.error(f"cannot be read as JSON: {error}; {fix}") from error
        report(len(data), len(data))
        note = f"{self.path.name} starts with a UTF-8 byte-order mark, which was passed over"
        return document, (note,) if has_mark else ()

    def error(self, sentence: str) -> DataError:
        """Return an error that names the file; the sentence goes on after its path."""
        return DataError(f"{self.path}{'' if sentence.startswith(':') else ' '}{sentence}")


@dataclass(frozen=True)
class Ids:
    """The ids of one section, in rising order: an entry's rank is its row or column.

    Attributes:
        file, section: where they stand.
        values: [N] rising.
        order: [N] the entry of each in the file.
    """

    file: AnnotationFile
    section: str
    values: IntArray
    order: IntArray

    @classmethod
    def of(cls, file: AnnotationFile, section: str, entries: Sequence[_HasId]) -> Ids:
        """Rank a section's entries by id.

        Raises:
            DataError: if there is none, or two have the same id.
        """
        if not entries:
            raise file.error(f": {section} is an empty list; expected at least one entry")
        given = np.fromiter((entry.id for entry in entries), np.int64, len(entries))
        order = np.argsort(given, kind="stable")
        values = given[order]
        same = np.flatnonzero(values[1:] == values[:-1])
        if same.size:
            first, second = order[same[0]], order[same[0] + 1]
            raise file.error(
                f": {section}[{second}].id = {values[same[0]]} is that of {section}[{first}] too; ids must be unique"
            )
        return cls(file, section, values, order)

    def __len__(self) -> int:
        return len(self.values)

    def ranks(self, wanted: IntArray, where: Callable[[int], str]) -> IntArray:
        """Return the rank of each of some ids [K].

        Args:
            where: names the place in the file of the k-th of them.

        Raises:
            DataError: if the section has no entry of such an id.
        """
        found = np.searchsorted(self.values, wanted)
        known = self.values[np.minimum(found, len(self) - 1)] == wanted
        if not known.all():
            first = int(np.argmin(known))
            raise self.file.error(f": {where(first)} = {wanted[first]}, but no entry of {self.section} has that id")
        return found

    def texts(self) -> tuple[str, ...]:
        """Return the ids as text, in rising order."""
        return tuple(map(str, self.values.tolist()))

    def nested_ranks(
        self, lists: Sequence[Sequence[int]], where: Callable[[int, int], str]
    ) -> tuple[IntArray, IntArray]:
        """Return ids that entries of another section list: the entry of each [K], and its rank [K].

        Args:
            where: names the place in the file of an entry's n-th.

        Raises:
            DataError: as `ranks` does.
        """
        owners = np.repeat(np.arange(len(lists)), [len(one) for one in lists])
        flat = np.fromiter(chain.from_iterable(lists), np.int64, len(owners))

        def place(position: int) -> str:
            owner = int(owners[position])
            return where(owner, position - int(np.searchsorted(owners, owner)))

        return owners, self.ranks(flat, place)


def annotated_cells(document: Document[Any, Any], images: Ids, categories: Ids) -> tuple[IntArray, IntArray]:
    """Return row and column of every annotation, in the order of the file.

    Raises:
        DataError: if one names an image or a category that the file does not define.
    """
    annotations = document.annotations
    image_ids = np.fromiter((entry.image_id for entry in annotations), np.int64, len(annotations))
    category_ids = np.fromiter((entry.category_id for entry in annotations), np.int64, len(annotations))
    rows = images.ranks(image_ids, lambda number: f"annotations[{number}].image_id")
    return rows, categories.ranks(category_ids, lambda number: f"annotations[{number}].category_id")


def say_alike(names: Sequence[str]) -> tuple[str, ...]:
    """Note on categories whose names look the same and are written with other characters; their ids differ."""
    alike = first_alike(pa.array(sorted(set(names)), pa.string()))
    if alike is None:
        return ()
    one, other = alike
    return (f"categories {one!a} and {other!a} look the same and have ids of their own; they were taken for two",)


def first_outside(paths: Iterable[str]) -> int | None:
    """Return position of the first path that does not name a file below the folder it starts from.

    None where all do.
    """
    return next((number for number, path in enumerate(paths) if _OUTSIDE.search(path)), None)

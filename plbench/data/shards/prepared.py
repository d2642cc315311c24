"""Prepared datasets: images packed into shards, with their labels, in one folder that can be copied.

prepared.json           name of the dataset, settings of packing, and whether it is complete
train/shard-00000.arrow … the images (see plbench.data.shards.shards)
train/labels/           their labels, in the order of the images, memory-mapped
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from plbench.data.annotations.collect import Annotations, refuse_unknown_classes
from plbench.data.dataset import FINGERPRINT_FORMAT, Dataset, LabelledSplit
from plbench.data.digests import file_sha256
from plbench.data.labels import IntArray
from plbench.data.pixels import PIXELS
from plbench.data.shards.shards import ShardedImages, refuse_other_pixels
from plbench.errors import DataError, did_you_mean, first_invalid
from plbench.files.paths import read_plain, refuse_links
from plbench.files.plain_json import MAX_BYTES

PREPARED = "prepared.json"


class Preparation(BaseModel):
    """The metadata of a prepared folder.

    Attributes:
        dataset: its name. source: fingerprint of the original dataset. done: whether it is complete.
        num_images: by split, of the original dataset; unreadable ones are left out here.
        pixels: version of the image decoding rules; 1 if not stated.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1
    dataset: str
    source: str
    short_side: int
    quality: int
    splits: tuple[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")], ...]
    num_images: dict[str, int]
    groups: dict[str, tuple[str, ...]]
    done: bool
    pixels: int = 1


def is_prepared(root: Path) -> bool:
    """Return whether a folder was made by `prepare`, complete or not."""
    return (root / PREPARED).is_file()


def read_preparation(root: Path) -> Preparation:
    """Return the metadata of a prepared folder; DataError if damaged, or if its images follow other decoding rules."""
    try:
        about = Preparation.model_validate_json(read_plain(root, root / PREPARED, MAX_BYTES))
    except (OSError, ValidationError) as error:
        field, why = ("", str(error)) if isinstance(error, OSError) else first_invalid(error)[:2]
        raise DataError(
            f"{root / PREPARED} cannot be read: {field}{': ' if field else ''}{why}; run plbench data prepare again"
        ) from error
    refuse_other_pixels(about.pixels, root)
    return about


class PreparedDataset(Dataset):
    """A prepared folder used instead of the published files. Its subclass has the dataset's own name and protocols."""

    kind: ClassVar[type[Dataset]]

    def __init__(self, root: Path, *, cache: Path | None = None, options: Any = None) -> None:
        """Read the folder's metadata; DataError if damaged, or of another dataset."""
        super().__init__(root, cache=cache, options=options)
        self.about = read_preparation(root)
        if self.about.dataset != self.name:
            raise DataError(f'{root} holds {self.about.dataset!r}, prepared; give `dataset="{self.about.dataset}"`')
        # compared with the original numbers: without unreadable images it is another dataset
        if self.official_num_images or self.official_num_classes is not None:
            self.official_num_images = {**self.about.num_images, **self.official_num_images}  # type: ignore[misc]
        self._splits: dict[str, LabelledSplit] = {}

    def missing(self) -> list[str]:
        """Return splits used by a protocol that are not packed completely."""
        if not self.about.done:
            raise DataError(
                f"{self.root} was not prepared completely; run plbench data prepare {self.name} again to continue"
            )
        return [split for split in self.used_splits() if not (self.root / split / "labels").is_dir()]

    def fetch_hint(self) -> str:
        """Return the command that creates it."""
        return f"plbench data prepare {self.name} packs it"

    def split(self, name: str) -> LabelledSplit:
        """Return one packed split; DataError if it was not packed, or is damaged."""
        if name not in self.about.splits:
            packed = did_you_mean(name, self.about.splits)
            raise DataError(f"{self.root} has no split {name!r} of {self.name!r}; {packed}")
        if name not in self._splits:
            labels = self._annotations(name).labels
            refuse_unknown_classes(self.about.groups, labels, self.root / PREPARED)
            self._splits[name] = LabelledSplit(ShardedImages(self.root / name), labels)
        return self._splits[name]

    def _annotations(self, split: str) -> Annotations:
        folder = self.root / split / "labels"
        for path in (folder, *(folder.iterdir() if folder.is_dir() else ())):
            refuse_links(self.root, path)
        try:
            return Annotations.open(folder)
        except DataError as error:
            raise DataError(
                f"{error}; delete {folder} and run plbench data prepare {self.name} again, which makes it again"
            ) from error

    def published_rows(self, split: str, procedure: str) -> tuple[IntArray, int]:
        """Return the rows, if the published order is the split's own and no image was left out.

        Raises:
            DataError: otherwise, since different labels would be sampled under the name of the published ones.
        """
        rows, num_rows = super().published_rows(split, procedure)
        if self.kind.published_rows is not Dataset.published_rows or num_rows != self.about.num_images[split]:
            raise DataError(
                f"{self.root}, prepared, does not keep the order in which {procedure} draws labels; give the folder of "
                f"the published files of {self.name!r}"
            )
        return rows, num_rows

    def fingerprint(self) -> str:
        """Return sha256 over labels and shards of the splits in use."""
        content: dict[str, Any] = {"format": FINGERPRINT_FORMAT, "pixels": PIXELS}
        for split in self.used_splits():
            files = sorted(path for path in (self.root / split / "labels").iterdir() if path.is_file())
            labels = {path.name: file_sha256(path, self.cache) for path in files}
            content[split] = [labels, self.split(split).images.fingerprint()]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Return the groups defined in the published files."""
        return dict(self.about.groups)

    def notes(self) -> dict[str, tuple[str, ...]]:
        """Return notes on the packing, and those on the original label files."""
        about = self.about
        said = f"prepared at a short side of {about.short_side} px from files with fingerprint {about.source[:12]}"
        return {split: (said, *self._annotations(split).notes) for split in self.used_splits()}


def prepared_kind(kind: type[Dataset]) -> type[PreparedDataset]:
    """Return the dataset class that reads prepared folders of `kind`, with its name, protocols and recipes."""
    copied = (
        *("name", "title", "licence", "sources", "protocols", "recipes", "Options"),
        *("official_num_images", "official_num_classes", "collections", "expected_positives", "validation_unit"),
    )
    members: dict[str, Any] = {attribute: getattr(kind, attribute) for attribute in copied}
    return type(f"Prepared{kind.__name__}", (PreparedDataset,), {**members, "kind": kind, "__doc__": kind.__doc__})

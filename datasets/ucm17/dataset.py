"""2,100 aerial photographs with 17 classes, complete labels: a comparison takes minutes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from plbench.data.recipes import quick_recipe

from ..coco.fixture import draw_presence
from ..complete_labels import CSL_README, simulated_protocols
from ..complete_table import CompleteTable
from ..fixture_images import write_image
from ..table.options import TableOptions

_PUBLISHED = "LandUse_Multilabeled.txt"
_FIXTURE_SIZES = {"train": 60, "test": 30}
_PERCENTS = [15, 40, 35, 40, 15, 15, 15, 15, 45, 15, 60, 20, 15, 15, 15, 45, 20]


class Ucm17(CompleteTable):
    """UC Merced land use (USGS National Map) with the labels of Chaudhuri et al.: 1,680 train, 420 test images.

    Read as published (`UCMerced_LandUse/Images/<scene>/<scene>NN.tif` and `LandUse_Multilabeled.txt`), or as one table
    `labels.csv` beside `images/<scene>NN.jpg`. The split, 80 and 20 of each land use, comes with plbench: none was
    published. The column `scene` of `labels.csv` is the land use an image was taken for, not one of the classes.
    """

    name = "ucm17"
    title = "UCM-17 (aerial photographs)"
    licence = "photographs in the public domain (USGS); labels by Chaudhuri et al., IEEE TGRS 2018"
    sources = ("https://bigearth.eu/datasets.html",)
    recipes = (quick_recipe(image_size=224),)
    official_num_images: ClassVar = {"train": 1680, "test": 420}
    official_num_classes = 17
    class_names = (
        *("airplane", "bare-soil", "buildings", "cars", "chaparral", "court", "dock", "field", "grass"),
        *("mobile-home", "pavement", "sand", "sea", "ship", "tanks", "trees", "water"),
    )
    protocols = simulated_protocols(
        "ucm17",
        {"fpc=30": 3.0, "rpa=0.5": 1.0, "rpa=0.9": 1.0, "single-positive": 1.0, "none": 1.0},
        selective={"top_k": 1, "eta": 0.5},
        sources={
            "gammas": CSL_README,
            "top_k": "ours: COCO's 5 of 80 classes, as a share of 17",
            "eta": "COCO's; fixed before any training",
        },
    )

    @property
    def _as_published(self) -> bool:
        return not (self.root / "labels.csv").exists()

    def annotation_files(self, split: str) -> Sequence[Path]:
        """Return `labels.csv`, or the published text file where that is not there."""
        return [self.root / (_PUBLISHED if self._as_published else "labels.csv")]

    def missing(self) -> list[str]:
        """Return what is not there of the published files, unless they came as one table."""
        needed = (_PUBLISHED, "UCMerced_LandUse/Images") if self._as_published else ("images",)
        return [name for name in needed if not (self.root / name).exists()]

    def fetch_hint(self) -> str:
        """Return where both parts are published."""
        return (
            f"unzip multilabels.zip and UCMerced_LandUse.zip, both found from {self.sources[0]}, in {self.root}, so "
            f"that {_PUBLISHED} lies beside UCMerced_LandUse"
        )

    def table_options(self) -> TableOptions:
        """Return how either table is written; 0 is absent in both."""
        if self._as_published:
            return TableOptions(
                layout="wide", negative_value="0", image_column="IMAGE\\LABEL", split_column="none", delimiter="tab"
            )
        return TableOptions(layout="wide", negative_value="0", leave_out=("scene",))

    def image_id(self, name: str) -> str:
        """Return the name without its ending, such as `agricultural00`."""
        return name.rpartition(".")[0] or name

    def image_path(self, image_id: str) -> str:
        """Return the TIFF in the folder of its land use, or the JPEG in `images`."""
        if self._as_published:
            return f"UCMerced_LandUse/Images/{image_id[:-2]}/{image_id}.tif"
        return f"images/{image_id}.jpg"

    def make_fixture(self) -> None:
        """Write 60 train and 30 test pictures as TIFF in the published layout, whose table is in no order."""
        rows = []
        for split, size in _FIXTURE_SIZES.items():
            ids = [image_id for image_id, part in self.shipped_split.items() if part == split]
            ids = ids[:: len(ids) // size][:size]
            for seed, (image_id, present) in enumerate(
                zip(ids, draw_presence(size, _PERCENTS, seed=size), strict=True)
            ):
                write_image(self.root / self.image_path(image_id), present, seed=1000 * size + seed)
                shown = np.isin(np.arange(len(self.class_names)), present)
                rows.append("\t".join([image_id, *map(str, shown.astype(int))]))
        header = "\t".join(["IMAGE\\LABEL", *self.class_names])
        (self.root / _PUBLISHED).write_text("\r\n".join([header, *sorted(rows, key=lambda row: row[::-1]), ""]))

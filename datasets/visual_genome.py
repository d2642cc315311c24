"""What the datasets on Visual Genome's photographs share: their two folders of images."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from plbench.api import RemoteFile, TextColumn

FOLDERS = ("VG_100K", "VG_100K_2")
COLLECTIONS = ("visual-genome", "coco")  # half of the photographs are COCO's

# Sizes: two public download scripts of different make state the same bytes; nobody states checksums.
IMAGE_ARCHIVES = tuple(
    RemoteFile(
        url=f"https://cs.stanford.edu/people/rak248/VG_100K_2/{name}",
        path=name,
        kind="images",
        size=size,
        unpack=".",
        makes=(folder,),
    )
    for name, size, folder in zip(("images.zip", "images2.zip"), (9731705982, 5471658058), FOLDERS, strict=True)
)


def image_paths(root: Path, names: Iterable[str]) -> TextColumn:
    """Return where images lie below the root: in the second folder if only that has them, else in the first."""
    first, second = (
        set(os.listdir(folder)) if folder.is_dir() else set() for folder in (root / name for name in FOLDERS)
    )
    return TextColumn.of(f"{FOLDERS[name in second and name not in first]}/{name}" for name in names)


def missing_folders(root: Path) -> list[str]:
    """Return the folders of images if neither is there; what one of them lacks is told of image by image."""
    return [] if any((root / name).is_dir() for name in FOLDERS) else list(FOLDERS)

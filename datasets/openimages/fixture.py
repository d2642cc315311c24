"""Small imitations of the three published forms of OpenImages, with the traps that the real files hold."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ..fixture_images import write_image

NUM_CLASSES = 10  # trainable
NUM_IMAGES: Mapping[str, int] = {"train": 60, "validation": 16, "test": 40}
FOREIGN = "/m/0outside"
"""A class that rows name and that is not trainable."""

_NAMES = ("Tree", "Person", "Car", "Dog", "Flower", "Building", 'Sign, "stop"', "Bird", "Person", "Boat")


def mids() -> list[str]:
    """Return the trainable classes: not sorted, as in V3."""
    return [f"/m/0{(7 * number) % NUM_CLASSES:x}fx" for number in range(NUM_CLASSES)]


class FixtureRows:
    """What a split's images show and what is said about it: image ids, and rows (image, class column, is present)."""

    def __init__(self, split: str) -> None:
        """Draw which classes are where; the same for every call."""
        draws = np.random.PCG64(len(split)).random_raw(NUM_IMAGES[split] * NUM_CLASSES * 2).astype(np.float64) / 2**64
        shown, known = draws.reshape(2, NUM_IMAGES[split], NUM_CLASSES)
        frequency = np.linspace(0.65, 0.25, NUM_CLASSES)
        self.present = shown < frequency
        self.known = known < np.linspace(0.9, 0.5, NUM_CLASSES)
        self.ids = [hashlib.sha256(f"{split}{row}".encode()).hexdigest()[:16] for row in range(NUM_IMAGES[split])]

    def rows(self) -> Iterator[tuple[str, str, bool]]:
        """Yield image id, MID, is present: image by image."""
        names = mids()
        for row, image_id in enumerate(self.ids):
            for column in np.flatnonzero(self.known[row]):
                yield image_id, names[column], bool(self.present[row, column])

    def draw(self, folder: Path, pattern: str) -> None:
        """Write the images below a folder."""
        for row, image_id in enumerate(self.ids):
            path = folder / pattern.format(id=image_id)
            write_image(path, np.flatnonzero(self.present[row]).tolist(), seed=int(image_id[:8], 16))


def write_labels(path: Path, split: str) -> None:
    """Write a CSV of verified labels: both ways to write confidence, a foreign class, a repeat, a contradiction."""
    found = FixtureRows(split)
    rows = list(found.rows())
    lines = [
        f"{image},{'crowdsource-' * (number % 2)}verification,{mid},{int(present)}{'.0' * (number % 3 == 0)}"
        for number, (image, mid, present) in enumerate(rows)
    ]
    first, last = rows[0], rows[-1]
    lines.append(f"{first[0]},verification,{FOREIGN},1")
    lines.append(f"{first[0]},crowdsource-verification,{first[1]},{int(first[2])}")  # says it again
    lines.append(f"{last[0]},crowdsource-verification,{last[1]},{int(not last[2])}")  # says the contrary
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["ImageID,Source,LabelName,Confidence", *lines]) + "\n", encoding="utf-8")


def write_classes(class_list: Path, descriptions: Path, *, header: bool) -> None:
    """Write the trainable list, and names that repeat, need quoting, and cover more than that list."""
    class_list.parent.mkdir(parents=True, exist_ok=True)
    class_list.write_text("\n".join(mids()) + "\n", encoding="utf-8")
    lines = ["LabelName,DisplayName"] if header else []
    for mid, name in zip([*mids(), FOREIGN], [*_NAMES, "Outside"], strict=True):
        quoted = '"' + name.replace('"', '""') + '"' if '"' in name or "," in name else name
        lines.append(f"{mid},{quoted}")
    descriptions.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_csl_table(root: Path) -> None:
    """Write data.csv with lists of MIDs as text, and images below the folders that it names."""
    names, lines = mids(), ["filepath,label,label_neg,split_name"]
    for split, short in (("train", "train"), ("validation", "val"), ("test", "test")):
        found = FixtureRows(split)
        found.draw(root, f"{short}/{{id}}.jpg")
        for row, image_id in enumerate(found.ids):
            positive = [names[c] for c in np.flatnonzero(found.known[row] & found.present[row])]
            negative = [names[c] for c in np.flatnonzero(found.known[row] & ~found.present[row])]
            lines.append(f'{short}/{image_id}.jpg,"{positive}","{negative}",{short}')
    root.mkdir(parents=True, exist_ok=True)
    (root / "data.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def pack_tar(root: Path, split: str) -> None:
    """Move a split's folder into one plain tar file beside it, as some mirrors keep the images."""
    folder = root / split
    with tarfile.open(root / f"{split}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(folder.rglob("*.jpg")):
            content = path.read_bytes()
            member = tarfile.TarInfo(path.relative_to(root).as_posix())
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
            path.unlink()
    folder.rmdir()

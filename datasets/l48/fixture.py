"""A small imitation of L48.

What makes real files awkward is in it: recordings that validate though their entry says train, clips of one recording
in one split, clips not fully annotated, birds that none of the three lists names, ranges with birds beyond the classes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..coco.fixture import draw_presence
from ..fixture_images import write_image

SPECIES = tuple(f"bird{number:02d}" for number in range(12))
_PARTS = {"train": (0, 15, 4), "val": (100, 2, 4), "test": (8000, 6, 5)}  # first asset, assets, clips of each


def write_l48_fixture(root: Path) -> None:
    """Write three text files, the array of recordings that validate, and the pictures."""
    assets: list[dict[str, Any]] = []
    clips: list[dict[str, Any]] = []
    for part, (first, num_assets, size) in _PARTS.items():
        presence = draw_presence(max(num_assets * size, 14), [10] * len(SPECIES), seed=48 + first)
        for number in range(num_assets):
            shown = presence[number * size : (number + 1) * size]
            heard = sorted({column for columns in shown for column in columns})
            target = heard[number % len(heard)] if heard else number % len(SPECIES)
            observed = sorted({*heard, target, (target + 1) % len(SPECIES)})
            possible = sorted({*observed, (target + 3) % len(SPECIES), (target + 7) % len(SPECIES)})
            assets.append(
                {
                    "id": first + number,
                    "split": "test" if part == "test" else "train",
                    "target_species_code": SPECIES[target],
                    "possible_species_codes": [*_codes(possible), "nobird"],
                    "observed_species_codes": _codes(observed),
                }
            )
            for order, columns in enumerate(shown):
                path = f"images/{first + number}/{order}.jpg"
                write_image(root / path, columns, seed=100 * first + 10 * number + order)
                clips.append(_clip(len(clips), first + number, order, path, columns, possible))
    (root / "clips.json").write_text(json.dumps(clips))
    (root / "assets.json").write_text(json.dumps(assets))
    lines = [f"{code},Genus {code},The {code.capitalize()}\n" for code in SPECIES]
    (root / "taxa.csv").write_text("species_code,scientific_name,common_name\n" + "".join(lines))
    first, num_assets, _ = _PARTS["val"]
    np.save(root / "val_split.npy", np.arange(first, first + num_assets))


def _clip(identity: int, asset: int, order: int, path: str, present: list[int], possible: list[int]) -> dict[str, Any]:
    """Return a clip; every third is not fully annotated, and of every ninth one bird is in no list."""
    unknown = [column for column in possible if column not in present] if identity % 3 == 2 else []
    absent = [column for column in range(len(SPECIES)) if column not in present and column not in unknown]
    return {
        "id": 7 * identity,
        "asset_id": asset,
        "clip_order": order,
        "file_path": path,
        "width": 112,
        "height": 112,
        "present_species_codes": _codes(present),
        "unknown_species_codes": _codes(unknown),
        "absent_species_codes": _codes(absent[1:] if identity % 9 == 4 else absent),
        "boxes": [
            {"id": box, "species_code": SPECIES[column], "status": "active", "bbox": [0.1, 0.2, 0.3, 0.4]}
            for box, column in enumerate(present)
        ],
    }


def _codes(columns: list[int]) -> list[str]:
    return [SPECIES[column] for column in columns]

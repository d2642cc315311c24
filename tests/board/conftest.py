"""Made-up boards, as `render_page` takes them: seven methods, 56 classes, three boards, and rows quoted from papers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

METHODS = {
    "selective": ("P-ASL, Selective", 2.0),
    "ce-negative": ("CE, Negative", 1.0),
    "pasl-negative": ("P-ASL, Negative", 0.2),
    "ce-ignore": ("CE, Ignore", -0.5),
    "asl-negative": ("ASL, Negative", -1.0),
    "wce-ignore": ("wCE, Ignore", -1.6),
    "se-negative": ("SE(LS), Negative", 0.4),
}
BOARDS = {
    "scenes-fpc300": "Scenes, FPC-300",
    "scenes-rpa0.5": "Scenes, RPA-0.5",
    "scenes-single": "Scenes, single positive",
}
GROUPS = {"object": 40, "colour": 10, "attribute": 6}
PAPER = "Ben-Baruch et al., CVPR 2022, arXiv 2110.10955"
CAUTION = "Assume Negative at 82.0 beats IMCL's own 78.07 by 4: these rows are not one protocol."


def figure(mean: float, half: float = 0.93) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half * 0.97}


def class_table() -> list[dict[str, Any]]:
    groups = [name for name, number in GROUPS.items() for _ in range(number)]
    return [
        {
            "id": f"c{index}",
            "name": f"{group} {index}",
            "positives": 2400 // (index + 1),
            "negatives": 3000 - index,
            "groups": [group],
        }
        for index, group in enumerate(groups)
    ]


def make_row(method: str, seed: int, **changes: Any) -> dict[str, Any]:
    title, lead = METHODS[method]
    generator = np.random.default_rng([seed, *method.encode()])
    ap = np.clip(np.linspace(25, 85, 56) + lead + generator.normal(0, 4, 56), 0, 100)
    ends = np.cumsum(list(GROUPS.values()))
    row = {
        "id": f"{method}-{seed}",
        "method": method,
        "title": title,
        "label": title,
        "paper": PAPER,
        "source_file": f"methods/{method.replace('-', '_')}.py",
        "tier": "verified" if method == "selective" else "self-reported",
        "provisional": False,
        "ceiling": False,
        "withdrawn": None,
        "unranked": None,
        "tuned_here": False,
        "seeds": [0, 1, 2, 3, 4],
        "studies": 0,
        "same": [],
        "keys": [f"{seed:04x}{index:012x}" for index in range(5)],
        "rank": None,
        "rank_at_cost": None,
        "figures": {
            "map_c": figure(float(ap.mean())),
            "map_o": figure(float(ap.mean()) + 19.5, 0.54),
            **{
                name: figure(float(part.mean()), 1.2)
                for name, part in zip(GROUPS, np.split(ap, ends[:-1]), strict=True)
            },
        },
        "num_classes_scored": 56,
        "num_classes": 56,
        "to_best": None,
        "cost": {
            "image_passes": 11_000,
            "head_images": 80_000,
            "trainings": 1,
            "trials": 0,
            "hours": 0.0025 + lead / 4000,
            "device": "cpu",
            "machine": "a processor",
            "images_per_second": 1830.4 + 10 * lead,
        },
        "params": {"gamma_neg": 3.0, "gamma_pos": 0.0, "top_k": 5},
        "plan": {"epochs": 10, "batch": 256, "optimizer": {"name": "adamw", "lr": 0.002}},
        "environment": {"python": "3.11.7", "torch": "2.9.0", "device": "cpu", "cores": 2},
        "commit": "1f0c3b8e" * 5,
        "ap": [float(value) for value in ap],
    }
    return {**row, **changes}


def make_section(seed: int) -> dict[str, Any]:
    rows = sorted((make_row(method, seed) for method in METHODS), key=lambda row: -row["figures"]["map_c"]["mean"])
    best = rows[0]["figures"]["map_c"]["mean"]
    for index, row in enumerate(rows):
        row["rank"], row["rank_at_cost"] = max(1, index), max(1, index - 1)
        if index:
            gap = row["figures"]["map_c"]["mean"] - best
            row["to_best"] = {
                "difference": gap,
                "low": gap - 0.5,
                "high": gap + 0.44,
                "p": 0.11 if index == 1 else 0.006,
            }
    rows += [
        make_row("selective", seed + 50, label="P-ASL, Selective, top_k=50", seeds=[0], provisional=True, cost={}),
        make_row("ce-ignore", seed + 60, id=f"ceiling-{seed}", label="CE, complete labels", ceiling=True),
        make_row("asl-negative", seed + 70, withdrawn="trained on test by mistake", paper="", source_file=None),
    ]
    rows[-2]["figures"]["map_c"] = figure(best + 4)
    return {
        "id": "default",
        "title": "tf_efficientnet_lite0 at 96 px, mlp head",
        "regime": "probe",
        "backbone": "tf_efficientnet_lite0",
        "model": "tf_efficientnet_lite0 at 96 px, mlp head",
        "configuration": "default",
        "ranked": True,
        "detectable": 0.8,
        "notes": ["A difference of 0.8 points is found with a chance of 80 %."],
        "rows": rows,
    }


def make_board(name: str, seed: int) -> dict[str, Any]:
    return {
        "name": name,
        "title": BOARDS.get(name, name),
        "dataset": "scenes",
        "protocol": f"{name}/v1",
        "protocol_sha256": "0123456789abcdef" * 4,
        "about": "For each class, 300 images keep their label; all other labels are hidden from training.",
        "version": 1,
        "groups": list(GROUPS),
        "classes": class_table(),
        "sections": [make_section(seed)],
        "published": [],
    }


def quoted_board() -> dict[str, Any]:
    def row(title: str, map_c: float, source: str, caution: str | None = None, **figures: float) -> dict[str, Any]:
        return {
            "title": title,
            "map_c": map_c,
            "map_o": None,
            "figures": figures,
            "backbone": "ResNet-101",
            "source": source,
            "caution": caution,
            "selection": None,
        }

    table = "Ben-Baruch et al., CVPR 2022, arXiv 2110.10955, table 3"
    return {
        **make_board("openimages-v3", 0),
        "title": "OpenImages V3",
        "dataset": "openimages-v3",
        "groups": ["group_1", "group_5"],
        "classes": [],
        "sections": [],
        "published": [
            row("IMCL", 78.07, table, group_1=70.95, group_5=87.34),
            row("P-ASL, Selective", 83.03, table, group_1=73.19, group_5=90.61),
            row("Assume Negative", 82.0, "Kim et al., Large Loss Matters, CVPR 2022", CAUTION),
        ],
    }


def many_rows(number: int) -> list[dict[str, Any]]:
    board = make_board("scenes-fpc300", 0)
    names = list(METHODS)
    made = [
        make_row(names[index % 7], index, label=f"{METHODS[names[index % 7]][0]}, run {index}")
        for index in range(number)
    ]
    for row in made:
        row["rank"] = row["rank_at_cost"] = 1 + made.index(row)
    board["sections"] = [{**board["sections"][0], "rows": made}]
    return [board]


@pytest.fixture
def boards() -> list[dict[str, Any]]:
    return [make_board(name, seed) for seed, name in enumerate(BOARDS)] + [quoted_board()]


@pytest.fixture
def crowd() -> Callable[[int], list[dict[str, Any]]]:
    """Makes one board with so many rows."""
    return many_rows

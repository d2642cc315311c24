"""Indexing a file of OpenImages' shape, against pandas doing the same: `PLBENCH_BENCH_ROWS=57e6 make bench`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pytest

pytestmark = pytest.mark.bench

ROWS = int(float(os.environ.get("PLBENCH_BENCH_ROWS", "3e6")))
NUM_CLASSES, NUM_NAMED = 9605, 19994  # trainable classes, and all that rows name
IMAGES_PER_ROW = 9_011_219 / 57_000_000

OURS = """
import json, resource, sys, time
from pathlib import Path
from plbench.datasets.openimages import OpenImagesV6
root, cache = Path(sys.argv[1]), Path(sys.argv[2])
start = time.perf_counter()
dataset = OpenImagesV6(root, cache=cache)
labels = dataset.annotations("train").labels
print(json.dumps({"seconds": time.perf_counter() - start, "cells": labels.num_known,
                  "positives": int(labels.counts()[0].sum()),
                  "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}))
"""

PANDAS = """
import json, resource, sys, time
import pandas as pd
from pathlib import Path
root = Path(sys.argv[1])
start = time.perf_counter()
rows = pd.read_csv(root / "oidv6-train-annotations-human-imagelabels.csv")
image, _ = pd.factorize(rows["ImageID"])
label, _ = pd.factorize(rows["LabelName"])
groups = rows[["Confidence"]].assign(image=image, label=label).groupby(["image", "label"])
cells = groups["Confidence"].agg(["min", "max"])
print(json.dumps({"seconds": time.perf_counter() - start, "cells": len(cells),
                  "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}))
"""


def write_v6_train(root: Path, rows: int) -> None:
    """Rows, ids and classes as V6-train has them: sorted hex ids, six rows an image, frequencies that fall like 1/k."""
    rng = np.random.default_rng(0)
    identities = np.unique(rng.integers(0, 2**62, int(rows * IMAGES_PER_ROW), dtype=np.int64))
    hexadecimal = np.frombuffer(b"0123456789abcdef", np.uint8)
    letters = np.stack([hexadecimal[(identities >> (60 - 4 * place)) & 15] for place in range(16)], axis=1)
    image_ids = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(letters), [None, pa.py_buffer(letters)])
    owner = np.repeat(np.arange(len(identities)), 1 + rng.poisson(rows / len(identities) - 1, len(identities)))
    mids = pa.array([f"/m/0{np.base_repr(10000 + 7919 * number, 36).lower()}" for number in range(NUM_NAMED)])
    share = 1 / (np.arange(NUM_NAMED) + 20.0)
    share[NUM_CLASSES:] *= 0.2
    cumulative = np.cumsum(share / share.sum())
    source, confidence = pa.array(["verification", "crowdsource-verification"]), pa.array(["0", "1"])
    with (root / "oidv6-train-annotations-human-imagelabels.csv").open("wb") as file:
        file.write(b"ImageID,Source,LabelName,Confidence\n")
        for start in range(0, len(owner), 2_000_000):
            part = owner[start : start + 2_000_000]
            named = np.minimum(np.searchsorted(cumulative, rng.random(len(part))), NUM_NAMED - 1)
            table = pa.table(
                [
                    image_ids.take(pa.array(part)).cast(pa.binary()).cast(pa.string()),
                    source.take(pa.array((rng.random(len(part)) < 0.3).astype(np.int32))),
                    mids.take(pa.array(named)),
                    confidence.take(pa.array((rng.random(len(part)) < 0.45).astype(np.int32))),
                ],
                names=["ImageID", "Source", "LabelName", "Confidence"],
            )
            pa_csv.write_csv(table, file, pa_csv.WriteOptions(include_header=False, quoting_style="none"))
    (root / "oidv6-classes-trainable.txt").write_text("\n".join(mids[:NUM_CLASSES].to_pylist()) + "\n")
    names = "".join(f'{mid},"Name, {number}"\n' for number, mid in enumerate(mids.to_pylist()))
    (root / "oidv6-class-descriptions.csv").write_text("LabelName,DisplayName\n" + names)


def measured(program: str, *arguments: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_index_against_pandas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pandas")
    write_v6_train(tmp_path, ROWS)
    measured(
        "import json, sys; open(sys.argv[1], 'rb').read(); print(json.dumps({}))", next(tmp_path.glob("oidv6-train*"))
    )
    ours = measured(OURS, tmp_path, tmp_path / "cache")
    pandas = measured(PANDAS, tmp_path)
    again = measured(OURS, tmp_path, tmp_path / "cache")
    assert again["cells"] == ours["cells"] and again["positives"] == ours["positives"]
    ratio = pandas["seconds"] / ours["seconds"]
    with capsys.disabled():
        print(f"\n{ROWS:,} rows: index {ours['seconds']:.1f} s, {ours['peak_gb']:.2f} GB; ", end="")
        print(f"pandas {pandas['seconds']:.1f} s, {pandas['peak_gb']:.2f} GB; {ratio:.1f} times faster; ", end="")
        print(f"reopened in {again['seconds']:.2f} s, {again['peak_gb']:.2f} GB")

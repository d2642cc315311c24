"""How reading an LVIS file of true proportions compares with json.load: seconds and memory, each in its own process.

PLBENCH_BENCH_MB sets the size; 1100 is LVIS v1's train file, for which json.load takes some 10 GB.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FULL_MB = 1100
IMAGES, ANNOTATIONS, CATEGORIES = 100_170, 1_270_141, 1203  # of the full file

OURS = """
from pathlib import Path
from plbench.datasets.lvis import Lvis
dataset = Lvis(Path(ROOT), cache=CACHE and Path(CACHE))
def work(report=lambda done, total: None):
    labels = dataset.annotations("train", report).labels
    return [labels.num_images, labels.num_known]
"""
THEIRS = """
import json
def work():
    with open(f"{ROOT}/annotations/lvis_v1_train.json", encoding="utf-8") as file:
        content = json.load(file)
    return [len(content["images"]), len(content["annotations"])]
"""
MEASURE = """
import json, time
def most():  # getrusage would tell of the process that this one was forked from
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
before = most()
begin = time.perf_counter()
result = work()
seconds = time.perf_counter() - begin
print(json.dumps({"seconds": seconds, "before": before, "peak": most(), "result": result}))
"""


def write_lvis(path: Path, megabytes: int) -> None:
    """A train file in which everything is drawn by chance and as long as in LVIS; polygons are most of it."""
    rng = np.random.default_rng(0)
    share = megabytes / FULL_MB
    num_images, num_annotations = int(IMAGES * share), int(ANNOTATIONS * share)
    polygons = [json.dumps([np.round(rng.random(2 * n) * 600, 2).tolist()]) for n in rng.integers(15, 82, 2000)]
    categories = [
        {"id": c, "name": f"class_{c}", "synset": f"class.n.{c}", "frequency": "rcf"[c % 3], "synonyms": [], "def": ""}
        for c in range(1, CATEGORIES + 1)
    ]
    owners = rng.integers(0, num_images, num_annotations).tolist()
    classes = rng.integers(1, 1000, num_annotations).tolist()
    path.parent.mkdir(parents=True)
    with path.open("w", encoding="utf-8") as file:  # and so into the disk's cache, for all that read it
        file.write('{"info": {}, "annotations": [')
        for number, (image, category) in enumerate(zip(owners, classes, strict=True)):
            file.write(
                f'{", " if number else ""}{{"area": 1234.5, "id": {number}, "segmentation": {polygons[number % 2000]}, '
                f'"image_id": {image}, "bbox": [12.34, 56.78, 90.12, 34.56], "category_id": {category}}}'
            )
        file.write('], "images": [')
        for image in range(num_images):
            entry: dict[str, Any] = {"id": image, "license": 3, "height": 480, "width": 640}
            entry["coco_url"] = f"http://images.cocodataset.org/train2017/{image:012d}.jpg"
            entry["flickr_url"] = f"http://farm9.staticflickr.com/8186/{image:012d}_z.jpg"
            entry["date_captured"] = "2013-11-14 11:18:45"
            entry["neg_category_ids"] = rng.integers(1000, CATEGORIES + 1, 15).tolist()
            entry["not_exhaustive_category_ids"] = []
            file.write(f"{', ' if image else ''}{json.dumps(entry)}")
        file.write(f'], "categories": {json.dumps(categories)}}}')


def measured(work: str, root: Path, cache: Path | None = None) -> dict[str, Any]:
    """Runs `work` in a process of its own; `own` is the most memory that it had to itself, in kB, pages of files aside.

    That of files comes and goes with the disk's cache, and is in `peak` alone.
    """
    code = f"ROOT, CACHE = {str(root)!r}, {cache and str(cache)!r}\n{work}\n{MEASURE}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    own = 0
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as process:
        while process.poll() is None:
            own = max(own, own_memory(process.pid))
            time.sleep(0.01)
        assert process.stdout is not None and process.returncode == 0
        return {**json.loads(process.stdout.read()), "own": own}


def own_memory(process: int) -> int:
    """Anonymous memory of a process now, kB; 0 where the system does not tell."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


@pytest.mark.bench
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_reading_lvis_against_json_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "annotations" / "lvis_v1_train.json"
    write_lvis(path, int(os.environ.get("PLBENCH_BENCH_MB", "60")))
    megabytes = path.stat().st_size / 1e6
    theirs = measured(THEIRS, tmp_path)
    ours = measured(OURS, tmp_path)
    first, again = (measured(OURS, tmp_path, tmp_path / "cache") for _ in range(2))
    assert ours["result"] == first["result"] == again["result"]
    assert ours["result"][0] == theirs["result"][0] and ours["result"][1] > theirs["result"][1]
    with capsys.disabled():
        print(f"\nLVIS train of {megabytes:.0f} MB, {theirs['result'][1]:,} annotations; own memory is of the process")
        rows = (("json.load", theirs), ("read", ours), ("first open, with index", first), ("second open", again))
        for name, row in rows:
            print(
                f"  {name}: {row['seconds']:.2f} s, own memory {row['own'] / 1e3:.0f} MB, peak with mapped pages "
                f"{row['peak'] / 1e3:.0f} MB (before: {row['before'] / 1e3:.0f} MB)"
            )
        print(
            f"  read: {theirs['seconds'] / ours['seconds']:.1f} x as fast as json.load, "
            f"{100 * ours['seconds'] / megabytes:.2f} s per 100 MB, {theirs['own'] / ours['own']:.1f} x less own memory"
        )

"""Whatever a file holds, it is read or refused in one sentence: no other error, no hang, nothing written elsewhere.

Valid files are damaged (bytes and slices; numbers, values and members by extremes) and given to their readers.
`PLBENCH_FUZZ` is how many such inputs each kind of file is tried with (`make soak`: thousands), and with more than the
few of CI, `PLBENCH_KILL_SEED` chooses which. Hypothesis makes them; `coverage_fuzz.py` is its like that is guided by
coverage. `-rP` shows how many were tried and refused. What was found is in FOUND and in `corpus`.
"""

from __future__ import annotations

import functools
import io
import json
import os
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from damage import damaged
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from readers import CORPUS, MAKERS, Reader, try_reading

from plbench.runs.outcome import CHECKPOINT

CI_EXAMPLES = 4
NUM_EXAMPLES = int(os.environ.get("PLBENCH_FUZZ", CI_EXAMPLES))
SEED = int(os.environ.get("PLBENCH_KILL_SEED", "0"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reader]:
    """A reader by its name, made once."""

    @functools.cache
    def make(name: str) -> Reader:
        return MAKERS[name](tmp_path_factory.mktemp(name))

    return make


@pytest.fixture
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files are read. The current folder is empty: there a name from data would write."""
    for folder in ("from", "in"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "from")
    return tmp_path / "in"


@pytest.mark.filterwarnings("ignore:Generating overly large repr")  # of what failed, which it would hide
@pytest.mark.parametrize("name", MAKERS)
def test_what_is_read(name: str, made: Callable[[str], Reader], top: Path) -> None:
    tally = Counter[str]()
    try_reading(made(name), made(name).files, top, valid=True)
    for victim in made(name).victims:
        reader = made(name).of(victim)

        @seed(SEED)
        @settings(
            max_examples=NUM_EXAMPLES,
            deadline=None,
            database=None,
            derandomize=NUM_EXAMPLES <= CI_EXAMPLES,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        )
        @given(damaged(victim, reader.files[victim]), st.booleans())
        def holds(reader: Reader, victim: str, content: bytes, sealed: bool) -> None:
            tally.update({victim: 1, **try_reading(reader, {**reader.files, victim: content}, top, sealed)})

        cast(Any, holds)(reader, victim)
    print(f"{name}: {dict(tally)}")


# --- what was found ---------------------------------------------------------------------------------------------------


def archive(content: bytes, **members: bytes | np.ndarray) -> bytes:
    """An .npz with some members replaced: by an array, or by bytes that are none."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            value, file = members.get(name.removesuffix(".npy")), io.BytesIO()
            if isinstance(value, np.ndarray):
                np.save(file, value)
            new.writestr(name, old.read(name) if value is None else file.getvalue() or value)
    return made.getvalue()


NO_TEXT = np.frombuffer((0x110000).to_bytes(4, "little") * 3, "<U1")  # beyond what Unicode has
MANY_DIGITS = b"9" * 5000  # more than Python turns into a number
DEEP = b"[" * 100_000
LONG_NAME = tarfile.TarInfo("a")  # which is a header of what follows
LONG_NAME.type, LONG_NAME.size = tarfile.GNUTYPE_LONGNAME, 1
LONG_NAMES = (LONG_NAME.tobuf(tarfile.GNU_FORMAT) + b"a".ljust(512, b"\0")) * 2000

NOTE, WEIGHTS = "checkpoints/step-00000003.json", "checkpoints/step-00000003.pt"

FOUND: dict[str, tuple[str, str, Callable[[bytes], bytes]]] = {
    "digits before what is none took years": ("label_files", "a.txt", lambda old: b"0.jpg, " + b"1" * 60 + b"x"),
    "blanks without a comma took hours": ("label_files", "a.txt", lambda old: b" " * 100_000),
    "a class of many digits": ("label_files", "a.txt", lambda old: b"0.jpg, " + MANY_DIGITS),
    "a row without an image": ("label_files", "long.csv", lambda old: b"image,label,value\n0,a,1\n,b,-1\n"),
    "a column of a long name": ("label_files", "wide.csv", lambda old: b"x" * 100_000 + b",a\n1,1\n"),
    "a row without a class": ("label_files", "long.csv", lambda old: b"image,label,value\n0,a,1\n1,,-1\n"),
    "a tensor of an old kind, damaged": ("label_files", "a.pt", lambda old: b"Q" + old[1:]),
    "no tensor": ("label_files", "a.pt", lambda old: b"\0"),
    "headers of a tar without an end": ("archives", "a.tar", lambda old: LONG_NAMES),
    "headers of images without an end": ("archives", "images.tar", lambda old: LONG_NAMES),
    "headers of a pack without an end": ("published", "pack.tar", lambda old: LONG_NAMES),
    "a field of a long name": ("grid", "grid.toml", lambda old: b"x" * 9000 + b" = 1\n" + old),
    "a dataset of a long name": ("run", "spec.toml", lambda old: old.replace(b'"table"', b'"%s"' % (b"x" * 9000))),
    "a number of many digits in a grid": ("grid", "grid.toml", lambda old: old + b"x = " + MANY_DIGITS),
    "NaN among checksums": ("stored", "index/sha256.json", lambda old: b'{"": NaN, "sha256": ""}'),
    "an infinity among checksums": ("stored", "index/sha256.json", lambda old: b'{"": 1e309, "sha256": ""}'),
    "deep checksums": ("stored", "index/sha256.json", lambda old: DEEP),
    "a name of many bytes in a zip": (
        "stored",
        "embeddings.npz",
        lambda old: old[:26] + b"\xff\x01" + old[28:],
    ),
    "ids that are no text": ("stored", "embeddings.npz", lambda old: archive(old, class_ids=NO_TEXT)),
    "a scale of bytes": ("stored", "embeddings.npz", lambda old: archive(old, logit_scale=np.zeros((), "V8"))),
    "a member that is no array": ("stored", "embeddings.npz", lambda old: archive(old, class_ids=b"x")),
    "labels of classes that are no text": ("stored", "labels.npz", lambda old: archive(old, class_ids=NO_TEXT)),
    "labels that are no array": ("stored", "labels.npz", lambda old: archive(old, values=b"x")),
    "a number of many digits in a spec": ("run", "spec.toml", lambda old: b"x = " + MANY_DIGITS),
    "weights that are a number": ("run", CHECKPOINT, lambda old: saved(3)),
    "a checkpoint that is a list": ("run", WEIGHTS, lambda old: saved([3])),
    "a note whose spec is a text": ("run", NOTE, lambda old: json.dumps({**json.loads(old), "spec": "x"}).encode()),
    "a note whose step is a list": ("run", NOTE, lambda old: json.dumps({**json.loads(old), "step": [1]}).encode()),
    "a deep note": ("run", NOTE, lambda old: DEEP),
    "a note that is a number": ("run", NOTE, lambda old: b"0"),
    "a deep log": ("run", "log.jsonl", lambda old: DEEP),
    "a log of infinite epochs": ("run", "log.jsonl", lambda old: b'{"epoch": 1' + b"0" * 400 + b"}"),
    "counts that are texts": ("run", "task.npz", lambda old: archive(old, positives=np.array(list("abcdef")))),
    "a task without text": ("run", "task.npz", lambda old: archive(old, class_names=np.arange(6))),
    "a trial without a value": (
        "studies",
        "journal.log",
        lambda old: old.replace(b'"param_name":"lr"', b'"param_name":"x"'),
    ),
    "a trial of 5000 percent": (
        "studies",
        "journal.log",
        lambda old: old.replace(b'"values":[50.0]', b'"values":[5000.0]'),
    ),
    "a winner beyond the trials": ("studies", "study.json", lambda old: old.replace(b'"winner": 2', b'"winner": 3')),
    "a winner that failed": ("studies", "study.json", lambda old: old.replace(b'"winner": 2', b'"winner": 1')),
    "a worker that is a list": ("studies", "journal.log", lambda old: re.sub(rb'"worker":"\w+"', b'"worker":[]', old)),
    "no attribute": ("studies", "journal.log", lambda old: old.replace(b'{"seconds":1.0}', b"{}")),
    "scores that are no array": ("run", "cells.npz", lambda old: archive(old, scores=b"x")),
    "a size that is a matrix": ("run", "cells.npz", lambda old: archive(old, num_images=np.zeros((2, 2)))),
}


def saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


@pytest.mark.parametrize("found", FOUND)
def test_what_was_found(found: str, made: Callable[[str], Reader], top: Path) -> None:
    name, victim, damage = FOUND[found]
    files = {**made(name).files, victim: damage(made(name).files[victim])}
    assert try_reading(made(name), files, top, sealed=name == "run")["refused"]
    try_reading(made(name), files, top, sealed=name != "run")


@pytest.mark.parametrize("case", sorted(CORPUS.glob("*/*")), ids=lambda case: f"{case.parent.name}-{case.name}")
def test_the_corpus(case: Path, made: Callable[[str], Reader], top: Path) -> None:
    """Files that `coverage_fuzz.py` found, each in a folder `READER/NAME`, are read or refused."""
    found = {str(path.relative_to(case)): path.read_bytes() for path in case.rglob("*") if path.is_file()}
    assert found
    for sealed in (False, True):
        try_reading(made(case.parent.name), {**made(case.parent.name).files, **found}, top, sealed)

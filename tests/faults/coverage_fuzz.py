"""Damaged files for the readers of `readers.py`, chosen by which code of plbench they reach: `make fuzz SECONDS=60`.

Each reader is tried in a process of its own, which may take 5 s of processor time for an input, and 2 GB more memory
than at its start. An input is one of its files: the place among them, whether checksums are made to agree, and the
content. atheris (libFuzzer) keeps the inputs that reach code which no other did, and damages those; half of the damage
is that of `damage.py`, which knows JSON and archives. Whatever is neither read nor refused in one sentence is shortened
and written to `corpus/READER/WHAT`, which `test_fuzz.py` replays. Where a campaign got to is kept in build/fuzz.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from damage import damaged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

try:
    import atheris
except ImportError:
    raise SystemExit("atheris is not installed: make fuzz installs it, on Linux with Python 3.11 to 3.13") from None

instrumented = atheris.instrument_imports(include=["plbench"])
with instrumented, contextlib.redirect_stderr(io.StringIO()):  # it says a line for each module
    from readers import CORPUS, MAKERS, Reader, try_reading

TOP = Path(__file__).parents[2]
MOST_BYTES = 1 << 16  # of an input
MOST_MEMORY = 2 << 30  # bytes more than at the start
PARTS = ("plbench", "datasets", "methods")
TALLY, VICTIMS, LOG = "tally.json", "victims.json", "log.txt"
AFRESH = 0.2  # of the inputs begin with a valid file: of files that are read together, libFuzzer keeps one
MOST_STUCK = 60  # seconds that native code may take, which Python cannot interrupt


def damager() -> Callable[[str, bytes, bytes], bytes]:
    """Return a function of a file's name, its content and random bytes, which returns the content damaged.

    It fails where the random bytes are too few, or the content is not what the name says.
    """
    about = ["", b""]

    @settings(database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def draw(data: st.DataObject) -> None:
        about[1] = data.draw(damaged(*about))

    fuzz = draw.hypothesis.fuzz_one_input

    def damage(victim: str, content: bytes, chance: bytes) -> bytes:
        about[:] = victim, content
        if fuzz(chance) is None:
            raise ValueError("too few bytes")
        return bytes(about[1])

    return damage


def emptied(content: bytes) -> bytes:
    """A file of tensors with all of them small, which leaves their names and what else is in it."""

    def empty(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: empty(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(map(empty, value))
        if torch.is_tensor(value):
            return torch.zeros([min(size, 1) for size in value.shape], dtype=value.dtype)
        return value

    file = io.BytesIO()
    torch.save(empty(torch.load(io.BytesIO(content), weights_only=True)), file)
    return file.getvalue()


def narrowed(reader: Reader, top: Path) -> dict[str, Reader]:
    """For each victim, those ways of reading alone that open it; all where none is seen to, as native code opens it."""
    opened, watching = set[str](), [True]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and watching and not str(arguments[1]).startswith("w"):
            opened.add(str(arguments[0]))

    sys.addaudithook(watch)  # for the rest of the process
    by_victim: dict[str, list[Any]] = {victim: [] for victim in reader.victims}
    for read in reader.read:
        opened.clear()
        try_reading(replace(reader, read=(read,)), reader.files, top, valid=True)
        for victim, own in by_victim.items():
            own += [read] * (str(top / "files" / victim) in opened)
    watching.clear()
    return {victim: replace(reader, read=tuple(own)) if own else reader for victim, own in by_victim.items()}


class Target:
    """One reader under attack, in this process."""

    def __init__(self, name: str, reader: Reader, folder: Path, until: float) -> None:
        self.name, self.reader, self.until = name, reader, until
        self.top, self.tally_file = folder / "in", folder / TALLY
        self.tally, self.known, self.damage = Counter[str](), set[str](), damager()
        is_apart = reader.apart
        self.readers = {v: reader.of(v) for v in reader.victims} if is_apart else narrowed(reader, self.top)
        self.seeds = self.make_seeds()

    def make_seeds(self) -> list[bytes]:
        made = []
        for place, victim in enumerate(self.reader.victims):
            contents = [self.reader.files[victim]]
            contents += [path.read_bytes() for path in CORPUS.glob(f"{self.name}/*/{victim}")]
            if len(contents[0]) > MOST_BYTES:
                contents[0] = emptied(contents[0])
            for content in contents:
                made += [bytes([place, sealed]) + content for sealed in range(1 + (self.reader.seal is not None))]
        return made

    def try_one(self, data: bytes) -> None:
        """What libFuzzer calls."""
        is_over = time.monotonic() > self.until
        if is_over or not self.tally["inputs"] % 100:
            self.tally_file.write_text(json.dumps(self.tally))
        if is_over:
            sys.stderr.flush()
            os._exit(0)
        if len(data) < 2:
            return
        self.tally["inputs"] += 1
        victim, sealed, content = self.parts(data)
        found = self.fails(victim, sealed, content)
        if found is not None and found not in self.known:
            self.known.add(found)
            self.tally[keep(self.name, found, victim, self.shortened(found, victim, sealed, content))] = 1

    def parts(self, data: bytes) -> tuple[str, bool, bytes]:
        return self.reader.victims[data[0] % len(self.reader.victims)], bool(data[1] % 2), data[2:]

    def fails(self, victim: str, sealed: bool, content: bytes) -> str | None:
        """A name of what is wrong: the error, and the function of plbench that it came from."""
        reader = self.readers[victim]
        try:
            self.tally.update(try_reading(reader, {**reader.files, victim: content}, self.top, sealed))
            return None
        except Exception as error:
            refusal = error.__context__ if isinstance(error, AssertionError) else None  # whose sentence is none
            frames = traceback.extract_tb((refusal or error).__traceback__)
            own = [frame for frame in frames if any(f"{TOP}/{part}/" in frame.filename for part in PARTS)]
            place = f"{Path(own[-1].filename).stem}-{own[-1].name}" if own else str(error)[:40]
            name = re.sub(r"\W+", "-", f"{'sentence' if refusal else type(error).__name__}-{place}").strip("-")
            if name not in self.known:
                traceback.print_exc()
            for path in (*self.top.iterdir(), *Path().iterdir()):  # what was written where it should not
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            return name

    def shortened(self, found: str, victim: str, sealed: bool, content: bytes) -> bytes:
        """The content without what is not needed to fail alike, as far as a few seconds go."""
        until, size = time.monotonic() + 5, len(content) // 2
        while size and time.monotonic() < until:
            at = 0
            while at < len(content) and time.monotonic() < until:
                shorter = content[:at] + content[at + size :]
                if self.fails(victim, sealed, shorter) == found:
                    content = shorter
                else:
                    at += size
            size //= 2
        return content

    def mutate(self, data: bytes, most: int, seed: int) -> bytes:
        """Damage the content alone, by libFuzzer or by what knows the format."""
        chance, changed = random.Random(seed), None
        if len(data) < 2 or chance.random() < AFRESH:
            data = chance.choice(self.seeds)
        victim, _, content = self.parts(data)
        if chance.random() < 0.5:
            with contextlib.suppress(Exception):  # what evolved may be no archive, or too deep for JSON
                changed = self.damage(victim, content, chance.randbytes(2000))
        return (data[:2] + (atheris.Mutate(content, most - 2) if changed is None else changed))[:most]


def keep(name: str, found: str, victim: str, content: bytes) -> str:
    """Write an input into the corpus, and return where."""
    path = CORPUS / name / found / victim
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path.relative_to(TOP))


def explore(name: str, seconds: float, folder: Path) -> None:
    """Attack a reader, in a process of its own that ends with it."""
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    for part in ("made", "from", "seeds", "in"):
        (folder / part).mkdir()
    os.chdir(folder / "from")  # where a name from data would write
    with instrumented:
        reader = MAKERS[name](folder / "made")
        target = Target(name, reader, folder, time.monotonic() + seconds)
        (folder / VICTIMS).write_text(json.dumps(reader.victims))
        for number, data in enumerate(target.seeds):
            (folder / "seeds" / str(number)).write_bytes(data)
        memory = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (memory + MOST_MEMORY,) * 2)
        kept = TOP / "build" / "fuzz" / name
        kept.mkdir(parents=True, exist_ok=True)
        options = [
            "-rss_limit_mb=0",
            f"-timeout={MOST_STUCK}",
            f"-max_len={MOST_BYTES}",
            "-len_control=0",
            "-mutate_depth=2",
        ]
        arguments = [name, *options, f"-artifact_prefix={folder}/", str(kept), str(folder / "seeds")]
        atheris.Setup(arguments, target.try_one, custom_mutator=target.mutate)
        atheris.Fuzz()


def attack(name: str, seconds: float) -> int:
    """Attack a reader, print what came of it, and return how much was found."""
    print(f"{name}: for {seconds:g} s", end="", flush=True)
    with tempfile.TemporaryDirectory(prefix="plbench-fuzz-") as place:
        folder = Path(place)
        process = multiprocessing.get_context("fork").Process(target=explore, args=(name, seconds, folder))
        process.start()
        process.join(2 * seconds + 3 * MOST_STUCK)
        if process.is_alive():
            process.kill()
            process.join()
        log = (folder / LOG).read_text(errors="replace")
        tally = json.loads((folder / TALLY).read_text()) if (folder / TALLY).exists() else {}
        found = [path for path in tally if path.startswith("tests/")]
        for path in folder.glob("*-*"):  # what ended the process: libFuzzer names it crash-HASH, timeout-HASH
            data = path.read_bytes()
            victims = json.loads((folder / VICTIMS).read_text())
            found.append(keep(name, path.name[:16], victims[data[0] % len(victims)], data[2:]))
    reached = re.findall(r"cov: (\d+)", log)
    counts = ", ".join(f"{tally.get(key, 0):,} {key}" for key in ("inputs", "read", "refused"))
    print(f": {counts}; {reached[0] if reached else 0} to {reached[-1] if reached else 0} places reached", flush=True)
    for path in found:
        print(f"  {path}", flush=True)
    if found or process.exitcode:
        lines = [line for line in log.splitlines() if not line.startswith(("#", "INFO:", "WARNING:"))]
        print(*(line[:300] for line in lines[-60:]), sep="\n")
    if process.exitcode and not found:
        raise SystemExit(f"{name}: the process ended with {process.exitcode}")
    return len(found)


def main() -> None:
    """Attack all readers, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for each reader")
    parser.add_argument("--readers", nargs="*", choices=list(MAKERS), default=list(MAKERS))
    chosen = parser.parse_args()
    found = sum(attack(name, chosen.seconds) for name in chosen.readers or MAKERS)
    raise SystemExit(f"{found} found" if found else 0)


if __name__ == "__main__":
    main()

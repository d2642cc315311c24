"""Damage to valid files: bytes and slices; numbers, values and members by extremes."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from typing import Any

import numpy as np
from hypothesis import strategies as st

NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
EXTREMES = [b"-1", b"0", b"1e309", b"-1e309", b"NaN", b"nan", b"inf", b"Infinity", b"-0.0", b"1.5", b"1e-400", b"0x1f"]
EXTREMES += [str(2**power + more).encode() for power, more in ((31, -1), (31, 0), (63, -1), (63, 0), (64, 0), (200, 0))]
EXTREMES += [b"9" * 5000, b"1" + b"0" * 400, b"", b"null", b"true", b'""', b"[]", b"{}", "٣".encode(), b"1_000"]
PIECES = [b"\0", b"\n", b'"', b"'", b",", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\\", b"=", b"[", b"]]", b"#"]
PIECES += [
    b"[" * 100_000,
    b"{" * 5000,
    b'{"a":' * 20_000,
    b"x" * 200_000,
    b"\xe2\x80\xae",
    b"../../../etc/passwd",
    b"%s",
]
VALUES: list[Any] = [None, True, -1, 0, 1.5, 2**31, 2**63, -(2**63) - 1, 2**64, 10**400, 1e308, float("nan")]
VALUES += [float("inf"), "", "a", "\0", "../x", "/etc/passwd", "x" * 100_000, "\ud800", [], {}, [[]], [None], {"a": 1}]


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        end = min(len(content), at + draw(st.integers(1, 64)))
        match draw(st.sampled_from(["flip", "number", "truncate", "double", "insert", "delete", "swap"])):
            case "flip" if content:
                content = content[:at] + bytes([content[at] ^ (1 << draw(st.integers(0, 7)))]) + content[at + 1 :]
            case "number" if found := list(NUMBER.finditer(content)):
                one = draw(st.sampled_from(found))
                content = content[: one.start()] + draw(st.sampled_from(EXTREMES)) + content[one.end() :]
            case "truncate":
                content = content[:at]
            case "double":
                content = content[:end] + content[at:]
            case "delete":
                content = content[:at] + content[end:]
            case "swap":
                content = content[:at] + draw(st.binary(min_size=end - at, max_size=end - at)) + content[end:]
            case _:
                content = content[:at] + draw(st.sampled_from(PIECES) | st.binary(max_size=16)) + content[at:]
    return content


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each container inside, with each of its keys."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        yield from places(inner)


@st.composite
def damaged_json(draw: st.DrawFn, content: bytes) -> bytes:
    found = json.loads(content)
    for _ in range(draw(st.integers(1, 2))):
        spots = list(places(found))
        if not spots:
            break
        holder, key = draw(st.sampled_from(range(len(spots))).map(spots.__getitem__))
        match draw(st.sampled_from(["value", "value", "delete", "double", "other"])):
            case "delete":
                del holder[key]
            case "double" if isinstance(holder, list):
                holder.append(deepcopy(holder[key]))
            case "other":
                source, name = draw(st.sampled_from(range(len(spots))).map(spots.__getitem__))
                with suppress(LookupError):
                    holder[key] = json.loads(json.dumps(source[name]))
            case _:
                holder[key] = deepcopy(draw(st.sampled_from(VALUES)))  # which later damage may go into
    return json.dumps(found).encode()


@st.composite
def damaged_lines(draw: st.DrawFn, content: bytes) -> bytes:
    """One of the lines, each of which is JSON."""
    lines = content.splitlines()
    at = draw(st.sampled_from(range(len(lines))))
    lines[at] = draw(damaged_json(lines[at]))
    return b"\n".join([*lines, b""])


@st.composite
def damaged_archive(draw: st.DrawFn, content: bytes) -> bytes:
    """A zip whose members are damaged and whose own checksums are right."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    victim = draw(st.sampled_from(sorted(members)))
    inner = members[victim]
    if victim.endswith(".npy") and draw(st.booleans()):
        file = io.BytesIO()
        np.save(file, draw(st.sampled_from(ARRAYS)))
        members[victim] = file.getvalue()
    elif draw(st.integers(0, 9)) == 0:
        del members[victim]
    else:
        members[victim] = draw(damaged_bytes(inner))
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return made.getvalue()


ARRAYS = [
    np.array(3),
    np.array(-1),
    np.array("a"),
    np.zeros((0,)),
    np.zeros((2, 2)),
    np.array([np.nan]),
    np.array(2**62),
]
ARRAYS += [
    np.zeros(3, "V8"),
    np.array([1 + 2j]),
    np.array(["\ud7ff" * 9] * 3),
    np.full(4, 255, np.uint64),
    np.arange(4),
]
ARRAYS += [
    np.array([[2**63]], np.uint64),
    np.array(["NaT"], "M8[s]"),
    np.array([True, False]),
    np.array([-5, 5], np.int8),
]


class Shown(bytes):
    """Bytes of which a report shows no more than a person reads."""

    def __repr__(self) -> str:
        return super().__repr__() if len(self) < 4000 else f"{bytes(self[:2000])!r} and {len(self) - 2000:,} more"


def damaged(name: str, content: bytes) -> st.SearchStrategy[bytes]:
    kinds = [damaged_bytes(content), damaged_bytes(content)]
    if name.endswith(".json"):
        with suppress(ValueError):
            json.loads(content)
            kinds += [damaged_json(content)] * 2
    elif name.endswith((".jsonl", ".log")):
        with suppress(ValueError):
            [*map(json.loads, content.splitlines())]
            kinds += [damaged_lines(content)] * (2 if content else 0)
    elif content[:2] == b"PK":
        kinds += [damaged_archive(content)] * 2
    others = [st.binary(max_size=300), st.binary(max_size=40).map(lambda tail: content[:12] + tail)]
    return st.one_of(*kinds, *others).map(Shown)

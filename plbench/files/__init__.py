"""Atomic files, checksums, and validated paths."""

from plbench.files.atomic import (
    fresh_folder,
    is_unfinished,
    locked,
    try_folder,
    unwritable,
    write_atomically,
    write_json,
    write_text,
)

__all__ = [
    "fresh_folder",
    "is_unfinished",
    "locked",
    "try_folder",
    "unwritable",
    "write_atomically",
    "write_json",
    "write_text",
]

"""Files that are whole or not there, of known content, at places that were checked."""

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

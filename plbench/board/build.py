"""Build the published files of boards, byte-identically, from records, ledgers and quotations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plbench.board import text
from plbench.board.boards import holding, open_boards, tidy
from plbench.board.croissant import as_croissant
from plbench.board.page import render_page
from plbench.board.rows import board_values
from plbench.files import write_text
from plbench.files.paths import refuse_links
from plbench.runs.page.html import same_page

PAGE = "index.html"


def build(root: Path) -> dict[Path, str]:
    """Return every built file of all boards below a folder, usually `leaderboards`, by path.

    Raises:
        PlbenchError: if there are no boards, or one cannot be read.
    """
    folders = open_boards(root)
    return render(root, [board_values(folder) for folder in folders], [folder.updated for folder in folders])


def render(root: Path, boards: Sequence[dict[str, Any]], dates: Sequence[str | None]) -> dict[Path, str]:
    """Render the files of `build` from each board's content and the date of its last change."""
    files = {root / PAGE: render_page(boards), root / "README.md": text.overview(boards)}
    for board, updated in zip(boards, dates, strict=True):
        folder = root / board["name"]
        table = text.as_csv(board)
        files[folder / "README.md"] = text.as_markdown(board)
        files[folder / "table.csv"] = table
        files[folder / "croissant.json"] = as_croissant(board, table, updated)
        files[folder / "table.tex"] = text.as_latex(board)
        files[folder / "table.json"] = text.as_json(board)
    return files


def write(root: Path, files: dict[Path, str]) -> list[Path]:
    """Write the files that have changed, not through links; return their paths.

    Raises:
        PlbenchError: if a link is where a file or its folder should be. StoreError: if a file cannot be written.
    """
    tidy(root, "build")
    changed = differing(files)
    for path in changed:
        refuse_links(root, path)
    if changed:
        with holding(root, "build") as staging:
            for path in changed:
                write_text(path, files[path], staging)
    return changed


def differing(files: dict[Path, str]) -> list[Path]:
    """Return paths whose content differs from the build; links always count as different."""
    kept = [path for path in files if path.is_file() and not path.is_symlink()]
    same = {path for path in kept if path.read_bytes() == files[path].encode() or _is_page(path, files[path])}
    return [path for path in files if path not in same]


def _is_page(path: Path, text: str) -> bool:
    return path.name == PAGE and same_page(path.read_text(encoding="utf-8", errors="replace"), text)

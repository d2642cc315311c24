"""Tables of figures on the leaderboards: `python docs/tables.py` writes them into the pages, from `table.json`.

A comment above a table says what its columns show, with a semicolon between them:

    <!-- board table: coco-20k-fpc300 rank; map_c ± bold; scenes-fpc300/tuned map_c ± bold -->

A column is a board (the one before, if none is given; "/tuned" is its section of tuned values), a figure ("rank",
or one of the board such as "map_c" or "rare") and, if wanted,

- "±": half the width of the 95 % interval behind the figure,
- "bold": figures of rank 1 are bold,
- "{}, Ignore": which row, with what the first column says in place of {}.

The first column names rows by their title on the board or by the method in backticks. "sorted" as the first word orders
rows by the first figure; "every" also adds each row that the first board ranks.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

TOP = Path(__file__).parents[1]
PAGES = ("docs/index.md", "docs/results.md", "docs/photographs.md", "docs/methods.md")
TABLE = re.compile(r"^<!-- board table: (.+) -->\n\n((?:\|.*\n)+)", flags=re.M)
COLUMN = re.compile(r"(?:(?P<board>\S+-\S+) )?(?P<figure>\w+)(?P<rest>.*)")
CEILING = "complete labels"

Row = dict[str, Any]


class Column(NamedTuple):
    """What one column shows."""

    board: str
    figure: str
    interval: bool
    bold: bool
    name: str


@cache
def rows_of(board: str) -> list[Row]:
    """Return the rows of a board's section of default values, or of tuned ones, the ceiling included."""
    name, _, kind = board.partition("/")
    table = json.loads((TOP / "leaderboards" / name / "table.json").read_text(encoding="utf-8"))
    (section,) = (each for each in table["sections"] if each["configuration"] == (kind or "default"))
    return list(section["rows"])


def find(board: str, name: str) -> Row | None:
    """Return the row that a page calls by this name; None if the board has none."""
    if name.startswith(CEILING, 1):
        return next((row for row in rows_of(board) if row["ceiling"]), None)
    mode = (re.findall(r"\((likelihood|prior)\)|, (likelihood|prior) alone", name) or [("both", "")])[0]
    plain = re.sub(r".*`(.+)`.*", r"\1", re.sub(r" \(\w+\)$|, \w+ alone$", "", name))
    found = [
        row
        for row in rows_of(board)
        if not row["ceiling"]
        and plain in (row["method"], row["title"])
        and row["params"].get("mode", "both") == "".join(mode)
    ]
    if len(found) > 1:
        raise ValueError(f"{board}: several rows are called {name}")
    return found[0] if found else None


def columns(text: str) -> list[Column]:
    """Return what the comment above a table says of its columns."""
    made: list[Column] = []
    for part in text.split("; "):
        said = COLUMN.fullmatch(part)
        if said is None or not (said["board"] or made):
            raise ValueError(f"no board or figure in {part!r}")
        rest = said["rest"]
        name = re.sub(r" (±|bold)\b|±", "", rest).strip() or "{}"
        made.append(Column(said["board"] or made[-1].board, said["figure"], "±" in rest, "bold" in rest, name))
    return made


def cell(column: Column, name: str) -> str:
    """Return one cell: – where the board has no such row, nothing for the rank of a ceiling."""
    row = find(column.board, column.name.format(name))
    if row is None:
        return "–"
    if column.figure == "rank":
        return str(row["rank"] or "")
    figure = row["figures"][column.figure]
    text = f"{figure['mean']:.2f}" + (f" ±{(figure['high'] - figure['low']) / 2:.2f}" if column.interval else "")
    return f"**{text}**" if column.bold and row["rank"] == 1 else text


def every_name(board: str) -> list[str]:
    """Return a name for each row that a board ranks."""
    modes = [row["params"].get("mode", "both") for row in rows_of(board)]
    return [
        f"`{row['method']}`" + ("" if mode == "both" else f" ({mode})")
        for row, mode in zip(rows_of(board), modes, strict=True)
        if row["rank"]
    ]


def table(comment: str, old: str) -> str:
    """Return a table with the figures of today, its first column and heads as they were."""
    first, _, rest = comment.partition(" ")
    shown = columns(rest if first in ("sorted", "every") else comment)
    heads, rule, *body = old.splitlines()
    names = [line.split(" | ")[0].removeprefix("| ") for line in body]
    if first == "every":
        names = list(dict.fromkeys([*names, *every_name(shown[0].board)]))
    if first in ("sorted", "every"):
        key = next(column for column in shown if column.figure != "rank")

        def order(name: str) -> tuple[bool, float]:
            row = find(key.board, name)
            return (row is None or not row["ceiling"], 0.0 if row is None else -row["figures"][key.figure]["mean"])

        names.sort(key=order)
    ranked = sum(bool(row["rank"]) for row in rows_of(shown[0].board))
    heads = re.sub(r"\brank of \d+", f"rank of {ranked}", heads)
    lines = ["| " + " | ".join([name, *(cell(column, name) for column in shown)]) + " |" for name in names]
    return "\n".join([heads, rule, *lines]).replace("|  |", "| |") + "\n"


def rewritten(text: str) -> str:
    """Return a page with its tables of today."""
    return TABLE.sub(lambda found: f"<!-- board table: {found[1]} -->\n\n{table(found[1], found[2])}", text)


if __name__ == "__main__":
    for page in PAGES:
        path = TOP / page
        path.write_text(rewritten(path.read_text(encoding="utf-8")), encoding="utf-8")

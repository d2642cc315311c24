"""A board as Markdown, CSV, LaTeX and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Template
from tabulate import tabulate

from plbench.files.escaping import csv_cell, printable
from plbench.metrics.statistics import format_p
from plbench.runs.page.html import reference_link, template_of

Values = Mapping[str, Any]
TEMPLATES = Path(__file__).parent / "templates"
_MARKDOWN_SPECIAL = str.maketrans({character: f"\\{character}" for character in "\\`*_{}[]<>#|~!"})
_COST = ("image_passes", "head_images", "trainings", "trials", "hours", "images_per_second", "device", "machine")


def as_json(board: Values) -> str:
    """Return all values of a board."""
    return json.dumps(board, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


def as_csv(board: Values) -> str:
    """Return one line per row, in plain numbers: percent, percentage points, hours."""
    metrics = ["map_c", "map_o", *board["groups"]]
    parts = ("mean", "low", "high")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["section", "rank", "rank_at_cost", "method", "label", "tier", "status"]
    head += ["seeds", "classes_scored", "classes"]
    figures = [f"{metric}_{part}" for metric in metrics for part in parts]
    gap = ["to_best", "to_best_low", "to_best_high", "p"]
    writer.writerow(map(_cell, [*head, *figures, *gap, *_COST, "commit", "keys"]))
    for section in board["sections"]:
        for row in section["rows"]:
            best, cost = row["to_best"] or {}, row["cost"]
            values = [section["id"], row["rank"], row["rank_at_cost"], row["method"], row["label"], row["tier"]]
            values += [status(row)]
            values += [len(row["seeds"]), row["num_classes_scored"], row["num_classes"]]
            values += [row["figures"].get(metric, {}).get(part) for metric in metrics for part in parts]
            values += [best.get(name) for name in ("difference", "low", "high", "p")]
            values += [*(cost[name] for name in _COST), row["commit"], " ".join(row["keys"])]
            writer.writerow(map(_cell, values))
    return text.getvalue()


def status(row: Values) -> str:
    """Return why a row has no rank, in a word; "ranked" if it has one."""
    if row["withdrawn"] is not None:
        return "withdrawn"
    if row["ceiling"]:
        return "ceiling"
    if row["unranked"] is not None:
        return "not ranked"
    return "provisional" if row["provisional"] else "ranked"


def rank_words(row: Values) -> str:
    """Return a row's rank, and its rank among rows that cost no more if different: "4 (1 at its cost)"."""
    if row["rank"] is None:
        return status(row)
    return str(row["rank"]) + (f" ({row['rank_at_cost']} at its cost)" if row["rank_at_cost"] < row["rank"] else "")


def as_markdown(board: Values) -> str:
    """Return the board's page in the repository as Markdown."""
    text = page_template("board.md").render(board=board, plain=_markdown, code=_code, table=_table, quoted=_quoted)
    return text.rstrip() + "\n"


def overview(boards: Sequence[Values]) -> str:
    """Return the list of all boards, with the best row of each, as Markdown."""
    listed = []
    for board in boards:
        rows = [row for section in board["sections"] for row in section["rows"]]
        listed.append((board, next((row for row in rows if row["rank"] == 1), None), len(rows)))
    return page_template("boards.md").render(boards=listed, plain=_markdown, code=_code, measured=measured)


def page_template(name: str) -> Template:
    """Return a template of the page, of a picture on it, or of its Markdown version; values in HTML are escaped."""
    return template_of(TEMPLATES, name)


def as_latex(board: Values) -> str:
    """Return a booktabs table for each section, for inclusion in a document."""
    tables = []
    for section in board["sections"]:
        body = _table(section["rows"], board["groups"], "latex_booktabs")
        caption = _latex(f"{board['title']}: {section['title']}. Protocol {board['protocol']}.")
        tables.append(f"\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n{body}\n\\end{{table}}\n")
    return "\n".join(tables) or "% no rows yet\n"


def terminal_rows(section: Values, groups: Sequence[str]) -> list[dict[str, str]]:
    """Return a section's rows by column, as text."""
    return [_columns(row, groups, _starred(row)) for row in section["rows"]]


def _table(rows: Sequence[Values], groups: Sequence[str], style: str) -> str:
    if style == "pipe":
        columns = [_in_markdown(_columns(row, groups, _linked(row)), groups) for row in rows]
    else:
        columns = [_printable(_columns(row, groups, _starred(row))) for row in rows]
    return str(tabulate(columns, headers="keys", tablefmt=style, disable_numparse=True))


def _in_markdown(columns: dict[str, str], groups: Sequence[str]) -> dict[str, str]:
    """Escape text from records: names of groups and machines; the method's already is."""
    columns["cost per run"] = _markdown(columns["cost per run"])
    return {_markdown(name) if name in groups else name: text for name, text in columns.items()}


def _printable(columns: dict[str, str]) -> dict[str, str]:
    return {printable(name): printable(text) for name, text in columns.items()}


def _starred(row: Values) -> str:
    return f"{row['label']} *" if row["tuned_here"] else row["label"]


def _columns(row: Values, groups: Sequence[str], label: str) -> dict[str, str]:
    best = row["to_best"]
    gap = "" if best is None else f"{best['difference']:+.2f} [{best['low']:+.2f}, {best['high']:+.2f}]"
    return {
        "rank": rank_words(row),
        "method": label,
        "mAP(C)": measured(row["figures"]["map_c"]),
        "mAP(O)": measured(row["figures"]["map_o"]),
        **{group: measured(row["figures"].get(group)) for group in groups},
        "to the best": gap,
        "p": "" if best is None else format_p(best["p"]),
        "classes": f"{row['num_classes_scored']} of {row['num_classes']}",
        "seeds": seeds_words(row),
        "cost per run": cost_words(row["cost"]),
        "tier": row["tier"],
    }


def cost_words(cost: Values) -> str:
    """Return the standard cost of a run, "11,000 passes, 80,000 head", and the time measured alone with its machine."""
    parts = []
    if cost["image_passes"] is not None:
        parts.append(f"{cost['image_passes']:,} passes, {cost['head_images']:,} head")
    if cost["trials"]:
        parts.append(f"after {cost['trials']} trials")
    if cost["hours"] is not None:
        parts.append(f"{3600 * cost['hours']:,.0f} s alone on {cost['machine'] or cost['device']}")
    return "; ".join(parts)


def seeds_words(row: Values) -> str:
    """Return the number of trainings of a row: "5", or "3 × 5" for 3 tuning studies with 5 seeds each."""
    number = str(len(row["seeds"]))
    return f"{row['studies']} × {number}" if row["studies"] > 1 else number


def figure_words(figure: Values | None) -> tuple[str, str]:
    """Return a mean and half of its interval, ("61.20", "±0.93"); a dash for a mean that is undefined."""
    if figure is None or figure["mean"] is None:
        return "–", ""
    half = "" if figure["low"] is None else f"±{(figure['high'] - figure['low']) / 2:.2f}"
    return f"{figure['mean']:.2f}", half


def measured(figure: Values | None) -> str:
    """Return a mean with half of its interval as text."""
    return " ".join(figure_words(figure)).rstrip()


def _linked(row: Values) -> str:
    label = _markdown(row["label"])
    method = f"[{label}](../../{quote(row['source_file'])})" if row["source_file"] else label
    paper = reference_link(row["paper"])
    linked = f"{method} ([paper]({quote(paper, safe=':/?=&.')}))" if paper else method
    return rf"{linked} \*" if row["tuned_here"] else linked


def _quoted(rows: Sequence[Values]) -> str:
    figures = [{"map_c": row["map_c"], "map_o": row["map_o"], **row["figures"]} for row in rows]
    metrics = [n for n in dict.fromkeys(m for f in figures for m in f) if any(f.get(n) is not None for f in figures)]
    titles = {"map_c": "mAP(C)", "map_o": "mAP(O)", "ap_person": "AP person"}
    columns = [
        {
            "method": _markdown(row["title"]),
            "backbone": _markdown(row["backbone"]),
            **{titles.get(n, n.replace("_", " ")): "–" if own.get(n) is None else str(own[n]) for n in metrics},
            "source": _markdown(row["source"]),
        }
        for row, own in zip(rows, figures, strict=True)
    ]
    notes: dict[str, None] = {}  # each once
    for row in rows:
        selected = row["selection"] and f"{row['source']}: selected by {row['selection']}"
        notes |= dict.fromkeys(note for note in (row["caution"], selected) if note)
    table = str(tabulate(columns, headers="keys", tablefmt="pipe", disable_numparse=True))
    return "\n".join([table, *([""] if notes else []), *(f"- {_markdown(note)}" for note in notes)])


def _markdown(text: str) -> str:
    return printable(text).translate(_MARKDOWN_SPECIAL)


def _cell(value: Any) -> Any:
    return csv_cell(printable(value) if isinstance(value, str) else value)


def _code(text: str) -> str:
    """Return text for a code span in a table, where backslashes do not escape."""
    return printable(text).translate({ord("`"): "'", ord("|"): "/"})


def _latex(text: str) -> str:
    """Return text with LaTeX's special characters escaped, as tabulate does in tables."""
    cell = str(tabulate([[printable(text)]], tablefmt="latex", disable_numparse=True)).splitlines()[2]
    return cell.removesuffix(r"\\").strip()

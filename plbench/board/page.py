"""The page of all boards: one HTML file without network access, made from untrusted plain values.

It follows `plbench.runs.page.html`. Values for the script (per-class AP, parameters) are JSON in one script element per
board, parsed on first use.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from plbench.board.critical import rank_pictures
from plbench.board.text import TEMPLATES, figure_words, page_template
from plbench.metrics.statistics import format_p
from plbench.runs.page.html import SHARED, asset, content_hash, harmless, island, reference_link, script

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
TALL = 40
"""Rows above which a table scrolls within the page, with a fixed header."""
SCRIPTS = ("filters.js", "classes.js", "details.js", "start.js")

_FILE = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)*", re.ASCII)


@dataclass(frozen=True)
class Column:
    """A column: `key` names it in links, `first` is the sort direction of the first click."""

    key: str
    title: str
    first: str = "descending"
    text: bool = False
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell: its text, small print below, and the value to sort by if it is not the text."""

    text: str
    small: str = ""
    sort: float | str | None = None
    bar: tuple[str, ...] | None = None


def render_page(boards: Sequence[Mapping[str, Any]], *, sources: str | None = "../") -> str:
    """Return the page; the same boards give identical bytes.

    Args:
        boards: plain JSON values from `board_values`. Boards without rows of their own come last.
        sources: prefix that makes a link of a method's `source_file`: the repository's root relative to the page, or
            the URL of its files; None for no links.
    """
    clean: list[dict[str, Any]] = [harmless(board) for board in boards]
    clean.sort(key=lambda board: not any(section["rows"] for section in board["sections"]))
    slugs = _slugs([board["name"] for board in clean])
    views = [_board_view(board, slug, sources) for board, slug in zip(clean, slugs, strict=True)]
    style = asset(SHARED, "style.css")
    shared, own = (asset(SHARED, name) for name in ("state.js", "tables.js")), (asset(TEMPLATES, n) for n in SCRIPTS)
    code = script(*shared, *own)
    return page_template("page.html").render(
        boards=views,
        choices=_choices(clean),
        pictures=rank_pictures(clean),
        num_rows=sum(view["num_rows"] for view in views),
        tall=TALL,
        style=Markup(style),
        script=Markup(code),
        style_hash=content_hash(style),
        script_hash=content_hash(code),
    )


def file_link(path: str | None, sources: str | None) -> str | None:
    """Return the link to a file below the repository's root; None if it is not such a path."""
    return f"{sources}{path}" if path and sources is not None and _FILE.fullmatch(path) else None


def _slugs(names: Sequence[str]) -> list[str]:
    """Return a unique id of safe characters for each name."""
    slugs: list[str] = []
    for name in names:
        slug = re.sub(r"[^a-zA-Z0-9._-]+", "-", name)[:64] or "board"
        while slug in slugs:
            slug += "-2"
        slugs.append(slug)
    return slugs


def _board_view(board: dict[str, Any], slug: str, sources: str | None) -> dict[str, Any]:
    groups: list[str] = board["groups"]
    section_slugs = _slugs([section["id"] for section in board["sections"]])
    sections: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    shared: dict[str, int] = {}  # plans and environments, which most rows share
    for section, section_slug in zip(board["sections"], section_slugs, strict=True):
        scale = _scale(section["rows"])
        blocks: dict[str, list[dict[str, Any]]] = {"main": [], "ceiling": [], "withdrawn": []}
        ranks = [row["rank"] for row in section["rows"]]
        for row in section["rows"]:
            rank = DASH if row["rank"] is None else f"{'=' if ranks.count(row['rank']) > 1 else ''}{row['rank']}"
            view = {
                "index": len(rows),
                "row": row,
                "paper_href": reference_link(row["paper"]),
                "file_href": file_link(row["source_file"], sources),
                "rank": rank,
                "cells": _cells(row, groups, scale),
            }
            blocks["withdrawn" if row["withdrawn"] is not None else "ceiling" if row["ceiling"] else "main"].append(
                view
            )
            rows.append(_details(row, view, section, shared))
        setting = (section["regime"], section["model"], f"{section['configuration']} values")
        sections.append(
            {
                **section,
                "key": f"{slug}.{section_slug}",
                "setting": [part for part in setting if part not in section["title"]],
                "blocks": blocks,
                "columns": _columns(groups),
                "scale": [f"{end:g}" for end in scale] if scale else None,
            }
        )
    classes = [[each["name"], each["positives"], each["negatives"], each["groups"]] for each in board["classes"]]
    published = [{**row, "href": reference_link(row["source"])} for row in board["published"]]
    extra = dict.fromkeys([*groups, *(name for row in published for name in row["figures"])])
    data = {"name": board["name"], "groups": groups, "classes": classes, "rows": rows}
    return {
        **board,
        "slug": slug,
        "sections": sections,
        "published": published,
        "published_columns": [name for name in ("map_c", "map_o") if any(row[name] is not None for row in published)],
        "published_figures": [n for n in extra if any(row["figures"].get(n) is not None for row in published)],
        "num_rows": len(rows),
        "num_scored": sum(bool(row["ap"]) for row in rows),
        "island": island({**data, "shared": [json.loads(text) for text in shared]}),
    }


def _scale(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """Return the range in whole percent of all intervals of mAP(C) of a table, as the scale of its bars."""
    ends = [end for row in rows for end in (row["figures"]["map_c"] or {}).values() if end is not None]
    return (math.floor(min(ends)), math.floor(max(ends)) + 1) if ends else None


def _columns(groups: Sequence[str]) -> list[Column]:
    return [
        Column("map_c", "mAP(C)", note="mean over classes, ± half the 95 % interval"),
        Column("map_o", "mAP(O)", note="classes weighted by their known positives"),
        *(Column(f"group.{name}", name, note=f"mAP(C) of the group {name}") for name in groups),
        Column("to_best", "to the best", note="paired difference of mAP(C); its interval excludes 0 where p < 0.05"),
        Column("p", "p", "ascending", note="of that difference, adjusted for all pairs of the table"),
        Column("classes", "classes", note="classes scored, of all classes"),
        Column("seeds", "seeds"),
        Column(
            "cost", "cost", "ascending", note="of one run alone, stages included: passes of images through the backbone"
        ),
        Column("tier", "tier", text=True),
    ]


def _cells(row: dict[str, Any], groups: Sequence[str], scale: tuple[float, float] | None) -> list[Cell]:
    figures, gap, cost = row["figures"], row["to_best"], row["cost"]
    passes, head, hours = (cost.get(name) for name in ("image_passes", "head_images", "hours"))
    effort = [
        "" if head is None else f"{head:,.0f} head images",
        "" if hours is None else f"{_duration(hours)} alone on {cost.get('machine') or cost.get('device')}",
        f"after {cost['trials']:,} trials" if cost.get("trials") else "",
    ]
    to_best, p_value = Cell("best" if row["rank"] == 1 else ""), Cell("")
    if gap:
        to_best = Cell(_signed(gap["difference"]), f"[{_signed(gap['low'])}, {_signed(gap['high'])}]")
        p_value = Cell(format_p(gap["p"]), sort=gap["p"])
    return [
        Cell(*figure_words(figures["map_c"]), bar=_bar(figures["map_c"], scale)),
        *(Cell(*figure_words(figures.get(name))) for name in ("map_o", *groups)),
        to_best,
        p_value,
        Cell(f"{row['num_classes_scored']:,}", f"of {row['num_classes']:,}"),
        Cell(str(len(row["seeds"])), f"× {row['studies']} studies" if row["studies"] > 1 else ""),
        Cell("") if passes is None else Cell(f"{passes:,.0f} passes", ", ".join(filter(None, effort)), float(passes)),
        Cell(("✓ " if row["tier"] == "verified" else "") + row["tier"], sort=row["tier"]),
    ]


def _signed(number: float) -> str:
    return f"{number:+.2f}".replace("-", MINUS)


def _duration(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.0f} min" if hours < 1 else f"{hours:,.1f} h"


def _bar(figure: Mapping[str, Any] | None, scale: tuple[float, float] | None) -> tuple[str, ...] | None:
    """Return the positions of an interval's ends and mean on a bar of 72 pixels."""
    if scale is None or figure is None or None in figure.values():
        return None
    return tuple(f"{4 + 64 * (figure[n] - scale[0]) / (scale[1] - scale[0]):.1f}" for n in ("low", "high", "mean"))


_KEPT = (
    *("id", "method", "label", "same", "tier", "seeds", "studies", "keys"),
    *("figures", "to_best", "cost", "params", "commit"),
)


def _details(
    row: dict[str, Any], view: Mapping[str, Any], section: Mapping[str, Any], shared: dict[str, int]
) -> dict[str, Any]:
    """Return the script's values of a row; AP in hundredths of a percent, which is short and exact."""
    numbers = [shared.setdefault(json.dumps(row[n], sort_keys=True), len(shared)) for n in ("plan", "environment")]
    return {
        **{name: row[name] for name in _KEPT},
        "section": section["title"],
        "paper": [row["paper"], view["paper_href"]],
        "file": [row["source_file"], view["file_href"]],
        "plan": numbers[0],
        "environment": numbers[1],
        "ap": [None if value is None else round(100 * value) for value in row["ap"]],
    }


def _choices(boards: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the choices of the page's filters."""
    sections = [section for board in boards for section in board["sections"]]
    quoted = [row["backbone"] for board in boards for row in board["published"]]
    tiers = {row["tier"] for section in sections for row in section["rows"]}
    return {
        "dataset": sorted({board["dataset"] for board in boards}),
        "regime": sorted({section["regime"] for section in sections}),
        "backbone": sorted({section["backbone"] for section in sections} | {name for name in quoted if name}),
        "tier": sorted(tiers | ({"published"} if quoted else set())),
    }

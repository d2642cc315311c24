"""The page of all boards: one HTML file that needs no network, made from plain values that anybody may have written.

Everything that comes in passes `harmless` first and is escaped by jinja2 on its way out. The script and the style sheet
are admitted by their hashes, so that nothing else on the page can run or load. Values that the script needs (per-class
AP, parameters) travel as JSON in a script element of their own per board, parsed when they are first looked at.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from plbench.board.critical import rank_pictures
from plbench.metrics.statistics import format_p

TEMPLATES = Path(__file__).parent / "templates"
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
TALL = 40
"""Rows beyond which a table scrolls within the page, its header in sight."""
SCRIPTS = ("state.js", "tables.js", "classes.js", "details.js", "start.js")

_CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069"  # also those that turn the direction of text
    r"\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff]"  # no characters, and halves of some
)
_ARXIV = re.compile(r"(?:\barxiv[:\s]\s*|^)(\d{4}\.\d{4,5})(?:v\d+)?\b", re.IGNORECASE)
_URL = re.compile(r"https?://[a-zA-Z0-9.-]+(?::\d{1,5})?(?:/[\w~:/?#\[\]@!$&()*+,;=.%-]*)?", re.ASCII)
_FILE = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)*", re.ASCII)


@dataclass(frozen=True)
class Column:
    """A column: `key` names it in links, `first` is the direction that a first click sorts in."""

    key: str
    title: str
    first: str = "descending"
    text: bool = False
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell: what stands in it, what stands below in small print, and what it sorts by if not by its text."""

    text: str
    small: str = ""
    sort: float | str | None = None
    bar: tuple[str, str, str] | None = None


def render_page(boards: Sequence[Mapping[str, Any]], *, sources: str | None = "../") -> str:
    """Return the page, the same for the same boards to the byte.

    Args:
        boards: plain JSON values, as `board_values` gives them. Those without rows of their own come last.
        sources: what makes a link of a method's `source_file`: the repository's root as seen from the page, or the
            address of its files on a web site; None for no links.
    """
    clean: list[dict[str, Any]] = [harmless(board) for board in boards]
    clean.sort(key=lambda board: not any(section["rows"] for section in board["sections"]))
    slugs = _slugs([board["name"] for board in clean])
    views = [_board_view(board, slug, sources) for board, slug in zip(clean, slugs, strict=True)]
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    style, script = _asset("style.css"), "'use strict';\n{\n" + "\n".join(map(_asset, SCRIPTS)) + "}\n"
    return environment.get_template("page.html").render(
        boards=views,
        choices=_choices(views),
        pictures=rank_pictures(clean),
        num_rows=sum(view["num_rows"] for view in views),
        tall=TALL,
        style=Markup(style),
        script=Markup(script),
        style_hash=_content_hash(style),
        script_hash=_content_hash(script),
    )


def harmless(value: Any, depth: int = 0) -> Any:
    """Return the same plain value without what no reader, parser or encoder should meet.

    Control characters, those that turn the direction of text, and halves of characters become U+FFFD (line breaks and
    tabs a space), strings end after 2,000 characters, numbers that are not finite become None, and what is nested
    deeper than 16 levels is dropped. Applied twice it changes nothing more.
    """
    if depth > 16:
        return None
    if isinstance(value, str):
        short = value if len(value) <= 2000 else value[:1999] + "…"
        return _CONTROL.sub("\ufffd", re.sub(r"[\t\n\r]", " ", short))
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        return value if abs(value) < 2**53 else None  # false for NaN too
    if isinstance(value, Mapping):
        return {harmless(str(key)): harmless(each, depth + 1) for key, each in value.items()}
    if isinstance(value, Sequence):
        return [harmless(each, depth + 1) for each in value]
    return harmless(str(value))


def reference_link(text: str | None) -> str | None:
    """Return where a reference leads: an http(s) address as it is, or the arXiv number in it.

    None for anything else.
    """
    if text and _URL.fullmatch(text):
        return text
    number = _ARXIV.search(text or "")
    return f"https://arxiv.org/abs/{number[1]}" if number else None


def file_link(path: str | None, sources: str | None) -> str | None:
    """Return the link to a file below the repository's root; None for what is not such a path."""
    return f"{sources}{path}" if path and sources is not None and _FILE.fullmatch(path) else None


def island(value: Any) -> Markup:
    """Return JSON that cannot leave its script element, nor open a comment in it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def _asset(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _content_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _slugs(names: Sequence[str]) -> list[str]:
    """For each name a different string of harmless characters: an element's id."""
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
    for section, section_slug in zip(board["sections"], section_slugs, strict=True):
        scale = _scale(section["rows"])
        blocks: dict[str, list[dict[str, Any]]] = {"main": [], "ceiling": [], "withdrawn": []}
        ranks = [row["rank"] for row in section["rows"]]
        for row in section["rows"]:
            block = "withdrawn" if row["withdrawn"] is not None else "ceiling" if row["ceiling"] else "main"
            view = {
                "index": len(rows),
                "row": row,
                "paper_href": reference_link(row["paper"]),
                "file_href": file_link(row["source_file"], sources),
                "rank": _rank(row["rank"], ranks),
                "cells": _cells(row, groups, scale),
            }
            blocks[block].append(view)
            rows.append(_details(row, view, section))
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
    extra = [name for name in dict.fromkeys([*groups, *(key for row in published for key in row["figures"])])]
    extra = [name for name in extra if any(row["figures"].get(name) is not None for row in published)]
    return {
        **board,
        "slug": slug,
        "sections": sections,
        "published": published,
        "published_columns": [name for name in ("map_c", "map_o") if any(row[name] is not None for row in published)],
        "published_figures": extra,
        "num_rows": len(rows),
        "num_scored": sum(bool(row["ap"]) for row in rows),
        "island": island({"name": board["name"], "groups": groups, "classes": classes, **_shared(rows)}),
    }


def _rank(rank: int | None, ranks: Sequence[int | None]) -> str:
    if rank is None:
        return DASH
    return f"={rank}" if ranks.count(rank) > 1 else str(rank)


def _columns(groups: Sequence[str]) -> list[Column]:
    return [
        Column("map_c", "mAP(C)", note="mean over classes, ± half the 95 % interval"),
        Column("map_o", "mAP(O)", note="classes weighted by their known positives"),
        *(Column(f"group.{name}", name, note=f"mAP(C) of the group {name}") for name in groups),
        Column("to_best", "to the best", note="paired difference of mAP(C); its interval excludes 0 where p < 0.05"),
        Column("p", "p", "ascending", note="of that difference, for all pairs of the table together"),
        Column("classes", "classes", note="scored, of all"),
        Column("seeds", "seeds"),
        Column(
            "cost", "cost", "ascending", note="of one run alone, stages included: passes of images through the backbone"
        ),
        Column("tier", "tier", text=True),
    ]


def _cells(row: dict[str, Any], groups: Sequence[str], scale: tuple[float, float] | None) -> list[Cell]:
    figures = row["figures"]
    gap, cost = row["to_best"] or {}, row["cost"] or {}
    passes, head, hours = (_number(cost.get(name)) for name in ("image_passes", "head_images", "hours"))
    small = [
        f"{head:,.0f} head images" if head is not None else "",
        f"{_duration(hours)} alone on {cost.get('machine') or cost.get('device')}" if hours is not None else "",
        f"after {cost['trials']:,} trials" if _number(cost.get("trials")) else "",
    ]
    p_value = _number(gap.get("p"))
    bounds = f"[{_signed(gap['low'])}, {_signed(gap['high'])}]" if _number(gap.get("low")) is not None else ""
    return [
        _figure(figures.get("map_c"), scale),
        *(_figure(figures.get(name)) for name in ("map_o", *groups)),
        Cell("best") if row["rank"] == 1 and not gap else Cell(_signed(gap.get("difference")), bounds),
        Cell("" if p_value is None else format_p(p_value), sort=p_value),
        Cell(f"{row['num_classes_scored']:,}", f"of {row['num_classes']:,}"),
        Cell(str(len(row["seeds"])), f"× {row['studies']} studies" if row["studies"] > 1 else ""),
        Cell("" if passes is None else f"{passes:,.0f} passes", ", ".join(filter(None, small)), sort=passes),
        Cell(("✓ " if row["tier"] == "verified" else "") + row["tier"], sort=row["tier"]),
    ]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _signed(value: Any) -> str:
    number = _number(value)
    return "" if number is None else f"{number:+.2f}".replace("-", MINUS)


def _duration(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.0f} min" if hours < 1 else f"{hours:,.1f} h"


def _figure(figure: Mapping[str, Any] | None, scale: tuple[float, float] | None = None) -> Cell:
    mean, low, high = (_number((figure or {}).get(name)) for name in ("mean", "low", "high"))
    if mean is None:
        return Cell(DASH)
    if low is None or high is None:
        return Cell(f"{mean:.2f}")
    bar = None
    if scale is not None:
        start, span = scale[0], scale[1] - scale[0]
        low_x, high_x, mean_x = (f"{4 + 64 * (value - start) / span:.1f}" for value in (low, high, mean))
        bar = (low_x, high_x, mean_x)
    return Cell(f"{mean:.2f}", f"±{(high - low) / 2:.2f}", bar=bar)


def _scale(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """Return whole percent around all intervals of mAP(C) of a table: one scale for its bars."""
    figures = [row["figures"].get("map_c") or {} for row in rows]
    ends = [_number(figure.get(name)) for figure in figures for name in ("mean", "low", "high")]
    known = [end for end in ends if end is not None]
    return (math.floor(min(known)), math.floor(max(known)) + 1) if known else None


def _details(row: dict[str, Any], view: Mapping[str, Any], section: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the script needs of a row; AP in hundredths of a percent, which is short and exact."""
    kept = (
        "id",
        "method",
        "label",
        "same",
        "tier",
        "seeds",
        "studies",
        "keys",
        "figures",
        "to_best",
        "cost",
        "params",
        "commit",
    )
    return {
        **{name: row[name] for name in kept},
        "section": section["title"],
        "paper": [row["paper"], view["paper_href"]],
        "file": [row["source_file"], view["file_href"]],
        "plan": row["plan"],
        "environment": row["environment"],
        "ap": [None if _number(value) is None else round(100 * value) for value in row["ap"]],
    }


def _shared(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return rows with a number in place of plan and environment, which most rows share, and the list of those."""
    shared: dict[str, int] = {}
    for row in rows:
        for name in ("plan", "environment"):
            row[name] = shared.setdefault(json.dumps(row[name], sort_keys=True), len(shared))
    return {"rows": rows, "shared": [json.loads(text) for text in shared]}


def _choices(views: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    sections = [section for view in views for section in view["sections"]]
    quoted = [row["backbone"] for view in views for row in view["published"]]
    tiers = {view["row"]["tier"] for section in sections for block in section["blocks"].values() for view in block}
    return {
        "dataset": sorted({view["dataset"] for view in views}),
        "regime": sorted({section["regime"] for section in sections}),
        "backbone": sorted({section["backbone"] for section in sections} | {name for name in quoted if name}),
        "tier": sorted(tiers | ({"published"} if quoted else set())),
    }

"""Descriptions of tables in Croissant 1.0 (mlcommons.org/croissant), with which other programs can load them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

VERSION = "http://mlcommons.org/croissant/1.0"
LICENCE = "https://www.apache.org/licenses/LICENSE-2.0"
TEXT, INTEGER, NUMBER, BOOLEAN = "sc:Text", "sc:Integer", "sc:Float", "sc:Boolean"

_TERMS = (
    *("citeAs", "column", "equivalentProperty", "extract", "field", "fileObject", "fileProperty", "fileSet", "format"),
    *("includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex"),
    *("repeated", "replace", "samplingRate", "separator", "source", "subField", "transform"),
)
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{term: f"cr:{term}" for term in _TERMS},
}

_OF_TABLE = {  # columns of a board's CSV other than figures: type and description
    "section": (TEXT, "rows are ranked within one: regime, model and way of choosing values"),
    "rank": (INTEGER, "1 + the number of rows that are significantly better; empty where a row is not ranked"),
    "rank_at_cost": (INTEGER, "the rank among rows that cost no more"),
    "method": (TEXT, "name of the method"),
    "label": (TEXT, "what tables call the row"),
    "tier": (TEXT, "verified where somebody else repeated it, else self-reported"),
    "status": (TEXT, "ranked, or why it has no rank"),
    "seeds": (INTEGER, "trainings that the row is a mean over; of a tuned row, of each study"),
    "classes_scored": (INTEGER, "classes with a known positive and a known negative in test"),
    "classes": (INTEGER, "classes in all"),
    "to_best": (NUMBER, "difference to the best row of the section, points of mAP(C)"),
    "to_best_low": (NUMBER, ""),
    "to_best_high": (NUMBER, ""),
    "p": (NUMBER, "of that difference, over all pairs of the section"),
    "image_passes": (INTEGER, "images through the backbone in one run; forward and back count as three"),
    "head_images": (INTEGER, "images that a head is trained on in one run"),
    "trainings": (INTEGER, "trainings that one run needs"),
    "trials": (INTEGER, "tuning trials before it"),
    "hours": (NUMBER, "of a run that had the machine to itself"),
    "images_per_second": (INTEGER, "of such a run"),
    "device": (TEXT, ""),
    "machine": (TEXT, ""),
    "commit": (TEXT, "of plbench, in git"),
    "keys": (TEXT, "of the row's runs, separated by spaces"),
}


def as_croissant(board: Mapping[str, Any], table: str, updated: str | None) -> str:
    """Return the description of a board's `table.csv`.

    Args:
        board: its values.
        table: content of the CSV.
        updated: date of the last entry of the ledger, "2026-11-29"; None if it is empty.
    """
    head = next(csv.reader(io.StringIO(table)))
    columns = {name: _OF_TABLE.get(name) or (NUMBER, _figure_words(name)) for name in head}
    text = f"{board['title']}: a leaderboard of plbench, protocol {board['protocol']}. {board['about']}".rstrip()
    return describe(
        f"plbench-{board['name']}",
        text,
        [file_object("table.csv", "text/csv", table.encode())],
        [record_set("rows", "Rows of the board, in percent and percentage points.", "table.csv", columns)],
        version=f"{board['version']}.0.0",
        updated=updated,
    )


def _figure_words(name: str) -> str:
    metric, _, part = name.rpartition("_")
    if part != "mean":
        return ""  # interval ends follow their mean, which is described
    named = {"map_c": "mean over classes of average precision", "map_o": "average precision over all cells"}
    return f"{named.get(metric, f'map_c of group {metric}')}, percent; low and high: its 95 % interval"


def describe(
    name: str,
    text: str,
    distribution: Sequence[Mapping[str, Any]],
    record_sets: Sequence[Mapping[str, Any]],
    *,
    version: str,
    updated: str | None,
) -> str:
    """Return a Croissant description as JSON; equal values give identical bytes.

    Args:
        name: of the dataset.
        text: description of the dataset.
        distribution: from `file_object` and `file_set`.
        record_sets: from `record_set`.
        version: such as "1.0.0".
        updated: date, "2026-11-29"; None to omit it.
    """
    content = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": VERSION,
        "name": name,
        "description": text,
        "license": LICENCE,
        "creator": {"@type": "sc:Organization", "name": "The plbench maintainers"},
        "citeAs": "plbench: the benchmark suite for multi-label learning from partially labelled images",
        "version": version,
        **({} if updated is None else {"datePublished": updated}),
        "distribution": list(distribution),
        "recordSet": list(record_sets),
    }
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


def file_object(path: str, kind: str, content: bytes) -> dict[str, Any]:
    """Describe a file next to the description, with its sha256.

    Args:
        path: relative to the folder of the description.
        kind: MIME type.
        content: of the file.
    """
    sha256 = hashlib.sha256(content).hexdigest()
    return {
        "@type": "cr:FileObject",
        "@id": path,
        "name": path,
        "contentUrl": path,
        "contentSize": f"{len(content)} B",
        "encodingFormat": kind,
        "sha256": sha256,
    }


def file_set(name: str, kind: str, pattern: str) -> dict[str, Any]:
    """Describe the files next to the description whose path matches a pattern."""
    return {"@type": "cr:FileSet", "@id": name, "name": name, "encodingFormat": kind, "includes": pattern}


def record_set(
    name: str, text: str, source: str, columns: Mapping[str, tuple[str, str]], *, of_set: bool = False
) -> dict[str, Any]:
    """Describe a table.

    Args:
        name: of the table.
        text: description of a row.
        source: id of the file or file set that contains the table.
        columns: type and description by name; the description may be "".
        of_set: whether the source is a file set.
    """
    fields = []
    for column, (kind, words) in columns.items():
        found = {"@type": "cr:Field", "@id": f"{name}/{column}", "dataType": kind}
        found |= {"description": words} if words else {}
        origin = {"fileSet" if of_set else "fileObject": {"@id": source}, "extract": {"column": column}}
        fields.append({**found, "source": origin})
    return {"@type": "cr:RecordSet", "@id": name, "name": name, "description": text, "field": fields}

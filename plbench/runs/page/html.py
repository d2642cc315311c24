"""Self-contained HTML pages: untrusted values are sanitised, and nothing else may load or run.

Values are sanitised by `harmless`, and escaped by jinja2. A page allows its own style sheet and script by their hashes
(`content_hash`), so that no value can contain either.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, select_autoescape
from markupsafe import Markup

SHARED = Path(__file__).parent / "templates"
"""Style sheet and scripts of all pages."""

_CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069"  # including those that change the direction of text
    r"\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff]"  # noncharacters and surrogates
)
_ARXIV = re.compile(r"(?:\barxiv[:\s]\s*|^)(\d{4}\.\d{4,5})(?:v\d+)?\b", re.IGNORECASE)
_ISLAND = re.compile(r'(?<=">)[\w+/=]+(?=</script>)', re.ASCII)
_MAX_ISLAND = 64 << 20  # bytes
_URL = re.compile(r"https?://[a-zA-Z0-9.-]+(?::\d{1,5})?(?:/[\w~:/?#\[\]@!$&()*+,;=.%-]*)?", re.ASCII)


def harmless(value: Any, depth: int = 0) -> Any:
    """Return a plain value without content that may harm readers, parsers or encoders.

    Control characters, bidirectional controls and surrogates become U+FFFD (line breaks and tabs a space), strings are
    cut after 2,000 characters, non-finite numbers become None, and levels deeper than 16 are dropped. The function is
    idempotent.
    """
    if depth > 16:
        return None
    if isinstance(value, str):
        short = value if len(value) <= 2000 else value[:1999] + "…"
        return _CONTROL.sub("\ufffd", re.sub(r"[\t\n\r]", " ", short))
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        return value if abs(value) < 2**53 else None  # false for NaN as well
    if isinstance(value, Mapping):
        return {harmless(str(key)): harmless(each, depth + 1) for key, each in value.items()}
    if isinstance(value, Sequence):
        return [harmless(each, depth + 1) for each in value]
    return harmless(str(value))


def island(value: Any) -> Markup:
    """Return JSON for a script element: compressed to a quarter, in characters without meaning in HTML."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(base64.b64encode(zlib.compress(text.encode(), 9)).decode())


def same_page(text: str, other: str) -> bool:
    """Return whether two pages have the same content; compressed bytes may differ between builds of zlib."""
    try:
        return text == other or _ISLAND.sub(_unpacked, text) == _ISLAND.sub(_unpacked, other)
    except (ValueError, zlib.error):  # a damaged island
        return False


def _unpacked(found: re.Match[str]) -> str:
    reader = zlib.decompressobj()
    content = reader.decompress(base64.b64decode(found[0]), _MAX_ISLAND)
    if not reader.eof or reader.unused_data:
        raise ValueError("an island is cut short, or larger than any page")
    return content.decode()


def reference_link(text: str | None) -> str | None:
    """Return the URL of a reference: an http(s) address as it is, or that of an arXiv number.

    None for anything else.
    """
    if text and _URL.fullmatch(text):
        return text
    number = _ARXIV.search(text or "")
    return f"https://arxiv.org/abs/{number[1]}" if number else None


def asset(folder: Path, name: str) -> str:
    """Return the text of a style sheet or script, with normalised line ends."""
    return (folder / name).read_text(encoding="utf-8").replace("\r\n", "\n")


def script(*parts: str) -> str:
    """Join parts of a script, in strict mode and their own scope."""
    return "'use strict';\n{\n" + "\n".join(parts) + "}\n"


def content_hash(text: str) -> str:
    """Return the source expression that allows this style sheet or script in a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def template_of(folder: Path, name: str, *, cleans: bool = False) -> Template:
    """Return a template of a folder; HTML and SVG output is escaped.

    Args:
        cleans: whether every text is passed through `harmless` first, except our own markup.
    """
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=select_autoescape(("html", "svg")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_cleaned if cleans else None,
    )
    return environment.get_template(name)


def _cleaned(value: Any) -> Any:
    return harmless(value) if isinstance(value, str) and not isinstance(value, Markup) else value

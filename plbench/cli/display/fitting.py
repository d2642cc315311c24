"""Fit tables to the width of the terminal: texts are wrapped at spaces, and less important columns are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.cells import cell_len

GAP = 2  # characters between columns
_LONGEST = 24  # characters above which a word, such as a path, may be wrapped anywhere


def columns_that_fit(
    cells: Mapping[str, Sequence[str]], width: int, whole: Sequence[str] = (), less: Sequence[str] = ()
) -> dict[str, int]:
    """Return the width of each shown column, so that all of them fit and no word is split.

    Args:
        cells: texts of each column, including its name.
        width: characters per line.
        whole: columns that are never wrapped.
        less: columns that are left out first, in this order; then others from the right, never the first one.

    Examples:
        >>> columns_that_fit({"method": ["method", "CE, Ignore"], "p": ["p", "0.123"], "n": ["n", "8 of 8"]}, 16)
        {'method': 9, 'p': 5}
    """
    most = {name: max(map(_longest_line, texts)) for name, texts in cells.items()}
    least = {name: most[name] if name in whole else max(map(_longest_word, texts)) for name, texts in cells.items()}
    others = list(cells)[1:]
    leaving = [name for name in less if name in others]
    leaving += [name for name in reversed(others) if name not in leaving]
    shown = dict(most)
    for name in leaving:
        if sum(least[one] for one in shown) + GAP * (len(shown) - 1) <= width:
            break
        del shown[name]
    room = width - GAP * (len(shown) - 1)
    while sum(shown.values()) > room and (wide := [name for name in shown if shown[name] > least[name]]):
        shown[max(wide, key=shown.__getitem__)] -= 1
    return shown


def _longest_line(text: str) -> int:
    return max(map(cell_len, text.splitlines()), default=0)


def _longest_word(text: str) -> int:
    return max((min(cell_len(word), _LONGEST) for word in text.split()), default=0)

"""Messages from below the command line name settings as in Python; convert them to command-line options."""

from __future__ import annotations

import ast
import re
import shlex

_TEXT = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_SETTING = re.compile(rf"`([a-z][a-z_]*)(?:\.([A-Za-z]\w*))?=({_TEXT}|[^`]*)`")
_GROUPS = {"params": "-P", "options": "-D"}  # of a method, of a dataset


def in_options(text: str) -> str:
    """Return a text with settings written as command-line options.

    Examples:
        >>> in_options('needs images; give `regime="finetune"` or `grad_checkpointing=True`')
        'needs images; give --regime finetune or --grad-checkpointing'
        >>> in_options('give `params.mode="likelihood"`, or another folder with `runs=`')
        'give -P mode=likelihood, or another folder with --runs'
        >>> in_options('give `options.keep="my class"`, which `options.layout=` has no use for')
        "give -D 'keep=my class', which -D layout has no use for"
    """
    return _SETTING.sub(_option, text)


def _option(match: re.Match[str]) -> str:
    name, key, value = match.groups()
    if key is not None:
        word = f"{key}={value}" if value else key
        if re.fullmatch(_TEXT, value):
            word = shlex.quote(f"{key}={ast.literal_eval(value)}")
        return f"{_GROUPS[name]} {word}"
    value = value.strip("\"'")
    flag = f"--{name.replace('_', '-')}"
    return flag if value in ("", "True") else f"{flag} {value}"

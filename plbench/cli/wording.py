"""What is said below the command line names settings as Python does; here they become options of a command."""

from __future__ import annotations

import re

_SETTING = re.compile(r"`([a-z][a-z_]*)(?:\.([A-Za-z]\w*))?=([^`]*)`")
_GROUPS = {"params": "-P", "options": "-D"}  # of a method, of a dataset


def in_options(text: str) -> str:
    """Return a text whose settings are written as options.

    Examples:
        >>> in_options('needs images; give `regime="finetune"` or `grad_checkpointing=True`')
        'needs images; give --regime finetune or --grad-checkpointing'
        >>> in_options('give `params.mode="likelihood"`, or another folder with `runs=`')
        'give -P mode=likelihood, or another folder with --runs'
    """
    return _SETTING.sub(_option, text)


def _option(match: re.Match[str]) -> str:
    name, key, value = match.group(1), match.group(2), match.group(3).strip("\"'")
    if key is not None:
        return f"{_GROUPS[name]} {key}={value}"
    flag = f"--{name.replace('_', '-')}"
    return flag if value in ("", "True") else f"{flag} {value}"

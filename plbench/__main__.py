"""`python -m plbench` is `plbench`."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Run the command line; Ctrl-C or SIGTERM while it is still being imported ends it with a sentence."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as a shell starts what it runs in the background
            signal.signal(number, _leave)
    # pydantic looks through what is installed for plugins of its own: 30 ms of each command, and typer's do without
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from plbench.cli import main as run

    for number, handler in before.items():
        signal.signal(number, handler)
    sys.unraisablehook = _report
    run()


def _report(raised: sys.UnraisableHookArgs) -> None:
    # torch's, of workers that it could not start: why not is what the command has said
    if "DataLoaderIter" not in repr(raised.object):
        sys.__unraisablehook__(raised)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"plbench: stopped before anything had begun\n")
    os._exit(128 + number)  # an import that is broken off may not end in an exception


if __name__ == "__main__":  # not in the processes that this one spawns, which import it
    main()

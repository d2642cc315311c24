"""Entry point of `python -m plbench` and `plbench`."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Run the command line. Ctrl-C or SIGTERM during its import ends it with a message."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # shells ignore it for background jobs
            signal.signal(number, _leave)
    # pydantic searches all installed packages for its plugins, which takes 30 ms per command
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from plbench.cli import main as run
    from plbench.training.interruption import Interrupt

    for number, handler in before.items():
        signal.signal(number, handler)
    if before[signal.SIGINT] is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, Interrupt())
    sys.unraisablehook = _report
    run()


def _report(raised: sys.UnraisableHookArgs) -> None:
    # torch's error on workers that failed to start; the command has already printed the reason
    if "DataLoaderIter" not in repr(raised.object):
        sys.__unraisablehook__(raised)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"plbench: stopped before anything had begun\n")
    os._exit(128 + number)  # an interrupted import may swallow the exception


if __name__ == "__main__":  # not in spawned processes, which import this module
    main()

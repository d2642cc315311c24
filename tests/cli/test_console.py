"""What a person sees of long work where there is no terminal, and how long things take in words."""

from __future__ import annotations

import io
import re
import time

import pytest

from plbench.cli import console
from plbench.cli.console import ConsoleReporter
from plbench.cli.plain_console import PlainConsole
from plbench.progress import duration


@pytest.fixture(autouse=True)
def short_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_QUIET_SECONDS", 0.02)


def test_long_work_says_how_far_it_is_and_how_long_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with ConsoleReporter().task("Training") as report:
        time.sleep(0.03)
        report(1, 4)
    assert "Training: 1 of 4, about 0 s left" in capsys.readouterr().err


def test_work_that_goes_on_where_it_was_left_counts_what_it_did_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with ConsoleReporter().task("Training") as report:
        report(9_000, 10_000)  # left so by another process
        time.sleep(0.2)
        report(9_001, 10_000)
    minutes = re.search(r"Training: 9,001 of 10,000, about ([0-9.]+) min left", capsys.readouterr().err)
    assert minutes is not None and float(minutes[1]) >= 3.3  # 999 steps of a fifth of a second


def test_work_in_large_pieces_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with ConsoleReporter().task("Features") as report:
        time.sleep(0.03)
        report(256, 1_024)
        time.sleep(0.03)
        report(512, 1_024)
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("Features: 256 of 1,024") and "Features: 512 of 1,024, about 0 s left" in second


def test_work_that_has_not_got_far_says_that_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with ConsoleReporter().task("Training") as report:
        report(0, 4)
        time.sleep(0.2)
    assert "Training: under way" in capsys.readouterr().err


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ConsoleReporter().task("Scoring") as report, ConsoleReporter().patience("Reading"):
        report(1, 2)
        report(2, 2)
    assert capsys.readouterr().err == ""


def test_quiet_says_nothing_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = ConsoleReporter(quiet=True)
    with reporter.task("Training") as report:
        time.sleep(0.1)
        report(1, 4)
    reporter.line("done")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (119, "119 s"), (150, "2.5 min"), (8000, "2.2 h"), (400000, "4.6 days")]
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize("columns", [80, 40])
def test_many_parts_are_one_bar_on_a_terminal(columns: int) -> None:
    written, reporter = io.StringIO(), ConsoleReporter()
    reporter._console = PlainConsole(file=written, force_terminal=True, width=columns, soft_wrap=True)
    with reporter.tally("Runs") as tally:
        for number in range(50):
            for title in ("Training P-ASL, Selective", "Scoring 28 images", "Intervals"):
                with reporter.task(title) as report:
                    report(1, 2)
                    report(2, 2)
            tally(number + 1, 50, "about 3 s left")
    assert written.getvalue().count("\n") < 5 and "50/50" in written.getvalue()
    with reporter.task("Packing") as report:  # alone it has a bar of its own again
        report(1, 1)
    assert "1/1" in written.getvalue().splitlines()[-2]

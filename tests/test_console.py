"""What a person sees of long work where there is no terminal, and how long things take in words."""

from __future__ import annotations

import time

import pytest

from plbench import console
from plbench.console import Reporter, duration


@pytest.fixture(autouse=True)
def short_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_QUIET_SECONDS", 0.02)


def test_long_work_says_how_far_it_is_and_how_long_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter().task("Training") as report:
        time.sleep(0.03)
        report(1, 4)
    assert "Training: 1 of 4, about 0 s left" in capsys.readouterr().err


def test_work_that_has_not_got_far_says_that_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter().task("Training") as report:
        report(0, 4)
        time.sleep(0.2)
    assert "Training: under way" in capsys.readouterr().err


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter().task("Scoring") as report, Reporter().patience("Reading"):
        report(1, 2)
        report(2, 2)
    assert capsys.readouterr().err == ""


def test_quiet_says_nothing_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(quiet=True)
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

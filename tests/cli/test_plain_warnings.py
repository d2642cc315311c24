"""What libraries warn of reaches a person as one plain line each, once."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import plbench

from plbench.cli import plain_warnings

pytestmark = pytest.mark.filterwarnings("always")  # they are what is tested


def divided() -> None:
    warnings.simplefilter("always")
    np.float64(1.0) / np.float64(0.0)


def drawn_large() -> None:
    warnings.simplefilter("always")
    for side in (25, 30):
        Image._decompression_bomb_check((side, side))


def scheduled() -> None:
    warnings.simplefilter("always")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1).step()


def of_two_lines() -> None:
    warnings.warn("first\n  second", UserWarning, stacklevel=1)


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (divided, "divide by zero"),
        (drawn_large, "(PIL: DecompressionBombWarning)"),
        (scheduled, "lr_scheduler.step()"),
        (of_two_lines, "plbench: note: first second (builtins: UserWarning)"),
    ],
)
def test_one_line_each_however_often(
    act: object, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with plain_warnings():
        for _ in range(3):
            act()  # type: ignore[operator]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("plbench: note: ") and said in line and __file__ not in line


def test_other_processes_leave_it_to_the_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with plain_warnings():
        of_two_lines()
    assert capsys.readouterr().err == ""


def test_a_command_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def warns(*arguments: object, **options: object) -> None:
        warnings.warn("something is odd", FutureWarning, stacklevel=2)

    shown = warnings.showwarning
    monkeypatch.setattr(sys.modules["plbench.cli"], "app", warns)
    said = plbench("doctor")
    assert said.err == "plbench: note: something is odd (builtins: FutureWarning)\n"
    assert warnings.showwarning is shown

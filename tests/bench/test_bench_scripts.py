"""The scripts of make bench-curves and make bench-gpu, as far as they go on any machine."""

from __future__ import annotations

import sys
from pathlib import Path

import bench_curves
import bench_gpu
import pytest
import torch
from bench_curves import Curve, Point


def test_without_a_gpu_nothing_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    bench_gpu.main()
    assert capsys.readouterr().out == "bench-gpu: torch finds no CUDA device here; nothing was measured\n"


@pytest.mark.bench
def test_all_rows_of_the_table_work(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py", "--rehearse"])
    with pytest.raises(SystemExit) as left:
        bench_gpu.main()
    assert left.value.code == 0, capsys.readouterr().out


def test_a_failing_row_hides_no_other(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> str:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(sys, "argv", ["bench_gpu.py", "--rehearse"])
    monkeypatch.setattr(bench_gpu, "rows", lambda *_: iter([("a", fail, "1"), ("b", lambda: "2 ms", "–")]))
    with pytest.raises(SystemExit):
        bench_gpu.main()
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "| a | failed: RuntimeError: out of memory | 1 |",
        "| b | 2 ms | – |",
    ]


def test_exponents_are_those_of_the_last_two_sizes() -> None:
    points = [Point(1, 9.0, 1.0), Point(10, 2.0, 5.0), Point(100, 200.0, 50.0)]
    assert bench_curves.slope(points, "seconds") == pytest.approx(2)
    assert bench_curves.slope(points, "num_bytes") == pytest.approx(1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of memory is read from /proc")
def test_a_point_is_measured_and_drawn(tmp_path: Path) -> None:
    torch.ones(7_500_000)  # from here on malloc takes blocks of up to 30 MB from its heap, and keeps them when freed
    blocks = [torch.ones(7_000_000) for _ in range(6)]
    kept = torch.ones(1_000_000)  # above them, so that they are not given back
    del blocks
    curve = Curve("a copy", "numbers", (4_000_000, 16_000_000), lambda size: torch.ones(size).clone)
    points = list(bench_curves.measured(curve, curve.sizes))
    assert [point.size for point in points] == [4_000_000, 16_000_000]
    assert points[1].num_bytes == pytest.approx(64e6, rel=0.3) and points[1].seconds > 0
    assert kept[0] == 1
    bench_curves.draw({curve: points}, tmp_path / "a.svg")
    assert "a copy: " in (tmp_path / "a.svg").read_text()

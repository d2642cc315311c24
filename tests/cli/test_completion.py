"""What the Tab key gives, in a process of its own, as shells ask; and where a person begins."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import Outcome, plbench

from plbench.cli import app

TOP = Path(__file__).parents[2]


def asked(monkeypatch: pytest.MonkeyPatch, *words: str, shell: str = "bash") -> list[str]:
    """What a shell is told that a line may go on with."""
    if shell == "bash":
        monkeypatch.setenv("COMP_WORDS", "\n".join(words))
        monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    else:
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", shlex.join(words))
    monkeypatch.setenv("_PLBENCH_COMPLETE", f"complete_{shell}")
    return plbench().out.strip().splitlines()


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three runs, one of them with a record that says nothing."""
    monkeypatch.setenv("PLBENCH_RUNS", str(tmp_path))
    spec = {"method": {"name": "focal"}, "protocol": {"name": "scenes-fpc300/v2"}, "seed": 3}
    record = {"spec": spec, "metrics": {"test": {"map_c": {"value": 61.204}}}}
    for key, text in {"aa01": json.dumps(record), "aa02": "{", "b000": json.dumps({**record, "metrics": {}})}.items():
        (tmp_path / key).mkdir()
        (tmp_path / key / "record.json").write_text(text)
    return tmp_path


QUESTIONS = {
    "a method": (["run", "--method", "se"], ["se-negative", "selective"]),
    "a method, short": (["tune", "-m", "wce"], ["wce-ignore"]),
    "a method's name": (["methods", "show", "hil"], ["hill"]),
    "a dataset": (["run", "-d", "coco"], ["coco", "coco-20k", "coco2017"]),
    "a dataset's name": (["data", "show", "voc"], ["voc2007", "voc2012"]),
    "candidates": (["compare", "--methods", "al"], ["all"]),
    "candidates after a comma": (["compare", "-m", "focal,hi"], ["focal,hill"]),
    "variants as bash takes words apart": (["compare", "-m", "selective", ":", ""], ["likelihood", "prior"]),
    "variants at the colon": (["compare", "-m", "focal,selective", ":"], ["likelihood", "prior"]),
    "another variant": (["compare", "-m", "nnpu", ":", "a,selective", ":", "p"], ["prior"]),
    "a method after a variant": (["compare", "-m", "selective", ":", "prior,hi"], ["prior,hill"]),
    "a variant": (["compare", "-m", "selective", ":", "l"], ["likelihood"]),
    "no variants": (["compare", "-m", "focal", ":", ""], []),
    "no such method": (["compare", "-m", "nobody", ":", ""], []),
    "a run": (["runs", "show", "aa"], ["aa01", "aa02"]),
    "a run's key": (["predict", "b"], ["b000"]),
    "a run whose page to show": (["show", "aa01"], ["aa01"]),
    "a run elsewhere": (["runs", "show", "--runs", "/nowhere", ""], []),
    "no pattern": (["runs", "show", "*"], []),
    "a board": (["board", "export", "ucm17-r"], ["ucm17-rpa0.5", "ucm17-rpa0.9"]),
    "a study": (["study", "prior-t"], ["prior-threshold"]),
    "an option that came twice": (["run", "--seed", "1", "--seed", "2", "-m", "hil"], ["hill"]),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_line_goes_on(question: str, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLBENCH_BOARDS", str(TOP / "leaderboards"))
    words, expected = QUESTIONS[question]
    assert asked(monkeypatch, "plbench", *words) == expected


def test_a_shell_that_can_shows_what_runs_are(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = asked(monkeypatch, "plbench", "runs", "show", "aa", shell="zsh")
    assert any("focal on scenes-fpc300/v2, seed 3, mAP(C) 61.20" in line for line in shown)


def test_variants_stay_whole_where_the_shell_keeps_words_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = asked(monkeypatch, "plbench", "compare", "-m", "selective:l", shell="zsh")
    assert r"selective\\:likelihood" in line


def test_nothing_slow_is_imported() -> None:
    """Waiting for torch at the Tab key would make it useless."""
    code = (
        "import os, sys; os.environ.update(_PLBENCH_COMPLETE='complete_bash', COMP_CWORD='5', "
        "COMP_WORDS='plbench\\ncompare\\n-m\\nselective\\n:\\n'); from plbench.cli import main\n"
        "try: main()\nexcept SystemExit: print(*sorted({'torch', 'pandas', 'numpy', 'scipy'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ)
    assert ran.stdout.splitlines() == ["likelihood", "prior", ""], ran.stderr


class TestPlbenchAlone:
    @pytest.fixture
    def said(self) -> Outcome:
        return plbench()

    def test_it_shows_where_to_start(self, said: Outcome) -> None:
        assert (said.code, said.err) == (0, "")
        assert said.out.startswith("plbench 0.") and "Documentation:" in said.out
        assert max(map(len, said.out.splitlines())) <= 88 and said.out.count("\n") < 22

    def test_its_commands_are_commands(self, said: Outcome) -> None:
        lines = [line.strip() for line in said.out.splitlines() if line.startswith("  plbench ")]
        assert len(lines) == 5
        for line in lines[:3]:
            words = shlex.split(line)
            helped = plbench(*words[1:2], "--help")
            assert helped.code == 0 and all(word in helped.out for word in words if word.startswith("--"))

    def test_a_mistyped_command_is_still_a_mistake(self) -> None:
        said = plbench("rnu")
        assert said.code == 2 and "No such command 'rnu'" in said.err
        assert app.info.help is not None

"""Options of one value that are given twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer.main
from test_cli import plbench

from plbench.cli import app
from plbench.cli.once import OnceCommand

TWICE = {
    "a number": (["run", "--seed", "0", "--seed", "1"], "--seed is given twice (0 and 1)"),
    "the same number": (["run", "--seed", "0", "--seed", "0"], "--seed is given twice (0 and 0)"),
    "labels": (["data", "stats", "table", "--labels", "a.csv", "--labels=b.csv"], "(a.csv and b.csv); put both tables"),
    "long and short": (["tune", "-m", "focal", "--method", "wan"], "--method is given twice (focal and wan)"),
    "short, joined": (["run", "-mfocal", "-m", "wan"], "--method is given twice (focal and wan)"),
    "three times": (["compare", "--seeds", "1", "--seeds", "2", "--seeds", "3"], "--seeds is given 3 times"),
    "a folder": (["runs", "list", "--runs", "a", "--runs", "b"], "--runs is given twice (a and b)"),
    "a choice": (["advise", "--recipe", "quick", "--recipe", "paper"], "--recipe is given twice (quick and paper)"),
    "boards": (["board", "build", "--boards", "a", "--boards", "b"], "--boards is given twice (a and b)"),
    "a grid": (["sweep", "grid.toml", "--executor", "ray", "--executor", "local"], "(ray and local)"),
    "data option": (["data", "stats", "table", "-D", "layout=wide", "-D", "layout=long"], "(wide and long)"),
    "data option and flag": (["data", "stats", "table", "--labels", "a", "-D", "labels=b"], "given twice (a and b)"),
    "range": (["tune", "-m", "wan", "-d", "scenes", "--range", "lr=0:1", "--range", "lr=0:2"], "(0:1 and 0:2)"),
}  # fmt: skip


@pytest.mark.parametrize("name", TWICE)
def test_both_values_are_named_in_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words, says = TWICE[name]
    said = plbench(*words)
    assert said.code == 2 and said.out == "" and says in said.err, said
    assert said.err.startswith("plbench: error: ") and said.err.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_lists_and_flags_may_be_repeated(tmp_path: Path) -> None:
    said = plbench("runs", "list", "--json", "--json", "--runs", tmp_path)
    assert (said.code, said.out.strip()) == (0, "[]")
    said = plbench("run", "--method", "no", "-P", "a=1", "-P", "b=2", "--dataset", "no", "-q", "--quiet")
    assert said.code == 2 and "twice" not in said.err


def test_every_command_does_it() -> None:
    def commands(group: typer.core.TyperGroup) -> list[object]:
        return [
            leaf for one in group.commands.values() for leaf in (commands(one) if hasattr(one, "commands") else [one])
        ]

    found = commands(typer.main.get_command(app))
    assert len(found) > 20 and all(isinstance(command, OnceCommand) for command in found)


class TestOnlyWhatIsNamedIsBuilt:
    @pytest.mark.parametrize("words", [["runs", "list", "--json"], ["pseudo-label"], ["data", "make-fixture", "voc"]])
    def test_it_is_the_same_command(self, words: list[str]) -> None:
        narrow, whole = typer.main.get_command(app.narrowed(words)), typer.main.get_command(app)
        for word in [word for word in words[:2] if word in {"runs", "list", "data", "make-fixture", "pseudo-label"}]:
            assert list(narrow.commands) == [word]
            narrow, whole = narrow.commands[word], whole.commands[word]
        names = [[(one.name, one.opts, one.help) for one in found.params] for found in (narrow, whole)]
        assert names[0] == names[1] and names[0]

    @pytest.mark.parametrize("words", [[], ["--help"], ["--version", "run"], ["rns"], ["-q"]])
    def test_for_anything_else_all_are(self, words: list[str]) -> None:
        assert app.narrowed(words) is app

    def test_help_of_a_group_has_all_of_its_commands(self) -> None:
        assert {"list", "show", "compare"} <= set(plbench("runs", "--help").out.split())
        assert "compare" in plbench("runs", "lst").err or "list" in plbench("runs", "lst").err

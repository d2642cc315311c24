"""A grid in a file: which runs it stands for, what is left out and why, and what the command says and does."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import pytest

from plbench.api import Batch, Loss, Method, MethodParams, Progress
from plbench.cli import main
from plbench.errors import PlbenchError
from plbench.runs import run as runner
from plbench.runs import schedule
from plbench.runs.estimate import estimate
from plbench.runs.estimate.stacked import Stack
from plbench.runs.plan import resolve
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.plan.resolved import in_order
from plbench.runs.workspace import Workspace
from plbench.sweeps.expansion import Expansion, expand
from plbench.sweeps.grid import Grid, read_grid

pytestmark = pytest.mark.usefixtures("quick_records")

MakeWorkspace = Callable[..., Workspace]
TWO = {"methods": ["ce-negative", "ce-ignore"], "datasets": ["tiny"]}


class Sums(Method):
    """A method with a variant and a parameter, which a group brings along."""

    name, title = "sums", "Sums"
    tags = frozenset({"strange"})
    variants: ClassVar[dict[str, dict[str, Any]]] = {"twice": {"factor": 2.0}}

    class Params(MethodParams):
        factor: float = 1.0

    def loss(self, output: Any, batch: Batch, progress: Progress) -> Loss:
        return Loss.of_images((output * self.params.factor).square().sum(dim=-1))


class NeedsNegatives(Sums):
    name, title = "needy", "Needy"
    needs = frozenset({"negatives"})


class Exploding(Sums):
    name, title = "exploding", "Exploding"
    tags = frozenset()
    variants: ClassVar[dict[str, dict[str, Any]]] = {}

    def loss(self, output: Any, batch: Batch, progress: Progress) -> Loss:
        return Loss.of_images(output.sum(dim=-1) * float("nan"))


def grid(**fields: Any) -> Grid:
    return Grid.model_validate({**TWO, **fields})


def rows(expanded: Expansion, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(run.cell.values.get(name) for name in names) for run in expanded.runs]


class TestFile:
    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ('datasets = "tiny"', 'methods is missing, such as methods = ["…"]'),
            ('method = "paper"\ndatasets = "tiny"', "there is no field 'method'; did you mean methods?"),
            (
                'methods = ["a", {nam = "b"}]\ndatasets = "tiny"',
                "methods[2]: there is no field 'nam'; did you mean name?",
            ),
            ('methods = []\ndatasets = "tiny"', "methods is empty"),
            ('methods = "a"\ndatasets = "tiny"\nseeds = 0', "seeds: a sweep needs at least one seed"),
            ('methods = "a"\ndatasets = "tiny"\nseeds = [0, "x"]', "seeds[2] = 'x' is not valid"),
            ('methods = "a"\ndatasets = "tiny"\nseeds = [1, 1]', "seeds: a value comes twice"),
            ('methods = "a"\ndatasets = "tiny"\nseeds = 2.5', "seeds = 2.5 is not valid"),
            ('methods = "a"\ndatasets = ["tiny", "tiny"]', "datasets: a value comes twice"),
            ('methods = "a"\ndatasets = "tiny"\nregime = "prob"', "regime[1] = 'prob' is not valid"),
            ('methods = "a"\ndatasets = "tiny"\n[plan]\nepoch = 1', "plan: there is no 'epoch'; did you mean epochs?"),
            ('methods = "a"\ndatasets = "tiny"\n[model]\nlr = 1', "model: there is no 'lr'"),
            ('methods = [{name = "a", params = {k = {}}}]\ndatasets = "tiny"', "methods[1].params.k[1] = {} is not"),
            ('methods = "a"\ndatasets = "tiny"\n[[exclude]]\nmethd = "a"', "did you mean method?"),
            (
                'methods = "a"\ndatasets = "tiny"\n[[exclude]]\nlr = 1',
                "the 1st names 'lr', which the grid does not set",
            ),
            ("methods =", "is not valid TOML"),
        ],
    )
    def test_a_mistake_is_one_sentence_that_names_the_field(self, tmp_path: Path, text: str, said: str) -> None:
        path = tmp_path / "grid.toml"
        path.write_text(text)
        with pytest.raises(PlbenchError) as error:
            read_grid(path)
        assert str(error.value).startswith(str(path)) and said in str(error.value)
        assert "\n" not in str(error.value)

    def test_the_example_in_the_documentation_is_a_grid(self, tmp_path: Path) -> None:
        text = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text(encoding="utf-8")
        source = re.search(r"```toml\n(.*?)```", text, flags=re.DOTALL)
        assert source is not None
        path = tmp_path / "grid.toml"
        path.write_text(source.group(1))
        said = read_grid(path)
        assert [entry.name for entry in said.methods] == ["ce-negative", "selective"]
        assert len(list(said.settings())) == 2 and said.seeds == [0, 1]

    def test_one_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(PlbenchError, match=r"none\.toml cannot be read: No such file"):
            read_grid(tmp_path / "none.toml")


class TestExpansion:
    def test_everything_is_combined_and_seeds_move_fastest(self, make_workspace: MakeWorkspace) -> None:
        simulations = ["fpc=8", "rpa=0.5"]
        expanded = expand(
            grid(simulations=simulations, seeds=2, plan={"lr": [0.1, 0.2], "epochs": 1}), make_workspace()
        )
        assert rows(expanded, "simulation", "lr", "method", "seed") == [
            (simulation, lr, method, seed)
            for simulation in simulations
            for lr in (0.1, 0.2)
            for method in TWO["methods"]
            for seed in (0, 1)
        ]
        assert expanded.columns == ["method", "simulation", "lr", "seed"]
        for run in expanded.runs:
            spec = run.plan.spec
            assert (spec.plan.lr, spec.plan.epochs, spec.seed) == (run.cell.setting["lr"], 1, run.cell.seed)
            assert spec.protocol.simulation == run.cell.setting["simulation"]

    def test_a_run_is_the_one_that_plbench_run_makes(self, make_workspace: MakeWorkspace) -> None:
        workspace = make_workspace()
        entries = [{"name": "selective", "params": {"top_k": [1, 2]}}, "selective:prior"]
        said = grid(methods=entries, seeds=[3], regime="finetune", model={"head": "mlp"}, selection="validation")
        found = [run.plan.spec for run in expand(said, workspace).runs]
        variant = workspace.registry.method("selective").variants["prior"]
        asked = [{"top_k": 1}, {"top_k": 2}, variant]
        request = {"seed": 3, "regime": "finetune", "model": {"head": "mlp"}, "selection": "validation"}
        assert found == [
            plan_run(Request("tiny", "selective", method_params=params, **request), workspace).spec for params in asked
        ]

    def test_a_dataset_is_opened_once_and_its_labels_are_shared(
        self, make_workspace: MakeWorkspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened = []
        open_dataset = resolve.open_dataset
        monkeypatch.setattr(resolve, "open_dataset", lambda *one: (opened.append(one[0]), open_dataset(*one))[1])
        said = grid(simulations=["fpc=8", "rpa=0.5"], plan={"lr": [0.1, 0.2]}, seeds=2)
        expanded = expand(said, make_workspace())
        assert opened == ["tiny"] and len(expanded.runs) == 16
        assert len({id(plan.protocol_data) for plan in expanded.plans}) == 4  # one a simulation and seed

    def test_exclusions_match_all_that_they_name(self, make_workspace: MakeWorkspace) -> None:
        exclude = [
            {"method": "ce-ignore", "simulation": "fpc=8"},
            {"seed": [1, 2], "simulation": "rpa=0.5"},
            {"method": "sums", "params": {"factor": 3.0}},
        ]
        entries = [*TWO["methods"], {"name": "sums", "params": {"factor": [3.0, 4.0]}}]
        said = grid(methods=entries, simulations=["fpc=8", "rpa=0.5"], seeds=3, exclude=exclude)
        expanded = expand(said, make_workspace(Sums))
        assert expanded.columns == ["method", "factor", "simulation", "seed"]
        assert expanded.num_excluded == 3 + 8 + 4
        assert rows(expanded, "method", "simulation", "factor", "seed") == [
            *(("ce-negative", "fpc=8", None, seed) for seed in range(3)),
            *(("sums", "fpc=8", 4.0, seed) for seed in range(3)),
            ("ce-negative", "rpa=0.5", None, 0),
            ("ce-ignore", "rpa=0.5", None, 0),
            ("sums", "rpa=0.5", 4.0, 0),
        ]

    def test_an_exclusion_of_a_method_takes_its_variants_along(self, make_workspace: MakeWorkspace) -> None:
        workspace = make_workspace(Sums)
        whole = expand(grid(methods=["sums:*", "ce-negative"], exclude=[{"method": "sums"}]), workspace)
        assert rows(whole, "method") == [("ce-negative",)]
        one = expand(grid(methods=["sums:*"], exclude=[{"method": "sums:twice"}]), workspace)
        assert rows(one, "method") == [("sums",)]

    def test_the_same_run_comes_once(self, make_workspace: MakeWorkspace) -> None:
        entries = ["sums", {"name": "sums", "params": {"factor": 1.0}}, "sums:twice", "strange"]
        expanded = expand(grid(methods=entries), make_workspace(Sums))
        assert rows(expanded, "method") == [("sums",), ("sums:twice",)]

    def test_what_does_not_fit_is_left_out_with_the_reason(self, make_workspace: MakeWorkspace) -> None:
        said = grid(methods=["strange", "ce-negative", "ce-ignore"], simulations=["fpc=8", "single-positive"], seeds=2)
        expanded = expand(said, make_workspace(Sums, NeedsNegatives))
        assert ("needy", "fpc=8", 0) in rows(expanded, "method", "simulation", "seed")
        assert ("needy", "single-positive", 0) not in rows(expanded, "method", "simulation", "seed")
        assert ("ce-ignore", "fpc=8", 1) in rows(expanded, "method", "simulation", "seed")
        who = [entry.who for entry in expanded.left_out]
        on = "on tiny, single-positive"
        assert who == [f"needy {on}", f"needy:twice {on}", f"ce-ignore {on}"]  # once, not for each seed
        assert "needs verified negatives" in expanded.left_out[0].why

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"methods": ["needy", "ce-negative"], "simulations": "single-positive"}, "method = 'needy'.*negatives"),
            ({"simulations": ["fpc=8", "fcp=8"]}, "simulation = 'fcp=8'"),
            ({"simulations": ["fcp=8"]}, "^there is no simulation 'fcp'; did you mean fpc"),
            ({"plan": {"lr": [0.1, -1.0]}}, "lr = -1.0.*greater than 0"),
            ({"methods": ["sums"], "backbones": ["test_resnet", "test_resnit"]}, "backbone = 'test_resnit'"),
            ({"methods": [{"name": "sums", "params": {"factor": [1.0, "x"]}}]}, "factor = 'x'"),
            ({"datasets": ["tiny", "tinny"]}, "dataset = 'tinny'.*did you mean tiny"),
            ({"recipe": "tin"}, "has no recipe 'tin'; did you mean tiny"),
            ({"methods": [{"name": "strange", "params": {"factor": 1.0}}]}, "'strange' stands for 4 methods"),
            ({"methods": ["sms"]}, "did you mean sums"),
            ({"exclude": [{"dataset": "tiny"}]}, "no run of the grid is left"),
            ({"model": {"weights": ["a.pt", "b.pt"]}}, "'a.pt' and 'b.pt' are two files"),
            ({"model": {"weights": "a.pt"}}, "weights file a.pt does not exist"),
        ],
    )
    def test_a_value_that_never_fits_is_a_mistake(
        self, make_workspace: MakeWorkspace, fields: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(PlbenchError, match=said):
            expand(grid(**fields), make_workspace(Sums, NeedsNegatives))

    def test_what_is_measured_is_each_kind_once(
        self, make_workspace: MakeWorkspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        measured: list[int] = []
        stack = Stack(step_seconds=2.0, scoring_seconds=0.0, peak_bytes=1, program_bytes=1)
        monkeypatch.setattr(estimate, "measure_stack", lambda members, *_: measured.append(len(members)) or stack)
        monkeypatch.setattr(estimate._Pace, "features", lambda *_: 0.0)
        said = grid(simulations=["fpc=8", "rpa=0.5"], plan={"lr": [0.1, 0.2], "batch_size": [8, 16]})
        workspace = make_workspace()
        found = estimate.estimate_runs(expand(said, workspace).plans, workspace)
        assert found.seconds == 2.0 * found.steps_left > 0.0
        assert measured == [4, 4]  # of each batch size once; the two simulations' heads are alike


class TestHere:
    def test_standings_and_what_is_said_on_the_way(
        self, make_workspace: MakeWorkspace, capsys: pytest.CaptureFixture[str]
    ) -> None:
        workspace = make_workspace(Sums, Exploding)
        expanded = expand(grid(methods=["sums", "exploding", "selective"], plan={"epochs": 1}), workspace)
        told: list[tuple[int, int, str]] = []
        tally = contextlib.nullcontext(lambda *values: told.append(values))
        with patch.object(workspace.reporter, "tally", lambda title: tally):
            results = schedule.run_here(expanded.plans, workspace)
        assert [isinstance(result, Exception) for result in results] == [False, True, False]
        assert (told[0][:2], told[-1][:2]) == ((0, 4), (4, 4)) and "1 failed" in told[-1][2]
        with workspace.store.lock(expanded.plans[1].spec.key, print):
            states = [standing.state for standing in schedule.standings(expanded.plans, workspace.store)]
            assert states == ["done", "under way", "done"]
        states_after = schedule.standings(expanded.plans, workspace.store)
        assert [standing.state for standing in states_after] == ["done", "failed", "done"]
        assert "loss" in str(states_after[1].why)
        record = workspace.store.run_folder(expanded.plans[0].spec.key) / "record.json"
        record.write_text(record.read_text().replace('"seed": 0', '"seed": 1'))
        damaged = schedule.standings(expanded.plans[:1], workspace.store)[0]
        assert damaged.state == "failed" and "was changed" in str(damaged.why)

    def test_prerequisites_come_before_what_needs_them_and_once(self, make_workspace: MakeWorkspace) -> None:
        workspace = make_workspace()
        expanded = expand(grid(methods=["selective", "ce-ignore"], selection="validation", seeds=2), workspace)
        every = in_order(expanded.plans)
        keys = list(every)
        for key, plan in every.items():
            for first in plan.prerequisites:
                assert keys.index(first.spec.key) < keys.index(key)
        assert len(keys) == 12  # a seed: both rows, both on the part that chooses, and the prior's run of each

    def test_time_left_goes_by_the_pace(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 100.0
        monkeypatch.setattr(schedule.time, "monotonic", lambda: now)
        count = schedule.Count(4, expected_seconds=60.0, start=now, last=now)
        now = 110.0
        assert count.seconds_left() == 50.0
        count.add(2, 1)
        assert count.words(1) == "1 failed, 1 running, about 10 s left"
        now = 115.0
        assert count.seconds_left() == 5.0
        count.add(2, 0)
        assert count.words() == "1 failed"


class Outcome:
    """What `plbench ARGUMENTS` left behind."""

    def __init__(self, *arguments: object) -> None:
        out, err = io.StringIO(), io.StringIO()
        argv = ["plbench", *map(str, arguments)]
        self.code: Any = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), patch.object(sys, "argv", argv):
            try:
                main()
            except SystemExit as leave:
                self.code = leave.code or 0
        self.out, self.err = out.getvalue(), err.getvalue()


class TestCommand:
    @pytest.fixture
    def place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """A folder with a grid of two methods on the tests' own tiny dataset; options that every command needs."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PLBENCH_CACHE", str(tmp_path / "cache"))
        text = 'methods = ["ce-negative", "selective"]\ndatasets = "tiny"\nseeds = 2\n[plan]\nepochs = 1\n'
        Path("grid.toml").write_text(text)
        return ["grid.toml", "--plugin", str(Path(__file__).parents[1] / "conftest.py"), "--device", "cpu"]

    def test_both_forms_make_what_is_missing_and_status_says_so(
        self, place: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = Outcome("sweep", "status", *place)
        assert before.code == 0, before.err
        assert "grid.toml: 4 runs: 4 missing; 2 that they need first: 2 missing" in before.out
        plugin = ["--plugin", place[2]]
        assert f"Next: plbench sweep grid.toml {' '.join(plugin)}" in before.out
        planned = Outcome("sweep", "--dry-run", *place)
        assert (
            planned.code == 0
            and "4 runs and 2 that they need first, none of them done already, 6 missing; about" in (planned.out)
        )
        assert not Path("runs").exists()
        made = Outcome("sweep", *place)
        assert made.code == 0, made.err
        assert "CE, Negative" in made.out and "P-ASL, Selective" in made.out
        after = json.loads(Outcome("sweep", "status", *place, "--json").out)
        assert after["counts"] == {"done": 4} and after["first"] == {"done": 2} and after["next"] is None
        assert [row["values"] for row in after["runs"]] == [
            {"method": method, "dataset": "tiny", "epochs": 1, "seed": seed}
            for method in ("ce-negative", "selective")
            for seed in (0, 1)
        ]
        monkeypatch.setattr(runner.ActiveRun, "train", None)  # nothing is made again
        monkeypatch.setattr("plbench.runs.estimate.estimate.estimate_runs", None)
        again = Outcome("sweep", "run", *place, "--json")
        assert again.code == 0 and "all done already" in again.err
        assert json.loads(again.out)["failed"] == {}

    def test_failures_are_named_and_the_command_leaves_with_2(self, place: list[str], tmp_path: Path) -> None:
        plugin = tmp_path / "exploding.py"
        plugin.write_text(
            "from plbench.api import Loss, Method\n\n\nclass Exploding(Method):\n    name, title = 'exploding', 'E'\n\n"
            "    def loss(self, output, batch, progress):\n"
            "        return Loss.of_images(output.sum(dim=-1) * float('nan'))\n"
        )
        grid_file = Path("grid.toml")
        grid_file.write_text(grid_file.read_text().replace('"selective"', '"exploding"'))
        made = Outcome("sweep", *place, "--plugin", plugin)
        assert made.code == 2
        assert "error: 2 of 4 runs failed; fix the problems above, and repeat the command" in made.err
        assert made.out.count("Failed: ") == 2
        status = Outcome("sweep", "status", *place, "--plugin", plugin)
        assert "4 runs: 2 done, 2 failed" in status.out and "Next: plbench sweep grid.toml" in status.out

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--address", "host:6379"], "--address is for a cluster; add --executor ray"),
            (["--gpus-per-run", "0.5"], "--gpus-per-run is for a cluster; add --executor ray or slurm"),
            (["--partition", "gpu"], "--partition is for a cluster; add --executor slurm, or leave it out"),
            (["--executor", "slurm", "--address", "host:1"], "--address is for a cluster; add --executor ray"),
            (["--executor", "ray", "--time", "60"], "--time is for a cluster; add --executor slurm"),
            (["--executor", "slurm", "--time", "4h"], "--time 4h: give minutes, hours:minutes:seconds"),
            (["--executor", "slurm", "--mem", "32GB"], "--mem 32GB: give a number with its unit"),
            (["--executor", "slurm", "--gpus-per-run", "0.5"], "--gpus-per-run 0.5: give a whole number of GPUs"),
            (["--executor", "slurm", "--cpus-per-run", "1.5"], "--cpus-per-run 1.5: give a whole number of CPU cores"),
            (["--executor", "slurm", "--slurm-option", "qos"], "--slurm-option 'qos' is not of the form name=value"),
            (["--executor", "ray", "--nproc", "4", "--gpus-per-run", "2"], "each of the 4 processes of --nproc needs"),
            (["--executor", "ray", "--gpus-per-run", "1.5"], "a share below 1, such as 0.5, or a whole number"),
            (["--track", "tensorbord"], "tensorboard"),
        ],
    )
    def test_options_that_do_not_go_together(self, place: list[str], options: list[str], said: str) -> None:
        refused = Outcome("sweep", *place, *options)
        assert refused.code == 2 and said in refused.err

    def test_a_cluster_that_does_not_answer_is_one_sentence(self, place: list[str]) -> None:
        pytest.importorskip("ray")
        refused = Outcome("sweep", *place, "--executor", "ray", "--address", "127.0.0.1:1")
        assert refused.code == 2
        assert "no Ray cluster at 127.0.0.1:1 can be joined: Connection refused; ray start --head starts" in refused.err

    def test_a_grid_that_is_wrong_is_named(self, place: list[str]) -> None:
        Path("grid.toml").write_text('methods = "ce-negative"\ndatasets = "tiny"\nsimulations = "fcp=3"\n')
        refused = Outcome("sweep", *place)
        assert refused.code == 2 and "error: grid.toml: " in refused.err and "fcp" in refused.err

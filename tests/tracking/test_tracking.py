"""Trackers hear what a training does, whatever they do themselves; real TensorBoard, MLflow and W&B where installed."""

import contextlib
import dataclasses
import json
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from plbench.errors import PlbenchError, TrainingError
from plbench.progress import Reporter
from plbench.runs import run as runner
from plbench.runs import schedule
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.record import Record, figures, read_record
from plbench.runs.workspace import Workspace
from plbench.spec import RunSpec
from plbench.tracking import follow as following
from plbench.tracking import services
from plbench.tracking.follow import Tracking, check_names
from plbench.tracking.tracker import PACKAGES, numbers, settings
from plbench.training.distributed import World

pytestmark = pytest.mark.usefixtures("quick_records")

EVENTS = ("started", "logged", "finished")
FAILURES = [
    RuntimeError("no server"),
    OSError(28, "No space left on device"),
    KeyError("x" * 999),
    ValueError("a\nb"),
    Exception(),
]


class Said(Reporter):
    """Keeps the lines that a person would read."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


class Listener:
    """A tracker that keeps what it hears, and fails at one event."""

    def __init__(self, fails_at: str = "", error: BaseException | None = None) -> None:
        self.heard: list[tuple[Any, ...]] = []
        self.fails_at, self.error = fails_at, error

    def _hear(self, event: str, *content: Any) -> None:
        self.heard.append((event, *content))
        if event == self.fails_at:
            assert self.error is not None
            raise self.error

    def started(self, spec: RunSpec, folder: Path) -> None:
        self._hear("started", spec.key, folder)

    def logged(self, step: int, values: Mapping[str, float]) -> None:
        self._hear("logged", step, dict(values))

    def finished(self, step: int, figures: Mapping[str, float]) -> None:
        self._hear("finished", step, dict(figures))

    def failed(self, error: BaseException) -> None:
        self._hear("failed", type(error), str(error))

    @property
    def events(self) -> list[str]:
        return [event for event, *_ in self.heard]


@pytest.fixture
def workspace(make_workspace: Callable[..., Workspace]) -> Workspace:
    return dataclasses.replace(make_workspace(), reporter=Said())


@pytest.fixture
def plan(workspace: Workspace) -> ResolvedRun:
    return plan_run(Request("tiny", "ce-negative"), workspace)


@pytest.fixture
def record(plan: ResolvedRun, workspace: Workspace) -> Record:
    return runner.run(plan, workspace)


@pytest.fixture
def listen(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Listener]:
    """Puts a listener in a tracker's place."""

    def put(name: str, *arguments: Any) -> Listener:
        listener = Listener(*arguments)
        monkeypatch.setitem(services.KINDS, name, lambda: listener)
        return listener

    return put


def tracked(workspace: Workspace, *names: str) -> Workspace:
    return dataclasses.replace(workspace, track=names)


def follow(plan: ResolvedRun, folder: Path, workspace: Workspace) -> contextlib.AbstractContextManager[Tracking]:
    """As a run does it."""
    return following.follow(plan.spec, folder, workspace.trackers, workspace.dropped, workspace.reporter.line)


def outcome_of(record: Record) -> tuple[int, dict[str, float]]:
    """What trackers hear of a record: its steps and figures."""
    return int(record.training["steps"]), figures(record)


def lines(workspace: Workspace) -> list[str]:
    """What was said of trackers; a slow machine also says how far it is."""
    assert isinstance(workspace.reporter, Said)
    return [line for line in workspace.reporter.lines if "Tracking by" in line]


class TestFollow:
    def test_a_run_is_told_from_start_to_end(
        self, plan: ResolvedRun, record: Record, workspace: Workspace, tmp_path: Path, listen: Callable[..., Listener]
    ) -> None:
        one, other = listen("mlflow"), listen("wandb")
        with follow(plan, tmp_path, tracked(workspace, "mlflow", "wandb")) as tracking:
            tracking.logged(3, {"loss": 2, "note": "text", "seconds": {"forward": 0.5}})
            tracking.finished(*outcome_of(record))
            assert tracking.is_over
        assert (
            one.heard
            == other.heard
            == [
                ("started", plan.spec.key, tmp_path),
                ("logged", 3, {"loss": 2.0, "seconds/forward": 0.5}),
                ("finished", *outcome_of(record)),
            ]
        )

    @pytest.mark.parametrize("error", [TrainingError("the loss is nan"), KeyboardInterrupt(), SystemExit(143)])
    def test_an_error_is_told_and_goes_on(
        self,
        error: BaseException,
        plan: ResolvedRun,
        workspace: Workspace,
        tmp_path: Path,
        listen: Callable[..., Listener],
    ) -> None:
        listener = listen("mlflow")
        with pytest.raises(type(error)), follow(plan, tmp_path, tracked(workspace, "mlflow")):
            raise error
        assert listener.heard[1:] == [("failed", type(error), str(error))]

    def test_an_end_is_told_once(
        self, plan: ResolvedRun, record: Record, workspace: Workspace, tmp_path: Path, listen: Callable[..., Listener]
    ) -> None:
        listener = listen("mlflow")
        with pytest.raises(OSError), follow(plan, tmp_path, tracked(workspace, "mlflow")) as tracking:
            tracking.finished(*outcome_of(record))
            tracking.logged(9, {"loss": 1})
            raise OSError
        with follow(plan, tmp_path, tracked(workspace, "mlflow")) as tracking:
            tracking.failed(TrainingError("one head of many"))
        with follow(plan, tmp_path, tracked(workspace, "mlflow")):
            pass
        assert listener.events == ["started", "finished", *["started", "failed"] * 2]
        assert "without a record" in listener.heard[-1][-1]

    def test_several_runs_at_a_time(
        self, plan: ResolvedRun, record: Record, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[Listener] = []
        monkeypatch.setitem(services.KINDS, "wandb", lambda: made.append(Listener()) or made[-1])
        with (
            follow(plan, tmp_path / "a", tracked(workspace, "wandb")) as one,
            follow(plan, tmp_path / "b", tracked(workspace, "wandb")) as other,
        ):
            other.logged(1, {"loss": 1})
            one.failed(TrainingError("no"))
            other.logged(2, {"loss": 1})
            other.finished(*outcome_of(record))
        assert [listener.events for listener in made] == [
            ["started", "failed"],
            ["started", "logged", "logged", "finished"],
        ]

    def test_nothing_is_imported_without_it(self) -> None:
        code = (
            "import sys; from plbench.tracking.follow import follow\n"
            "with follow(None, None, (), set(), print) as tracking:\n"
            "    tracking.logged(1, {'loss': 1}); tracking.finished(1, {})\n"
            "print([n for n in sys.modules if n.split('.')[0] in ('torch', 'tensorboard', 'mlflow', 'wandb')"
            " or n == 'plbench.tracking.services'])"
        )
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert found.stdout.strip() == "[]"

    def test_only_the_first_process_tells(
        self,
        plan: ResolvedRun,
        workspace: Workspace,
        tmp_path: Path,
        listen: Callable[..., Listener],
    ) -> None:
        listener = listen("mlflow")
        for rank in (1, 0):
            one_of_two = dataclasses.replace(workspace, world=World(rank, 2))
            with follow(plan, tmp_path, tracked(one_of_two, "mlflow")) as tracking:
                assert tracking.is_over == (rank == 1)
        assert listener.events == ["started", "failed"]


class TestRuns:
    """What runs tell, made alone and together."""

    def test_one_that_is_made_alone(self, workspace: Workspace, listen: Callable[..., Listener]) -> None:
        listener = listen("mlflow")
        request = Request("tiny", "ce-negative", regime="finetune", selection="best-on-test")
        plan = plan_run(request, workspace)
        record = runner.run(plan, tracked(workspace, "mlflow"))
        assert listener.heard[0] == ("started", plan.spec.key, workspace.store.run_folder(plan.spec.key))
        assert listener.heard[-1] == ("finished", *outcome_of(record))
        told = [(step, values) for event, *rest in listener.heard if event == "logged" for step, values in [rest]]
        losses = [(step, values["loss"]) for step, values in told if "loss" in values]
        assert [step for step, _ in losses] == [3, 6]
        assert losses[-1][1] == record.training["final_loss"]
        assert record.selection is not None
        assert [v["test/map_c/ema"] for _, v in told if "test/map_c/ema" in v] == [
            point["ema"] for point in record.selection.curve
        ]

    def test_several_that_train_together(self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        made: list[Listener] = []
        monkeypatch.setitem(services.KINDS, "wandb", lambda: made.append(Listener()) or made[-1])
        plans = [plan_run(Request("tiny", "ce-negative", seed=seed), workspace) for seed in (0, 1)]
        schedule.run_all(plans, tracked(workspace, "wandb"))
        assert {listener.heard[0][1] for listener in made} == {plan.spec.key for plan in plans}
        for listener in made:
            assert listener.events == ["started", *["logged"] * plans[0].spec.plan.epochs, "finished"]
            record = read_record(workspace.store.run_folder(listener.heard[0][1]))
            assert listener.heard[-1] == ("finished", *outcome_of(record))

    def test_one_that_fails(
        self, workspace: Workspace, listen: Callable[..., Listener], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        listener = listen("mlflow")

        def fails(*arguments: Any, **options: Any) -> None:
            raise TrainingError("the loss is nan")

        monkeypatch.setattr("plbench.runs.active.fit", fails)
        with pytest.raises(TrainingError):
            runner.run(plan_run(Request("tiny", "ce-negative"), workspace), tracked(workspace, "mlflow"))
        assert listener.events == ["started", "failed"]
        assert "the loss is nan" in listener.heard[-1][2]


class TestFailures:
    @pytest.mark.parametrize("error", FAILURES, ids=repr)
    @pytest.mark.parametrize("event", EVENTS)
    def test_it_is_warned_of_once_and_dropped_and_others_go_on(
        self,
        event: str,
        error: Exception,
        plan: ResolvedRun,
        record: Record,
        workspace: Workspace,
        tmp_path: Path,
        listen: Callable[..., Listener],
    ) -> None:
        broken, sound = listen("mlflow", event, error), listen("wandb")
        both = tracked(workspace, "mlflow", "wandb")
        before = len(lines(workspace))
        with follow(plan, tmp_path, both) as tracking:
            tracking.logged(1, {"loss": 1})
            tracking.logged(2, {"loss": 1})
            tracking.finished(*outcome_of(record))
        assert sound.events == ["started", "logged", "logged", "finished"]
        expected = {"started": 1, "logged": 2, "finished": 4}[event]
        assert broken.events == ["started", "logged", "logged", "finished"][:expected]
        (warning,) = lines(workspace)[before:]
        assert warning.startswith("Tracking by mlflow is off") and type(error).__name__ in warning
        assert "\n" not in warning and len(warning) < 250
        with follow(plan, tmp_path, both) as tracking:  # a later run does not ask it again
            tracking.finished(*outcome_of(record))
        assert sound.events[4:] == ["started", "finished"] and len(lines(workspace)) == before + 1
        assert broken.events.count("started") == 1

    def test_one_that_fails_at_a_failure_does_not_hide_it(
        self, plan: ResolvedRun, workspace: Workspace, tmp_path: Path, listen: Callable[..., Listener]
    ) -> None:
        listen("mlflow", "failed", RuntimeError("no server"))
        with pytest.raises(TrainingError, match="nan"), follow(plan, tmp_path, tracked(workspace, "mlflow")):
            raise TrainingError("the loss is nan")
        assert lines(workspace)[-1] == "Tracking by mlflow is off from here on: RuntimeError: no server"

    def test_runs_under_way_drop_it_together(
        self, plan: ResolvedRun, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[Listener] = []
        error = ConnectionError("refused")
        monkeypatch.setitem(services.KINDS, "mlflow", lambda: made.append(Listener("logged", error)) or made[-1])
        with (
            follow(plan, tmp_path / "a", tracked(workspace, "mlflow")) as one,
            follow(plan, tmp_path / "b", tracked(workspace, "mlflow")) as other,
        ):
            one.logged(1, {"loss": 1})
            other.logged(1, {"loss": 1})
        assert [listener.events for listener in made] == [["started", "logged"], ["started"]]
        assert len(lines(workspace)) == 1

    def test_ctrl_c_in_a_tracker_is_not_swallowed(self, plan: ResolvedRun, tmp_path: Path) -> None:
        tracking = Tracking({"mlflow": Listener("logged", KeyboardInterrupt())}, print)
        with pytest.raises(KeyboardInterrupt):
            tracking.logged(1, {"loss": 1})

    def test_one_that_cannot_be_made(
        self, plan: ResolvedRun, record: Record, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # its import fails
        with follow(plan, tmp_path, tracked(workspace, "tensorboard")) as tracking:
            tracking.finished(*outcome_of(record))
        assert "Tracking by tensorboard is off from here on: ModuleNotFoundError" in lines(workspace)[-1]


class TestNames:
    def test_they_are_those_of_the_trackers(self) -> None:
        assert set(PACKAGES) == set(services.KINDS)

    def test_one_that_is_not_known(self) -> None:
        with pytest.raises(PlbenchError, match="did you mean tensorboard"):
            check_names(["tensorbord"])

    def test_one_that_is_not_installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        monkeypatch.delitem(sys.modules, "wandb", raising=False)
        (tmp_path / "wandb").mkdir()  # what W&B leaves where it ran is no package
        with pytest.raises(PlbenchError, match=r'`track="wandb"` needs .* pip install wandb'):
            check_names(["wandb"])

    def test_each_once(self) -> None:
        assert check_names(["tensorboard", "tensorboard"]) == ("tensorboard",)


class TestContent:
    def test_settings_are_flat_and_complete(self, plan: ResolvedRun) -> None:
        found = settings(plan.spec)
        assert found["key"] == plan.spec.key and found["plan.lr"] == plan.spec.plan.lr
        assert found["protocol.name"] == "tiny-fpc8/v1" and found["model.mean"] == str(list(plan.spec.model.mean))
        assert all(isinstance(value, (bool, int, float, str)) for value in found.values())

    def test_figures_are_those_of_the_record(self, record: Record) -> None:
        found = figures(record)
        assert found["test/map_c"] == record.test.map_c.value and found["test/map_o"] == record.test.map_o.value
        assert "test_raw/map_c" in found and "test/map_c of rare" in found and "cost/seconds/training" in found

    def test_numbers(self) -> None:
        assert numbers({"a": True, "b": {"c": {"d": 1}}, "e": None, "f": "x", "g": float("inf")}) == {
            "b/c/d": 1.0,
            "g": float("inf"),
        }


def interrupted_then_whole(plan: ResolvedRun, record: Record, folder: Path, workspace: Workspace) -> None:
    """A run that Ctrl-C ends after two epochs, and that goes on from its checkpoint after the first."""
    with pytest.raises(KeyboardInterrupt), follow(plan, folder, workspace) as tracking:
        tracking.logged(3, {"loss": 0.75, "lr": 0.1})
        tracking.logged(6, {"loss": 0.5, "lr": 0.1})
        raise KeyboardInterrupt
    with follow(plan, folder, workspace) as tracking:
        tracking.logged(6, {"loss": 0.5, "lr": 0.1})
        tracking.logged(9, {"loss": 0.25, "lr": 0.0})
        tracking.finished(*outcome_of(record))
    assert lines(workspace) == []


class TestTensorBoard:
    def test_what_is_written_can_be_read_back(
        self, plan: ResolvedRun, record: Record, workspace: Workspace, tmp_path: Path
    ) -> None:
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        with follow(plan, tmp_path, tracked(workspace, "tensorboard")) as tracking:
            for step in (3, 6, 9, 12):
                tracking.logged(step, {"loss": 1 / step, "lr": 0.5})
            tracking.finished(*outcome_of(record))
        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        assert [(event.step, event.value) for event in events.Scalars("loss")] == [
            (step, pytest.approx(1 / step)) for step in (3, 6, 9, 12)
        ]
        (final,) = events.Scalars("test/map_c")
        assert final.value == pytest.approx(record.test.map_c.value) and final.step == record.training["steps"]
        text = events.Tensors("spec/text_summary")[0].tensor_proto.string_val[0].decode()
        assert f"| plan.lr | {plan.spec.plan.lr} |" in text
        start = HParamsPluginData.FromString(
            events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        )
        assert start.session_start_info.hparams["method.name"].string_value == "ce-negative"

    def test_it_can_be_watched_while_it_trains(self, plan: ResolvedRun, workspace: Workspace, tmp_path: Path) -> None:
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        with pytest.raises(KeyboardInterrupt), follow(plan, tmp_path, tracked(workspace, "tensorboard")) as tracking:
            tracking.logged(3, {"loss": 1})
            events = EventAccumulator(str(tmp_path / "tensorboard"))
            events.Reload()
            assert len(events.Scalars("loss")) == 1
            raise KeyboardInterrupt

    def test_an_interrupted_run_goes_on(
        self, plan: ResolvedRun, record: Record, workspace: Workspace, tmp_path: Path
    ) -> None:
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        interrupted_then_whole(plan, record, tmp_path, tracked(workspace, "tensorboard"))
        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        assert [event.step for event in events.Scalars("loss")] == [3, 6, 6, 9]
        assert "KeyboardInterrupt" in str(events.Tensors("error/text_summary"))


class TestMLflow:
    @pytest.fixture
    def client(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        mlflow = pytest.importorskip("mlflow")
        uri = f"sqlite:///{tmp_path}/mlflow.db"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        return mlflow.MlflowClient(uri)

    def test_an_interrupted_run_goes_on_in_the_same_one(
        self, plan: ResolvedRun, record: Record, workspace: Workspace, tmp_path: Path, client: Any
    ) -> None:
        interrupted_then_whole(plan, record, tmp_path / "run", tracked(workspace, "mlflow"))
        experiment = client.get_experiment_by_name("plbench").experiment_id
        (run,) = client.search_runs([experiment], f"tags.`plbench.key` = '{plan.spec.key}'")
        assert run.info.status == "FINISHED" and run.data.tags["plbench.runs.protocol"] == "tiny-fpc8/v1"
        assert run.data.params["plan.lr"] == str(plan.spec.plan.lr) and run.data.params["method.name"] == "ce-negative"
        assert run.data.metrics["test/map_c"] == pytest.approx(record.test.map_c.value)
        assert {metric.step for metric in client.get_metric_history(run.info.run_id, "loss")} == {3, 6, 9}

    def test_several_at_a_time_and_how_they_end(
        self, plan: ResolvedRun, record: Record, workspace: Workspace, tmp_path: Path, client: Any
    ) -> None:
        both = tracked(workspace, "mlflow")
        with follow(plan, tmp_path / "a", both) as one, follow(plan, tmp_path / "b", both) as other:
            other.logged(1, {"loss": 2})
            one.logged(1, {"loss": 1})
            one.failed(TrainingError("the loss is nan"))
            other.finished(*outcome_of(record))
        experiment = client.get_experiment_by_name("plbench").experiment_id
        runs = {run.info.status: run.data for run in client.search_runs([experiment])}
        assert runs["FAILED"].metrics == {"loss": 1.0} and "nan" in runs["FAILED"].tags["plbench.error"]
        assert runs["FINISHED"].metrics["loss"] == 2.0
        assert lines(workspace) == []

    def test_a_store_that_is_not_there(
        self, plan: ResolvedRun, record: Record, workspace: Workspace, tmp_path: Path, client: Any, monkeypatch: Any
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"nonsense://{tmp_path}")
        with follow(plan, tmp_path, tracked(workspace, "mlflow")) as tracking:
            tracking.logged(1, {"loss": 1})
            tracking.finished(*outcome_of(record))
        (line,) = lines(workspace)
        assert line.startswith("Tracking by mlflow is off from here on: ")


class TestWandB:
    @pytest.fixture(autouse=True)
    def offline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("wandb")
        monkeypatch.setenv("WANDB_MODE", "offline")

    def test_several_at_a_time_and_on_after_an_interruption(
        self, plan: ResolvedRun, record: Record, workspace: Workspace, tmp_path: Path
    ) -> None:
        both = tracked(workspace, "wandb")
        with follow(plan, tmp_path / "a", both) as one, follow(plan, tmp_path / "b", both) as other:
            other.logged(1, {"loss": 2})
            one.logged(1, {"loss": 1})
            one.failed(TrainingError("the loss is nan"))
            other.finished(*outcome_of(record))
        interrupted_then_whole(plan, record, tmp_path / "c", both)
        (one_run,) = (history_of(folder) for folder in (tmp_path / "a").glob("wandb/offline-run-*"))
        (other_run,) = (history_of(folder) for folder in (tmp_path / "b").glob("wandb/offline-run-*"))
        assert [row["loss"] for row in one_run["history"]] == [1.0]
        assert [row["loss"] for row in other_run["history"]] == [2.0]
        assert one_run["exit"] == 1 and other_run["exit"] == 0
        assert other_run["summary"]["test/map_c"] == pytest.approx(record.test.map_c.value)
        folders = sorted((tmp_path / "c").glob("wandb/offline-run-*"), key=lambda folder: folder.stat().st_mtime)
        again = [history_of(folder) for folder in folders]
        identity = (tmp_path / "c" / "tracking" / "wandb").read_text()
        assert len(folders) == 2 and all(identity in folder.name for folder in folders)
        assert [row["step"] for run in again for row in run["history"]] == [3, 6, 6, 9]


def history_of(folder: Path) -> dict[str, Any]:
    """What an offline run of W&B wrote; its service may still be writing when `finish` returns."""
    for _ in range(100):
        found = history_by_now(folder)
        if found["exit"] is not None:
            return found
        time.sleep(0.1)
    raise AssertionError("W&B did not write the end of its run")


def history_by_now(folder: Path) -> dict[str, Any]:
    """As far as it is written."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("*.wandb")
    found: dict[str, Any] = {"history": [], "summary": {}, "exit": None}
    for data in messages(path.read_bytes()):
        content = wandb_internal_pb2.Record.FromString(data)
        kind = content.WhichOneof("record_type")
        if kind == "history":
            items = content.history.item
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            found["history"].append({name: value for name, value in row.items() if not name.startswith("_")})
        elif kind == "summary":
            for item in content.summary.update:
                found["summary"][item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        elif kind == "exit":
            found["exit"] = content.exit.exit_code
    return found


def messages(content: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format: blocks of 32 KiB, pieces with checksum, length and kind before them."""
    position, whole = 7, b""  # after the file's own header
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:  # too little for a header: filled up
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        whole += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield whole
            whole = b""

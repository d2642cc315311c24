"""Where studies lie: journals and databases, who lives, and what cannot be reached; and `plbench tune` itself."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from test_cli import QUICK, Outcome, plbench, words_with

from plbench.errors import PlbenchError, StoreError
from plbench.runs import summary
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.record import read_record
from plbench.runs.workspace import Workspace
from plbench.tuning import liveness, shared, trials, tune
from plbench.tuning import storage as study_storage
from plbench.tuning.trials import TrialResult
from plbench.tuning.tune import Settings, search

pytestmark = pytest.mark.usefixtures("quick_records")

Make = Callable[..., Workspace]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "POLL_SECONDS", 0.05)


def a_plan(workspace: Workspace, **request: Any) -> ResolvedRun:
    return plan_run(Request("tiny", "pasl-negative", plan={"epochs": 1}, **request), workspace)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Trials that only take the time they are told to."""

    def pretend_to_train(*, together: bool = True, seconds: float = 0.0) -> None:
        def score_together(plans: Sequence[ResolvedRun], workspace: Workspace) -> list[TrialResult]:
            time.sleep(seconds * len(plans))
            return [TrialResult(50 + 10 * plan.params.gamma_pos, 0.01) for plan in plans]

        monkeypatch.setattr(tune, "can_stack", lambda plan: together)
        monkeypatch.setattr(trials, "score_together", score_together)
        monkeypatch.setattr(trials, "score_alone", lambda plan, workspace, watch: score_together([plan], workspace)[0])

    return pretend_to_train


@pytest.fixture
def worker(in_a_process: Callable[[Callable[[], Any]], Any]) -> Callable[..., Any]:
    """Starts `search` in a process of its own."""

    def start(workspace: Workspace, settings: Settings) -> Any:
        plan = a_plan(workspace)
        return in_a_process(lambda: search(plan, settings, workspace))

    return start


@pytest.fixture
def quick_hearts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose heart is silent for two seconds is dead."""
    monkeypatch.setattr(liveness, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(liveness, "GRACE_SECONDS", 2)


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port: int = place.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server of Debian's packages, on a port of its own; skipped where there can be none."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not binaries:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    pytest.importorskip("psycopg")
    top = Path("/tmp") / f"plbench-postgres-{os.getpid()}"  # pytest's own folders may only be entered by their owner
    top.mkdir()
    identity: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        try:
            owner = pwd.getpwnam("postgres")
        except KeyError:
            shutil.rmtree(top)
            pytest.skip("there is no user postgres to run the server as")
        os.chown(top, owner.pw_uid, owner.pw_gid)
        identity = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    port, data = free_port(), top / "data"
    server = None
    try:
        initdb = [binaries[-1] / "initdb", "-D", data, "-U", "plbench", "-A", "trust", "--no-sync"]
        made = subprocess.run(initdb, capture_output=True, text=True, cwd=top, **identity)
        if made.returncode != 0:
            pytest.skip(f"initdb: {made.stderr[-200:]}")
        options = ["-D", data, "-p", str(port), "-c", "listen_addresses=127.0.0.1", "-k", top, "-c", "fsync=off"]
        with (top / "log").open("w") as log:
            command = [binaries[-1] / "postgres", *options]
            server = subprocess.Popen(command, stdout=log, stderr=log, cwd=top, **identity)
        ready = [binaries[-1] / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
        deadline = time.monotonic() + 30
        while subprocess.run(ready, capture_output=True).returncode != 0:
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"postgres: {(top / 'log').read_text()[-200:]}")
            time.sleep(0.1)
        yield f"postgresql://plbench@127.0.0.1:{port}/postgres"
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
        shutil.rmtree(top, ignore_errors=True)


class TestPostgres:
    def test_a_study_is_made_continued_and_answered(
        self, postgres: str, make_workspace: Make, pretended: Callable[..., None]
    ) -> None:
        pretended()
        workspace, elsewhere = make_workspace(), make_workspace(name="another machine")
        study = search(a_plan(workspace), Settings(3, storage=postgres, study="one"), workspace)
        more = search(a_plan(elsewhere), Settings(5, storage=postgres, study="one"), elsewhere)
        assert more.trials[:3] == study.trials and len(more.trials) == 5 and more.key == study.key
        assert not list(workspace.store.runs.rglob("journal.log"))
        local = search(a_plan(workspace), Settings(5), workspace)  # a journal draws what a database does
        assert [trial.values for trial in local.trials[:3]] == [trial.values for trial in study.trials]

    def test_two_workers_make_exactly_so_many(
        self, postgres: str, make_workspace: Make, pretended: Callable[..., None], worker: Callable[..., Any]
    ) -> None:
        pretended(together=False, seconds=0.02)
        workspace, settings = make_workspace(), Settings(12, storage=postgres, study="two")
        processes = [worker(workspace, settings) for _ in range(2)]
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
        study = search(a_plan(workspace), settings, workspace)
        assert len(study.trials) == 12 == len({tuple(trial.values.items()) for trial in study.trials})
        assert study.trials[0].values == study.spec.start

    @pytest.mark.usefixtures("quick_hearts")
    def test_trials_without_a_heartbeat_are_tried_again(
        self, postgres: str, make_workspace: Make, pretended: Callable[..., None], worker: Callable[..., Any]
    ) -> None:
        pretended(seconds=5.0)
        workspace, settings = make_workspace(), Settings(4, storage=postgres, study="stale")
        undisturbed = make_workspace(name="undisturbed")
        process = worker(workspace, settings)
        time.sleep(1.5)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        pretended()
        study = search(a_plan(workspace), settings, workspace)
        expected = search(a_plan(undisturbed), Settings(4), undisturbed)
        # in the order in which their hearts were found silent, which is that of the last beats
        found, wanted = ({(*t.values.values(), t.state, t.value) for t in one.trials} for one in (study, expected))
        assert len(study.trials) == 4 and found == wanted

    @pytest.mark.usefixtures("quick_hearts")
    def test_a_long_trial_of_a_worker_that_lives_is_not_taken_for_lost(
        self, postgres: str, make_workspace: Make, pretended: Callable[..., None], worker: Callable[..., Any]
    ) -> None:
        pretended(together=False, seconds=4.0)
        workspace, settings = make_workspace(), Settings(1, storage=postgres, study="long")
        process = worker(workspace, settings)
        time.sleep(1.0)
        start = time.monotonic()
        study = search(a_plan(workspace), settings, workspace)
        process.join()
        assert process.exitcode == 0 and len(study.trials) == 1
        assert time.monotonic() - start < 6.5  # 3 seconds of the trial were left; begun again, it would take 4 more

    def test_a_database_that_is_not_there(self, postgres: str, make_workspace: Make) -> None:
        workspace = make_workspace()
        url = postgres.replace("/postgres", "/nowhere").replace("plbench@", "plbench:secret@")
        with pytest.raises(StoreError, match=r'database "nowhere" does not exist') as raised:
            search(a_plan(workspace), Settings(2, storage=url), workspace)
        assert "secret" not in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.usefixtures("quick_hearts")
@pytest.mark.filterwarnings("ignore:Argument ``heartbeat_interval``")  # Optuna's, where the storage is opened directly
def test_whenever_a_worker_of_a_database_is_killed_another_goes_on(
    tmp_path: Path,
    make_workspace: Make,
    pretended: Callable[..., None],
    in_a_process: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed at one of its commits while it makes the study and takes trials, or before it trains them."""
    pretended()
    monkeypatch.setattr(shared, "_ASKED_SECONDS", 0.5)
    workspace = make_workspace()
    plan = a_plan(workspace)

    def settings(name: object) -> Settings:
        return Settings(2, storage=f"sqlite:///{tmp_path}/{name}.db")

    def killed_at(call: int) -> None:
        left = call

        def before(*_: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        study_storage._connected(settings(call).storage or "", {}, None).engine.dispose()  # type: ignore[arg-type]
        sqlalchemy.event.listen(sqlalchemy.engine.Engine, "commit", before)
        liveness.Heartbeats.alive = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore
        search(plan, settings(call), workspace)

    calls = (*range(1, 36, 5), 99)  # the last is after all of them
    for process in [in_a_process(lambda call=call: killed_at(call)) for call in calls]:
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    others = [in_a_process(lambda call=call: search(plan, settings(call), workspace)) for call in calls]
    expected = search(plan, settings("undisturbed"), workspace)
    for call, process in zip(calls, others, strict=True):
        process.join(60)
        assert process.exitcode == 0
        study = search(plan, settings(call), workspace)
        assert [(t.values, t.value) for t in study.trials] == [(t.values, t.value) for t in expected.trials]


def test_sqlite_will_do_for_one_machine(tmp_path: Path, make_workspace: Make, pretended: Callable[..., None]) -> None:
    pretended()
    workspace = make_workspace()
    settings = Settings(3, storage=f"sqlite:///{tmp_path / 'studies.db'}")
    study = search(a_plan(workspace), settings, workspace)
    assert search(a_plan(workspace), settings, workspace) == study


class TestNotToBeReached:
    @pytest.mark.parametrize(
        ("storage", "says"),
        [
            ("redis://127.0.0.1/0", '`storage="redis://…"` is of no known kind; give the path of a journal'),
            ("postgres://127.0.0.1/x", "of no known kind"),
            ("postgresql://plbench:secret@127.0.0.1:{port}/x", "cannot be used: connection failed"),
            ("postgresql://127.0.0.1:port/x", "not a URL that can be read"),
            ("postgresql+pg8000://127.0.0.1/x", "needs a database driver that is not installed here"),
            ("postgresql+nothing://127.0.0.1/x", "needs a database driver that is not installed here"),
            ("mysql://127.0.0.1/x", "needs a database driver that is not installed here"),
            ("sqlite:////no/such/folder/x.db", "unable to open database file"),
            ("{tmp}/file/journal.log", "could not write {tmp}/file"),
            ("/proc/journal.log", "could not write /proc/"),
            ("{tmp}", "Is a directory"),
        ],
    )
    def test_a_storage_that_cannot_be_is_a_sentence(
        self, storage: str, says: str, tmp_path: Path, make_workspace: Make
    ) -> None:
        place = tmp_path / "place"
        place.mkdir()
        (place / "file").write_text("")
        workspace = make_workspace()
        plan = a_plan(workspace)
        with pytest.raises(PlbenchError) as raised:
            search(plan, Settings(2, storage=storage.format(port=free_port(), tmp=place)), workspace)
        text = str(raised.value)
        assert says.format(tmp=place) in text and "\n" not in text and "secret" not in text and len(text) < 500
        assert not workspace.store.runs.exists() or not list(workspace.store.runs.iterdir())

    def test_a_missing_driver_of_postgres_is_named_with_what_gets_it(
        self, make_workspace: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
        workspace = make_workspace()
        with pytest.raises(PlbenchError, match=r'not installed here; pip install "plbench\[postgres\]"'):
            search(a_plan(workspace), Settings(2, storage="postgresql://127.0.0.1/x"), workspace)

    def test_a_study_that_asks_another_question(
        self, tmp_path: Path, make_workspace: Make, pretended: Callable[..., None]
    ) -> None:
        pretended()
        workspace = make_workspace()
        storage = str(tmp_path / "shared" / "studies.log")
        search(a_plan(workspace), Settings(2, storage=storage, study="mine"), workspace)
        with pytest.raises(PlbenchError) as raised:
            search(a_plan(workspace, simulate="rpa=0.5"), Settings(2, storage=storage, study="mine"), workspace)
        text = str(raised.value)
        assert text.startswith(
            f"study 'mine' in {storage} has a different setting: protocol.name is tiny-fpc8/v1, here "
        )
        assert "`study=NAME`" in text and "\n" not in text
        other = Settings(2, storage=storage, study="mine", seed=1)
        with pytest.raises(PlbenchError, match="different setting: seed is 0, here 1;"):
            search(a_plan(workspace), other, workspace)
        search(a_plan(workspace, simulate="rpa=0.5"), Settings(2, storage=storage, study="other"), workspace)

    def test_a_study_of_another_program(self, tmp_path: Path, make_workspace: Make) -> None:
        import optuna

        url = f"sqlite:///{tmp_path / 'studies.db'}"
        theirs = optuna.create_study(storage=url, study_name="theirs", direction="maximize")
        theirs.tell(theirs.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), 1.0)
        workspace = make_workspace()
        with (
            pytest.MonkeyPatch.context() as patched,
            pytest.raises(PlbenchError, match=r"'theirs' in .* was not made by plbench tune; give another name"),
        ):
            patched.setattr(study_storage, "_MADE_SECONDS", 0.1)
            search(a_plan(workspace), Settings(2, storage=url, study="theirs"), workspace)


@pytest.fixture(scope="class")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[str], Path, Outcome]]:
    """A command, its runs folder, and what it said, in a folder of this class's own."""
    top = tmp_path_factory.mktemp("tune")
    command = ["tune", "-m", "pasl-negative", "-d", "scenes", "--trials", "3", "--seeds", "2", "--epochs", "1"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PLBENCH_RUNS", str(top / "runs"))
        patched.setattr(summary, "NUM_REPLICATES", 20)
        command += [*QUICK, "--range", "gamma_neg=0:2", "-P", "clip=0.05"]
        yield command, top / "runs", plbench(*command)


class TestCommand:
    def test_it_ends_with_the_winner_both_rows_pictures_and_next_steps(
        self, tuned: tuple[list[str], Path, Outcome]
    ) -> None:
        command, runs, said = tuned
        assert said.code == 0, said.err
        assert "P-ASL, Negative, tuned" in " ".join(said.out.split()) and "to the best" in said.out
        assert re.search(r"lr +\S+ +\S+ +\S+ to \S+, log", said.out) and not re.search("^clip ", said.out, re.M)
        (folder,) = (runs / "studies").iterdir()
        assert f"Study: {folder / 'study.json'}" in said.out and "history.png" in said.out
        assert re.search(r"Trials: 3 of 3, best mAP\(C\) on the validation part \d+\.\d\d \(starting", said.err)
        assert len(list(runs.glob("*/record.json"))) >= 4
        steps = [line.removeprefix("Next: ") for line in said.out.splitlines() if line.startswith("Next: ")]
        assert len(steps) == 2 and "--range gamma_neg=0:2" in steps[1] and "-P clip=0.05" in steps[1]
        again = plbench(*command)
        assert again.code == 0 and again.out == said.out and "Trials:" not in again.err
        compared = plbench(*shlex.split(steps[0])[1:])
        assert compared.code == 0 and "P-ASL, Negative, tuned" in " ".join(compared.out.split())
        more = plbench(*shlex.split(steps[1])[1:], "--search-only", "--json").json
        assert len(more["study"]["trials"]) == 6 and more["folder"] == str(folder)

    def test_json_alone(self, tuned: tuple[list[str], Path, Outcome]) -> None:
        command, runs, _ = tuned
        content = plbench(*command, "--json").json
        study = content["study"]
        assert set(study["spec"]["space"]) == {"gamma_pos", "gamma_neg", "gamma_unann", "lr", "weight_decay"}
        assert study["trials"][0]["values"]["gamma_neg"] == 3.0  # the starting value, outside the range given
        rows = content["settings"][0]["rows"]
        assert sum(1 + len(row["same"]) for row in rows) == 2  # one row where the study chose the starting values
        record = read_record(runs / study["rows"][0]["tuned"][0])
        assert record.tuning is not None and record.tuning.study == study["key"]

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (["--trials", "0"], "--trials 0: a study needs at least one trial"),
            (["--trials", "-4"], "--trials -4"),
            (["--seeds", "0"], "--seeds 0"),
            (["--seeds", "-1"], "--seeds -1"),
            (["--study-seed", "-1"], "--study-seed -1"),
            (["-P", "gamma=1"], "no parameter 'gamma'; did you mean gamma_"),
            (["--range", "gamma=1:2"], "no parameter 'gamma'; did you mean gamma_"),
            (["--range", "lr=1e-1:1e-4"], "reversed or empty"),
            (["--range", "clip=0:1"], "clip = 1.0 is not valid"),
            (["--range", "clip"], "not of the form name=low:high"),
            (["--range", "clip=0:0.1", "-P", "clip=0.1"], "is fixed with -P clip=0.1"),
            (["--storage", "redis://x"], "of no known kind"),
            (["--storage", "/proc/x.log"], "could not write"),
            (["--regime", "finetune", "--then", "finetune"], "already uses that regime"),
            (["--then", "probe"], "already uses that regime"),
        ],
    )
    def test_whatever_is_wrong_is_one_sentence_and_leaves_nothing(
        self, options: list[str], says: str, tmp_path: Path
    ) -> None:
        command = ["-m", "pasl-negative", "-d", "scenes", "--recipe", "quick", "--epochs", "1", "--trials", "2"]
        said = plbench("tune", *words_with([*command, "--runs", tmp_path / "runs"], *options))
        assert said.code == 2 and said.out == "", said
        lines = [line for line in said.err.splitlines() if not re.match(r"\[ *\d+\.\d s\] ", line)]
        assert len(lines) == 1 and lines[0].startswith("plbench: error: ") and says in lines[0], said.err
        assert list(tmp_path.rglob("*")) == []

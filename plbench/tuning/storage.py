"""Storage of a study shared by several workers: a journal file or a database."""

from __future__ import annotations

import itertools
import json
import os
import time
import uuid
import warnings
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from plbench.errors import PlbenchError
from plbench.files import unwritable
from plbench.spec import differences
from plbench.tuning import liveness
from plbench.tuning.liveness import Heartbeats, Liveness, Locks
from plbench.tuning.shared import DAMAGE, SharedStudy, damaged, queue_again, queue_start, speaking_of
from plbench.tuning.study import StudySpec

_MADE_SECONDS = 10.0  # maximum time to create a study in a database
_MAX_ATTEMPTS = 5  # at creating a database's tables
_DATABASES = {"postgresql": "postgresql+psycopg", "mysql": "mysql", "sqlite": "sqlite"}
_OPERATION = b'{"op_code":'  # what each line of a journal starts with


def open_study(spec: StudySpec, folder: Path, storage: str | None, name: str | None, pruner: Any) -> SharedStudy:
    """Open or create a study.

    Args:
        spec: specification of the study.
        folder: of the study, which contains its journal unless another storage is given.
        storage: path of a journal file, or URL of a database.
        name: of the study in the storage; unique by default.
        pruner: Optuna's.

    Raises:
        StoreError: if the storage cannot be reached or read. PlbenchError: if the kind of storage is unknown, or the
            study of that name has another specification.
    """
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)  # plbench reports errors itself
    worker, name = uuid.uuid4().hex, name or f"plbench-{spec.key}"
    kept: JournalStorage | RDBStorage
    liveness: Liveness
    if storage is not None and "://" in storage:
        kept, place = _open_database(storage, spec)
        liveness = Heartbeats(kept)
    else:
        path = Path(storage) if storage else folder / "journal.log"
        kept, place = _open_journal(path), str(path)
        liveness = Locks(path, worker)
    try:
        with speaking_of(place):
            study = _made(spec, kept, name, place, liveness, pruner)
    except BaseException:
        liveness.close()
        raise
    return SharedStudy(spec, study, liveness, worker, place)


def _made(
    spec: StudySpec, storage: BaseStorage, name: str, place: str, liveness: Liveness, pruner: Any
) -> optuna.Study:
    """Return the study of that name: created if it does not exist, otherwise checked against the spec."""
    with liveness.claiming():
        try:
            study = optuna.create_study(storage=storage, study_name=name, direction="maximize", pruner=pruner)
            made_here = True
        except optuna.exceptions.DuplicatedStudyError:
            study, made_here = optuna.load_study(storage=storage, study_name=name, pruner=pruner), False
        if not made_here and isinstance(storage, RDBStorage):  # another worker may be creating it
            deadline = time.monotonic() + _MADE_SECONDS
            while "spec" not in study.user_attrs and time.monotonic() < deadline:
                time.sleep(0.2)
        found = study.user_attrs.get("spec")
        if found is None:  # new, or its creation was interrupted
            trials = study.get_trials(deepcopy=False)
            if any(not trial.user_attrs.get("start") for trial in trials):
                raise PlbenchError(
                    f"study {name!r} in {place} was not made by plbench tune; give another name with `study=NAME`"
                )
            if not trials:
                queue_start(study, spec)
            # last: marks the creation as complete
            study.set_user_attr("spec", spec.model_dump(mode="json"))
            return study
    differs = differences(found, spec.model_dump(mode="json"))
    if differs:
        more = f"; and {len(differs) - 3} more" if len(differs) > 3 else ""
        raise PlbenchError(
            f"study {name!r} in {place} has a different setting: {'; '.join(differs[:3])}{more}; give another name "
            "with `study=NAME`, or the options that it was made with"
        )
    return study


def _open_journal(path: Path) -> JournalStorage:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):  # if not writable, waiting for the lock would never end
            pass
        # not Optuna's own lock: the system releases this one when its process dies
        lock = FileLock(path.with_name(f"{path.name}.lock"))
        with lock:  # otherwise a line that another worker is writing would look torn
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            torn = content[whole:]  # a torn line, after a crash or a full disk, would corrupt the next one
            if not _OPERATION.startswith(torn[: len(_OPERATION)]):
                raise ValueError("its last line is not a journal entry")
            if torn:
                os.truncate(path, whole)
            if whole:  # Optuna would only notice errors at the next write
                json.loads(content[:whole].splitlines()[-1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))  # type: ignore[arg-type]
    except OSError as error:
        raise unwritable(path, error) from error
    except DAMAGE as error:
        raise damaged(path, error) from error


def _connected(url: str, options: dict[str, Any], spec: StudySpec) -> RDBStorage:
    """Return Optuna's storage. If several workers create its tables at once, all but one fail and retry."""
    import sqlalchemy

    for attempt in itertools.count(1):
        try:
            return RDBStorage(
                url,
                options,
                heartbeat_interval=liveness.HEARTBEAT_SECONDS,
                grace_period=liveness.GRACE_SECONDS,
                heartbeat_stale_trial_callback=lambda study, trial: queue_again(study, trial, spec),
            )
        except sqlalchemy.exc.DBAPIError as error:
            if "already exists" not in str(error) or attempt == _MAX_ATTEMPTS:
                raise
            time.sleep(0.2 * attempt)
    raise AssertionError


def _open_database(url: str, spec: StudySpec) -> tuple[RDBStorage, str]:
    """Return the storage, and its name for messages."""
    import sqlalchemy

    kind, _, rest = url.partition("://")
    dialect, driver, _ = kind.partition("+")
    if dialect not in _DATABASES:
        raise PlbenchError(
            f'`storage="{kind}://…"` is of no known kind; give the path of a journal file, or the URL of a database '
            "such as postgresql://user@host/database"
        )
    if not driver:
        url = f"{_DATABASES[dialect]}://{rest}"
    try:
        place = sqlalchemy.engine.make_url(url).render_as_string(hide_password=True)
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        raise PlbenchError(
            "`storage=` is not a URL that can be read; give one such as postgresql://user@host/database"
        ) from error
    # a trial may take hours, after which a server may have closed the connection
    options: dict[str, Any] = {"pool_pre_ping": True}
    if dialect == "postgresql":  # its client has no timeout for unreachable hosts
        options["connect_args"] = {"connect_timeout": 10}
    try:
        with speaking_of(place):
            return _connected(url, options, spec), place
    except (ImportError, sqlalchemy.exc.NoSuchModuleError) as error:
        fixes = 'pip install "plbench[postgres]"' if "psycopg" in place else "install the driver that its URL names"
        raise PlbenchError(
            f'`storage="{place}"` needs a database driver that is not installed here; {fixes}'
        ) from error

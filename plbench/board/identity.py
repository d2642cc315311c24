"""Check that a record fits its board: hashes, protocol, code, and no selection on test."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from plbench.board.boards import Board, Event
from plbench.board.entries import Entry
from plbench.board.installed import Installed
from plbench.runs.findings import Findings, shown
from plbench.runs.record import Record
from plbench.runs.store import RECORD
from plbench.spec import NUMERICS

Role = Literal["row", "ceiling"]

ACCEPTED_NUMERICS = frozenset({NUMERICS})
"""NUMERICS of this plbench, and of earlier versions that give the same results."""

_CLOCKS = timedelta(days=1)  # tolerance for clocks that are ahead
_WRITTEN = datetime(2026, 11, 29, tzinfo=UTC)  # the clock is wrong if it shows an earlier time

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA256_OF_NOTHING = hashlib.sha256().hexdigest()
_KEY = re.compile(r"[0-9a-f]{16}")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_VERSION = re.compile(r"\d+(\.\d+)+[0-9a-z.+-]*")
_SOURCE_FILE = re.compile(r"[A-Za-z0-9_]+(/[A-Za-z0-9_]+)*\.py")
_FILE = re.compile(r"[a-z0-9_]+\.[a-z0-9]+")


def latest_time() -> datetime:
    """Return the latest valid time of a record, in UTC; unlimited if this machine's clock is obviously wrong."""
    now = datetime.now(UTC)
    return now + _CLOCKS if now > _WRITTEN else datetime.max.replace(tzinfo=UTC)


def role_of(record: Record, board: Board) -> Role:
    """Return a record's role on a board, by its protocol."""
    return "ceiling" if record.spec.protocol.sha256() == board.ceiling_sha256 else "row"


def check_identity(record: Record, board: Board, role: Role, installed: Installed, findings: Findings) -> None:
    """Check a record's spec, setting, code and selection of the epoch."""
    _check_hashes(record, findings)
    _check_question(record, board, role, findings)
    _check_environment(record.environment, findings)
    check_tuning(record, board, findings)
    _check_origin(record, installed, findings)
    when = _finished_at(record, findings)
    if when is not None and when > latest_time():
        findings.refuse("finished_at", shown(record.finished_at), "a time that has passed")
    _check_run(record, findings)


def check_added(entry: Entry, added: Event, findings: Findings) -> None:
    """Check the record against its entry in the ledger, including its time."""
    sha256 = entry.sha256[RECORD]
    if added.sha256 != sha256:
        findings.refuse(RECORD, f"of sha256 {sha256}", f"{added.sha256}, as the ledger has it")
    try:
        added_at = datetime.fromisoformat(added.at)
    except ValueError:  # invalid times, such as month 13
        return
    when = _finished_at(entry.record, findings)
    if when is not None and when > added_at:
        findings.refuse("finished_at", shown(entry.record.finished_at), f"a time before {added.at}, when it was added")


def check_tuning(record: Record, board: Board, findings: Findings) -> None:
    """Check that a tuned row has a study within the board's number of trials, and its chosen values."""
    tuning, spec = record.tuning, record.spec
    words = "'tuned', and a study, for a spec that names one; else neither"
    if len({record.configuration == "tuned", tuning is not None, spec.tuned_by is not None}) > 1:
        findings.refuse("configuration", f"{record.configuration!r}, {'with' if tuning else 'without'} a study", words)
    if tuning is None:
        return
    findings.equal("tuning.study", tuning.study, spec.tuned_by)
    most = min(board.max_trials, spec.protocol.budget)  # the board's limit may exceed the protocol's
    findings.require(tuning.num_trials <= most, "tuning.num_trials", tuning.num_trials, f"at most {most}")
    findings.equal("tuning.labels", tuning.labels, spec.protocol.validation_labels)
    own = {**spec.method.params, "lr": spec.plan.lr, "weight_decay": spec.plan.weight_decay}
    # lr and weight decay are not transferred to another regime
    transferred = {"lr", "weight_decay"} if tuning.regime != spec.regime else set()
    findings.equal("tuning.chosen", sorted(tuning.chosen), sorted(tuning.space))
    for name in sorted(tuning.chosen.keys() - transferred):
        findings.equal(f"tuning.chosen.{name}", tuning.chosen[name], own.get(name))


def _check_hashes(record: Record, findings: Findings) -> None:
    """Check that spec, hash and key are consistent; otherwise report the one outvoted by the others."""
    spec, found = record.spec, record.spec.sha256()
    if found == record.spec_sha256:
        findings.equal("key", record.key, found[:16])
    elif record.key == found[:16]:
        findings.equal("spec_sha256", record.spec_sha256, found)
    else:
        findings.refuse("spec", f"of sha256 {found}", f"{record.spec_sha256}, as spec_sha256 and key have it")
    hashes = {"dataset_fingerprint": spec.dataset_fingerprint, "method.source_sha256": spec.method.source_sha256}
    if spec.model.weights_sha256 is not None or spec.model.weights != "random":
        hashes["model.weights_sha256"] = spec.model.weights_sha256 or ""
    if spec.embeddings is not None:
        hashes["embeddings"] = spec.embeddings
    for name, text in hashes.items():
        findings.require(_matches(_SHA256, text), f"spec.{name}", text, "64 hex digits")
    for name, key in spec.stages.items():
        findings.require(_matches(_KEY, key), f"spec.stages.{name}", key, "the key of a run")
    for name, file in record.files.items():
        well = _matches(_FILE, name) and _matches(_SHA256, file.sha256) and file.num_bytes < 2**50
        findings.require(well, f"files.{name}", file.sha256, "64 hex digits of a file")
        # empty: the log of a method that trains nothing, such as zero-shot
        agrees = (file.num_bytes == 0) == (file.sha256 == _SHA256_OF_NOTHING)
        expected = "0 bytes if and only if the hash is that of an empty file"
        findings.require(agrees, f"files.{name}.num_bytes", file.num_bytes, expected)


def _check_question(record: Record, board: Board, role: Role, findings: Findings) -> None:
    """Check that protocol, data and code are those of the board."""
    protocol, spec = record.spec.protocol, record.spec
    wanted = board.protocol_sha256 if role == "row" else board.ceiling_sha256
    sha256 = protocol.sha256()
    if protocol.name.startswith("custom/"):
        findings.refuse("spec.protocol.name", shown(protocol.name), f"{shown(board.protocol)}: no board ranks custom/…")
    elif sha256 != wanted:
        findings.refuse("spec.protocol", f"{shown(protocol.name)} of sha256 {sha256}", f"sha256 {wanted} of the board")
    findings.equal("protocol_sha256", record.protocol_sha256, sha256)
    findings.equal("spec.protocol.suggested", protocol.suggested, {})  # not part of the hash, and never written
    findings.equal("spec.protocol.sources", protocol.sources, {})
    findings.equal("spec.protocol.dataset", protocol.dataset, board.dataset)
    if role == "ceiling":
        findings.equal("spec.protocol.simulation", protocol.simulation, "none")
    if board.dataset_fingerprint is not None:
        findings.equal("spec.dataset_fingerprint", spec.dataset_fingerprint, board.dataset_fingerprint)
    accepted = " or ".join(str(number) for number in sorted(ACCEPTED_NUMERICS))
    findings.require(spec.numerics in ACCEPTED_NUMERICS, "spec.numerics", spec.numerics, accepted)
    findings.equal("spec.train_part", spec.train_part, "train")
    findings.equal("spec.skipped_images", spec.skipped_images, ())


def _check_environment(environment: dict[str, Any], findings: Findings) -> None:
    """Check for a clean commit or, for an installed wheel, version and source hash."""
    commit, dirty = environment.get("git_commit"), environment.get("git_dirty")
    if commit is None and dirty is None:
        version, source = environment.get("plbench"), environment.get("source_sha256")
        findings.require(_matches(_VERSION, version), "environment.plbench", version, "a version, or a git commit")
        findings.require(_matches(_SHA256, source), "environment.source_sha256", source, "a hash, or a git commit")
        return
    findings.require(_matches(_COMMIT, commit), "environment.git_commit", commit, "the 40 hex digits of a commit")
    findings.require(dirty is False, "environment.git_dirty", dirty, "False: commit the changes, and run again")


def _matches(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _check_run(record: Record, findings: Findings) -> None:
    """Check that the epoch was selected as specified, and that no data was left out."""
    data, selection, spec = record.data, record.selection, record.spec
    for name in ("data", "selection", "cost"):
        findings.require(getattr(record, name) is not None, name, None, f"the {name} of a run that is done")
    if data is not None:
        findings.equal("data.num_validation", data.num_validation, 0)
        findings.equal("data.skipped_images", data.skipped_images, len(spec.skipped_images))
        findings.equal("data.num_test", data.num_test, record.test.num_images)
    is_simulated = spec.protocol.simulation != "none"
    words = "there, as a simulation hid it" if is_simulated else "null: no simulation hid anything"
    findings.require((record.hidden_truth is not None) == is_simulated, "hidden_truth", record.hidden_truth, words)
    if selection is None:
        return
    if "best-on-test" in (spec.selection, selection.rule) or selection.labels == "test":
        field = "spec.selection" if spec.selection == "best-on-test" else "selection"
        findings.refuse(field, "a choice on the test split", "one that the test split had no part in")
        return
    is_last, epochs = spec.selection == "last", spec.plan.epochs
    findings.equal("selection.rule", selection.rule, spec.selection)
    findings.equal("selection.labels", selection.labels, "none" if is_last else spec.protocol.validation_labels)
    first = epochs if is_last else 1
    findings.require(first <= selection.epoch <= epochs, "selection.epoch", selection.epoch, f"{first} to {epochs}")


def _finished_at(record: Record, findings: Findings) -> datetime | None:
    """Return the end time of the run; None, with a problem, if it is invalid."""
    try:
        when = datetime.fromisoformat(record.finished_at)
        if when.tzinfo is not None:
            return when
    except ValueError:
        pass
    findings.refuse("finished_at", shown(record.finished_at), "a time with its zone")
    return None


def _check_origin(record: Record, installed: Installed, findings: Findings) -> None:
    """Check names, parameters and "default" against the installed method, its dataset and recipe."""
    source_file = record.source_file
    if source_file is not None and not _SOURCE_FILE.fullmatch(source_file):
        findings.refuse("source_file", shown(source_file), "the path of a Python file, or null")
    findings.require(bool(record.title.strip()), "title", record.title, "a name")
    findings.require(record.configuration != "unknown", "configuration", record.configuration, "that of a finished run")
    for name, expected in installed.facts(record).items():
        findings.equal(name, getattr(record, name), expected)
    known = installed.params(record.spec.method.name)
    if known is not None:
        words = "a parameter of the method as it is installed"
        for name in sorted(record.spec.method.params.keys() - known):
            findings.refuse(f"spec.method.params.{name}", shown(record.spec.method.params[name]), words)

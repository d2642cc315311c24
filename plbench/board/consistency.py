"""Check that a board's records agree with each other and with its ledger."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from plbench.board.boards import LEDGER, BoardFolder
from plbench.board.entries import Entry
from plbench.board.identity import latest_time
from plbench.comparison.identity import same_but_seed
from plbench.runs.findings import Problem, printable, shown

Facts = dict[str, Any]

MAX_NAMED = 5  # differences per record


def check_ledger(folder: BoardFolder) -> list[Problem]:
    """Check that the ledger's events are possible in their order."""
    problems: list[Problem] = []
    seen: dict[str, set[str]] = defaultdict(set)
    last, latest = "", f"{latest_time():%Y-%m-%dT%H:%M:%SZ}"
    for number, event in enumerate(folder.ledger):
        before, place = seen[event.key], f"{LEDGER}: events.{number}"
        mistakes = {
            f"{event.event} twice": event.event in before and event.event != "verified",
            f"{event.event} before it was added": event.event != "added" and "added" not in before,
            f"{event.event} after it was withdrawn": event.event != "withdrawn" and "withdrawn" in before,
            "added without a sha256": event.event == "added" and event.sha256 is None,
            "withdrawn without a word why": event.event == "withdrawn" and not event.why,
        }
        words = "added once, then verified or withdrawn"
        problems += [Problem(event.key, place, mistake, words) for mistake, is_made in mistakes.items() if is_made]
        if event.at < last:
            problems.append(Problem(event.key, f"{place}.at", event.at, f"at least {last}, the last"))
        if event.at > latest:
            problems.append(Problem(event.key, f"{place}.at", event.at, "a time that has passed"))
        before.add(event.event)
        last = max(last, event.at)
    if folder.added and folder.board.dataset_fingerprint is None:
        problems.append(Problem("", "board.json: dataset_fingerprint", "None", "that of the records"))
    return problems


def check_agreement(entries: Sequence[Entry]) -> list[Problem]:
    """Check that a board has one test set, each protocol and mask one training set, and each row unique seeds.

    Records that differ from the majority are rejected; of two, the later one.

    Args:
        entries: in order of addition; each of a finished run.
    """
    problems: list[Problem] = []
    first: dict[tuple[str, int], str] = {}
    same_labels: dict[tuple[str, int], list[Entry]] = defaultdict(list)
    same_method: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        spec = entry.record.spec
        other = first.setdefault((same_but_seed(spec), spec.seed), entry.key)
        if other != entry.key:
            problems.append(
                Problem(entry.key, "spec.seed", f"{spec.seed}, as of record {other}", "a seed once in a row")
            )
        same_labels[spec.protocol.sha256(), spec.protocol.label_seed(spec.seed)].append(entry)
        same_method[spec.method.source_sha256, spec.method.name].append(entry)  # a file may hold several methods
    problems += _against_most(entries, _test_set)
    problems += [problem for group in same_labels.values() for problem in _against_most(group, _training_set)]
    return problems + [problem for group in same_method.values() for problem in _against_most(group, _method)]


def _test_set(entry: Entry) -> Facts:
    spec = entry.record.spec
    return {
        "spec.dataset_fingerprint": spec.dataset_fingerprint,
        "spec.protocol.test_split": spec.protocol.test_split,
        "spec.protocol.metric_rules": spec.protocol.metric_rules,
        "metrics.test.num_images": entry.record.test.num_images,
        "per_class.csv": [row.class_id for row in entry.per_class],
        **_columns(entry, ("class_name", "positives", "negatives", "groups")),
    }


def _training_set(entry: Entry) -> Facts:
    record = entry.record
    facts = {} if record.data is None else {f"data.{name}": value for name, value in record.data}
    if record.hidden_truth is not None:
        facts["hidden_truth.base_rate"] = record.hidden_truth.base_rate
    return facts | _columns(entry, ("quintile",))


def _method(entry: Entry) -> Facts:
    names = ("title", "paper", "source_file")
    return {name: getattr(entry.record, name) for name in names}


def _columns(entry: Entry, names: Iterable[str]) -> Facts:
    return {f"per_class.csv[{row.class_id}].{name}": getattr(row, name) for name in names for row in entry.per_class}


def _against_most(entries: Sequence[Entry], facts_of: Callable[[Entry], Facts]) -> list[Problem]:
    """Reject records that differ from the majority. Facts missing in some (older) records are not compared."""
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    stated = [(entry, {name: shown(value) for name, value in facts_of(entry).items()}) for entry in entries]
    for _, facts in stated:
        for name, value in facts.items():
            votes[name][value] += 1
    agreed = {name: counter.most_common(1)[0][0] for name, counter in votes.items()}  # of equals, the first
    return [
        Problem(entry.key, printable(name), facts[name], f"{agreed[name]}, as other records of the board have it")
        for entry, facts in stated
        for name in [name for name, value in facts.items() if value != agreed[name]][:MAX_NAMED]
    ]

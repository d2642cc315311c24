"""Pseudo-labels: rules against brute force, what is kept and added, the table read back, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from plbench.data.labels import PartialLabels
from plbench.errors import DataError, PlbenchError
from plbench.runs import pseudo_labels
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.pseudo_labels import Rule, check_labels_name, pseudo_label, write_labels
from plbench.runs.run import run
from plbench.runs.workspace import Workspace

pytestmark = pytest.mark.usefixtures("quick_records")
EPOCHS = {"epochs": 8}
SMALL = {"backbone": "test_resnet", "weights": "random"}


def made(workspace: Workspace, **asked: Any) -> Path:
    record = run(plan_run(Request("tiny", "ce-ignore", **{"plan": EPOCHS, **asked}), workspace), workspace)
    return workspace.store.run_folder(record.key)


@pytest.fixture
def two_seeds(make_workspace: Callable[..., Workspace]) -> tuple[Workspace, list[Path]]:
    workspace = make_workspace()
    return workspace, [made(workspace, simulation_seed=0, seed=seed) for seed in (0, 1)]


def dense(labels: PartialLabels) -> np.ndarray:
    return labels.rows(np.arange(labels.num_images))


def by_hand(rule: Rule, scores: np.ndarray, unknown: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """What a rule says of scores [R, N, C], cell by cell."""
    mean, found = scores.mean(axis=0, dtype=np.float64), np.zeros(unknown.shape, np.int8)
    for c in range(unknown.shape[1]):
        rows = np.flatnonzero(unknown[:, c])
        ranked = sorted(rows, key=lambda row: -mean[row, c])
        for row in rows:
            own = scores[:, row, c]
            if rule.kind == "top":
                assert rule.present is not None
                is_present = row in ranked[: round(rule.present * len(rows))]
                is_absent = row in ranked[len(rows) - round((rule.absent or 0) * len(rows)) :]
            elif rule.kind == "score":
                is_present = mean[row, c] >= rule.present
                is_absent = rule.absent is not None and mean[row, c] <= rule.absent
            elif rule.present is None:
                is_present, is_absent = (own >= thresholds[:, c]).all(), (own < thresholds[:, c]).all()
            else:
                is_present = (own >= rule.present).all()
                is_absent = rule.absent is not None and (own <= rule.absent).all()
            found[row, c] = 1 if is_present else -1 if is_absent else 0
    return found


RULES = ["score={high}", "score={high},absent={low}", "top=0.1", "top=0.2,absent=0.5", "agreement={high},absent={low}"]


def test_rules_choose_what_they_say(two_seeds: tuple[Workspace, list[Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, folders = two_seeds
    seen: list[np.ndarray] = []
    stream = pseudo_labels.scores_by_run

    def spy(*given: Any) -> Any:
        for rows, scores in stream(*given):
            for start in range(0, len(rows), 7):  # as many batches would come
                part = slice(start, start + 7)
                seen.append(scores[:, part])
                yield rows[part], scores[:, part]

    monkeypatch.setattr(pseudo_labels, "scores_by_run", spy)
    models = pseudo_labels.models_of(folders, workspace)
    monkeypatch.setattr(pseudo_labels, "models_of", lambda *given: models)
    thresholds = np.stack([model.thresholds() for model in models])
    pseudo_label(folders, Rule.parse("agreement"), workspace)
    usual = np.concatenate(seen, axis=1)
    low, high = np.quantile(usual, (0.3, 0.7))
    for rule in (*RULES, "agreement"):
        text = rule.format(low=f"{low:.5f}", high=f"{high:.5f}")
        seen.clear()
        found = pseudo_label(folders, Rule.parse(text), workspace)
        scores = np.concatenate(seen, axis=1)
        unknown = dense(found.known) == 0
        expected = by_hand(Rule.parse(text), scores, unknown, thresholds)
        np.testing.assert_array_equal(dense(found.added), expected, text)
        assert (expected == 1).any(), text
        assert (expected == -1).any() == ("absent" in text or text == "agreement"), text
        assert not np.any((dense(found.added) != 0) & ~unknown), "known labels stay as they are"
        at = expected != 0
        np.testing.assert_allclose(found.scores.toarray()[at], scores.mean(axis=0)[at], rtol=1e-6)


def test_many_top_candidates_are_dropped_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    mean = rng.integers(0, 40, (300, 3)).astype(np.float32) / 40  # with ties
    quotas = [np.array([5, 0, 20]), np.array([0, 3, 300])]
    chooser = pseudo_labels._TopChooser(quotas)
    whole = pseudo_labels._TopChooser(quotas)
    for start in range(0, 300, 10):
        rows = np.arange(start, start + 10)
        for one in (chooser, whole):
            one.look(rows, mean[None, rows], np.ones((10, 3), bool))
        chooser._kept = [[chooser._best(side)] for side in (0, 1)]
    for one, other in zip(chooser.chosen(), whole.chosen(), strict=True):
        np.testing.assert_array_equal(one, other)
    rows, classes, values, _ = whole.chosen()
    highest = np.argsort(-mean[:, 0], kind="stable")[:5]
    assert set(rows[(classes == 0) & (values == 1)]) == set(highest)


def test_the_table_reads_back_as_known_and_pseudo_labels(
    two_seeds: tuple[Workspace, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, folders = two_seeds
    found = pseudo_label(folders, Rule.parse("top=0.2,absent=0.3"), workspace)
    # nothing is known of one image, and nothing of one class
    known, added = dense(found.known), dense(found.added)
    known[[3]], added[[3]], known[:, 5], added[:, 5] = 0, 0, 0, 0
    test = dense(found.test)
    test[:, 5] = 0
    names = ("a", "b|c", "d, e", "ü", "score", "e f")
    labels = [PartialLabels.from_dense(values, found.known.class_ids, names) for values in (known, added, test)]
    scores = found.scores.multiply(added != 0).tocsr()
    found = replace(found, known=labels[0], added=labels[1], test=labels[2], scores=scores, class_names=names)
    monkeypatch.setattr(pseudo_labels, "_ROWS", 5)
    for path in (tmp_path / "labels.csv", tmp_path / "labels.parquet"):
        write_labels(path, found)
        options = {"labels": str(path), "images": str(found.folder), "label_separator": "none"}
        asked = Request("table", "ce-negative", recipe="quick", model=SMALL, allow_duplicates=True)
        data = plan_run(asked, replace(workspace, data_options=options)).protocol_data
        train, tested = data.train(), data.test()
        assert train.labels.class_names == tuple(sorted(names))
        columns = [train.labels.class_names.index(name) for name in names]
        rows = [list(train.images.ids).index(name) for name in found.train_paths]
        np.testing.assert_array_equal(dense(train.labels)[rows][:, columns], known + added)
        rows = [list(tested.images.ids).index(name) for name in found.test_paths]
        np.testing.assert_array_equal(dense(tested.labels)[rows][:, columns], test)
        table = pd.read_csv(path, keep_default_na=False) if path.suffix == ".csv" else pd.read_parquet(path)
        pseudo = table[table["source"] == "pseudo"]
        assert len(pseudo) == np.count_nonzero(added) and set(pseudo["split"]) == {"train"}
        assert (pseudo["score"].astype(float) > 0).all()
        assert (table["source"] == "known").sum() == np.count_nonzero(known) + np.count_nonzero(test)


def test_scores_that_look_like_values_do_not_make_the_table_doubtful(
    two_seeds: tuple[Workspace, list[Path]], tmp_path: Path
) -> None:
    workspace, folders = two_seeds
    found = pseudo_label(folders, Rule.parse("top=0.3"), workspace)
    found.scores.data[:] = 1.0
    write_labels(tmp_path / "labels.csv", found)
    own = replace(workspace, data_options={"labels": str(tmp_path / "labels.csv"), "images": str(found.folder)})
    asked = Request("table", "ce-negative", recipe="quick", model=SMALL, allow_duplicates=True)
    assert plan_run(asked, own).protocol_data.train().labels.num_known == found.known.num_known + found.added.num_known


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("best", "'best' is not a rule"),
        ("score", "score needs a number from 0 to 1"),
        ("score=2", "score needs a number from 0 to 1"),
        ("score=high", "'high' is not a number"),
        ("score=0.9,top=0.1", "more than one kind"),
        ("absent=0.1", "has no kind"),
        ("score=0.5,absent=0.5", "both present and absent"),
        ("top=0.7,absent=0.7", "both present and absent"),
        ("agreement,absent=0.1", "uses the thresholds"),
    ],
)
def test_a_rule_that_is_none_is_one_sentence(text: str, said: str) -> None:
    with pytest.raises(PlbenchError, match=f"`rule={text}`.*{said}|{said}"):
        Rule.parse(text)


def test_runs_that_do_not_belong_together_are_refused(
    make_workspace: Callable[..., Workspace], tiny_dataset: Any, tmp_path: Path
) -> None:
    workspace = make_workspace()
    own, other, fixed, complete = (
        made(workspace),
        made(workspace, seed=1),
        made(workspace, simulation_seed=0),
        made(workspace, simulate="none"),
    )
    rule = Rule.parse("score=0.9")
    with pytest.raises(PlbenchError, match=r"have different known labels of the train images.*`simulation_seed=0`"):
        pseudo_label([own, other], rule, workspace)
    with pytest.raises(PlbenchError, match="is given twice"):
        pseudo_label([fixed, fixed], rule, workspace)
    with pytest.raises(PlbenchError, match="give at least two"):
        pseudo_label([own], Rule.parse("agreement"), workspace)
    with pytest.raises(DataError, match="nothing to add"):
        pseudo_label([complete], rule, workspace)
    with pytest.raises(PlbenchError, match=r"must end in \.csv or \.parquet"):
        check_labels_name(tmp_path / "labels.jsonl")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tiny_dataset, "fingerprint", lambda self: "0" * 64)
        with pytest.raises(PlbenchError, match=r"are not those that run .* was made with"):
            pseudo_label([own], rule, workspace)

"""Publishing boards: a static site with the workflows that keep it, and a run as a model card's model-index."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

import yaml

from plbench.board import build
from plbench.errors import PlbenchError
from plbench.record import Estimate, Record
from plbench.store import unwritable, write_text

WORKFLOWS = ("boards.yml",)


def export(root: Path, to: Path, *, sources: str | None = None) -> list[Path]:
    """Writes the site: page, tables and records, and GitHub workflows that build it and check submissions.

    Args:
        root: usually `leaderboards`.
        to: a folder that is not below it.
        sources: address of the repository's files on the web, which the page links methods to; None for no links.

    Returns:
        The files written, the page first.

    Raises:
        PlbenchError: if what is built differs from the records, or the folder lies inside the boards'.
    """
    files = build.build(root)
    if stale := build.differing(files):
        raise PlbenchError(f"{stale[0]} is not what the records give; plbench board build mends it")
    if root.resolve() in (to.resolve(), *to.resolve().parents):
        raise PlbenchError(f"--to {to} lies inside {root}; give a folder elsewhere")
    written = []
    try:
        files[root / build.PAGE] = build.build(root, sources=sources)[root / build.PAGE]
        for path, content in sorted(files.items(), key=lambda item: item[0].name != build.PAGE):
            write_text(to / path.relative_to(root), content)
            written.append(to / path.relative_to(root))
        for records in sorted(root.glob("*/records")):
            shutil.copytree(records, to / records.relative_to(root), dirs_exist_ok=True)
        for name in WORKFLOWS:
            template = resources.files("plbench.board") / "templates" / name
            write_text(to / ".github" / "workflows" / name, template.read_text(encoding="utf-8"))
            written.append(to / ".github" / "workflows" / name)
        write_text(to / ".nojekyll", "")  # or GitHub's site builder would drop files
    except OSError as error:
        raise unwritable(to, error) from error
    return written


def model_index(record: Record) -> str:
    """A run as the YAML block that Hugging Face reads from a model card.

    Raises:
        PlbenchError: if the run has no test figures.
    """
    if record.status != "done" or "test" not in record.metrics:
        raise PlbenchError(f"run {record.key} has no figures on test")
    spec, test = record.spec, record.test
    metrics = [_metric("mAP(C)", "map_c", test.map_c), _metric("mAP(O)", "map_o", test.map_o)]
    metrics += [_metric(f"mAP(C), {name}", f"map_c_{name}", group.map_c) for name, group in test.groups.items()]
    result = {
        "task": {"type": "image-classification", "name": "Multi-label classification with partial labels"},
        "dataset": {
            "type": spec.protocol.dataset,
            "name": spec.protocol.name,
            "split": spec.protocol.test_split,
            "revision": spec.dataset_fingerprint,
        },
        "metrics": [metric for metric in metrics if metric["value"] is not None],
        "source": {"name": f"plbench run {record.key}"},
    }
    card = {"library_name": "timm", "model-index": [{"name": _model_name(record), "results": [result]}]}
    return f"---\n{yaml.safe_dump(card, sort_keys=False, allow_unicode=True)}---\n"


def _model_name(record: Record) -> str:
    return f"{record.spec.model.backbone}, {record.title}"


def _metric(name: str, kind: str, estimate: Estimate) -> dict[str, object]:
    return {"type": kind, "name": name, "value": estimate.value}

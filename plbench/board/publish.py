"""Publish boards as a static site with its workflows, and a run as the model-index of a model card."""

from __future__ import annotations

from importlib import resources
from operator import methodcaller
from pathlib import Path

import yaml

from plbench.board import build
from plbench.board.boards import holding, open_boards
from plbench.board.packs import MAX_PACK, read_packs
from plbench.board.page import render_page
from plbench.board.rows import board_values
from plbench.board.signatures import SIGNATURE, SIGNERS
from plbench.errors import PlbenchError
from plbench.files import unwritable, write_atomically
from plbench.files.paths import read_plain, refuse_links
from plbench.runs.record import Record


def export(root: Path, to: Path, *, sources: str | None = None) -> list[Path]:
    """Write the site: page, tables, records, and GitHub workflows that build it and check submissions.

    Only regular files named in a ledger are copied: the target of a link may be anything.

    Args:
        root: usually `leaderboards`.
        to: a folder that is not inside `root`.
        sources: URL of the repository's files, for links to methods; None for no links.

    Returns:
        The files written, the page first; those of records are left out.

    Raises:
        PlbenchError: if the built files differ from the records, a file is a link, or the target is inside `root`.
    """
    folders = open_boards(root)
    boards = [board_values(folder) for folder in folders]
    files = build.render(root, boards, [folder.updated for folder in folders])
    for path in files:
        refuse_links(root, path)
    if stale := build.differing(files):
        raise PlbenchError(f"{stale[0]} is not what the records give; plbench board build fixes it")
    if root.resolve() in (to.resolve(), *to.resolve().parents):
        raise PlbenchError(f"`to={to}` lies inside {root}; give a folder elsewhere")
    try:
        files[root / build.PAGE] = render_page(boards, sources=sources)
        contents = {path.relative_to(root): content.encode() for path, content in files.items()}
        workflow = resources.files("plbench.board") / "templates" / "boards.yml"
        contents[Path(".github", "workflows", "boards.yml")] = workflow.read_bytes()
        contents[Path(".nojekyll")] = b""  # otherwise GitHub's site builder drops files
        signed = [root / SIGNERS, *(folder.path / SIGNATURE for folder in folders)]
        packs = [path for board in folders for path in read_packs(board).paths]
        everything = {path.relative_to(root): read_plain(root, path, MAX_PACK) for path in packs} | contents
        for path in filter(Path.exists, signed):
            everything[path.relative_to(root)] = read_plain(root, path, MAX_PACK)
        for place in everything:
            refuse_links(to, to / place)
        to.mkdir(parents=True, exist_ok=True)
        with holding(to, "export") as staging:
            for place, content in everything.items():
                write_atomically(to / place, methodcaller("write", content), staging)
    except OSError as error:
        raise unwritable(to, error) from error
    return [to / place for place in sorted(contents, key=lambda place: place.name != build.PAGE)]


def model_index(record: Record) -> str:
    """Return the YAML block of a run that Hugging Face reads from a model card.

    Raises:
        PlbenchError: if the run has no test figures.
    """
    if record.status != "done" or "test" not in record.metrics:
        raise PlbenchError(f"run {record.key} has no figures on test")
    spec, test = record.spec, record.test
    estimates = [("mAP(C)", "map_c", test.map_c), ("mAP(O)", "map_o", test.map_o)]
    estimates += [(f"mAP(C), {name}", f"map_c_{name}", group.map_c) for name, group in test.groups.items()]
    result = {
        "task": {"type": "image-classification", "name": "Multi-label classification with partial labels"},
        "dataset": {
            "type": spec.protocol.dataset,
            "name": spec.protocol.name,
            "split": spec.protocol.test_split,
            "revision": spec.dataset_fingerprint,
        },
        "metrics": [{"type": t, "name": n, "value": one.value} for n, t, one in estimates if one.value is not None],
        "source": {"name": f"plbench run {record.key}"},
    }
    name = f"{spec.model.backbone}, {record.title}"
    card = {"library_name": "timm", "model-index": [{"name": name, "results": [result]}]}
    return f"---\n{yaml.safe_dump(card, sort_keys=False, allow_unicode=True)}---\n"

"""Upload a run's model to the Hugging Face Hub, with a model card and its record."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from plbench.errors import PlbenchError
from plbench.files import write_text
from plbench.runs.export.card import model_card
from plbench.runs.export.export import load_source, write_checked
from plbench.runs.export.formats import CARD, FORMATS, WEIGHTS, Source
from plbench.runs.record import whole_file
from plbench.runs.store import RECORD
from plbench.runs.tables import PER_CLASS
from plbench.runs.workspace import Workspace

ANSWER_SECONDS = 60.0
"""Timeout of a request to the Hub; the client repeats some requests."""

ONNX = "model.onnx"


@dataclass(frozen=True)
class Uploaded:
    """Result of an upload.

    Attributes:
        run: its key.
        url: of the repository.
        files: names.
        differences: largest difference of any score between what was read back and `plbench predict`, by format.
    """

    run: str
    url: str
    files: tuple[str, ...]
    differences: dict[str, float]


def upload_run(folder: Path, repo: str, workspace: Workspace, *, private: bool = False) -> Uploaded:
    """Upload the model of a run in one commit: ONNX, weights in supported formats, model card and record.

    Args:
        folder: of the run.
        repo: "USER/NAME"; created if it does not exist.
        workspace: locations. Everything is computed on the CPU.
        private: whether a new repository is private.

    Raises:
        PlbenchError: if the name is invalid, the user is not logged in, the model cannot be exported, or the Hub
            refuses.
        StoreError: if the record or the weights are missing or damaged.
    """
    from huggingface_hub import HfApi, utils
    from huggingface_hub.errors import HFValidationError

    checks: Any = utils  # type stubs do not export its names
    try:
        checks.validate_repo_id(repo)
        valid = repo.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise PlbenchError(f"`repo={repo}` is not a name on the Hub; give USER/NAME, such as my-name/birds")
    FORMATS["onnx"].check_packages()
    api = HfApi(library_name="plbench")
    with _talking_to(api.endpoint, repo):
        api.whoami()  # check the login before minutes of work
    source, _ = load_source(folder, workspace)
    with tempfile.TemporaryDirectory() as place:
        content = Path(place)
        differences = _write_all(source, content, workspace)
        for path in (folder / RECORD, whole_file(folder, source.model.record, PER_CLASS)):
            shutil.copy(path, content)
        _write_card(source, content, repo, workspace)
        files = tuple(sorted(path.name for path in content.iterdir()))
        size = decimal(sum((content / name).stat().st_size for name in files))
        with _talking_to(api.endpoint, repo), workspace.reporter.patience(f"Uploading {size} to {repo}"):
            url = api.create_repo(repo, private=private or None, exist_ok=True)
            title = f"{source.model.record.title} on {source.model.record.spec.protocol.name}"
            api.upload_folder(repo_id=repo, folder_path=place, commit_message=f"plbench: {title}")
    return Uploaded(source.model.record.key, str(url), files, differences)


def _write_all(source: Source, content: Path, workspace: Workspace) -> dict[str, float]:
    """Write ONNX, and timm's folder and safetensors if they support the model; return the largest differences."""
    differences = {"onnx": write_checked(FORMATS["onnx"], source, content / ONNX, workspace)}
    why = ""
    for name, place in (("timm-hub-folder", content / "timm"), ("safetensors", content / WEIGHTS)):
        try:
            differences[name] = write_checked(FORMATS[name], source, place, workspace)
        except PlbenchError as error:
            why = why or error.what
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
            continue
        if place.is_dir():
            for path in place.iterdir():
                path.replace(content / path.name)
            place.rmdir()
        break
    if why:
        workspace.reporter.note(f"timm will not load the model from the Hub: {why.partition(';')[0]}")
    return differences


def _write_card(source: Source, content: Path, repo: str, workspace: Workspace) -> None:
    name = source.model.record.spec.protocol.dataset
    title = licence = None
    with contextlib.suppress(PlbenchError):  # the dataset may not be installed here
        kind = workspace.registry.dataset(name)
        title, licence = kind.title, kind.licence
    files = {path.name for path in content.iterdir()}
    write_text(content / CARD, model_card(source.model, source.about, files, repo=repo, dataset=title, licence=licence))


@contextlib.contextmanager
def _talking_to(endpoint: str, repo: str) -> Iterator[None]:
    """Set a timeout, silence the Hub's client, and turn its errors into messages.

    Raises:
        PlbenchError: for any error.
    """
    from huggingface_hub import get_session, utils
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    client: Any = utils  # type stubs do not export its names
    session: Any = get_session()
    patience, showed_bars = session.timeout, not client.are_progress_bars_disabled()
    session.timeout = ANSWER_SECONDS  # the default is to wait forever
    client.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # between the client and its HTTP library
            yield
    except LocalTokenNotFoundError as error:
        raise _not_allowed(endpoint, repo) from error
    except Exception as error:  # the client, its HTTP library and the disk raise different types
        status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else 0
        if status in (401, 403):
            raise _not_allowed(endpoint, repo) from error
        reason = (str(error).strip().splitlines() or ["it said nothing"])[0].rstrip(".")
        raise PlbenchError(
            f"{endpoint} did not take the upload to {repo}: {reason} ({type(error).__name__}); repeat the command "
            "when the Hub can be reached, or export the files and upload them yourself: hf upload"
        ) from error
    finally:
        session.timeout = patience
        if showed_bars:
            client.enable_progress_bars()


def _not_allowed(endpoint: str, repo: str) -> PlbenchError:
    return PlbenchError(
        f"you may not write to {repo} on {endpoint}; log in with hf auth login, or set HF_TOKEN to a token with write "
        "access there"
    )

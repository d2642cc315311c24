"""Runs from Python: train or load one, read its figures, apply its model, plot it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import pandas as pd

from plbench.data.images import files_at
from plbench.data.lettering import drawable, dress
from plbench.errors import PlbenchError
from plbench.files import write_atomically
from plbench.files.escaping import csv_text
from plbench.python.figures import for_notebooks
from plbench.python.settings import Settings, Where, check_settings, request_of, workspace_of
from plbench.runs import run as runner
from plbench.runs.export.export import Exported, export_run
from plbench.runs.export.hub import Uploaded, upload_run
from plbench.runs.inspect.pictures import certainty_sheet
from plbench.runs.inspect.sheets import check_sheet_name
from plbench.runs.inspect.statistics import picture_format
from plbench.runs.page.page import write_page
from plbench.runs.page.view import headline
from plbench.runs.plan.resolve import plan_run
from plbench.runs.predict import predictions
from plbench.runs.pseudo_labels import PseudoLabels, Rule, check_labels_name, pseudo_label, write_labels
from plbench.runs.record import Record, figures, whole_file
from plbench.runs.stored import read_run
from plbench.runs.tables import PER_CLASS, TEXT_COLUMNS
from plbench.runs.trained import TrainedModel, load_model
from plbench.runs.workspace import Workspace
from plbench.spec import Selection

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        record: the content of `record.json`.
        folder: of the run's files.
    """

    record: Record
    folder: Path
    _workspace: Workspace = field(repr=False)
    _models: list[TrainedModel] = field(default_factory=list, repr=False)  # at most one, cached between calls

    @property
    def key(self) -> str:
        """The key of the run, which is also the name of its folder."""
        return self.record.key

    @property
    def metrics(self) -> dict[str, float]:
        """Figures of the test part by name, such as "map_c"; of the validation part if the run was not tested."""
        part = "test" if "test" in self.record.metrics else "validation"
        return {
            name.removeprefix(f"{part}/"): value
            for name, value in figures(self.record).items()
            if name.startswith(f"{part}/")
        }

    @property
    def per_class(self) -> pd.DataFrame:
        """One row per class, by name: id, AP and AUROC in percent (NaN where undefined), known labels, threshold."""
        path = whole_file(self.folder, self.record, PER_CLASS)
        as_text = dict.fromkeys(TEXT_COLUMNS, str)
        # a class may be called "NA" or "null"
        found = pd.read_csv(
            path, dtype=as_text, keep_default_na=False, na_values={"threshold": "", "ap": "", "auroc": ""}
        )
        for name in as_text.keys() & {*found.columns}:
            found[name] = found[name].map(csv_text)
        return found.set_index("class_name")

    def predict(
        self,
        images: str | Path | Sequence[str | Path],
        *,
        skip_unreadable: bool = False,
        contact_sheet: str | Path | None = None,
        contact_sheet_images: int = 12,
    ) -> pd.DataFrame:
        """Return scores of images, in [0, 1].

        If an interrupted call is repeated, it continues where it stopped.

        Args:
            images: a folder, with all images below it, or image files.
            skip_unreadable: whether to leave out images that cannot be read; `.attrs["unreadable"]` of the result says
                why, by name.
            contact_sheet: also draw the most and the least certain images, into a .png, .jpg or .pdf.
            contact_sheet_images: of each of the two kinds on that sheet, at most.

        Returns:
            float32, one row per image, by its path (relative to the folder, if one was given); one column per class, by
            name, or by id if two classes share a name.

        Raises:
            PlbenchError: if an image cannot be read and `skip_unreadable` is off, or the model cannot be loaded.

        Examples:
            >>> import plbench
            >>> own = {"labels": "demo/labels-long.csv", "images": "demo/images", "negative_value": 0}
            >>> result = plbench.run("ce-negative", "table", **own)
            >>> scores = result.predict("demo/images/garden")
            >>> list(scores.columns)
            ['bird', 'boat', 'bridge', 'cat', 'lamp, street', 'tree']
            >>> scores.index[0]
            'te000.jpg'
        """
        places = [images] if isinstance(images, (str, Path)) else images
        if contact_sheet is not None:
            check_sheet_name(Path(contact_sheet))
            if contact_sheet_images < 1:
                raise PlbenchError(f"`contact_sheet_images={contact_sheet_images}`: give at least 1, such as 12")
        source = files_at([Path(place) for place in places])
        with predictions(self._model(), source, self._workspace, skip_unreadable=skip_unreadable) as found:
            index = pd.Index(found.images, name="image")
            scores = pd.DataFrame(np.array(found.scores), index=index, columns=list(found.class_names))
            scores.attrs["unreadable"] = found.unreadable
            if contact_sheet is not None:
                certainty_sheet(found, source, Path(contact_sheet), contact_sheet_images)
        return scores

    def thresholds(self, *, precision: float) -> pd.Series:
        """Return each class's lowest threshold that reaches the wanted precision on the validation part.

        The model was also trained on that part, unless the run has `selection="validation"` or "validation-no-retrain":
        on new images, the precision is then lower. Thresholds by F1 are a column of `per_class`.

        Args:
            precision: wanted precision, in (0, 1].

        Returns:
            By the class's name; infinity for a class that never reaches it.

        Raises:
            PlbenchError: if `precision` is out of range, or the run's dataset is missing or has changed.

        Examples:
            >>> import plbench
            >>> own = {"labels": "demo/labels-long.csv", "images": "demo/images", "negative_value": 0}
            >>> result = plbench.run("ce-negative", "table", **own)
            >>> labels = result.predict("demo/images/garden").ge(result.thresholds(precision=0.8))
            >>> labels.dtypes.unique()
            array([dtype('bool')], dtype=object)
        """
        model = self._model()
        limits, _ = model.thresholds_for_precision(precision, self._workspace)
        return pd.Series(limits, index=pd.Index(model.class_names, name="class_name"), name="threshold")

    def _model(self) -> TrainedModel:
        if not self._models:
            self._models.append(load_model(self.folder, self._workspace))
        return self._models[0]

    def pseudo_label(self, path: str | Path, rule: str = "score=0.9", *, others: Sequence[Result] = ()) -> pd.DataFrame:
        """Write the known labels of the training set, plus pseudo-labels where the model is certain.

        The file is a table to train on again. The model was trained on the same images, so its scores on them are
        higher than those of new images with equally probable labels.

        Args:
            path: of a .csv or .parquet file.
            rule: "score=0.9,absent=0.05": present where the score is at least 0.9, absent where it is at most 0.05;
                "top=0.1": present the tenth of each class's unknown labels with the highest scores; "agreement=0.9" or
                "agreement": present where each run's score is at least 0.9, or its own threshold of the class.
            others: runs on the same labels, such as those of other seeds; scores are the mean over all runs.

        Returns:
            One row per pseudo-label: image, label, value (True for present), score.

        Raises:
            PlbenchError: if the runs do not belong together, no label is unknown, or the rule is invalid.

        Examples:
            >>> import plbench
            >>> own = {"labels": "demo/labels-long.csv", "images": "demo/images", "negative_value": 0}
            >>> results = [plbench.run("ce-negative", "table", seed=seed, **own) for seed in (0, 1)]
            >>> added = results[0].pseudo_label("demo/more.csv", "top=0.05", others=results[1:])
            >>> added["value"].all() and len(added) > 0
            True
            >>> again = plbench.run("ce-negative", "table", labels="demo/more.csv", images="demo/images")
            >>> again.record.data.train_positives - results[0].record.data.train_positives == len(added)
            True
        """
        check_labels_name(Path(path))
        found = pseudo_label([self.folder, *(other.folder for other in others)], Rule.parse(rule), self._workspace)
        write_labels(Path(path), found)
        return _added(found)

    def page(self, path: str | Path | None = None) -> Path:
        """Write the run's page: one HTML file with curves, classes, mistakes and cost, which works offline.

        Images are shown if the dataset is available: in its usual place, or where the settings of `run` or `load` say.

        Args:
            path: of the file, an .html; None for `page.html` in the run's folder.

        Returns:
            Its path.

        Raises:
            PlbenchError: if the name has another ending. StoreError: if it cannot be written.

        Examples:
            >>> import plbench
            >>> own = {"labels": "demo/labels-long.csv", "images": "demo/images", "negative_value": 0}
            >>> result = plbench.run("ce-negative", "table", **own)
            >>> result.page("demo/run.html").name
            'run.html'
        """
        return write_page(self.folder, self._workspace, None if path is None else Path(path))

    def _repr_html_(self) -> str:
        """Return the headline figures as HTML for notebooks."""
        record, spec = self.record, self.record.spec
        title = escape(f"{record.title} on {spec.protocol.name}, seed {spec.seed}")
        if not record.metrics:
            return f"<p>{title}: failed: {escape(record.error or '')}</p>"
        rows = headline(record, "validation" if spec.only_selects else "test")
        return f"<p>{title}</p>{pd.DataFrame(rows).drop(columns='note').to_html(index=False, border=0)}"

    def export(self, to: str, path: str | Path) -> Exported:
        """Write the model for another program, with preprocessing and class names, and check its scores there.

        Args:
            to: "onnx", "torchscript", "safetensors" or "timm-hub-folder".
            path: of the file (.onnx, .pt, .safetensors), which is replaced, or of a new or empty folder.

        Returns:
            What was written: `.num_bytes`; and `.difference`, the largest difference of any score between the exported
            model, loaded by its target program, and `predict`, on generated images.

        Raises:
            PlbenchError: if there is no such format, a package is not installed, or the model does not fit the format.
            StoreError: if it cannot be written.

        Examples:
            >>> import plbench
            >>> own = {"labels": "demo/labels-long.csv", "images": "demo/images", "negative_value": 0}
            >>> result = plbench.run("ce-negative", "table", **own)
            >>> result.export("safetensors", "demo/model.safetensors").difference < 1e-5
            True
        """
        return export_run(self.folder, to, Path(path), self._workspace)

    def push_to_hub(self, repo: str, *, private: bool = False) -> Uploaded:
        """Upload the model to the Hugging Face Hub as one commit, with a model card and the record.

        Log in first, with `hf auth login` or HF_TOKEN.

        Args:
            repo: "USER/NAME"; created if it does not exist.
            private: whether a newly created repository is private.

        Returns:
            What was uploaded: `.url`, `.files`, and `.differences` by format, as of `export`.

        Raises:
            PlbenchError: if the name is not valid, the model cannot be exported, or the Hub refuses.

        Examples:
            >>> import plbench
            >>> own = {"labels": "demo/labels-long.csv", "images": "demo/images", "negative_value": 0}
            >>> result = plbench.run("ce-negative", "table", **own)
            >>> result.push_to_hub("my-name/birds").url  # doctest: +SKIP
            'https://huggingface.co/my-name/birds'
        """
        return upload_run(self.folder, repo, self._workspace, private=private)

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the AP of each class against its number of known positives.

        Args:
            path: a .png, .svg or .pdf file to also write; None writes none.

        Returns:
            The figure, which a notebook shows.

        Raises:
            PlbenchError: if the file has another ending. StoreError: if it cannot be written.

        Examples:
            >>> import plbench
            >>> own = {"labels": "demo/labels-long.csv", "images": "demo/images", "negative_value": 0}
            >>> result = plbench.run("ce-negative", "table", **own)
            >>> result.plot("demo/classes.png").axes[0].get_ylabel()
            'AP, %'
        """
        from matplotlib.figure import Figure  # slow to import

        written = None if path is None else picture_format(Path(path))
        table = self.per_class.dropna(subset="ap").sort_values("ap")
        figure = Figure(figsize=(6.5, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(table["positives"], table["ap"], "o", color="#0072b2", markersize=5, alpha=0.7)
        ends = [*table.iloc[:3].iterrows(), *table.iloc[3:].iloc[-3:].iterrows()]  # the worst and the best, by name
        for name, row in ends:
            place = (row["positives"], row["ap"])
            axes.annotate(drawable(str(name)), place, (4, 3), textcoords="offset points", fontsize=7)
        value = self.metrics.get("map_c")
        if value is not None:
            axes.axhline(value, color="#595959", linewidth=0.8, linestyle=(0, (2, 3)))
        if len(table) and table["positives"].max() >= 10 * table["positives"].min():
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:,.0f}")
        else:
            axes.locator_params(axis="x", integer=True)
        axes.set_ylim(0, 100)
        axes.set_xlabel("known positives among the scored images")
        axes.set_ylabel("AP, %")
        shown = "" if value is None else f": mAP(C) {value:.2f}"
        axes.set_title(drawable(f"{self.record.title} on {self.record.spec.protocol.name}{shown}"), fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        dress(figure)
        if path is not None:
            write_atomically(Path(path), lambda file: figure.savefig(file, format=written, dpi=150))
        return for_notebooks(figure)


def _added(found: PseudoLabels) -> pd.DataFrame:
    rows, class_index, values = found.added.cells()
    return pd.DataFrame(
        {
            "image": [found.train_paths[row] for row in rows.tolist()],
            "label": [found.class_names[c] for c in class_index.tolist()],
            "value": values > 0,
            "score": np.asarray(found.scores[rows, class_index]).ravel(),
        }
    )


def run(
    method: str,
    dataset: str,
    *,
    params: Mapping[str, Any] | None = None,
    seed: int = 0,
    selection: Selection = "last",
    force: bool = False,
    **settings: Unpack[Settings],
) -> Result:
    """Train one method on one dataset, evaluate it and save its record. A finished run is read, not repeated.

    The run is the same as that of `plbench run` with the same settings: same key, record and files.

    Args:
        method: name of the method.
        dataset: name of the dataset; "table" for your own labels.
        params: parameters of the method, by name.
        seed: seed of the run.
        selection: how the reported epoch is chosen: "last", "validation", "validation-no-retrain" or "best-on-test".
        force: whether to repeat a finished run.
        settings: the options of `plbench run` by name, such as `simulate="fpc=300"`, `epochs=10`, `device="cpu"`.

    Returns:
        The run with its record, tables, model and plots.

    Raises:
        PlbenchError: if a name does not exist or settings do not fit together.
        TrainingError: if the training fails.

    Examples:
        >>> import plbench
        >>> own = {"labels": "demo/labels-long.csv", "images": "demo/images", "negative_value": 0}
        >>> result = plbench.run("ce-negative", "table", **own)
        >>> result.record.status, result.record.spec.seed
        ('done', 0)
        >>> 0 <= result.metrics["map_c"] <= 100
        True
        >>> list(result.per_class.index)
        ['bird', 'boat', 'bridge', 'cat', 'lamp, street', 'tree']
    """
    check_settings(settings, Settings)
    workspace = workspace_of(settings)
    own = {"method": method, "dataset": dataset, "seed": seed, "selection": selection}
    plan = plan_run(request_of({**settings, **own}, params), workspace)
    record = runner.run(plan, workspace, force=force)
    return Result(record, workspace.store.run_folder(record.key), workspace)


def load(run: str | Path, **where: Unpack[Where]) -> Result:
    """Return a finished run.

    Args:
        run: key of the run, its first characters, or its folder.
        where: where files are and how to compute, by name, such as `runs="runs"` or `device="cpu"`.

    Raises:
        StoreError: if there is no such run, or its record is damaged.

    Examples:
        >>> import plbench
        >>> own = {"labels": "demo/labels-long.csv", "images": "demo/images", "negative_value": 0}
        >>> key = plbench.run("ce-negative", "table", **own).key
        >>> plbench.load(key).record.title == plbench.load(f"runs/{key}").record.title
        True
    """
    check_settings(where, Where)
    workspace = workspace_of(where)
    folder = workspace.store.find(str(run))
    return Result(read_run(folder), folder, workspace)

"""Open the inputs of runs: images, or cached features of a frozen backbone."""

from __future__ import annotations

from plbench.loading.features import cached_features, features_key, set_damaged_aside
from plbench.loading.jpegs import jpeg_decoder
from plbench.loading.transforms import TrainTransform, eval_transform
from plbench.method import Method
from plbench.models.backbones import build_backbone, weights_path
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.protocol import Part, ProtocolData
from plbench.runs.workspace import Workspace
from plbench.spec import ModelSpec, RunSpec
from plbench.training.hooks import Guarded, mixture_of
from plbench.training.inputs import FeatureInputs, ImageInputs, Inputs


class OpenInputs:
    """Inputs of one run, or of several runs that share features in memory."""

    def __init__(self, workspace: Workspace) -> None:
        """Start without open inputs."""
        self.workspace = workspace
        self._features: dict[tuple[str, bytes], FeatureInputs] = {}

    def open(self, plan: ResolvedRun, part: Part, method: Method | None = None) -> Inputs:
        """Return the inputs of a part, with its labels.

        Args:
            plan: of the run.
            part: of its data.
            method: provides transform and mixture of training images; None for a part that is only scored.
        """
        mixture = None if method is None else mixture_of(method)
        workspace, spec = self.workspace, plan.spec
        if spec.regime != "probe":
            decoder = jpeg_decoder(workspace.decode, workspace.device)
            base = eval_transform(spec.model)
            own = TrainTransform(base, spec.plan)
            transform = None if method is None else Guarded(method).transform(own)
            return ImageInputs(
                part.images,
                part.labels,
                base,
                workspace.workers,
                transform,
                spec.seed,
                workspace.device,
                decoder,
                own.min_side,
                mixture,
            )
        found = self.features(spec, plan.features_model, plan.protocol_data, part)
        return found if mixture is None else found.mixing(mixture)

    def features(self, spec: RunSpec, model: ModelSpec, protocol_data: ProtocolData, part: Part) -> FeatureInputs:
        """Return the cached features of a part, with its labels; missing features are computed for the whole split.

        Args:
            spec: of the run, in the probe regime.
            model: the backbone as used by its method.
            protocol_data: the data.
            part: of the data.
        """
        workspace = self.workspace
        place = (part.split, part.rows.tobytes())
        if place not in self._features:  # for the whole split, cached or computed now
            images, world = protocol_data.whole(part.split).images, workspace.world
            key = features_key(
                spec.dataset_fingerprint, part.split, images, model, spec.precision, spec.seed, workspace.decode
            )
            what = "Feature maps" if model.pooling == "none" else "Features"
            doing = f"Comparing cached features of {len(images):,} images with their checksums"
            with workspace.reporter.patience(doing):
                world.shared(lambda: set_damaged_aside(workspace.store.cache, key, workspace.reporter.line))
            with workspace.reporter.task(f"{what} of {len(images):,} {part.split} images") as report:
                features = cached_features(
                    workspace.store.cache,
                    key,
                    images,
                    lambda: build_backbone(model, weights_path(model, workspace.weights_file), spec.seed),
                    model,
                    device=workspace.device,
                    precision=spec.precision,
                    workers=workspace.workers,
                    report=report,
                    decoder=jpeg_decoder(workspace.decode, workspace.device),
                    rank=world.rank,
                    num_ranks=world.size,
                )
            self._features[place] = FeatureInputs(features, part.rows, part.labels, spec.seed)
        found = self._features[place]
        is_own = found.seed == spec.seed and found.labels is part.labels
        return found if is_own else found.reseeded(spec.seed, part.labels)

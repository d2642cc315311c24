"""Opening what runs see: images, or the cached features of a frozen backbone."""

from __future__ import annotations

import numpy as np

from plbench.loading.features import cached_features, features_key, set_damaged_aside
from plbench.loading.jpegs import jpeg_decoder
from plbench.loading.transforms import TrainTransform, eval_transform
from plbench.method import Method
from plbench.models.backbones import build_backbone, weights_path
from plbench.runs.protocol import Part, ProtocolData
from plbench.runs.workspace import Workspace
from plbench.spec import RunSpec
from plbench.training.hooks import Guarded
from plbench.training.inputs import FeatureInputs, ImageInputs, Inputs


class OpenInputs:
    """Inputs of one run, or of several on the same features, which are then in memory once."""

    def __init__(self, workspace: Workspace) -> None:
        """Nothing is opened yet."""
        self._workspace = workspace
        self._features: dict[tuple[str, bytes], FeatureInputs] = {}

    def open(self, spec: RunSpec, protocol_data: ProtocolData, part: Part, method: Method | None = None) -> Inputs:
        """Return the inputs of a part, with its labels.

        Args:
            spec: of the run.
            protocol_data: of the run, which the part is of.
            part: that is wanted.
            method: whose transform training images go through; None for a part that is only scored.
        """
        if spec.regime == "probe":
            key = (part.split, part.rows.tobytes())
            if key not in self._features:
                features = self._read_features(spec, protocol_data, part.split)
                self._features[key] = FeatureInputs(features, part.rows, part.labels, spec.seed)
            found = self._features[key]
            is_own = found.seed == spec.seed and found.labels is part.labels
            return found if is_own else found.reseeded(spec.seed, part.labels)
        workspace, base = self._workspace, eval_transform(spec.model)
        transform = None if method is None else Guarded(method).transform(TrainTransform(base, spec.plan))
        decoder = jpeg_decoder(workspace.decode, workspace.device)
        return ImageInputs(
            part.images, part.labels, base, workspace.workers, transform, spec.seed, workspace.device, decoder
        )

    def _read_features(self, spec: RunSpec, protocol_data: ProtocolData, split: str) -> np.ndarray:
        """Return features of a whole split, from the cache or computed now."""
        workspace = self._workspace
        images = protocol_data.whole(split).images
        key = features_key(
            spec.dataset_fingerprint, split, images, spec.model, spec.precision, spec.seed, workspace.decode
        )
        with workspace.reporter.patience(f"Comparing cached features of {len(images):,} images with their checksums"):
            workspace.world.shared(lambda: set_damaged_aside(workspace.store.cache, key, workspace.reporter.line))
        with workspace.reporter.task(f"Features of {len(images):,} {split} images") as report:
            return cached_features(
                workspace.store.cache,
                key,
                images,
                lambda: build_backbone(spec.model, weights_path(spec.model, workspace.weights_file), spec.seed),
                spec.model,
                device=workspace.device,
                precision=spec.precision,
                workers=workspace.workers,
                report=report,
                decoder=jpeg_decoder(workspace.decode, workspace.device),
                rank=workspace.world.rank,
                num_ranks=workspace.world.size,
            )

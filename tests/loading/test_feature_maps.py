"""Feature maps of a frozen backbone in the probe regime: what is stored, who sees it, and that heads learn the same."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from plbench.api import Batch, Loss, Method, Task
from plbench.data.labels import PartialLabels
from plbench.errors import PlbenchError, StoreError
from plbench.loading import features
from plbench.loading.features import cached_features, features_key, features_name
from plbench.loading.resumable_array import find_damage, open_matrix
from plbench.loading.transforms import eval_transform
from plbench.models.backbones import Backbone, GivenMaps, make_head
from plbench.randomness import seeded
from plbench.runs import run as runner
from plbench.runs.estimate.estimate import estimate_runs
from plbench.runs.plan.map_check import check_takes_maps
from plbench.runs.plan.resolve import Request, plan_from_spec, plan_run
from plbench.runs.together import can_stack
from plbench.runs.workspace import Workspace
from plbench.spec import SPATIAL_HEADS, ModelSpec, Plan
from plbench.training.engine import fit, prepare_fit
from plbench.training.execution import Execution
from plbench.training.inputs import FeatureInputs

pytestmark = pytest.mark.usefixtures("quick_records")

MODEL = ModelSpec(
    backbone="test_resnet", weights="random", image_size=64, pooling="none", head="csra", head_temperatures="1,max"
)
KEY = "0123456789abcdef" * 4


def backbone_of(model: ModelSpec) -> Backbone:
    with seeded(0):
        return Backbone(model).eval()


def compute(cache: Path, images: Any, model: ModelSpec = MODEL, **changes: Any) -> np.ndarray:
    options: dict[str, Any] = {
        "device": torch.device("cpu"),
        "precision": "float32",
        "workers": 0,
        "report": lambda done, total: None,
    }
    return cached_features(cache, KEY, images, lambda: backbone_of(model), model, **(options | changes))


class TestBackbone:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    @pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "tf_efficientnet_lite0"])
    def test_pooling_a_map_gives_pooled_features(self, name: str) -> None:
        model = MODEL.model_copy(update={"backbone": name})
        pooled = model.model_copy(update={"pooling": "mean+max", "head": "linear"})
        with torch.inference_mode():
            maps = backbone_of(model)(self.images)
            expected = backbone_of(pooled)(self.images)
        assert tuple(maps.shape[1:]) == backbone_of(model).feature_shape
        found = torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)

    def test_tokens_go_back_into_their_grid(self) -> None:
        backbone = backbone_of(MODEL.model_copy(update={"backbone": "test_vit", "image_size": 160}))
        images = torch.rand(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            maps, tokens = backbone(images), backbone.net.forward_features(images)
        assert backbone.feature_shape == (64, 10, 10)
        for row, column in [(0, 0), (0, 9), (3, 4), (9, 9)]:
            assert torch.equal(maps[0, :, row, column], tokens[0, 1 + 10 * row + column])  # after the class token

    def test_channels_that_come_last_go_first(self) -> None:
        backbone = backbone_of(MODEL)
        maps = backbone(self.images)
        backbone.net.forward_features = lambda images: maps.permute(0, 2, 3, 1)
        assert torch.equal(backbone(self.images), maps)

    def test_tokens_without_a_grid_are_one_sentence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import timm

        made = timm.create_model("test_vit", num_classes=0)
        made.patch_embed.grid_size = None
        monkeypatch.setattr(timm, "create_model", lambda *a, **k: made)
        with pytest.raises(PlbenchError, match=r"gives \[101, 64\] features .* no grid of them is known"):
            Backbone(MODEL.model_copy(update={"backbone": "test_vit", "image_size": 160}))


class TestCache:
    def test_maps_are_stored_in_half(self, tmp_path: Path, tiny_images: Any) -> None:
        found, backbone = compute(tmp_path, tiny_images), backbone_of(MODEL)
        pixels = torch.stack([eval_transform(MODEL)(tiny_images.load(row)) for row in range(48)])
        with torch.inference_mode():
            direct = backbone(pixels).numpy()
        assert (found.shape, found.dtype) == ((48, *backbone.feature_shape), np.float16)
        np.testing.assert_allclose(found, direct, rtol=2**-10, atol=1e-4)
        (path,) = tmp_path.glob("features/*.npy")
        assert find_damage(path) is None
        assert np.array_equal(np.load(path), found)

    @pytest.mark.parametrize("rows", [8, 20, 44])
    def test_an_extraction_goes_on_and_ends_with_the_same_bytes(
        self, tmp_path: Path, tiny_images: Any, monkeypatch: pytest.MonkeyPatch, rows: int
    ) -> None:
        monkeypatch.setattr(features, "BATCH_SIZE", 4)
        monkeypatch.setattr(features, "_SAVE_EVERY", 2)
        whole = compute(tmp_path / "whole", tiny_images)

        def stop(done: int, total: int) -> None:
            if done == rows:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            compute(tmp_path / "other", tiny_images, report=stop)
        starts: list[int] = []
        again = compute(tmp_path / "other", tiny_images, report=lambda done, total: starts.append(done))
        assert starts[0] == (rows - 4) // 8 * 8 > -1
        assert again.tobytes() == whole.tobytes()

    def test_a_damaged_map_is_found(self, tmp_path: Path, tiny_images: Any) -> None:
        compute(tmp_path, tiny_images)
        path = tmp_path / features_name(KEY)
        content = bytearray(path.read_bytes())
        content[-1000] ^= 1
        path.write_bytes(content)
        assert "do not match their checksums" in str(find_damage(path))

    def test_what_half_cannot_hold_is_refused(self, tmp_path: Path, tiny_images: Any) -> None:
        class Loud(Backbone):
            def forward(self, images: Tensor) -> Tensor:
                return super().forward(images) + 70_000.0

        with pytest.raises(PlbenchError, match='feature maps in the cache cannot hold; train with `regime="finetune"'):
            cached_features(
                tmp_path,
                KEY,
                tiny_images,
                lambda: Loud(MODEL),
                MODEL,
                device=torch.device("cpu"),
                precision="float32",
                workers=0,
                report=lambda done, total: None,
            )
        assert open_matrix(tmp_path / features_name(KEY), 48) is None

    def test_maps_that_the_disk_cannot_hold_are_refused_before_it_is_full(
        self, tmp_path: Path, tiny_images: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=30_000))
        with pytest.raises(StoreError, match=r"No space left on device: 0\.0 GiB are needed and 0\.0 GiB are free"):
            compute(tmp_path, tiny_images)
        assert not [path for path in tmp_path.glob("features/*") if path.suffix != ".lock"]

    def test_all_spatial_heads_share_a_file_that_pooled_ones_do_not(self, tiny_images: Any) -> None:
        def key(**changes: Any) -> str:
            return features_key("f", "train", tiny_images, MODEL.model_copy(update=changes), "float32", 0)

        assert key() == key(head="ml-decoder", head_temperatures=None, head_groups=3, head_width=16, head_dropout=0.5)
        assert len({key(), key(pooling="mean"), key(pooling="mean+max")}) == 3


class HeadAlone(Method):
    """Cross-entropy on known labels, of a head on a backbone that neither learns nor keeps statistics."""

    name, title = "head-alone", "Head alone"

    def build(self, backbone: nn.Module, make_head: Callable[[], nn.Module]) -> nn.Module:
        for parameter in backbone.parameters():
            parameter.requires_grad_(False)
        return nn.Sequential(Asleep(backbone), make_head())

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        return [{"params": list(model[1].parameters())}]  # type: ignore[index]

    def loss(self, output: Tensor, batch: Batch, progress: Any) -> Loss:
        terms = nn.functional.softplus(-batch.labels * output) * (batch.labels != 0)
        return Loss.of_images(terms.sum(dim=-1))


class Asleep(nn.Module):
    """A module that stays in eval mode."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.eval()

    def train(self, mode: bool = True) -> "Asleep":
        return self

    def forward(self, values: Tensor) -> Tensor:
        return self.module(values)


@pytest.mark.parametrize("head", SPATIAL_HEADS)
def test_a_head_on_maps_learns_what_it_learns_on_a_frozen_backbone(
    head: str, tmp_path: Path, tiny_images: Any, tiny_dataset: Any, make_task: Callable[..., Task]
) -> None:
    model = MODEL.model_copy(update={"head": head, "head_temperatures": None, "head_width": 16, "head_dropout": 0.2})
    labels, frozen, rows = tiny_dataset(tmp_path).split("train").labels, backbone_of(model), np.arange(48)
    plan, execution = Plan(epochs=2, batch_size=16, lr=1e-2, ema_horizon=0.5), Execution(torch.device("cpu"), "float32")
    num_features = frozen.num_features
    pixels = torch.stack([eval_transform(model)(tiny_images.load(row)) for row in range(48)])
    with torch.inference_mode():
        exact = frozen(pixels).numpy()

    def learnt(backbone: nn.Module, values: np.ndarray) -> Tensor:
        """Logits of the averaged head after training."""
        method, inputs = HeadAlone(HeadAlone.Params(), make_task(6)), FeatureInputs(values, rows, labels, seed=1)
        with seeded(3):
            network = method.build(backbone, lambda: make_head(model, num_features, 6))
        state = prepare_fit(network, method, plan, 3, execution)
        fit(state, inputs, plan, execution, seed=1)
        with torch.inference_mode():
            return state.averaged().eval()(next(inputs.ordered(48))[1])

    finetuned = learnt(frozen, pixels.numpy())
    torch.testing.assert_close(learnt(GivenMaps(num_features), exact), finetuned, rtol=1e-3, atol=1e-4)
    in_half = learnt(GivenMaps(num_features), compute(tmp_path, tiny_images, model))
    with seeded(3), torch.inference_mode():
        moved = (make_head(model, num_features, 6).eval()(torch.from_numpy(exact)) - finetuned).abs().max()
    # what half precision leaves out of a map is little beside what was learnt
    assert (in_half - finetuned).abs().max() < 0.01 * moved


class TestRuns:
    def plan(self, workspace: Workspace, method: str = "ce-negative", **model: Any) -> Any:
        return plan_run(Request("tiny", method, model={"image_size": 64, **model}), workspace)

    @pytest.mark.parametrize("head", SPATIAL_HEADS)
    def test_a_spatial_head_uses_maps_by_itself(self, make_workspace: Callable[..., Workspace], head: str) -> None:
        workspace = make_workspace()
        plan = self.plan(workspace, head=head, head_width=16)
        found = estimate_runs([plan], workspace)
        assert re.fullmatch(r"feature maps of 48 train images, 96 x 2 x 2, .* MiB", found.items[0].what)
        assert "MiB of feature maps in the cache" in found.words
        record = runner.run(plan, workspace)
        assert record.status == "done"
        files = [np.load(path, mmap_mode="r") for path in workspace.store.cache.glob("features/*.npy")]
        assert {(file.shape, file.dtype.str) for file in files} == {((n, 96, 2, 2), "<f2") for n in (48, 24)}
        assert found.map_bytes == sum(file.nbytes for file in files)
        assert estimate_runs([plan], workspace, force=True).map_bytes == 0
        assert plan_from_spec(plan.spec, workspace).spec == plan.spec
        assert not can_stack(plan)

    def test_a_method_on_maps_has_the_same_file_whatever_the_head(
        self, make_workspace: Callable[..., Workspace]
    ) -> None:
        workspace = make_workspace()
        runner.run(self.plan(workspace, head="csra"), workspace)
        before = set(workspace.store.cache.glob("features/*.npy"))
        record = runner.run(self.plan(workspace, "boostlu"), workspace)
        assert record.spec.model.pooling == "mean"  # the run's key is that of any other method's model
        assert record.test.map_c.value > 0
        assert set(workspace.store.cache.glob("features/*.npy")) == before

    @pytest.mark.parametrize(("method", "head"), [("boostlu", "linear"), ("ce-negative", "csra")])
    def test_a_backbone_without_maps_is_refused_before_anything_is_computed(
        self, make_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch, method: str, head: str
    ) -> None:
        import timm

        made = timm.create_model("test_vit", num_classes=0)
        made.patch_embed.grid_size = None
        monkeypatch.setattr(timm, "create_model", lambda *a, **k: made)
        workspace = make_workspace()
        with pytest.raises(PlbenchError, match="no grid of them is known"):
            self.plan(workspace, method, backbone="test_vit", head=head, image_size=160, weights="random")
        assert not (workspace.store.cache / "features").exists()

    def test_a_pooled_head_after_a_spatial_recipe(self, make_workspace: Callable[..., Workspace]) -> None:
        workspace = make_workspace()
        assert self.plan(workspace, head="csra").spec.model.pooling == "none"
        assert self.plan(workspace, head="mlp").spec.model.pooling == "mean"
        with pytest.raises(PlbenchError, match=r"head = 'csra' is not valid: it looks at the whole feature map"):
            self.plan(workspace, head="csra", pooling="mean")

    @pytest.mark.parametrize("method", ["imcl", "cnn-rnn", "kundu-tighe"])
    def test_a_method_of_pooled_features_is_refused_before_anything_is_computed(
        self, make_workspace: Callable[..., Workspace], method: str
    ) -> None:
        workspace = make_workspace()
        with pytest.raises(PlbenchError, match=rf"'{method}' uses pooled features itself.*`head=\"mlp\"`"):
            self.plan(workspace, method, head="csra")
        assert not (workspace.store.cache / "features").exists()

    def test_one_that_fails_on_any_features_is_left_to_the_run(self, make_task: Callable[..., Task]) -> None:
        class Broken(HeadAlone):
            def forward(self, model: nn.Module, batch: Batch, progress: Any) -> Any:
                raise RuntimeError("always")

        labels = PartialLabels.from_dense(np.ones((8, 6), np.int8), list("abcdef"))
        check_takes_maps(lambda: Broken(Broken.Params(), make_task(6)), MODEL, labels)

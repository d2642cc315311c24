"""OFA-595 is what was published: its size, its cost, its blocks; and the paper's backbones have their names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from plbench.models.backbones import build_backbone, default_normalisation, resolve_backbone
from plbench.spec import ModelSpec

PUBLISHED = Path(__file__).parents[3] / "shared" / "published.json"


@pytest.fixture(scope="module")
def network() -> nn.Module:
    assert resolve_backbone("OFA-595") == "ofa_595"  # registers it
    import timm

    model: nn.Module = timm.create_model("ofa_595")
    return model.eval()


def multiply_adds(model: nn.Module, size: int) -> int:
    """Of convolutions and linear layers, for one image."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, Tensor)
        total += weight[0].numel() * output.shape[1:].numel()

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.inference_mode():
        model(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return total


def test_it_has_9_1_million_parameters(network: nn.Module) -> None:
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(9.1, abs=0.05)


def test_it_takes_595_million_multiply_adds_at_236_px(network: nn.Module) -> None:
    assert multiply_adds(network, 236) / 1e6 == pytest.approx(595, abs=3)


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the published architecture is not in this checkout")
def test_its_blocks_are_those_published(network: nn.Module) -> None:
    told = json.loads(PUBLISHED.read_text(encoding="utf-8"))["training"]["ofa_595"]
    stages = list(network.blocks)[:-1]  # type: ignore[call-overload]
    assert len(stages) == len(told["blocks_kernel_expand_by_stage"])
    before = told["stem"]
    for stage, (channels, stride, act, squeezes), blocks in zip(
        stages, told["stages_out_stride_act_se"], told["blocks_kernel_expand_by_stage"], strict=True
    ):
        assert len(stage) == len(blocks)
        for number, (block, (kernel, expansion)) in enumerate(zip(stage, blocks, strict=True)):
            depthwise = block.conv_dw
            assert depthwise.kernel_size == (kernel, kernel)
            assert depthwise.stride == ((stride, stride) if number == 0 else (1, 1))
            assert depthwise.in_channels == depthwise.groups == before * expansion
            assert isinstance(block.se, nn.Identity) is not squeezes
            acts = {type(m).__name__ for n, m in block.named_modules() if n.endswith("act") and "se" not in n}
            assert acts - {"Identity"} == {"ReLU" if act == "relu" else "Hardswish"}
            assert [m for m in block.modules() if isinstance(m, nn.Conv2d)][-1].out_channels == channels
            before = channels
    assert network.blocks[-1][0].conv.out_channels == told["head"][0]  # type: ignore[index, union-attr]
    assert network.conv_head.out_channels == told["head"][1]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("OFA-595", "ofa_595"),
        ("TResNet-M", "tresnet_m"),
        ("TResNet-L", "tresnet_l"),
        ("tresnet_v2_l", "tresnet_v2_l"),
        ("ResNet-50", "resnet50"),
        ("ResNet-101", "resnet101"),
    ],
)
def test_every_backbone_of_the_paper_is_known_by_its_name(name: str, known: str) -> None:
    assert resolve_backbone(name) == known
    assert len(default_normalisation(known)[0]) == 3


@pytest.mark.parametrize(("name", "width"), [("ofa_595", 1536), ("tresnet_m", 2048), ("resnet50", 2048)])
def test_they_give_features(name: str, width: int) -> None:
    spec = ModelSpec(backbone=name, weights="random", image_size=64)
    backbone = build_backbone(spec, None, seed=0)
    assert backbone.num_features == width
    assert backbone.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, width)


def test_importing_the_module_is_enough() -> None:
    """In a process that has imported nothing else of plbench, beside whatever torchvision is installed."""
    program = "import plbench.models.ofa, timm; print(timm.create_model('ofa_595').num_features)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0

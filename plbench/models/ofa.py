"""OFA-595 as a timm model: the network that Once-for-All found for 595 M multiply-adds (Cai et al., ICLR 2020).

Table 2 of the paper uses it as a backbone. Importing this module registers it as `ofa_595`. Its weights are not on
timm's hub: train from random ones, or give a file.
"""

from __future__ import annotations

import plbench.models.torchvision_ops  # noqa: F401  # isort: skip

from functools import partial
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.mobilenetv3 import MobileNetV3
from torch import nn

__all__ = ["ofa_595"]

IMAGE_SIZE = 236
STEM, LAST_CONVOLUTION, FEATURES = 24, 1152, 1536

# Channels, stride of the first block, ReLU or hard swish, squeeze-excite; then kernel and expansion of each block.
_STAGES: tuple[tuple[int, int, str, bool, tuple[tuple[int, int], ...]], ...] = (
    (24, 1, "re", False, ((3, 1),)),
    (32, 2, "re", False, ((3, 3), (5, 4), (3, 3))),
    (48, 2, "re", True, ((5, 4), (5, 4), (3, 6), (5, 3))),
    (96, 2, "hs", False, ((7, 6), (5, 6), (3, 3), (5, 4))),
    (136, 1, "hs", True, ((3, 6), (5, 6), (7, 6), (3, 4))),
    (192, 2, "hs", True, ((3, 6), (3, 6), (5, 6), (3, 3))),
)


def _blocks() -> list[list[str]]:
    """Return the stages in timm's notation: a block without expansion is depthwise-separable."""
    stages = [
        [
            f"{'ds' if expansion == 1 else 'ir'}_r1_k{kernel}_s{stride if number == 0 else 1}_e{expansion}"
            f"_c{channels}{'_se0.25' if squeezes else ''}_n{activation}"
            for number, (kernel, expansion) in enumerate(blocks)
        ]
        for channels, stride, activation, squeezes, blocks in _STAGES
    ]
    return [*stages, [f"cn_r1_k1_s1_c{LAST_CONVOLUTION}"]]


default_cfgs = generate_default_cfgs(
    {
        "ofa_595.untrained": {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, IMAGE_SIZE, IMAGE_SIZE),
            "pool_size": (8, 8),
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "conv_stem",
            "classifier": "classifier",
        }
    }
)


@register_model
def ofa_595(pretrained: bool = False, **options: Any) -> MobileNetV3:
    """Return Once-for-All at 595 M multiply-adds: 9.1 M parameters, 236 px."""
    network: MobileNetV3 = build_model_with_cfg(
        MobileNetV3,
        "ofa_595",
        pretrained,
        block_args=decode_arch_def(_blocks()),
        stem_size=STEM,
        num_features=FEATURES,
        head_bias=False,
        act_layer=nn.Hardswish,
        se_layer=partial(SqueezeExcite, gate_layer="hard_sigmoid", rd_round_fn=round_channels, force_act_layer=nn.ReLU),
        **options,
    )
    return network

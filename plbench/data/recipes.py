"""Training recipes that more than one dataset uses. A dataset's own published recipe stands in its file."""

from __future__ import annotations

from plbench.spec import ModelSpec, Plan, Recipe


def quick_recipe(image_size: int) -> Recipe:
    """Return packaged EfficientNet-Lite0, frozen, and a head with one hidden layer: minutes on two CPU cores.

    Args:
        image_size: side of the square that images are squashed to, px.
    """
    model = ModelSpec(
        backbone="tf_efficientnet_lite0",
        weights="packaged",
        pooling="mean+max",
        head="mlp",
        head_width=512,
        head_dropout=0.2,
        image_size=image_size,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    return Recipe(
        name="quick",
        title="packaged EfficientNet-Lite0, probe",
        regime="probe",
        model=model,
        plans={
            "probe": Plan(epochs=10, batch_size=128, lr=1e-3, weight_decay=1e-2),
            "finetune": Plan(epochs=10, batch_size=32, lr=2e-4, weight_decay=1e-4),
        },
        sources={
            "model.mean, model.std": "the packaged weights expect x/127.5 - 1",
            "all else": "ours: fixed by the score on complete labels, before any method was compared",
        },
    )

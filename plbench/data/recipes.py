"""Training recipes shared by several datasets. A dataset's own published recipe is in its file.

Recipes of papers have the values of their released code, in the GitHub repository that each names. Whatever a plan
cannot express is in the recipe's notes.
"""

from __future__ import annotations

from plbench.spec import ModelSpec, Plan, Recipe

_IMAGENET: dict[str, tuple[float, float, float]] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def quick_recipe(image_size: int) -> Recipe:
    """Return a recipe that takes minutes on two CPU cores: frozen packaged EfficientNet-Lite0, one hidden layer.

    Args:
        image_size: side in pixels of the square that images are resized to, without keeping their aspect ratio.
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


def cole2021_recipe(batch_size: int, lr: float) -> Recipe:
    """Return the recipe of Cole et al. (CVPR 2021) for single positive labels, which many later papers use.

    Args:
        batch_size, lr: for the whole network, as chosen by Zhou et al. (ECCV 2022) for the dataset.
    """
    code, chosen = "elijahcole/single-positive-multi-label: ", "Correr-Zhou/SPML-AckTheUnknown: main.py"
    common = {"optimizer": "adam", "schedule": "constant", "weight_decay": 0.0, "ema_decay": 0.0}
    return Recipe(
        name="cole2021",
        title="ResNet-50 at 448 px, Adam at a constant rate",
        regime="finetune",
        model=ModelSpec(backbone="resnet50.tv_in1k", weights="pretrained", image_size=448, **_IMAGENET),
        plans={
            "finetune": Plan.model_validate(
                {"epochs": 10, "batch_size": batch_size, "lr": lr, "horizontal_flip": 0.5, **common}
            ),
            "probe": Plan.model_validate({"epochs": 25, "batch_size": 16, "lr": 1e-4, **common}),
        },
        sources={
            "model": f"{code}models.py (torchvision's ImageNet weights, linear head), datasets.py (448 px, mean, std)",
            "epochs, optimizer, schedule, weight_decay": f"{code}train.py (Adam as torch makes it; no schedule)",
            "horizontal_flip": f"{code}datasets.py",
            "finetune: batch_size, lr": f"{chosen}, values among those that the former tries",
            "probe: batch_size, lr": f"{code}train.py, as written before its search",
            "ema_decay": f"none in {code}train.py",
        },
        notes=(
            "the code tries rates of 1e-2 to 1e-5 with batches of 8 and 16, and keeps the best on clean "
            "validation labels; plbench tune searches the rate",
            "the code tests the very model that was best on clean validation labels; that is selection "
            "on validation without retraining, which the recipe does not turn on",
            "no plan expresses the code's mode linear_init, which trains a head first and the whole network after it; "
            "its lr_mult = 10 is of ROLE's table of labels, not of the head",
        ),
    )


def mlr_pl_recipe() -> Recipe:
    """Return the recipe that SST, SARB and HST (Chen, Pu et al., 2022) share for partial labels."""
    code = "HCPLab-SYSU/HCP-MLR-PL: "
    return Recipe(
        name="mlr-pl",
        title="ResNet-101 at 448 px, Adam, a tenth of the rate after 10 of 20 epochs",
        regime="finetune",
        model=ModelSpec(backbone="resnet101.tv_in1k", weights="pretrained", image_size=448, **_IMAGENET),
        plans={
            "finetune": Plan(
                epochs=20,
                batch_size=8,
                lr=1e-5,
                weight_decay=5e-4,
                optimizer="adam",
                schedule="step=10",
                ema_decay=0.0,
                horizontal_flip=0.5,
                random_resized_crop=0.25,
            )
        },
        sources={
            "epochs, lr, weight_decay, schedule": f"{code}scripts/SST.sh, SARB.sh and HST.sh, SST.py (StepLR, 0.1)",
            "batch_size": f"{code}scripts/SST.sh and SARB.sh; HST.sh has 32",
            "optimizer": f"{code}SST.py, Adam whose decay is coupled to a mean over known labels, as in bce-mean-known",
            "horizontal_flip, random_resized_crop": f"{code}utils/dataloader.py; 0.25 is the square of its least side",
            "model.image_size, mean, std": f"{code}utils/dataloader.py",
            "model.backbone": f"{code}scripts/SST.sh (resnet101.pth); ours: that it is torchvision's",
            "model.head": "ours: linear",
            "ema_decay": f"none in {code}SST.py",
        },
        notes=(
            "the code crops squares of 512, 448, 384, 320 or 256 px from images squashed to 512, bicubic; "
            "here RandomResizedCrop takes any share of the area from 0.25 on, bilinear",
            "the code trains the last stage of the ResNet alone, with the batch statistics of the others "
            "frozen, under a head for each category (semantic decoupling with word vectors), and decays biases too; "
            "here all layers learn under a linear head",
            "the code keeps the epoch that was best on test; here the last one is scored",
        ),
    )


def robust_loss_recipe() -> Recipe:
    """Return the recipe of Zhang et al. (Hill and SPLC, 2021) for missing labels."""
    code = "xinyu1205/robust-loss-mlml: "
    return Recipe(
        name="robust-loss",
        title="ResNet-50 at 448 px, one cycle over 80 epochs",
        regime="finetune",
        model=ModelSpec(backbone="resnet50.tv_in1k", weights="pretrained", image_size=448),
        plans={
            "finetune": Plan(
                epochs=80,
                batch_size=128,
                lr=1e-4,
                weight_decay=1e-4,
                optimizer="adam-coupled",
                ema_horizon=0.1,
                randaugment="rand-m9-mstd0.5",
                cutout=0.5,
            )
        },
        sources={
            "model": f"{code}src/models/resnet.py (torchvision's ImageNet weights, linear head), train.py (448 px; "
            "pixels are not normalised)",
            "finetune plan": f"{code}train.py and train_nus.py (Adam coupled to a loss summed over images, one cycle "
            "with pct_start 0.2, EMA of 0.9997)",
            "randaugment": f"{code}train.py says RandAugment; magnitude 9 is timm's usual, ours",
            "cutout": f"{code}train.py, factor 0.5, by timm's random erasing",
            "ema_horizon": "ours: leaves 0.9997 as it is at the code's 51,000 steps",
        },
        notes=(
            "the code ends its 80 epochs after 31 of them and keeps the epoch, and the averaged or "
            "last weights, that were best on test; selection on validation finds an epoch without test",
            "the code cuts a square of random colour, which may cross the border, before it augments",
        ),
    )

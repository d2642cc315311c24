"""Vision-language models such as CLIP and SigLIP, from the package transformers.

Methods do not run them: embeddings are computed once and written to a file (`plbench.data.embeddings`).
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import plbench.models.torchvision_ops  # noqa: F401  (before transformers, which imports torchvision)
from plbench.errors import PlbenchError

_TEXTS_AT_A_TIME = 256


@dataclass(frozen=True)
class ImagePreparation:
    """Prepares an image with the model's own resizing, cropping and normalisation."""

    processor: Any

    def __call__(self, image: Image.Image) -> Tensor:
        """Return pixels [3, H, W]."""
        pixels: Tensor = self.processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels


class VisionLanguageModel:
    """One of transformers' models with `get_image_features` and `get_text_features`, in float32.

    Attributes:
        name: on the hub, or a folder. prepare: of one image.
        logits: "logit_scale" and "logit_bias", if the model has them.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        """Load weights and processors, only from safetensors files.

        Raises:
            PlbenchError: if transformers is not installed, or there is no such model locally or on the hub.
        """
        try:
            transformers: Any = importlib.import_module("transformers")
        except ImportError as error:
            raise PlbenchError(
                "a vision-language model needs the package transformers: pip install 'plbench[vlm]'; or make the file "
                "elsewhere, as plbench.data.embeddings says"
            ) from error
        try:
            model = transformers.AutoModel.from_pretrained(name, use_safetensors=True, dtype=torch.float32)
            self._processor: Any = transformers.AutoProcessor.from_pretrained(name)
        except (OSError, ValueError) as error:
            reason = (str(error).strip().splitlines() or ["(nothing said)"])[0].rstrip(".")
            raise PlbenchError(f"the transformers model {name!r} cannot be loaded here: {reason}") from error
        if not all(hasattr(model, f"get_{kind}_features") for kind in ("image", "text")):
            raise PlbenchError(
                f"model {name!r} ({type(model).__name__}) does not embed images and texts in one space; give one that "
                "does, such as openai/clip-vit-base-patch32"
            )
        self.name, self._model, self._device = name, model.to(device).eval(), device
        self.prepare = ImagePreparation(self._processor.image_processor)
        self.logits: dict[str, float] = {}
        if (scale := getattr(model, "logit_scale", None)) is not None:
            self.logits["logit_scale"] = float(scale.detach().exp())
        if (bias := getattr(model, "logit_bias", None)) is not None:
            self.logits["logit_bias"] = float(bias.detach())

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Return embeddings float32 [B, D] of pixels [B, 3, H, W], on the CPU."""
        with torch.inference_mode():
            found = self._model.get_image_features(pixel_values=pixels.to(self._device))
        return _embeddings(found)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return embeddings float32 [C, D] of texts, on the CPU. Longer texts than the model supports are truncated."""
        length = self._model.config.text_config.max_position_embeddings
        found = []
        for start in range(0, len(texts), _TEXTS_AT_A_TIME):
            tokens = self._processor.tokenizer(  # padded to full length, as SigLIP was trained; CLIP ignores padding
                list(texts[start : start + _TEXTS_AT_A_TIME]),
                padding="max_length",
                max_length=length,
                truncation=True,
                return_tensors="pt",
            )
            with torch.inference_mode():
                found.append(_embeddings(self._model.get_text_features(**tokens.to(self._device))))
        return torch.cat(found)

    def sha256(self) -> str:
        """Return the hex sha256 of weights and image preparation, which determine image embeddings."""
        digest = hashlib.sha256(self._processor.image_processor.to_json_string().encode())
        for name, value in self._model.state_dict().items():
            digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def _embeddings(found: Any) -> Tensor:
    """Return the tensor in a model's output; before transformers 5, the output was the tensor itself."""
    embeddings: Tensor = getattr(found, "pooler_output", found)
    return embeddings.float().cpu()

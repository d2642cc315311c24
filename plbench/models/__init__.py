"""Backbones and heads."""

from plbench.models.backbones import (
    PACKAGED_BACKBONE,
    Backbone,
    build_backbone,
    default_normalisation,
    make_head,
    packaged_weights,
    pretrained_name,
    pretrained_weights,
    resolve_backbone,
    weights_path,
)

__all__ = [
    "PACKAGED_BACKBONE",
    "Backbone",
    "build_backbone",
    "default_normalisation",
    "make_head",
    "packaged_weights",
    "pretrained_name",
    "pretrained_weights",
    "resolve_backbone",
    "weights_path",
]

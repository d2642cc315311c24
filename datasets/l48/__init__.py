"""Bird sounds as spectrograms: labels as annotated, and as little of them as real annotators gave."""

from .dataset import L48, L48Checklist, L48Geo, L48Target

__all__ = ["L48", "L48Checklist", "L48Geo", "L48Target"]

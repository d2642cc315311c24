"""Pascal VOC of 2007 and of 2012."""

from .dataset import Voc2007, Voc2012

__all__ = ["Voc2007", "Voc2012"]

"""How large the objects of each class are in each image of COCO, and how near to its centre."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from scipy import sparse

from ..coco_json import Annotation, AnnotationFile, Category, Document, Ids, Image, annotated_cells

FloatArray = npt.NDArray[np.float64]

# as small as can be told in an image of 640 by 480 px, so that no object has no chance or all of it
SMALLEST_AREA, SMALLEST_DISTANCE = 1e-6, 1e-3

_Pixels = Annotated[int, msgspec.Meta(gt=0)]


class _PlacedImage(Image, gc=False):
    width: _Pixels
    height: _Pixels


class _PlacedAnnotation(Annotation, gc=False):
    """One object, or a crowd: the area of its mask in px, and its box in px: left, top, width, height."""

    area: float
    bbox: tuple[float, float, float, float]


class _PlacedDocument(Document[_PlacedImage, Category]):
    annotations: list[_PlacedAnnotation]  # type: ignore[assignment]


def weigh(by: Literal["size", "place"], areas: FloatArray, boxes: FloatArray, sides: FloatArray) -> FloatArray:
    """Return the weights [K] of objects: areas as shares of their images, or inverse distances from the centres.

    Args:
        by: "size" or "place".
        areas: [K] px. boxes: [K, 4] px: left, top, width, height. sides: [K, 2] of the images, px: width, height.
    """
    if by == "size":
        return np.maximum(areas / (sides[:, 0] * sides[:, 1]), SMALLEST_AREA)
    off = boxes[:, :2] + boxes[:, 2:] / 2 - sides / 2
    distances = np.sqrt((off**2).sum(axis=1)) / (np.sqrt((sides**2).sum(axis=1)) / 2)
    weights: FloatArray = 1.0 / np.maximum(distances, SMALLEST_DISTANCE)
    return weights


def read_prominence(file: AnnotationFile, by: Literal["size", "place"]) -> sparse.csr_array:
    """Return sums over the objects of each class in each image, as Arroyo, Perona & Cole (2023) weight them.

    Args:
        file: with areas, boxes and the sizes of images.
        by: "size" for areas as shares of the image; "place" for inverse distances of the box's centre from the image's,
            as shares of half the diagonal.

    Returns:
        [N, C] of the images with an annotation, by rising id, above 0 where a class is present.

    Raises:
        DataError: if the file is malformed, or says nothing of areas, boxes or sizes.
    """
    document, _ = file.decode(_PlacedDocument)
    images, categories = Ids.of(file, "images", document.images), Ids.of(file, "categories", document.categories)
    rows, columns = annotated_cells(document, images, categories)
    sides = np.array([(image.width, image.height) for image in document.images], np.float64)[images.order][rows]
    areas = np.array([annotation.area for annotation in document.annotations], np.float64)
    boxes = np.array([annotation.bbox for annotation in document.annotations], np.float64).reshape(-1, 4)
    weights = weigh(by, areas, boxes, sides)
    annotated, rows = np.unique(rows, return_inverse=True)
    matrix = sparse.coo_array((weights, (rows, columns)), shape=(len(annotated), len(categories))).tocsr()
    matrix.sum_duplicates()  # in place, sorted
    return matrix

"""Images from Python - arrays, tensors, pictures, items of a data set - as square bytes with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from manyhands.data.resize import resized
from manyhands.errors import DataError

Range = tuple[float, float]
MAX_CLASSES = 65_536
GREY_MODES = {"1", "L", "LA", "I", "I;16"}


def squares(items: Sequence[Any], size: int | None, channels: int | None, value_range: Range | None) -> np.ndarray:
    """Return images as bytes, (N, channels, size, size).

    Args:
        items: Arrays or tensors of two or three dimensions, or pictures of Pillow.
        size: The side that they are cropped and resized to; None for images that are square and of one size already.
        channels: 1 for grey, 3 for RGB; None for the channels of the first image.
        value_range: The values of black and of white in arrays; None where they follow from their type.
    """
    _check_options(size, channels, value_range)
    if not (isinstance(items, Sequence) or getattr(items, "ndim", 0)):
        raise DataError(
            f"images are of type {type(items).__name__}, an array, a tensor or a list of images is expected"
        )
    if not len(items):
        raise DataError("there are no images")
    pictures = _pictures(items, value_range)
    side, depth = size or pictures[0].height, channels or (1 if pictures[0].mode in GREY_MODES else 3)
    for number, picture in enumerate(pictures):
        if size is None and picture.size != (side, side):
            raise DataError(
                f"image {number} is {picture.height} x {picture.width}, not {side} x {side}: give the size to which "
                "all images are cropped and resized"
            )
    return np.stack([resized(picture, side, depth) for picture in pictures])


def label_numbers(labels: Any, count: int, classes: Sequence[str] | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the class number of each image, (N,), and the names of the classes.

    Args:
        labels: A whole number for each image, from 0 on.
        count: The number of images.
        classes: The names of the classes; None names them by their numbers.
    """
    try:
        numbers = np.asarray(labels.cpu() if isinstance(labels, torch.Tensor) else labels)
    except ValueError:
        raise DataError("labels are of several shapes, a whole number for each image is expected") from None
    if numbers.shape != (count,):
        raise DataError(f"labels have the shape {numbers.shape}, one for each of the {count} images is expected")
    if numbers.dtype.kind not in "iu":
        raise DataError(f"labels are of type {numbers.dtype}, whole numbers from 0 on are expected")
    if classes is not None:
        _check_names(classes)
    low, high = int(numbers.min()), int(numbers.max())
    if classes is None and high >= MAX_CLASSES:
        raise DataError(f"label {high} is given, but a label must be less than {MAX_CLASSES} unless classes are given")
    names = tuple(map(str, range(high + 1))) if classes is None else tuple(classes)
    if low < 0 or high >= len(names):
        raise DataError(f"label {low if low < 0 else high} is outside the {len(names)} classes (0 to {len(names) - 1})")
    return numbers.astype(np.int64), names


def items_of(dataset: Any) -> tuple[list[Any], list[Any] | None]:
    """Return the images and labels of a map-style data set; the labels are None where its items are images alone."""
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DataError(
            f"{type(dataset).__name__} is no map-style data set: it has no length, or no items by their number"
        )
    items = [dataset[number] for number in range(len(dataset))]
    if not any(isinstance(item, tuple | list) for item in items):
        return items, None
    for number, item in enumerate(items):
        if not isinstance(item, tuple | list) or len(item) != 2:
            length = f" of {len(item)}" if isinstance(item, tuple | list) else ""
            raise DataError(f"item {number} is a {type(item).__name__}{length}, an image and its label are expected")
    return [image for image, _ in items], [label for _, label in items]


def _check_options(size: Any, channels: Any, value_range: Any) -> None:
    if size is not None and not (isinstance(size, int | np.integer) and size > 0):
        raise DataError(f"size is {size!r}, a whole number from 1 on is expected")
    if channels not in (None, 1, 3):
        raise DataError(f"channels is {channels!r}, 1 for grey or 3 for RGB is expected")
    if value_range is not None and not (isinstance(value_range, Sequence) and len(value_range) == 2):
        raise DataError(f"value_range is {value_range!r}, the values of black and of white are expected, as in (0, 1)")


def _check_names(classes: Sequence[str]) -> None:
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise DataError(f"classes are {classes!r}, a list of names is expected")
    if len(set(classes)) < len(classes):
        raise DataError(f"classes names a class twice: {', '.join(classes)}")


def _pictures(items: Sequence[Any], value_range: Range | None) -> list[Image.Image]:
    if all(isinstance(item, Image.Image) for item in items):
        return list(items)
    arrays = [_array(item, number) for number, item in enumerate(items)]
    return [Image.fromarray(array) for array in _as_bytes(arrays, value_range)]


def _array(item: Any, number: int) -> np.ndarray:
    """An image as an array of height x width, or of height x width x 3."""
    if isinstance(item, torch.Tensor):
        item = (item.float() if item.is_floating_point() else item).detach().cpu().numpy()
    if not isinstance(item, np.ndarray):
        raise DataError(f"image {number} is a {type(item).__name__}, an array, a tensor or a picture is expected")
    shape = item.shape
    first, last = (item.ndim == 3 and shape[axis] in (1, 3) for axis in (0, 2))
    if not item.size or not (item.ndim == 2 or first != last):
        raise DataError(
            f"image {number} has the shape {shape}; H x W, H x W x C or C x H x W is expected, where C is 1 or 3 and H "
            "and W are other numbers"
        )
    array = item.transpose(1, 2, 0) if first else item
    return array[..., 0] if array.shape[2:] == (1,) else array


def _as_bytes(arrays: list[np.ndarray], value_range: Range | None) -> list[np.ndarray]:
    types = sorted({str(array.dtype) for array in arrays})
    if len(types) > 1 or arrays[0].dtype.kind not in "uif":
        raise DataError(f"images are of type {' and '.join(types)}; uint8, or floats of one type, are expected")
    if types == ["uint8"] and value_range is None:
        return [np.ascontiguousarray(array) for array in arrays]
    for number, array in enumerate(arrays):
        if not np.isfinite(array).all():
            raise DataError(f"image {number} has values that are not finite")
    low, high = float(min(array.min() for array in arrays)), float(max(array.max() for array in arrays))
    black, white = value_range or _range_of(types[0], low, high)
    if not black <= low <= high <= white or black == white:
        raise DataError(f"images have values from {low:g} to {high:g}, value_range is ({black:g}, {white:g})")
    return [np.rint((array.astype(np.float64) - black) * (255 / (white - black))).astype(np.uint8) for array in arrays]


def _range_of(dtype: str, low: float, high: float) -> Range:
    """The values of black and white, where they can be known: negative values say that they are -1 and 1."""
    if dtype.startswith("float") and -1 <= low < 0 and high <= 1:
        return -1, 1
    raise DataError(
        f"images are {dtype} from {low:g} to {high:g}: say which values are black and white, such as "
        "value_range=(0, 1), (-1, 1) or (0, 255)"
    )

"""Arrays and data sets become images of the same bytes whatever their form; a wrong one says what was expected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from manyhands import Images
from manyhands.data.images import as_floats
from manyhands.errors import DataError

BYTES = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
BYTES[0, 0, 0, :2] = 0, 255
GREY = BYTES[:, 0]


class Items(Dataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Any:
        return self.items[number]


FORMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "N x C x H x W": (BYTES, {}),
    "N x H x W x C": (BYTES.transpose(0, 2, 3, 1), {}),
    "a tensor": (torch.from_numpy(BYTES), {}),
    "[-1, 1]": (as_floats(torch.from_numpy(BYTES)), {}),
    "[-1, 1] in float64": (BYTES / 127.5 - 1, {}),
    "[0, 1]": (BYTES.astype(np.float32) / 255, {"value_range": (0, 1)}),
    "[0, 255] as floats": (BYTES.astype(np.float32), {"value_range": (0, 255)}),
    "16 bits": (BYTES.astype(np.uint16) * 257, {"value_range": (0, 65535)}),
    "a list of images": (list(BYTES), {}),
    "pictures": ([Image.fromarray(image.transpose(1, 2, 0)) for image in BYTES], {}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_image_gives_the_same_bytes(form: str) -> None:
    pixels, options = FORMS[form]
    assert Images.from_arrays(pixels, **options).pixels.equal(torch.from_numpy(BYTES))
    assert Images.from_dataset(Items(list(pixels)), **options).pixels.equal(torch.from_numpy(BYTES))


def test_grey_images_need_no_axis_of_channels() -> None:
    for pixels in (GREY, GREY[:, None], GREY[..., None]):
        assert Images.from_arrays(pixels).pixels.equal(torch.from_numpy(GREY[:, None]))
    assert Images.from_arrays(GREY, channels=3).pixels.equal(torch.from_numpy(GREY[:, None].repeat(3, 1)))
    assert Images.from_arrays(BYTES, channels=1).pixels.shape == (6, 1, 8, 8)


def test_images_of_other_sizes_are_cropped_and_resized() -> None:
    tall = np.concatenate([np.zeros((6, 3, 2, 8), np.uint8), BYTES, np.zeros((6, 3, 2, 8), np.uint8)], axis=2)
    assert Images.from_arrays(tall, size=8).pixels.equal(torch.from_numpy(BYTES))
    mixed = [BYTES[0], np.repeat(np.repeat(BYTES[0], 2, axis=1), 2, axis=2)]
    assert Images.from_arrays(mixed, size=4).pixels.shape == (2, 3, 4, 4)


def test_labels_and_classes_come_with_them() -> None:
    numbers = [0, 1, 2, 0, 1, 2]
    for labels in (numbers, np.array(numbers, np.uint8), torch.tensor(numbers)):
        images = Images.from_arrays(GREY, labels, ("a", "b", "c"))
        assert images.labels is not None
        assert (images.labels.tolist(), images.classes) == (numbers, ("a", "b", "c"))
    assert Images.from_arrays(GREY, numbers).classes == ("0", "1", "2")
    assert Images.from_arrays(GREY, numbers, ()).labels is None
    assert Images.from_arrays(GREY).labels is None


def test_a_data_set_has_pairs_or_images_and_perhaps_names() -> None:
    pairs = Images.from_dataset(TensorDataset(torch.from_numpy(GREY), torch.arange(6) % 2))
    assert pairs.labels is not None
    assert (pairs.labels.tolist(), pairs.classes) == ([0, 1, 0, 1, 0, 1], ("0", "1"))
    named = Items([(image, 1) for image in GREY])
    named.classes = ["cat", "dog"]  # type: ignore[attr-defined]
    assert Images.from_dataset(named).classes == ("cat", "dog")
    assert Images.from_dataset(named, ("x", "y")).classes == ("x", "y")
    assert Images.from_dataset(Items(list(GREY))).classes == ()


NAN = np.full((2, 8, 8), np.nan, np.float32)


@pytest.mark.parametrize(
    ("pixels", "options", "said"),
    [
        (BYTES[:0], {}, "there are no images"),
        (GREY[0], {}, r"image 0 has the shape \(8,\); H x W, H x W x C or C x H x W is expected"),
        (BYTES[None], {}, r"image 0 has the shape \(6, 3, 8, 8\)"),
        (np.zeros((2, 4, 8, 8), np.uint8), {}, r"image 0 has the shape \(4, 8, 8\); .* where C is 1 or 3"),
        (np.zeros((2, 3, 8, 3), np.uint8), {}, r"image 0 has the shape \(3, 8, 3\); .* H and W are other numbers"),
        (np.zeros((2, 0, 8), np.uint8), {}, r"image 0 has the shape \(0, 8\)"),
        (["a"], {}, "image 0 is a str, an array, a tensor or a picture is expected"),
        ([GREY[0], None], {}, "image 1 is a NoneType"),
        (GREY.astype(np.int64), {}, r"images are int64 from 0 to 255: say which values are black and white"),
        (
            GREY / 255,
            {},
            r"images are float64 from 0 to 1: say which values are black and white, such as value_range=\(",
        ),
        (GREY / 100 - 2, {}, r"images are float64 from -2 to 0.55: say which values"),
        (GREY / 100, {"value_range": (0, 1)}, r"images have values from 0 to 2.55, value_range is \(0, 1\)"),
        (GREY, {"value_range": (0, 0)}, r"images have values from 0 to 255, value_range is \(0, 0\)"),
        (GREY > 9, {}, "images are of type bool; uint8, or floats of one type, are expected"),
        (GREY.astype(object), {}, "images are of type object"),
        ([GREY[0], GREY[1] / 255], {}, "images are of type float64 and uint8"),
        (NAN, {"value_range": (0, 1)}, "image 0 has values that are not finite"),
        (np.zeros((2, 8, 10), np.uint8), {}, "image 0 is 8 x 10, not 8 x 8: give the size"),
        ([GREY[0], GREY[1, :4, :4]], {}, "image 1 is 4 x 4, not 8 x 8: give the size"),
        (GREY, {"size": 0}, "size is 0, a whole number from 1 on"),
        (GREY, {"size": 8.5}, "size is 8.5, a whole number"),
        (GREY, {"channels": 2}, "channels is 2, 1 for grey or 3 for RGB is expected"),
        (GREY, {"value_range": 3}, "value_range is 3, the values of black and of white"),
        (3, {}, "images are of type int, an array, a tensor or a list"),
        (None, {}, "images are of type NoneType"),
        (GREY, {"labels": [0] * 6, "classes": ("a", "a")}, "classes names a class twice: a, a"),
        (GREY, {"labels": [0] * 6, "classes": (1, 2)}, r"classes are \(1, 2\), a list of names"),
        (GREY, {"labels": [0] * 6, "classes": "ab"}, "classes are 'ab', a list of names"),
        (GREY, {"classes": ("a",)}, "there are names of 1 classes, but no labels"),
        (GREY, {"labels": [0] * 5}, r"labels have the shape \(5,\), one for each of the 6 images is expected"),
        (GREY, {"labels": np.eye(6, dtype=int)}, r"labels have the shape \(6, 6\)"),
        (GREY, {"labels": [0.0] * 6}, "labels are of type float64, whole numbers from 0 on are expected"),
        (GREY, {"labels": ["a"] * 6}, "labels are of type <U1, whole numbers"),
        (GREY, {"labels": [[0], [0, 1]] * 3}, "labels are of several shapes"),
        (GREY, {"labels": [-1] * 6}, "label -1 is outside the 0 classes|label -1 is outside"),
        (GREY, {"labels": [0] * 5 + [10**9]}, "label 1000000000 is given, but a label must be less than 65536 unless"),
        (GREY, {"labels": [2] * 6, "classes": ("a", "b")}, r"label 2 is outside the 2 classes \(0 to 1\)"),
    ],
)
def test_a_wrong_array_is_told_by_what_it_is_and_what_was_expected(
    pixels: Any, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError, match=f"^{said}"):
        Images.from_arrays(pixels, **options)


def test_a_share_and_numbers_of_images_are_checked() -> None:
    images = Images.from_arrays(GREY)
    assert torch.equal(images.subset([2, 0]).pixels, images.subset(np.array([2, 0])).pixels)
    for share in (-0.1, 1.5):
        with pytest.raises(DataError, match="the share to hold out is"):
            images.hold_out(share)


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        (Items([]), "there are no images"),
        (iter([]), "list_iterator is no map-style data set: it has no length"),
        (Items([(GREY[0], 0), GREY[1]]), "item 1 is a ndarray, an image and its label are expected"),
        (Items([(GREY[0], 0), (GREY[1], 0, 0)]), "item 1 is a tuple of 3, an image and its label are expected"),
        (Items([{"image": GREY[0]}]), "image 0 is a dict, an array, a tensor or a picture is expected"),
        (Items([(GREY[0], 0), (GREY[1], "cat")]), "labels are of type"),
        (Items([(torch.rand(1, 8, 8), 0)]), "images are float32 from .* value_range="),
    ],
)
def test_a_wrong_data_set_is_told_by_its_item(dataset: Any, said: str) -> None:
    with pytest.raises(DataError, match=f"^{said}"):
        Images.from_dataset(dataset)

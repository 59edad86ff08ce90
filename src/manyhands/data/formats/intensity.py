"""How the values of a file become bytes from black (0) to white (255)."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator

from manyhands.spec import Float

PERCENTILES = (1, 99)
"""What becomes black and white with ``intensity = "percentiles"``."""
FLOATS = 'its pixels are floats of an unknown range: set intensity = "range", "percentiles" or [low, high]'


def _rising(window: tuple[float, float]) -> tuple[float, float]:
    if window[0] >= window[1]:
        raise ValueError(f"is [{window[0]:g}, {window[1]:g}], but the value of black must be less than that of white")
    return window


Window = Annotated[tuple[Float, Float], AfterValidator(_rising)]
Intensity = Literal["bits", "range", "percentiles", "dicom"] | Window
"""Which values are black and white: of the bits stored, of each image, of a DICOM file's window, or these two."""


def to_bytes(values: np.ndarray, intensity: Intensity, stored_range: tuple[int, int] | None) -> np.ndarray:
    """Map values to bytes; those beyond black and white are clamped.

    Args:
        values: Whole numbers or floats of any shape: one image.
        intensity: Which values are black and white. "dicom" is for DICOM files alone.
        stored_range: The least and the largest value that can be stored; None for floats.
    """
    if intensity == "dicom":
        raise ValueError('it is no DICOM file, and intensity = "dicom" takes the window of DICOM files')
    if intensity == "bits":
        if stored_range is None:
            raise ValueError(FLOATS)
        low, high = stored_range
        shares = (values.astype(np.int64) - low) * 255 // (high - low)
        return np.asarray(shares.clip(0, 255), np.uint8)
    return stretched(values, *(black_and_white(values, intensity) if isinstance(intensity, str) else intensity))


def black_and_white(values: np.ndarray, intensity: str) -> tuple[float, float]:
    """Return the values of one image that become black and white; what is not finite counts for neither."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise ValueError("none of its pixels is a finite number")
    low, high = (finite.min(), finite.max()) if intensity == "range" else np.percentile(finite, PERCENTILES)
    return float(low), float(high)


def stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map ``low`` to 0 and ``high`` to 255, and round; an image of one value becomes black."""
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    shares = (np.nan_to_num(values.astype(np.float64), nan=low) - low) / (high - low)
    return np.asarray(np.rint(shares.clip(0, 1) * 255), np.uint8)

"""How much each pixel of a segmentation counts: U-Net's weights, large between cells that touch.

Ronneberger, Fischer and Brox, "U-Net: convolutional networks for biomedical image segmentation", 2015,
section 3, equation 2.
"""

from __future__ import annotations

import numpy as np


def border_weights(
    labels: np.ndarray,
    *,
    background: int = 0,
    strength: float = 10.0,
    sigma: float = 5.0,
    balanced: bool = True,
) -> np.ndarray:
    """Weights of pixels by which a network learns to keep cells apart that nearly touch.

    A pixel of the background weighs ``strength exp(-(d1 + d2)^2 / (2 sigma^2))`` more, where d1 and d2 are
    its distances to the nearest and to the second nearest cell. Cells are the areas of one class that hang
    together by pixels' edges. Cells more than five sigma away count as infinitely far: what they would add is
    below 4e-6 of ``strength``.

    Args:
        labels: classes of the pixels, integers [B, H, W].
        background: the class between the cells.
        strength: w_0 of the paper, what a pixel right between two cells gets on top.
        sigma: how far from them it falls off, pixels.
        balanced: let every class weigh as much as the others over all ``labels``, 1 a pixel on average (w_c
            of the paper); otherwise every pixel weighs 1 before borders are added.

    Returns:
        Weights, float32 [B, H, W], above 0: the ``weights`` that `jdl.tasks.segmentation` counts pixels by.

    Raises:
        ValueError: unless ``labels`` are integers or booleans [B, H, W] that are not empty, ``strength`` at
            least 0 and ``sigma`` above 0.

    Example:
        >>> labels = np.ones((1, 32, 32), np.int32)
        >>> labels[:, :, 15:17] = 0  # two cells, two pixels apart
        >>> weights = border_weights(labels, balanced=False)
        >>> [round(float(weights[0, 16, x]), 2) for x in (0, 15)]
        [1.0, 9.35]
    """
    labels = np.asarray(labels)
    if labels.ndim != 3 or not labels.size or labels.dtype.kind not in "iub":
        raise ValueError(f"labels must be integers [B, H, W], got {labels.dtype} of shape {labels.shape}")
    if not (np.isfinite(strength) and strength >= 0):
        raise ValueError(f"strength must be at least 0, got {strength}")
    if not (np.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma must be above 0, got {sigma}")
    weights = np.ones(labels.shape)
    if balanced:
        _, where, counts = np.unique(labels, return_inverse=True, return_counts=True)
        weights = (labels.size / (len(counts) * counts))[where].reshape(labels.shape)
    between = np.stack([_nearness(each, background, sigma) for each in labels])
    return (weights + strength * between).astype(np.float32)


def _nearness(labels: np.ndarray, background: int, sigma: float) -> np.ndarray:
    """``exp(-(d1 + d2)^2 / (2 sigma^2))`` of the background of one image [H, W], 0 in its cells."""
    from scipy import ndimage

    first, second = np.full((2, *labels.shape), np.inf)
    margin = int(np.ceil(5 * sigma))
    for kind in np.setdiff1d(labels, [background]):
        cells, _ = ndimage.label(labels == kind)
        for number, box in enumerate(ndimage.find_objects(cells), start=1):
            around = tuple(slice(max(0, side.start - margin), side.stop + margin) for side in box)
            away = ndimage.distance_transform_edt(cells[around] != number)
            # Views: what is written into them is written into the whole.
            nearest, next_nearest = first[around], second[around]
            np.minimum(next_nearest, np.maximum(nearest, away), out=next_nearest)
            np.minimum(nearest, away, out=nearest)
    return np.where(labels == background, np.exp(-((first + second) ** 2) / (2 * sigma**2)), 0.0)

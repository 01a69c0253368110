"""Denoised pictures against the clean ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from armlet.artifacts import Score
from armlet.data.splits import Samples


def score_denoising(outputs: npt.NDArray[Any], samples: Samples, split: str) -> Score:
    """Return the mean PSNR over pictures [N, C, H, W] of values from 0 to 1, its gain over the noisy input, and SSIM.

    Source: Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity".
    """
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    answers = np.clip(outputs.astype(np.float32), 0.0, 1.0)
    after = _psnr(answers, samples.targets).mean()
    before = _psnr(samples.inputs[0], samples.targets).mean()
    pictures = (torch.from_numpy(answers), torch.from_numpy(samples.targets))
    parts = zip(*(torch.split(x, 500) for x in pictures), strict=True)
    similarity = sum(float(ssim(a, b, data_range=1.0, reduction="sum")) for a, b in parts) / len(answers)
    others = (("psnr_gain", float(after - before)), ("ssim", similarity))
    return Score("psnr", float(after), len(samples), split, others=others)


def _psnr(pictures: npt.NDArray[np.float32], clean: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return 10 log10(1 / mean squared error) of each picture, at most 100 dB where both are equal."""
    errors = np.square(pictures.astype(np.float64) - clean).reshape(len(clean), -1).mean(axis=1)
    ratios: npt.NDArray[np.float64] = -10.0 * np.log10(np.maximum(errors, 1e-10))
    return ratios

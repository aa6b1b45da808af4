"""MaskTune (Asgari et al. 2022): one epoch on training images without the pixels that mattered most, whatever they show. Labels used: none.

It is ours without a critic. Every training image is explained as those are that our critic sees: by DeepLIFT SHAP of the predicted class, smoothed
as for the segments; the paper takes XGradCAM. Masked pixels become 0, which is black, since images are in 0 to 1 before a network
normalises them; the paper's description names no other value. The paper goes on at the learning rate at which training ended. A checkpoint
does not tell it, and our own training ends at zero, so that the rate of our fine-tuning is taken, with its warm-up and its fall.
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.data import Dataset

from rightreasons.data.loading import Batch, count_images, read_all, read_batches
from rightreasons.explain.attribute import attribute_images
from rightreasons.explain.evidence import read_baselines, smooth_width
from rightreasons.explain.segment import smooth_heatmaps
from rightreasons.studies.methods.labels import NoLabels
from rightreasons.studies.methods.method import LAST, Bench, Method
from rightreasons.studies.methods.training import draw_in_passes, drawn_per_epoch, fine_tune_equally

# How many standard deviations above the mean of the positive values a pixel's effect lies if it is masked.
DEVIATIONS = 2.0


class MaskedImages(Dataset):
    """The images of a dataset with the pixels in ``masks``, one mask for each dataset index, set to 0."""

    def __init__(self, images: Dataset, masks: Bool[Tensor, "image height width"]) -> None:
        self.images, self.masks = images, masks

    def __len__(self) -> int:
        return len(self.masks)

    def read(self, indices: Tensor) -> Batch:
        """These images, unreadable ones left out."""
        batch = read_all(self.images, indices)
        return Batch(batch.indices, batch.images.masked_fill(self.masks[batch.indices][:, None], 0.0), batch.labels)


def train(bench: Bench, _: NoLabels) -> nn.Module:
    """Fine-tunes the shortcut model on masked images alone, for one epoch."""
    masks = mask_images(bench)
    bench.reporter.note(f"mask-tune: {masks.float().mean().item():.1%} of the pixels of the training images are masked")
    draw = partial(draw_in_passes, torch.arange(len(masks)), drawn_per_epoch(bench.run))
    return fine_tune_equally(bench, draw, dataset=MaskedImages(bench.run.train, masks), epochs=1)


def mask_images(bench: Bench) -> Bool[Tensor, "image height width"]:
    """The masks of all training images, by dataset index; that of an image that cannot be read is empty."""
    run = bench.run
    baselines, count = read_baselines(run.model, run.train, run.config), count_images(run.train)
    width = smooth_width(run.model, run.config.segment)
    masks = torch.zeros(count, *baselines.shape[2:], dtype=torch.bool)
    done = 0
    with bench.reporter.stage("mask") as advance:
        for batch in read_batches(run.train):
            found = attribute_images(run.model, batch.images.to(baselines.device), baselines, method=run.config.attribute.computing)
            masks[batch.indices] = mask_peaks(smooth_heatmaps(found.heatmaps.cpu(), width))
            done += len(batch)
            advance(done, count)
    return masks


def mask_peaks(heatmaps: Float[Tensor, "image height width"]) -> Bool[Tensor, "image height width"]:
    """Equation 21: the pixels above the mean plus ``DEVIATIONS`` standard deviations of the positive values of their heatmap."""
    positive = heatmaps > 0
    counts = positive.sum((1, 2)).clamp(min=1)
    means = heatmaps.clamp(min=0).sum((1, 2)) / counts
    squares = torch.where(positive, heatmaps - means[:, None, None], 0.0).square().sum((1, 2))
    limits = means + DEVIATIONS * (squares / counts).sqrt()
    return positive & (heatmaps > limits[:, None, None])


METHOD = Method(train, NoLabels, LAST)

"""A model's predictions on the images of a dataset."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rightreasons.data.loading import Batch, check_labels
from rightreasons.networks.classifier import check_finite, model_device, output_entropy


@dataclass(frozen=True)
class Predictions:
    """A model's predictions on the readable images of a dataset, which are those of ``indices``; ``probability`` is that of the predicted class."""

    indices: Int[Tensor, " image"]
    labels: Int[Tensor, " image"]
    predicted: Int[Tensor, " image"]
    entropy: Float[Tensor, " image"]
    probability: Float[Tensor, " image"]

    @property
    def correct(self) -> Bool[Tensor, " image"]:
        """Which images are classified right."""
        return self.predicted == self.labels


def predict_labels(model: nn.Module, batches: Iterable[Batch]) -> Predictions:
    """The predictions, in one pass over batches. Raises ModelError for logits that are not finite, DataError for a label that no logit stands for."""
    model.eval()
    device = model_device(model)
    columns: list[tuple[Tensor, ...]] = []
    with torch.no_grad():
        for batch in batches:
            logits = model(batch.images.to(device)).cpu()
            check_finite(logits, batch.images, batch.indices, "logits (at scoring)")
            check_labels(batch.labels, batch.indices, logits.shape[1])
            columns.append((batch.indices, batch.labels, logits.argmax(1), output_entropy(logits), logits.float().softmax(1).amax(1)))
    return Predictions(*(torch.cat(parts) for parts in zip(*columns, strict=True)))

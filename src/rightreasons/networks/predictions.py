"""A model's predictions on the images of a dataset."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.data import Dataset

from rightreasons.data.loading import Batch, check_labels
from rightreasons.networks.classifier import check_finite, model_device, output_entropy
from rightreasons.networks.team import map_batches


@dataclass(frozen=True)
class Predictions:
    """A model's predictions on the readable images of a dataset, which are those of ``indices``; ``probability`` is that of the predicted class."""

    indices: Int[Tensor, " image"]
    labels: Int[Tensor, " image"]
    predicted: Int[Tensor, " image"]
    entropy: Float[Tensor, " image"]
    probability: Float[Tensor, " image"]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def correct(self) -> Bool[Tensor, " image"]:
        """Which images are classified right."""
        return self.predicted == self.labels


def predict_labels(model: nn.Module, batches: Iterable[Batch]) -> Predictions:
    """The predictions, in one pass over batches. Raises ModelError for logits that are not finite, DataError for a label that no logit stands for."""
    return _join(predict_batch(model, batch) for batch in batches)


def predict_dataset(model: nn.Module, dataset: Dataset) -> Predictions:
    """The predictions on all images of a dataset, as ``predict_labels`` has them; the helpers of a team take their share."""
    return _join(map_batches(partial(predict_batch, model), dataset))


def predict_batch(model: nn.Module, batch: Batch, *, stage: str = "at scoring") -> Predictions:
    """The predictions on one batch; ``stage`` is named in errors, which are those of ``predict_labels``."""
    model.eval()
    with torch.no_grad():
        logits = model(batch.images.to(model_device(model))).cpu()
    check_finite(logits, batch.images, batch.indices, f"logits ({stage})")
    check_labels(batch.labels, batch.indices, logits.shape[1])
    return Predictions(batch.indices, batch.labels, logits.argmax(1), output_entropy(logits), logits.float().softmax(1).amax(1))


def _join(parts: Iterable[Predictions]) -> Predictions:
    columns = zip(*((part.indices, part.labels, part.predicted, part.entropy, part.probability) for part in parts), strict=True)
    return Predictions(*(torch.cat(column) for column in columns))

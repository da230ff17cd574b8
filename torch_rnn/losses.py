"""logits -> loss, probabilities and classes. One logit stands for a sigmoid, several for a softmax."""

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_rnn.ops.context import readable


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Computes the cross-entropy of each output in nats: logits (..., C), labels (...) -> (...).

    The labels are 0 or 1 where C is 1, else in 0..C-1; or floats (..., max(C, 2)), a distribution over the
    classes. A distribution times w gives w times the loss, and a one-hot one the bits of its class. Raises
    TypeError or ValueError for other labels; their values are checked on the CPU only.
    """
    C = logits.shape[-1]
    if labels.is_floating_point() and labels.dim() == logits.dim():
        return _soft_cross_entropy(logits, labels)
    check_labels(labels, logits.shape[:-1], C)
    if C == 1:
        y = logits[..., 0]
        return F.binary_cross_entropy_with_logits(y, labels.to(y.dtype), reduction="none")
    losses = F.cross_entropy(logits.reshape(-1, C), labels.reshape(-1).long(), reduction="none")
    return losses.reshape(labels.shape)


def _soft_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    C = logits.shape[-1]
    check_distributions(labels, logits.shape[:-1], C)
    labels = labels.to(logits.dtype)
    if C == 1:
        weight = labels.sum(dim=-1)
        target = labels[..., 1] / weight
        return weight * F.binary_cross_entropy_with_logits(logits[..., 0], target, reduction="none")
    losses = F.cross_entropy(logits.reshape(-1, C), labels.reshape(-1, C), reduction="none")
    return losses.reshape(logits.shape[:-1])


def probabilities(logits: Tensor) -> Tensor:
    """Returns the probability of each class: logits (..., C) -> (..., max(C, 2))."""
    if logits.shape[-1] > 1:
        return logits.softmax(dim=-1)
    p = logits.sigmoid()
    return torch.cat([1 - p, p], dim=-1)


def most_probable(logits: Tensor) -> Tensor:
    """Returns the most probable class of each output: logits (..., C) -> (...) int64."""
    return (logits[..., 0] > 0).long() if logits.shape[-1] == 1 else logits.argmax(dim=-1)


def most_probable_label(labels: Tensor) -> Tensor:
    """Returns the classes: integer labels as they are, the most probable class of distributions (..., C)."""
    return labels.argmax(dim=-1) if labels.is_floating_point() else labels


def check_labels(labels: Tensor, shape: tuple[int, ...], C: int) -> None:
    """Raises TypeError or ValueError for labels that logits of shape (*shape, C) cannot have."""
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"labels are {labels.dtype}; they must be integers")
    if tuple(labels.shape) != tuple(shape):
        raise ValueError(f"labels have shape {tuple(labels.shape)}; these logits need {tuple(shape)}")
    classes = max(C, 2)
    if readable(labels) and labels.numel() and not (0 <= labels.min() and labels.max() < classes):
        raise ValueError(f"labels are in {labels.min()}..{labels.max()}; they must be in 0..{classes - 1}")


def check_distributions(labels: Tensor, shape: tuple[int, ...], C: int) -> None:
    """Raises ValueError for floats that are no distributions over the classes of logits (*shape, C)."""
    needed = (*shape, max(C, 2))
    if tuple(labels.shape) != needed:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}; distributions for these logits need {needed}"
        )
    if readable(labels) and labels.numel():
        sums = labels.sum(dim=-1)
        if not (labels.min() >= 0 and sums.min() > 0 and sums.max() < float("inf")):
            raise ValueError("labels have a distribution with a negative number, NaN, infinity or the sum 0")

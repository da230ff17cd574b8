"""logits -> loss, probabilities and classes. One logit stands for a sigmoid, several for a softmax."""

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_rnn.ops.inputs import readable


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Computes the cross-entropy of each output in nats: logits (..., C), integer labels (...) -> (...).

    The labels are 0 or 1 where C is 1, else in 0..C-1. Raises TypeError or ValueError for other labels; their
    values are checked on the CPU only.
    """
    C = logits.shape[-1]
    check_labels(labels, logits.shape[:-1], C)
    if C == 1:
        y = logits[..., 0]
        return F.binary_cross_entropy_with_logits(y, labels.to(y.dtype), reduction="none")
    losses = F.cross_entropy(logits.reshape(-1, C), labels.reshape(-1).long(), reduction="none")
    return losses.reshape(labels.shape)


def probabilities(logits: Tensor) -> Tensor:
    """Returns the probability of each class: logits (..., C) -> (..., max(C, 2))."""
    if logits.shape[-1] > 1:
        return logits.softmax(dim=-1)
    p = logits.sigmoid()
    return torch.cat([1 - p, p], dim=-1)


def most_probable(logits: Tensor) -> Tensor:
    """Returns the most probable class of each output: logits (..., C) -> (...) int64."""
    return (logits[..., 0] > 0).long() if logits.shape[-1] == 1 else logits.argmax(dim=-1)


def check_labels(labels: Tensor, shape: tuple[int, ...], C: int) -> None:
    """Raises TypeError or ValueError for labels that logits of shape (*shape, C) cannot have."""
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"labels are {labels.dtype}; they must be integers")
    if tuple(labels.shape) != tuple(shape):
        raise ValueError(f"labels have shape {tuple(labels.shape)}; these logits need {tuple(shape)}")
    classes = max(C, 2)
    if readable(labels) and labels.numel() and not (0 <= labels.min() and labels.max() < classes):
        raise ValueError(f"labels are in {labels.min()}..{labels.max()}; they must be in 0..{classes - 1}")

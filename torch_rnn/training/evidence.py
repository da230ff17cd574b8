"""Evidence: what a teacher says of each step of a text, and how far an RNN is from it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_rnn.nn.layers import reversed_steps
from torch_rnn.ops.inputs import real_steps


def disagreement(added: Sequence[Tensor], evidence: Tensor, lengths: Tensor) -> Tensor:
    """Returns 1 - cos of the angle between what the steps of each row add and the teacher's evidence, (B,).

    A linear teacher's logit is its bias plus what its n-grams add; `evidence` has what they add at each step,
    where a repeated n-gram counts each time. The logit of an RNN is a sum over steps, too (`member_logits`).
    The angle leaves the scale to the RNN. A row without evidence has 1, and no gradient.

    Args:
        added: (B, T, C) for each direction, with the steps in the order in which it reads them.
        evidence: (B, T, 2, C) in the order of time: of what ends at a step, which the first direction knows
            there, and of what begins there, which the second one knows.
        lengths: (B,) the number of real steps of each row.
    """
    real = real_steps(lengths, evidence.shape[1])[..., None]
    products: list[Tensor] = []  # of each direction (3, B)
    for direction, y in enumerate(added):
        dtype = torch.promote_types(y.dtype, torch.float32)  # a sum in bfloat16 is too coarse
        target = evidence[:, :, direction].to(dtype)
        target = reversed_steps(target, lengths) if direction else target
        y, target = y.to(dtype) * real, target * real
        pairs = ((y, target), (y, y), (target, target))
        products.append(torch.stack([(a * b).sum(dim=(1, 2)) for a, b in pairs]))
    both, own, teachers = torch.stack(products).sum(dim=0)
    known = (own > 0) & (teachers > 0)
    norm = torch.where(known, own * teachers, 1).sqrt()
    return 1 - torch.where(known, both / norm, 0)

"""The cross-entropy of a linear readout over many outputs, without all logits in memory at once.

    y[n] = Why h[n] + by          loss = sum over n of log(sum over v of exp(y[n, v])) - y[n, targets[n]]

    N  rows: the states of B sequences at T steps, N = B T          H  hidden size          V  vocabulary

The gradient of y is softmax(y) less the one-hot target. It is known as soon as y is, so the forward pass goes
through chunks of rows once, and computes the loss and all gradients of each chunk in the same memory.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from torch_rnn.ops.checks import kind
from torch_rnn.ops.context import is_transforming, readable

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def linear_cross_entropy(
    h: Tensor, Why: Tensor, by: Tensor | None, targets: Tensor, *, chunk_bytes: int = 64 << 20
) -> Tensor:
    """Computes the sum of the cross-entropies of `h @ Why.T + by` in nats.

    It has first derivatives only, in h, Why and by, for one backward pass. Under autocast, and for weights in
    half precision, products are in that precision, and the logits, their logarithms and all sums in float32.
    The same input and number of threads give the same bits.

    Args:
        h: (N, H) floats.
        Why: (V, H), with h's dtype (under autocast any of FLOATS) and device.
        by: (V,), or None for zeros.
        targets: (N,) int64 in 0..V-1; the values are checked on the CPU only.
        chunk_bytes: the most memory for logits. A chunk has at least one row.

    Returns:
        A scalar: float64 for float64, otherwise float32.

    Raises:
        TypeError, ValueError: for an argument of another shape, dtype, device or range.
        RuntimeError: under torch.func and forward-mode differentiation; where the gradient is computed with
            create_graph=True, for a second derivative, or a second time with retain_graph=True.
    """
    _check_readout(h, Why, by)
    _check_ids("targets", targets, (len(h),), Why)
    if isinstance(chunk_bytes, bool) or not isinstance(chunk_bytes, int):
        raise TypeError(f"chunk_bytes is {chunk_bytes!r}; it must be a whole number")
    if chunk_bytes < 1:
        raise ValueError(f"chunk_bytes is {chunk_bytes}; it must be at least 1")
    chunks = _chunks(len(h), len(Why), _sums(h).itemsize, chunk_bytes)
    _check_derivatives("linear_cross_entropy")
    product, needs = _precision(h), _needs(h, Why, by)
    with torch.autocast(h.device.type, enabled=False):
        return _LinearCrossEntropy.apply(h, Why, by, targets, chunks, product, needs)


def sampled_cross_entropy(
    h: Tensor, Why: Tensor, by: Tensor | None, targets: Tensor, negatives: Tensor, log_q: Tensor
) -> Tensor:
    """Computes an estimate of `linear_cross_entropy` from the targets and K negatives, which all rows share.

    Sampled softmax (Jean et al., 2015, arXiv 1412.2007), with the target's logit as it is and each negative's
    corrected by the logarithm of how often it is expected in the sample (Bengio and Senecal, 2008):

        loss[n] = log Z[n] - y[n, target]
        Z[n] = exp(y[n, target]) + sum over negatives v other than the target of exp(y[n, v] - log_q[v])

    The expectation of Z[n] over the samples is the sum of the full softmax. That of log Z[n] is below its
    logarithm, by a difference that falls as 1 / K. Where each word is a negative once, with log_q of 0, the
    loss is that of the full softmax. Precision and derivatives are those of `linear_cross_entropy`. Only the
    rows of Why and by that targets and negatives name are read, and only their gradients are not zero.

    Args:
        h, Why, by, targets: as in `linear_cross_entropy`.
        negatives: (K,) int64 in 0..V-1, such as `negatives.draw_negatives` returns.
        log_q: (K,) floats, the logarithm of the expected number of times that each negative is in a sample:
            log(K q) for K draws from probabilities q.

    Returns:
        A scalar, the sum over the rows.

    Raises:
        TypeError, ValueError, RuntimeError: as in `linear_cross_entropy`.
    """
    _check_readout(h, Why, by)
    _check_ids("targets", targets, (len(h),), Why)
    if isinstance(negatives, Tensor) and negatives.dim() != 1:
        raise ValueError(f"negatives has shape {tuple(negatives.shape)}; it must be (K,)")
    _check_ids("negatives", negatives, None, Why)
    if not isinstance(log_q, Tensor) or not log_q.is_floating_point():
        raise TypeError(f"log_q is {kind(log_q)}; it must be a tensor of floats")
    if log_q.shape != negatives.shape:
        raise ValueError(f"log_q has shape {tuple(log_q.shape)}; it must be {tuple(negatives.shape)}")
    _check_device("log_q", log_q, Why)
    _check_derivatives("sampled_cross_entropy")
    product, needs = _precision(h), _needs(h, Why, by)
    with torch.autocast(h.device.type, enabled=False):
        return _SampledCrossEntropy.apply(h, Why, by, targets, negatives, log_q, product, needs)


class _Needs(NamedTuple):
    """Which gradients to compute."""

    dh: bool
    dWhy: bool
    dby: bool


class _LinearCrossEntropy(torch.autograd.Function):
    """The loss in chunks. Where there is one chunk only, its dy waits for the backward pass."""

    @staticmethod
    def forward(ctx, h, Why, by, targets, chunks, product, needs):
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (h, Why, by)]
        h, Why, sums = h.to(product), Why.to(product), _sums(h)
        by = None if by is None else by.to(sums)
        losses, logits = h.new_empty(len(h), dtype=sums), h.new_empty(chunks[0], len(Why), dtype=sums)
        at_once = any(needs) and len(chunks) > 1
        dh, dWhy, dby = _new_gradients(h, Why, sums, needs) if at_once else (None, None, None)
        end = 0
        for rows in chunks:
            start, end = end, end + rows
            h_part, target, y = h[start:end], targets[start:end, None], logits[:rows]
            _logits(h_part, Why, by, out=y)
            torch.log_softmax(y, dim=1, out=y)
            log_p = y.gather(1, target)
            losses[start:end] = log_p[:, 0]
            if any(needs):
                dy = y.exp_().scatter_(1, target, log_p.expm1_())  # softmax(y) - 1 at the target
            if at_once:
                _add_gradients(dy, h_part, Why, None if dh is None else dh[start:end], dWhy, dby)
        ctx.needs, ctx.gradients = needs, (dh, dWhy, dby) if at_once else None
        ctx.waits = any(needs) and not at_once
        if ctx.waits:
            ctx.save_for_backward(dy, h, Why)
        return -losses.sum()

    @staticmethod
    def backward(ctx, dloss):
        if ctx.waits and not torch.is_grad_enabled():
            dy, h, Why = ctx.saved_tensors
            dy *= dloss
            ctx.waits, dloss = False, None
            ctx.gradients = _new_gradients(h, Why, dy.dtype, ctx.needs)
            _add_gradients(dy, h, Why, *ctx.gradients)
        return (*_scaled(ctx, dloss, "linear_cross_entropy"), None, None, None, None)


def _new_gradients(h: Tensor, Why: Tensor, sums: torch.dtype, needs: _Needs) -> tuple[Tensor | None, ...]:
    """Returns memory for dh, and zeros for dWhy and dby."""
    dh = torch.empty_like(h) if needs.dh else None
    dWhy = torch.zeros_like(Why, dtype=sums) if needs.dWhy else None
    dby = Why.new_zeros(len(Why), dtype=sums) if needs.dby else None
    return dh, dWhy, dby


def _add_gradients(
    dy: Tensor, h: Tensor, Why: Tensor, dh: Tensor | None, dWhy: Tensor | None, dby: Tensor | None
) -> None:
    """Writes to dh and adds to dWhy and dby what the gradient of the logits, dy (N, V), gives."""
    if dby is not None:
        dby += dy.sum(dim=0)
    dy = dy.to(h.dtype)
    if dh is not None:
        torch.mm(dy, Why, out=dh)
    if dWhy is not None:
        _add_product(dWhy, dy.t(), h)


class _SampledCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, Why, by, targets, negatives, log_q, product, needs):
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (h, Why, by)]
        V, sums = len(Why), _sums(h)
        h, at_negatives, at_targets = h.to(product), Why[negatives].to(product), Why[targets].to(product)
        shift, y_target = -log_q.to(sums), (h.to(sums) * at_targets.to(sums)).sum(dim=1)
        if by is not None:
            shift += by[negatives]
            y_target += by[targets]
        y = h.new_empty(len(h), len(negatives), dtype=sums)
        _logits(h, at_negatives, shift, out=y)
        y.masked_fill_(negatives == targets[:, None], -torch.inf)
        highest = torch.maximum(y.amax(dim=1), y_target) if len(negatives) else y_target
        exp = y.sub_(highest[:, None]).exp_()
        Z = exp.sum(dim=1) + (y_target - highest).exp()
        losses = highest + Z.log() - y_target
        if any(needs):
            dy, dy_target = exp.div_(Z[:, None]), (-losses).expm1_()
            ctx.gradients = _sampled_gradients(
                h, at_negatives, at_targets, dy, dy_target, targets, negatives, V, needs
            )
        return losses.sum()

    @staticmethod
    def backward(ctx, dloss):
        return (*_scaled(ctx, dloss, "sampled_cross_entropy"), None, None, None, None, None)


def _sampled_gradients(
    h: Tensor,
    at_negatives: Tensor,
    at_targets: Tensor,
    dy: Tensor,
    dy_target: Tensor,
    targets: Tensor,
    negatives: Tensor,
    V: int,
    needs: _Needs,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Returns dh, dWhy and dby from the gradients of the logits: dy (N, K), dy_target (N,)."""
    sums, (dh, dWhy, dby) = dy.dtype, (None, None, None)
    if needs.dby:
        dby = dy.new_zeros(V).index_add_(0, negatives, dy.sum(dim=0)).index_add_(0, targets, dy_target)
    dy = dy.to(h.dtype)
    if needs.dh:
        dh = (dy @ at_negatives).to(sums).addcmul_(dy_target[:, None], at_targets.to(sums))
    if needs.dWhy:
        dWhy = dy_target.new_zeros(V, h.shape[1])
        dWhy.index_add_(0, negatives, (dy.t() @ h).to(sums))
        dWhy.index_add_(0, targets, h.to(sums) * dy_target[:, None])
    return dh, dWhy, dby


def _check_derivatives(name: str) -> None:
    """Raises RuntimeError under torch.func and in forward mode, for which there are no rules here."""
    if is_transforming():
        raise RuntimeError(
            f"{name} has derivatives by backward() and torch.autograd.grad only, not by torch.func or in "
            "forward mode; take torch.nn.functional.cross_entropy of all logits there"
        )


def _scaled(ctx, dloss: Tensor | None, name: str) -> list[Tensor | None]:
    """Returns the gradients of h, Why and by, times dloss if given, in the memory that they have."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{name} has no second derivative; compute its gradient without create_graph, or take "
            "torch.nn.functional.cross_entropy of all logits"
        )
    if ctx.gradients is None:
        raise RuntimeError(f"the gradient of {name} was computed already; call {name} again")
    gradients, ctx.gradients = ctx.gradients, None
    return [
        None if gradient is None else (gradient if dloss is None else gradient.mul_(dloss)).to(dtype)
        for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
    ]


def _logits(h: Tensor, Why: Tensor, by: Tensor | None, out: Tensor) -> None:
    """Writes h Why^T + by to out, whose dtype may be wider than that of the product."""
    if h.dtype == out.dtype and by is not None:
        torch.addmm(by, h, Why.t(), out=out)
    elif h.dtype == out.dtype:
        torch.mm(h, Why.t(), out=out)
    else:
        out.copy_(h @ Why.t())
        if by is not None:
            out += by


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Adds the product a b to total, whose dtype may be wider."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def _chunks(N: int, V: int, itemsize: int, chunk_bytes: int) -> list[int]:
    """Returns the numbers of rows of the chunks, the largest first, nearly equal. Their sum is N."""
    most = max(1, chunk_bytes // (V * itemsize))
    count = max(1, -(-N // most))
    return [N // count + (i < N % count) for i in range(count)]


def _precision(h: Tensor) -> torch.dtype:
    """Returns the dtype of products."""
    if torch.is_autocast_enabled(h.device.type) and h.dtype is not torch.float64:
        return torch.get_autocast_dtype(h.device.type)
    return h.dtype


def _sums(h: Tensor) -> torch.dtype:
    """Returns the dtype of logits and sums."""
    return torch.float64 if h.dtype is torch.float64 else torch.float32


def _needs(*tensors: Tensor | None) -> _Needs:
    enabled = torch.is_grad_enabled()
    return _Needs(*(enabled and tensor is not None and tensor.requires_grad for tensor in tensors))


def _check_readout(h: Tensor, Why: Tensor, by: Tensor | None) -> None:
    for name, tensor, shape in (("h", h, "(N, H)"), ("Why", Why, "(V, H)"), ("by", by, "(V,)")):
        if tensor is None and name == "by":
            continue
        if not isinstance(tensor, Tensor) or tensor.dtype not in FLOATS:
            raise TypeError(f"{name} is {kind(tensor)}; it must be a tensor of {', '.join(map(str, FLOATS))}")
        if tensor.dim() != len(shape.split(",")) - (name == "by"):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be {shape}")
    if Why.numel() == 0:
        raise ValueError(f"Why has shape {tuple(Why.shape)}; V and H must be at least 1")
    if h.shape[1] != Why.shape[1]:
        raise ValueError(
            f"h has shape {tuple(h.shape)}; with Why {tuple(Why.shape)} it must be (N, {Why.shape[1]})"
        )
    if by is not None and by.shape != Why.shape[:1]:
        raise ValueError(f"by has shape {tuple(by.shape)}; it must be ({len(Why)},)")
    mixed = torch.is_autocast_enabled(h.device.type) and torch.float64 not in (h.dtype, Why.dtype)
    for name, tensor in (("h", h), ("by", by)):
        if tensor is None:
            continue
        if tensor.dtype != Why.dtype and not (mixed and tensor.dtype != torch.float64):
            raise TypeError(f"{name} is {tensor.dtype}; it must be {Why.dtype} like Why")
        _check_device(name, tensor, Why)


def _check_ids(name: str, ids: Tensor, shape: tuple[int, ...] | None, Why: Tensor) -> None:
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
        raise TypeError(f"{name} is {kind(ids)}; it must be a tensor of torch.int64")
    if shape is not None and tuple(ids.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(ids.shape)}; it must be {shape}")
    _check_device(name, ids, Why)
    if readable(ids) and ids.numel():
        low, high = torch.aminmax(ids)
        if low < 0 or high >= len(Why):
            raise ValueError(f"{name} are in {low}..{high}; they must be in 0..{len(Why) - 1}")


def _check_device(name: str, tensor: Tensor, Why: Tensor) -> None:
    if tensor.device != Why.device:
        raise ValueError(f"{name} is on {tensor.device}; it must be on {Why.device} like Why")

"""Negatives of a sampled softmax: which words are in a sample, and how often each is expected there."""

import torch
from torch import Tensor

from torch_rnn.ops.checks import kind
from torch_rnn.ops.context import readable


def log_uniform(V: int) -> Tensor:
    """Returns the log-uniform distribution over ids, (V,) float64.

    q[v] = log((v + 2) / (v + 1)) / log(V + 1)

    It is close to Zipf's law where ids are sorted by frequency, the most frequent first.
    """
    if isinstance(V, bool) or not isinstance(V, int):
        raise TypeError(f"V is {V!r}; it must be a whole number")
    if V < 1:
        raise ValueError(f"V is {V}; it must be at least 1")
    edges = torch.arange(1, V + 2, dtype=torch.float64).log()
    return edges.diff() / edges[-1]


def inclusion_probabilities(K: int, q: Tensor) -> Tensor:
    """Returns p[v] = min(1, c q[v]) with c such that the sum is K: (V,) float64.

    Args:
        K: the size of a sample, in 1..V.
        q: (V,) floats above 0, in any unit: `log_uniform(V)`, or how often each word occurs.

    Raises:
        TypeError, ValueError: for another K or q.
    """
    if not isinstance(q, Tensor) or not q.is_floating_point():
        raise TypeError(f"q is {kind(q)}; it must be a tensor of floats")
    if q.dim() != 1 or len(q) == 0:
        raise ValueError(f"q has shape {tuple(q.shape)}; it must be (V,)")
    if not (q.min() > 0 and q.max() < float("inf")):
        raise ValueError(f"q is in {q.min()}..{q.max()}; each probability must be above 0 and finite")
    if isinstance(K, bool) or not isinstance(K, int):
        raise TypeError(f"K is {K!r}; it must be a whole number")
    if not 1 <= K <= len(q):
        raise ValueError(f"K is {K}; it must be in 1..{len(q)}, the number of words")
    if len(q) == K:
        return torch.ones_like(q, dtype=torch.float64)
    q, order = q.double().sort(descending=True)
    rest = q.flip(0).cumsum(0).flip(0)  # the sum of q from each word on
    # With the i most probable words at 1, c = (K - i) / rest[i]. The first i with c q[i] <= 1 is right.
    i = torch.arange(K, device=q.device)
    certain = int(((K - i) * q[:K] > rest[:K]).sum())
    p = torch.ones_like(q)
    p[certain:] = (q[certain:] * ((K - certain) / rest[certain])).clamp(max=1)
    return torch.empty_like(p).scatter_(0, order, p)


def draw_negatives(p: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Draws K different words, word v with probability p[v], for `sampled_cross_entropy`.

    Systematic sampling in a random order (Madow, 1949): the words lie on a line in random order, v as long as
    p[v]; the points u, u + 1, ..., u + K - 1, with one uniform u, choose the words on which they fall. So the
    expected number of times that v is in the sample is p[v] exactly, whereas with draws that avoid repetition
    one by one it has no closed form. Draws with repetition would take frequent words many times.

    Args:
        p: (V,) float64 with a whole sum K, from `inclusion_probabilities`.
        generator: of p's device; torch's global one if None.

    Returns:
        negatives (K,) int64 and log_q (K,) float64, the logarithm of their p.

    Raises:
        TypeError, ValueError: for another p; its sum is checked on the CPU only.
    """
    if not isinstance(p, Tensor) or not p.is_floating_point():
        raise TypeError(f"p is {kind(p)}; it must be a tensor of floats")
    if p.dim() != 1 or len(p) == 0:
        raise ValueError(f"p has shape {tuple(p.shape)}; it must be (V,)")
    if readable(p) and not (p.sum() - p.sum().round()).abs() <= 1e-6 * len(p):
        raise ValueError(f"p has the sum {p.sum():.6g}; it must be a whole number, the size of the sample")
    order = torch.randperm(len(p), generator=generator, device=p.device)
    ends = p[order].cumsum(0)
    points = torch.arange(int(ends[-1].round()), dtype=p.dtype, device=p.device)
    points += torch.rand((), generator=generator, dtype=p.dtype, device=p.device)
    negatives = order[torch.searchsorted(ends, points, right=True).clamp(max=len(p) - 1)]
    return negatives, p[negatives].log()

"""Addition: two bits a step, least significant first, the sum bit out at every step, the carry in h."""

from collections import Counter

import numpy as np
import torch

from torch_rnn.data.datamodule import SequenceData, at_least_1
from torch_rnn.nn.module import RNN


def pairs(rng: np.random.Generator, n: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """n additions a + b of random numbers of so many bits: x (n, T, 2) floats, labels (n, T), T = bits + 1.

    x[:, t] are bit t of a and of b, labels[:, t] is bit t of the sum; the last step brings out the carry.
    """
    x = np.zeros((n, bits + 1, 2), dtype=np.float32)
    x[:, :bits] = rng.integers(2, size=(n, bits, 2))
    labels, carry = np.zeros((n, bits + 1), dtype=np.int64), np.zeros(n, dtype=np.int64)
    for t in range(bits + 1):
        total = x[:, t].sum(axis=1).astype(np.int64) + carry
        labels[:, t], carry = total % 2, total // 2
    return x, labels


class Addition(SequenceData):
    """Trains on random pairs of 1 to `bits` bits, and tests on the same numbers of far longer ones.

    train, validation   how many pairs, of 1 to `bits` bits in equal parts.
    test                {bits: how many pairs}.
    batch_size, seed    of the training; seed draws the pairs and orders the batches.
    """

    name = "addition"
    classes = ("0", "1")
    input_size = 2
    labels_steps = True

    def __init__(
        self,
        bits: int = 8,
        train: int = 16000,
        validation: int = 1000,
        test: dict[int, int] | None = None,
        batch_size: int = 64,
        seed: int = 0,
    ):
        super().__init__(batch_size, seed)
        at_least_1(bits=bits, train=train, validation=validation)
        self.bits, self.sizes = bits, {"train": train, "validation": validation}
        self.test = {64: 1000, 1000: 100} if test is None else test

    def setup(self, stage: str | None = None) -> None:
        if self.splits:
            return
        for i, (split, size) in enumerate(self.sizes.items()):
            rng = np.random.default_rng((self.seed, i))
            shares = {b: size // self.bits + (b <= size % self.bits) for b in range(1, self.bits + 1)}
            self._draw(split, rng, shares)
        self._draw("test", np.random.default_rng((self.seed, len(self.sizes))), self.test)

    @torch.no_grad()
    def remarks(self, rnn: RNN) -> list[str]:
        """Of how many test pairs every bit of the sum is right."""
        exact, number = Counter(), Counter()
        for x, lengths, labels, *_ in self.loader("test"):
            right = rnn.predict(x, lengths).cpu() == labels
            for length, row in zip(lengths.tolist(), right, strict=True):
                number[length - 1] += 1
                exact[length - 1] += int(row[:length].all())
        return [f"{bits} bits: {exact[bits]:,} of {number[bits]:,} sums are exact" for bits in sorted(number)]

    def _draw(self, split: str, rng: np.random.Generator, shares: dict[int, int]) -> None:
        drawn = [pairs(rng, n, bits) for bits, n in shares.items()]
        self.add_split(
            split, [row for x, _ in drawn for row in x], [row for _, labels in drawn for row in labels]
        )

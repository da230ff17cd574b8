"""Addition of binary numbers: two bits in and one bit of the sum out at each step, the lowest bit first."""

from collections import Counter

import numpy as np
import torch

from torch_rnn.data.datamodule import SequenceData, check_positive
from torch_rnn.nn.module import RNN


def pairs(rng: np.random.Generator, n: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns n random pairs of numbers with so many bits, and their sums.

    Returns:
        x (n, T, 2) floats and labels (n, T) with T = bits + 1. x[:, t] is bit t of the two numbers and
        labels[:, t] is bit t of their sum. The last step is for the carry.
    """
    x = np.zeros((n, bits + 1, 2), dtype=np.float32)
    x[:, :bits] = rng.integers(2, size=(n, bits, 2))
    labels, carry = np.zeros((n, bits + 1), dtype=np.int64), np.zeros(n, dtype=np.int64)
    for t in range(bits + 1):
        total = x[:, t].sum(axis=1).astype(np.int64) + carry
        labels[:, t], carry = total % 2, total // 2
    return x, labels


class Addition(SequenceData):
    """Random pairs of numbers: 1 to `bits` bits for training, many more for the test.

    Args:
        bits: The largest number of bits in training and validation.
        train: The number of pairs, in equal parts of 1 to `bits` bits.
        validation: The same for validation.
        test: The number of pairs for each number of bits; None is 1,000 of 64 bits and 100 of 1,000 bits.
        batch_size: Pairs in a batch.
        seed: The seed of the pairs and of the order of the batches.
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
        check_positive(bits=bits, train=train, validation=validation)
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
        """Returns the number of test pairs with every bit of the sum right, for each number of bits."""
        exact, total = Counter(), Counter()
        for x, lengths, labels, *_ in self.loader("test"):
            right = rnn.predict(x, lengths).cpu() == labels
            for length, row in zip(lengths.tolist(), right, strict=True):
                total[length - 1] += 1
                exact[length - 1] += int(row[:length].all())
        return [f"{bits} bits: {exact[bits]:,} of {total[bits]:,} sums are exact" for bits in sorted(total)]

    def _draw(self, split: str, rng: np.random.Generator, shares: dict[int, int]) -> None:
        drawn = [pairs(rng, n, bits) for bits, n in shares.items()]
        self.add_split(
            split, [row for x, _ in drawn for row in x], [row for _, labels in drawn for row in labels]
        )

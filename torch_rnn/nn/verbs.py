"""The article's verbs for an RNN: fit, predict, evaluate; without Lightning, a few sequences at a time."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from torch_rnn.losses import check_labels, cross_entropy, most_probable
from torch_rnn.ops.checks import check_values
from torch_rnn.ops.inputs import real_steps
from torch_rnn.reference import CLIP


class Verbs:
    """What an RNN can be told to do, as `NumpyRNN` can."""

    def fit(
        self,
        x_train: Sequence[ArrayLike],
        y_train: Sequence[ArrayLike],
        epochs: int = 100,
        learning_rate: float = 0.1,
    ) -> list[float]:
        """`NumpyRNN.train`, step for step: a sequence at a time, gradients clipped at 5, plain descent.

        x_train is a sequence of (T, D) floats or (T,) ids, y_train of classes, with the readout "every" of
        classes a step (T,). Returns each epoch's summed loss. For anything larger there is `Classifier`.
        """
        sequences = [self._as_example(x, y) for x, y in zip(x_train, y_train, strict=True)]
        losses = []
        for _ in range(epochs):
            total = 0.0
            for x, y_true in sequences:
                loss = cross_entropy(self(x), y_true).sum()
                gradients = torch.autograd.grad(loss, list(self.parameters()), materialize_grads=True)
                with torch.no_grad():
                    for parameter, gradient in zip(self.parameters(), gradients, strict=True):
                        parameter -= learning_rate * gradient.clamp(-CLIP, CLIP)
                total += loss.item()
            losses.append(total)
        return losses

    @torch.no_grad()
    def predict(
        self, x: Tensor | ArrayLike, lengths: Tensor | None = None, h0: Tensor | None = None
    ) -> Tensor:
        """The most probable classes, int64 (B,), with the readout "every" (B, T); unbatched () or (T,).

        x is what `forward` takes, or an array or nested list of that shape and type.
        """
        return most_probable(self(self._as_tensor(x), lengths, h0))

    @torch.no_grad()
    def evaluate(
        self, x: Sequence[ArrayLike], y: Sequence[ArrayLike], batch_size: int = 32
    ) -> tuple[float, float]:
        """The mean loss and the accuracy over all scored outputs of N sequences, as `NumpyRNN.evaluate`.

        x is a sequence of (T, D) floats or (T,) ids of any lengths, y of classes, with the readout "every" of
        classes a step (T,). Raises ValueError where nothing is scored, or x and y differ in number.
        """
        if len(x) != len(y):
            raise ValueError(f"x has {len(x)} sequences and y {len(y)} labels; they must be as many")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        loss, correct, scored = 0.0, 0, 0
        for start in range(0, len(x), batch_size):
            batch = slice(start, start + batch_size)
            examples = [self._as_example(x_n, y_n) for x_n, y_n in zip(x[batch], y[batch], strict=True)]
            sequences, labels = zip(*examples, strict=True)
            lengths = torch.tensor([len(x_n) for x_n in sequences])
            logits = self(pad_sequence(sequences, batch_first=True), lengths)
            if self.readout == "every":
                logits = logits[real_steps(lengths, logits.shape[1]).to(logits.device)]
            flat = torch.cat([label.reshape(-1) for label in labels])
            loss += cross_entropy(logits, flat).double().sum().item()
            correct += int((most_probable(logits) == flat).sum())
            scored += len(flat)
        if scored == 0:
            raise ValueError("x is empty; evaluate needs at least one scored output")
        return loss / scored, correct / scored

    def _as_tensor(self, x: Tensor | ArrayLike) -> Tensor:
        """Ids, or floats in the parameters' dtype, on their device; their values are checked before."""
        if not isinstance(x, Tensor):
            x = torch.as_tensor(np.asarray(x) if np.size(x) else np.empty(np.shape(x), dtype=int))
        check_values(x, self.input_size, None, None)
        return x.to(self.Wxh.device, self.Wxh.dtype if x.is_floating_point() else None)

    def _as_example(self, x: Tensor | ArrayLike, y: Tensor | ArrayLike) -> tuple[Tensor, Tensor]:
        """One sequence, (T, D) numbers or (T,) ids, and its label, or with "every" its (T,) labels."""
        x, y = torch.as_tensor(x), torch.as_tensor(y)
        x = self._as_tensor(x.to(self.Wxh.dtype) if x.dim() == 2 else x.long() if len(x) == 0 else x)
        if y.dtype == torch.bool or (y.is_floating_point() and torch.equal(y, y.round())):
            y = y.long()
        check_labels(y, x.shape[:1] if self.readout == "every" else (), self.output_size)
        return x, y.to(self.Wxh.device)

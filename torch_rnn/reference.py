"""The whole model in NumPy. Start here.

    h[t] = tanh(Wxh x[t] + Whh h[t-1] + bh)          y = Why h[T] + by

The forward pass, the gradient by back-propagation through time, and the training loop, for one sequence at a
time in float64. Tests compare all other code in this package with this file, and this file with central
differences.

    T  time steps       D  input size       H  hidden size       C  outputs
    x  (T, D) floats, or (T,) integer ids. An id stands for a one-hot vector, so D is the vocabulary
       size, and `Wxh x[t]` is a column of Wxh
    h  (H,)             y  (C,), the logits; with the readout "every" (T, C)
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

PARAMETERS = ("Wxh", "Whh", "Why", "bh", "by")
CLIP = 5.0


class NumpyRNN:
    """A vanilla RNN with a hand-written gradient (Rumelhart, Hinton and Williams, 1986; Werbos, 1990).

    Args:
        input_size: D, the width of a float input, or the number of different ids.
        hidden_size: H.
        output_size: C, 1 for binary labels (sigmoid), otherwise the number of classes (softmax).
        readout: "last" for one y from the last state (many to one), or "every" for a y at each step (many to
            many).
        init: "orthogonal" for matrices with orthonormal rows or columns (Saxe et al., 2014), or "seed" for
            normal * 0.01. Biases start at zero.
        seed: seed of the initial weights.

    Raises:
        ValueError: A size is below 1, or a readout or an init is unknown.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        *,
        readout: str = "last",
        init: str = "orthogonal",
        seed: int = 0,
    ):
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "output_size": output_size}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} is {size}; it must be at least 1")
        if readout not in ("last", "every"):
            raise ValueError(f"readout is {readout!r}; it must be 'last' or 'every'")
        if init not in ("orthogonal", "seed"):
            raise ValueError(f"init is {init!r}; it must be 'orthogonal' or 'seed'")
        self.input_size, self.hidden_size, self.output_size = input_size, hidden_size, output_size
        self.readout, self.init = readout, init
        self.x = None  # the latest input of `forward`

        rng = np.random.default_rng(seed)
        matrix = orthogonal if init == "orthogonal" else small_normal
        self.Wxh = matrix(rng, hidden_size, input_size)  # (H, D)
        self.Whh = matrix(rng, hidden_size, hidden_size)  # (H, H)
        self.Why = matrix(rng, output_size, hidden_size)  # (C, H)
        self.bh = np.zeros(hidden_size)  # (H,)
        self.by = np.zeros(output_size)  # (C,)

    def forward(self, x: ArrayLike, h0: ArrayLike | None = None) -> np.ndarray:
        """Returns the logits of a sequence: (C,), or (T, C) with the readout "every".

        Stores x and all states for `backward`.

        Args:
            x: (T, D) floats or (T,) ids in 0..D-1.
            h0: (H,), the state before the first step; zeros if None.

        Raises:
            TypeError, ValueError: x or h0 has another shape, dtype or range.
        """
        x = self._sequence(x)
        h = np.zeros(self.hidden_size) if h0 is None else np.asarray(h0, dtype=float)
        if h.shape != (self.hidden_size,):
            raise ValueError(f"h0 has shape {h.shape}; it must be ({self.hidden_size},)")
        self.x, self.hs = x, [h]
        for x_t in x:
            Wxh_x = self.Wxh[:, x_t] if x.ndim == 1 else self.Wxh @ x_t
            h = np.tanh(Wxh_x + self.Whh @ h + self.bh)
            self.hs.append(h)
        self.hs = np.stack(self.hs)  # (T + 1, H): hs[t] is the state before step t, hs[0] is h0
        h = self.hs[-1] if self.readout == "last" else self.hs[1:]
        return h @ self.Why.T + self.by

    def backward(self, x: ArrayLike, y_true: ArrayLike, y_pred: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the unclipped gradient of `loss(y_true, y_pred)`: dWxh, dWhh, dWhy, dbh, dby and dh0.

        Raises ValueError if x is not the latest input of `forward`, or y_true is not as `loss` requires.
        """
        x = self._sequence(x)
        if self.x is None or not np.array_equal(x, self.x):
            raise ValueError("x is not the latest input of forward; call forward(x) before backward")
        hs, T = self.hs, len(x)

        # y = Why h + by. dhs[t] is the part of hs[t]'s gradient that comes directly from y.
        # dy is the gradient of the cross-entropy after softmax or sigmoid.
        dy = self._probabilities(y_pred) - self._targets(y_true, y_pred)
        dhs = np.zeros_like(hs)  # (T + 1, H)
        if self.readout == "last":
            dWhy, dby = np.outer(dy, hs[T]), dy
            dhs[T] = self.Why.T @ dy
        else:
            dWhy, dby = dy.T @ hs[1:], dy.sum(axis=0)
            dhs[1:] = dy @ self.Why

        dWxh, dWhh, dbh = np.zeros_like(self.Wxh), np.zeros_like(self.Whh), np.zeros_like(self.bh)
        dh = dhs[T]
        for t in reversed(range(T)):  # step t computed hs[t + 1] from x[t] and hs[t]
            da = (1 - hs[t + 1] ** 2) * dh  # tanh'(a) = 1 - tanh(a)^2
            dbh += da
            dWhh += np.outer(da, hs[t])
            if x.ndim == 1:
                dWxh[:, x[t]] += da
            else:
                dWxh += np.outer(da, x[t])
            dh = self.Whh.T @ da + dhs[t]
        return {"dWxh": dWxh, "dWhh": dWhh, "dWhy": dWhy, "dbh": dbh, "dby": dby, "dh0": dh}

    def update(self, gradients: dict[str, np.ndarray], learning_rate: float, clip: float = CLIP) -> None:
        """Takes one step of gradient descent, with each entry of each gradient clipped to -clip..clip."""
        for name in PARAMETERS:
            parameter = getattr(self, name)
            parameter -= learning_rate * np.clip(gradients["d" + name], -clip, clip)

    def train(
        self,
        x_train: Sequence[ArrayLike],
        y_train: Sequence[ArrayLike],
        epochs: int = 100,
        learning_rate: float = 0.1,
    ) -> list[float]:
        """Trains on one sequence at a time, in the given order. Returns the summed loss of each epoch."""
        losses = []
        for _ in range(epochs):
            total = 0.0
            for x, y_true in zip(x_train, y_train, strict=True):
                y_pred = self.forward(x)
                total += self.loss(y_true, y_pred)
                self.update(self.backward(x, y_true, y_pred), learning_rate)
            losses.append(total)
        return losses

    def loss(self, y_true: ArrayLike, y_pred: np.ndarray) -> float:
        """Returns the cross-entropy of the logits y_pred in nats, summed over steps.

        Args:
            y_true: the class, 0 or 1 if C is 1, otherwise in 0..C-1; with the readout "every" (T,) classes.
            y_pred: the logits that `forward` returned.

        Raises:
            ValueError: y_true has another shape or another class.
        """
        y_true, y_pred = self._labels(y_true, y_pred), np.asarray(y_pred)
        if self.output_size == 1:
            y = y_pred[..., 0]
            return float(np.sum(np.logaddexp(0, y) - y_true * y))  # -log sigmoid(y), or -log(1 - sigmoid(y))
        shifted = y_pred - y_pred.max(axis=-1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        return float(-np.sum(np.take_along_axis(log_p, y_true[..., None], axis=-1)))

    def predict(self, x: ArrayLike) -> int | np.ndarray:
        """Returns the most probable class; with the readout "every" (T,), that of each step."""
        y = self.forward(x)
        classes = (y[..., 0] > 0).astype(int) if self.output_size == 1 else y.argmax(axis=-1)
        return classes if self.readout == "every" else int(classes)

    def evaluate(self, x_test: Sequence[ArrayLike], y_test: Sequence[ArrayLike]) -> tuple[float, float]:
        """Returns the mean loss and the accuracy over all outputs. Raises ValueError if there are none."""
        loss, correct, outputs = 0.0, 0, 0
        for x, y_true in zip(x_test, y_test, strict=True):
            loss += self.loss(y_true, self.forward(x))
            hits = self.predict(x) == np.asarray(y_true)
            correct += np.sum(hits)
            outputs += np.size(hits)
        if outputs == 0:
            raise ValueError("x_test is empty; evaluate needs at least one output")
        return loss / outputs, float(correct / outputs)

    def sample(
        self, x: ArrayLike, steps: int, temperature: float = 1.0, seed: int = 0, h0: ArrayLike | None = None
    ) -> np.ndarray:
        """Reads the ids x (T,) and draws the next ones, (steps,), each from softmax(y / temperature).

        A drawn id is the smallest one whose cumulative probability reaches 1 - u, for a uniform u in [0, 1).
        The temperature 0 stands for the most probable id. Raises ValueError where x is empty or has other
        than ids, or there is not one output for each id.
        """
        if self.output_size != self.input_size or np.ndim(x) != 1 or np.size(x) == 0:
            sizes = f"output_size {self.output_size}, input_size {self.input_size}"
            raise ValueError(f"x has shape {np.shape(x)}, {sizes}; sample needs (T,) ids and equal sizes")
        rng, ids = np.random.default_rng(seed), []
        for _ in range(steps):
            y = self.forward(x, h0).reshape(-1, self.output_size)[-1]
            if temperature == 0:
                x = [y.argmax()]
            else:
                cumulative = np.exp((y - y.max()) / temperature).cumsum()
                x = [np.searchsorted(cumulative, (1 - rng.random()) * cumulative[-1])]
            h0 = self.hs[-1]
            ids += x
        return np.array(ids, dtype=int)

    def _probabilities(self, y: np.ndarray) -> np.ndarray:
        if self.output_size == 1:
            return np.exp(-np.logaddexp(0, -y))  # sigmoid, without overflow
        exp = np.exp(y - y.max(axis=-1, keepdims=True))
        return exp / exp.sum(axis=-1, keepdims=True)

    def _targets(self, y_true: ArrayLike, y_pred: np.ndarray) -> np.ndarray:
        labels = self._labels(y_true, y_pred)
        return labels[..., None] if self.output_size == 1 else np.eye(self.output_size)[labels]

    def _labels(self, y_true: ArrayLike, y_pred: np.ndarray) -> np.ndarray:
        labels, classes = np.asarray(y_true), max(self.output_size, 2)
        if labels.shape != np.shape(y_pred)[:-1]:
            raise ValueError(f"y_true has shape {labels.shape}; these logits need {np.shape(y_pred)[:-1]}")
        is_number = labels.dtype.kind in "biuf"
        if not (is_number and np.all((0 <= labels) & (labels < classes) & (labels % 1 == 0))):
            raise ValueError(f"y_true is {y_true}; each label must be a whole number in 0..{classes - 1}")
        return labels.astype(int)

    def _sequence(self, x: ArrayLike) -> np.ndarray:
        x = np.asarray(x)
        if x.ndim == 1 and (x.dtype.kind in "iu" or x.size == 0):
            if x.size and not (0 <= x.min() and x.max() < self.input_size):
                allowed = f"0..{self.input_size - 1}"
                raise ValueError(f"x has ids in {x.min()}..{x.max()}; they must be in {allowed}")
            return x.astype(int)
        if x.ndim == 2 and x.shape[1] == self.input_size and x.dtype.kind in "fiu":
            if np.isnan(x).any():
                raise ValueError("x has NaN; every entry must be a number")
            return x.astype(float)
        raise (TypeError if x.dtype.kind not in "fiu" else ValueError)(
            f"x is {x.dtype} of shape {x.shape}; it must be (T, {self.input_size}) floats or (T,) integer ids"
        )


def orthogonal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Draws a (rows, columns) matrix uniformly from those with orthonormal rows or, if fewer, columns."""
    q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
    q *= np.sign(np.diag(r))  # otherwise QR's sign convention would bias the draw
    return q if rows >= columns else np.ascontiguousarray(q.T)


def small_normal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Draws a (rows, columns) matrix of normal * 0.01."""
    return rng.standard_normal((rows, columns)) * 0.01

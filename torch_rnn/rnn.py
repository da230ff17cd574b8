"""RNN: the model of reference.py as an nn.Module, for batches, on CPU or CUDA.

h[t] = tanh(Wxh x[t] + Whh h[t-1] + bh)          y = Why h[T] + by
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from torch_rnn.checkpoint import load_weights, save_weights
from torch_rnn.loss import check_labels, cross_entropy, most_probable
from torch_rnn.recurrence import check_backend, recurrence
from torch_rnn.recurrence.checks import DTYPES, check_tensor, check_values
from torch_rnn.recurrence.inputs import real_steps
from torch_rnn.reference import CLIP, PARAMETERS, NumpyRNN

READOUTS = ("last", "mean", "max", "every")
INITS = ("orthogonal", "seed")


class RNN(nn.Module):
    """A vanilla RNN (Elman, 1990) with a linear readout.

    input_size   D: the width of a float input, or the number of different ids.
    hidden_size  H.
    output_size  C: the number of logits.
    readout      what y is read from: the "last" state, the "mean" or the element-wise "max" of the states at
                 real steps, or "every" state, a y each.
    init         "orthogonal": semi-orthogonal matrices (Saxe et al., 2014), zero biases.
                 "seed": normal * 0.01, zero biases.
    backend      of the recurrence: "auto", "eager", "bptt", "cpu" or "triton".
    device, dtype  of the parameters; dtype float32 or float64.

    Parameters: Wxh (H, D), Whh (H, H), Why (C, H), bh (H,), by (C,). Raises TypeError or ValueError for a
    setting out of range.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        *,
        readout: str = "last",
        init: str = "orthogonal",
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dtype = dtype or torch.get_default_dtype()
        _check_settings(input_size, hidden_size, output_size, readout, init, dtype)
        check_backend(backend)
        self.input_size, self.hidden_size, self.output_size = input_size, hidden_size, output_size
        self.readout, self.init, self.backend = readout, init, backend

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        # Stored as (D, H), so that the column of an id is one block of memory.
        self.Wxh = nn.Parameter(parameter(input_size, hidden_size).detach().t())  # (H, D)
        self.Whh = parameter(hidden_size, hidden_size)
        self.Why = parameter(output_size, hidden_size)
        self.bh = parameter(hidden_size)
        self.by = parameter(output_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new initial weights from torch's global generator."""
        for matrix in (self.Wxh, self.Whh, self.Why):
            if self.init == "orthogonal":
                nn.init.orthogonal_(matrix)
            else:
                nn.init.normal_(matrix, std=0.01)
        for bias in (self.bh, self.by):
            nn.init.zeros_(bias)

    def forward(self, x: Tensor, lengths: Tensor | None = None, h0: Tensor | None = None) -> Tensor:
        """The logits of a batch.

        x        (B, T, D) floats or (B, T) integer ids; one sequence, (T, D) or (T,), without the B.
        lengths  (B,) integers in 0..T: how many steps of each row are real; all of them if None.
        h0       (B, H), the state before the first step; zeros if None.

        Returns (B, C); with the readout "every" (B, T, C), where steps past a row's length repeat its last.
        A row without steps is read from its h0. Raises TypeError or ValueError as `recurrence` does.
        """
        x, lengths, h0, batched = self._as_batch(x, lengths, h0)
        h, hT = self._recur(x, lengths, h0)
        logits = self._read(h, hT, lengths) @ self.Why.t() + self.by
        return logits if batched else logits[0]

    def states(self, x: Tensor, lengths: Tensor | None = None, h0: Tensor | None = None) -> Tensor:
        """All states h (B, T, H) of a batch, (T, H) of one sequence; arguments and errors as in `forward`."""
        x, lengths, h0, batched = self._as_batch(x, lengths, h0)
        h, _ = self._recur(x, lengths, h0)
        return h if batched else h[0]

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

    def save(self, path: str | os.PathLike, **data: Any) -> None:
        """Writes weights and settings as one signed safetensors file; `data` is kept beside them as JSON.

        Raises ValueError for data named "rnn" or "sha256", which are the file's own.
        """
        if reserved := {"rnn", "sha256"} & data.keys():
            raise ValueError(f"data has {', '.join(sorted(reserved))}; these names are the file's own")
        save_weights(path, self.state_dict(), {"rnn": self.settings, **data})

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        *,
        backend: str = "auto",
        device: torch.device | str | None = None,
    ) -> "RNN":
        """The RNN that `save` wrote, in the dtype it had. Raises ValueError for a damaged or foreign file."""
        tensors, data = load_weights(path)
        if "rnn" not in data or set(tensors) != set(PARAMETERS):
            held, needed = ", ".join(sorted(tensors)), ", ".join(PARAMETERS)
            raise ValueError(f"{path} holds {held}; an RNN needs {needed}")
        rnn = cls(**data["rnn"], backend=backend, device=device, dtype=tensors["Wxh"].dtype)
        rnn.load_state_dict(tensors)
        return rnn

    @classmethod
    def from_numpy(
        cls,
        reference: NumpyRNN,
        *,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> "RNN":
        """An RNN with a copy of the reference's weights."""
        sizes = (reference.input_size, reference.hidden_size, reference.output_size)
        settings = {"readout": reference.readout, "init": reference.init}
        rnn = cls(*sizes, **settings, backend=backend, device=device, dtype=dtype)
        rnn.load_state_dict({name: torch.from_numpy(getattr(reference, name)) for name in PARAMETERS})
        return rnn

    @property
    def settings(self) -> dict[str, int | str]:
        """What `save` keeps beside the weights: the constructor's arguments that shape the model."""
        return {
            "input_size": self.input_size,
            "hidden_size": self.hidden_size,
            "output_size": self.output_size,
            "readout": self.readout,
            "init": self.init,
        }

    def extra_repr(self) -> str:
        settings = self.settings
        sizes = ", ".join(str(settings.pop(f"{name}_size")) for name in ("input", "hidden", "output"))
        return f"{sizes}, " + ", ".join(f"{name}={value!r}" for name, value in settings.items())

    def _recur(self, x: Tensor, lengths: Tensor | None, h0: Tensor | None) -> tuple[Tensor, Tensor]:
        return recurrence(x, self.Wxh, self.bh, self.Whh, h0, lengths, backend=self.backend, final=True)

    def _read(self, h: Tensor, hT: Tensor, lengths: Tensor | None) -> Tensor:
        """What Why is applied to: h (B, T, H) and hT (B, H) -> (B, H), or h itself for "every"."""
        T = h.shape[1]
        if self.readout == "every":
            return h
        if self.readout == "last" or T == 0:
            return hT
        if lengths is None:
            return h.mean(dim=1) if self.readout == "mean" else h.amax(dim=1)
        lengths = lengths.to(h.device)
        real = real_steps(lengths, T)[..., None]  # (B, T, 1)
        if self.readout == "mean":
            pooled = h.masked_fill(~real, 0).sum(dim=1) / lengths.clamp(min=1)[:, None]
        else:
            pooled = h.masked_fill(~real, -torch.inf).amax(dim=1)
        return torch.where((lengths > 0)[:, None], pooled, hT)  # without a step, hT is h0

    def _as_batch(
        self, x: Tensor, lengths: Tensor | None, h0: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, bool]:
        """Gives one sequence a batch dimension of 1; the last item says whether x had one already."""
        if not isinstance(x, Tensor) or x.dim() != (2 if x.is_floating_point() else 1):
            return x, lengths, h0, True
        D, H = self.input_size, self.hidden_size
        if x.is_floating_point() and x.shape[1] != D:
            raise ValueError(f"x has shape {tuple(x.shape)}; floats must be (B, T, {D}) or (T, {D})")
        if lengths is not None:
            raise ValueError("lengths is given for one sequence; it must be None where x has no batch")
        if h0 is not None:
            check_tensor("h0", h0, (H,), self.Wxh)
        return x[None], None, None if h0 is None else h0[None], False

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


def _check_settings(
    input_size: int, hidden_size: int, output_size: int, readout: str, init: str, dtype: torch.dtype
) -> None:
    sizes = {"input_size": input_size, "hidden_size": hidden_size, "output_size": output_size}
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int | np.integer):
            raise TypeError(f"{name} is {size!r}; it must be a whole number")
        if size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1")
    if readout not in READOUTS:
        raise ValueError(f"readout is {readout!r}; it must be one of {', '.join(READOUTS)}")
    if init not in INITS:
        raise ValueError(f"init is {init!r}; it must be one of {', '.join(INITS)}")
    if dtype not in DTYPES:
        raise TypeError(f"dtype is {dtype}; it must be {' or '.join(map(str, DTYPES))}")

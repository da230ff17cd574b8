"""RNN: the model of reference.py as an nn.Module, for batches, on CPU or CUDA.

h[t] = tanh(Wxh x[t] + Whh h[t-1] + bh)          y = Why h[T] + by
"""

import inspect
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from torch_rnn.nn.convert import from_keras, from_torch, names, to_keras, to_torch
from torch_rnn.nn.layers import Weights, layered
from torch_rnn.nn.verbs import Verbs
from torch_rnn.nn.weights import load_weights, save_weights
from torch_rnn.ops import check_backend
from torch_rnn.ops.checks import DTYPES, check_mask, check_tensor
from torch_rnn.ops.inputs import real_steps
from torch_rnn.ops.nonlinearities import NONLINEARITIES
from torch_rnn.reference import PARAMETERS, NumpyRNN

READOUTS = ("last", "mean", "max", "every")
INITS = ("orthogonal", "seed")


class RNN(Verbs, nn.Module):
    """A vanilla RNN (Elman, 1990) with a linear readout.

    input_size   D: the width of a float input, or the number of different ids.
    hidden_size  H.
    output_size  C: the number of logits.
    num_layers   how many recurrences stand on top of each other.
    bidirectional  whether each layer has a second recurrence, from the last step to the first.
    nonlinearity "tanh", "relu" or "linear".
    bias         whether there are bh and by.
    dropout      in training, the probability with which each number that a layer gives to the next is zeroed.
    recurrent_dropout  in training, that with which each entry of Whh is zeroed, for all rows and steps of a
                 call alike (DropConnect on the recurrence; Merity et al., 2018, section 2).
    readout      what y is read from: the "last" state (of each direction, in its own order of time), the
                 "mean" or the element-wise "max" of the states at real steps, or "every" state, a y each.
    init         "orthogonal": semi-orthogonal matrices (Saxe et al., 2014), zero biases.
                 "seed": normal * 0.01, zero biases.
    backend      of the recurrence: "auto", "eager", "bptt", "cpu" or "triton".
    recompute    whether the backward pass computes states again, so that those kept grow as sqrt(T).
    device, dtype  of the parameters; dtype float32, float64 or bfloat16.

    Parameters: Wxh (H, D), Whh (H, H), Why (C, H), bh (H,), by (C,). Those of further layers and directions
    are called Wxh_l1, Wxh_reverse, Wxh_l1_reverse and so on; they take in, as Why does, the H or 2 H numbers
    of the layer below. Raises TypeError or ValueError for a setting out of range.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        nonlinearity: str = "tanh",
        bias: bool = True,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        readout: str = "last",
        init: str = "orthogonal",
        backend: str = "auto",
        recompute: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.settings = {
            "input_size": input_size,
            "hidden_size": hidden_size,
            "output_size": output_size,
            "num_layers": num_layers,
            "bidirectional": bidirectional,
            "nonlinearity": nonlinearity,
            "bias": bias,
            "dropout": dropout,
            "recurrent_dropout": recurrent_dropout,
            "readout": readout,
            "init": init,
        }
        dtype = dtype or torch.get_default_dtype()
        _check_settings(self.settings, dtype)
        check_backend(backend)
        self.input_size, self.hidden_size, self.output_size = input_size, hidden_size, output_size
        self.num_layers, self.bidirectional, self.nonlinearity = num_layers, bidirectional, nonlinearity
        self.dropout, self.recurrent_dropout = dropout, recurrent_dropout
        self.readout, self.init, self.backend, self.recompute = readout, init, backend, recompute
        self.names = names(num_layers, bidirectional)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        H, width = hidden_size, hidden_size * len(self.names[0])
        for layer, directions in enumerate(self.names):
            for name in directions:
                # Stored as (D, H), so that the column of an id is one block of memory.
                columns = parameter(width if layer else input_size, H)
                self.register_parameter("Wxh" + name, nn.Parameter(columns.detach().t()))
                self.register_parameter("Whh" + name, parameter(H, H))
        self.Why = parameter(output_size, width)
        for name in (name for directions in self.names for name in directions):
            self.register_parameter("bh" + name, parameter(H) if bias else None)
        self.by = parameter(output_size) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new initial weights from torch's global generator."""
        for parameter in self.parameters():
            if parameter.dim() == 1:
                nn.init.zeros_(parameter)
            elif self.init == "seed":
                nn.init.normal_(parameter, std=0.01)
            elif parameter.dtype is torch.bfloat16:  # has no orthogonal decomposition
                parameter.data.copy_(nn.init.orthogonal_(torch.empty_like(parameter, dtype=torch.float32)))
            else:
                nn.init.orthogonal_(parameter)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        h0: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The logits of a batch.

        x        (B, T, D) floats or (B, T) integer ids; one sequence, (T, D) or (T,), without the B.
        lengths  (B,) integers in 0..T: how many steps of each row are real; all of them if None.
        h0       (B, H), the state before the first step, with several layers or directions (layers *
                 directions, B, H); zeros if None.
        mask     (B, T) or, of one sequence, (T,) booleans, True at real steps: holes, padding in front and
                 rows without a step are allowed. With lengths, a step is real where both say so.

        Returns (B, C); with the readout "every" (B, T, C), where steps that are not real repeat the state
        that is held there. A row without steps is read from its h0. Raises TypeError or ValueError as
        `recurrence` does.
        """
        x, lengths, h0, mask, batched = self._as_batch(x, lengths, h0, mask)
        h, hT = self._recur(x, lengths, h0, mask)
        logits = self._read(h, hT, lengths, mask) @ self.Why.t()
        if self.by is not None:
            logits = logits + self.by
        return logits if batched else logits[0]

    def states(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        h0: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        final: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The top layer's states h (B, T, directions * H); with `final` also hT, which is h0 of a next call.

        hT is (B, H), with several layers or directions (layers * directions, B, H). Of one sequence neither
        has the B. Arguments and errors are those of `forward`.
        """
        x, lengths, h0, mask, batched = self._as_batch(x, lengths, h0, mask)
        h, hT = self._recur(x, lengths, h0, mask)
        if len(hT) == 1:
            hT = hT[0] if batched else hT[0, 0]
        elif not batched:
            hT = hT[:, 0]
        h = h if batched else h[0]
        return (h, hT) if final else h

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
        if "rnn" not in data or "Why" not in tensors:
            raise ValueError(
                f"{path} holds {', '.join(sorted(tensors))}; these are not the weights of an RNN"
            )
        rnn = cls(**data["rnn"], backend=backend, device=device, dtype=tensors["Why"].dtype)
        if set(tensors) != set(rnn.state_dict()):
            held, needed = ", ".join(sorted(tensors)), ", ".join(sorted(rnn.state_dict()))
            raise ValueError(f"{path} holds {held}; this RNN needs {needed}")
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

    @classmethod
    def from_torch(
        cls, rnn: nn.RNN, linear: nn.Linear, *, readout: str = "last", backend: str = "auto"
    ) -> "RNN":
        """An RNN with copies of the weights of torch.nn's modules; nn.RNN's two biases are summed.

        Where one of them has no bias, it gets one, of zeros. Raises ValueError where they do not fit.
        """
        settings, tensors = from_torch(rnn, linear)
        like = {"dtype": tensors["Why"].dtype, "device": tensors["Why"].device}
        return cls(**settings, readout=readout, backend=backend, **like)._holding(tensors)

    def to_torch(self) -> tuple[nn.RNN, nn.Linear]:
        """nn.RNN (batch first, bias_hh zero) and nn.Linear with copies of the weights.

        Raises ValueError for the nonlinearity "linear", which nn.RNN does not have.
        """
        return to_torch(self.settings, self.state_dict())

    @classmethod
    def from_keras(
        cls,
        weights: Sequence[ArrayLike],
        *,
        bidirectional: bool = False,
        nonlinearity: str = "tanh",
        readout: str = "last",
        backend: str = "auto",
    ) -> "RNN":
        """An RNN with the weights of Keras's SimpleRNN layers and a Dense layer, as `get_weights()` has them.

        bidirectional says whether each SimpleRNN is in a Bidirectional that joins its directions. Raises
        ValueError for arrays of other shapes.
        """
        settings, tensors = from_keras(weights, bidirectional)
        settings |= {"nonlinearity": nonlinearity, "readout": readout}
        return cls(**settings, backend=backend, dtype=tensors["Why"].dtype)._holding(tensors)

    def to_keras(self) -> list[np.ndarray]:
        """What `set_weights` takes of a Keras model of SimpleRNN layers and a Dense layer."""
        return to_keras(self.settings, self.state_dict())

    def extra_repr(self) -> str:
        sizes = ", ".join(str(self.settings[f"{name}_size"]) for name in ("input", "hidden", "output"))
        defaults = {name: p.default for name, p in inspect.signature(type(self).__init__).parameters.items()}
        chosen = [
            f"{name}={v!r}" for name, v in self.settings.items() if "size" not in name and v != defaults[name]
        ]
        return ", ".join([sizes, *chosen])

    def _holding(self, tensors: dict[str, Tensor]) -> "RNN":
        self.load_state_dict(tensors)
        return self

    def _recur(
        self, x: Tensor, lengths: Tensor | None, h0: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """h (B, T, directions * H) and hT (layers * directions, B, H)."""
        n = sum(len(directions) for directions in self.names)
        if h0 is not None and n == 1:
            h0 = h0[None]
        weights = [[self._weights(name) for name in directions] for directions in self.names]
        dropout = (lambda h: F.dropout(h, self.dropout)) if self.training and self.dropout else None
        settings = {"nonlinearity": self.nonlinearity, "backend": self.backend, "recompute": self.recompute}
        return layered(x, weights, h0, lengths, mask, dropout=dropout, **settings)

    def _weights(self, name: str) -> Weights:
        Wxh, bh, Whh = (getattr(self, kind + name) for kind in ("Wxh", "bh", "Whh"))
        return Weights(Wxh, bh, F.dropout(Whh, self.recurrent_dropout, self.training))

    def _read(self, h: Tensor, hT: Tensor, lengths: Tensor | None, mask: Tensor | None) -> Tensor:
        """What Why is applied to: (B, directions * H), or h itself for "every"."""
        T = h.shape[1]
        if self.readout == "every":
            return h
        last = hT[-1] if len(self.names[0]) == 1 else torch.cat([hT[-2], hT[-1]], dim=1)
        if self.readout == "last" or T == 0:
            return last
        if lengths is None and mask is None:
            return h.mean(dim=1) if self.readout == "mean" else h.amax(dim=1)
        real = torch.ones(h.shape[:2], dtype=torch.bool, device=h.device)
        if lengths is not None:
            real = real & real_steps(lengths.to(h.device), T)
        if mask is not None:
            real = real & mask.to(h.device)
        if self.readout == "mean":
            pooled = h.masked_fill(~real[..., None], 0).sum(dim=1) / real.sum(dim=1).clamp(min=1)[:, None]
        else:
            pooled = h.masked_fill(~real[..., None], -torch.inf).amax(dim=1)
        return torch.where(real.any(dim=1)[:, None], pooled, last)  # without a step, the last state is h0

    def _as_batch(
        self, x: Tensor, lengths: Tensor | None, h0: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, bool]:
        """Gives one sequence a batch dimension of 1; the last item says whether x had one already."""
        n, D, H = len(self.names) * len(self.names[0]), self.input_size, self.hidden_size
        batched = not isinstance(x, Tensor) or x.dim() != (2 if x.is_floating_point() else 1)
        if not batched:
            if x.is_floating_point() and x.shape[1] != D:
                raise ValueError(f"x has shape {tuple(x.shape)}; floats must be (B, T, {D}) or (T, {D})")
            if lengths is not None:
                raise ValueError("lengths is given for one sequence; it must be None where x has no batch")
        if isinstance(x, Tensor) and x.dim() > 0:
            B = (x.shape[0],) if batched else ()
            if h0 is not None:
                check_tensor("h0", h0, (*B, H) if n == 1 else (n, *B, H), self.Why)
            if mask is not None:
                check_mask(mask, tuple(x.shape[: 2 if batched else 1]))
        if batched:
            return x, lengths, h0, mask, True
        if h0 is not None:
            h0 = h0[None] if n == 1 else h0[:, None]
        return x[None], None, h0, None if mask is None else mask[None], False


def _check_settings(settings: dict[str, Any], dtype: torch.dtype) -> None:
    for name in ("input_size", "hidden_size", "output_size", "num_layers"):
        size = settings[name]
        if isinstance(size, bool) or not isinstance(size, int | np.integer):
            raise TypeError(f"{name} is {size!r}; it must be a whole number")
        if size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1")
    for name in ("bidirectional", "bias"):
        if not isinstance(settings[name], bool):
            raise TypeError(f"{name} is {settings[name]!r}; it must be True or False")
    for name in ("dropout", "recurrent_dropout"):
        if isinstance(settings[name], bool) or not isinstance(settings[name], int | float):
            raise TypeError(f"{name} is {settings[name]!r}; it must be a number")
        if not 0 <= settings[name] < 1:
            raise ValueError(f"{name} is {settings[name]}; it must be at least 0 and below 1")
    if settings["dropout"] and settings["num_layers"] == 1:
        raise ValueError(
            f"dropout is {settings['dropout']}; it acts between layers, so with one it must be 0"
        )
    for name, allowed in (("nonlinearity", NONLINEARITIES), ("readout", READOUTS), ("init", INITS)):
        if settings[name] not in allowed:
            raise ValueError(f"{name} is {settings[name]!r}; it must be one of {', '.join(allowed)}")
    if dtype not in DTYPES:
        raise TypeError(f"dtype is {dtype}; it must be one of {', '.join(map(str, DTYPES))}")

"""RNN: the model of reference.py as an nn.Module, for batches, on CPU or CUDA.

h[t] = tanh(Wxh x[t] + Whh h[t-1] + bh)          y = Why h[T] + by
"""

import functools
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from torch_rnn.devices import check_device
from torch_rnn.losses import check_labels, cross_entropy, most_probable
from torch_rnn.nn.convert import from_keras, from_torch, names, to_keras, to_torch
from torch_rnn.nn.generation import Generation
from torch_rnn.nn.initial import draw_weights
from torch_rnn.nn.layers import Weights, layered
from torch_rnn.nn.readout import read
from torch_rnn.nn.settings import SETTINGS, check_settings
from torch_rnn.nn.weights import load_weights, save_weights
from torch_rnn.ops import check_backend
from torch_rnn.ops.checks import IDS, check_mask, check_tensor, check_values
from torch_rnn.ops.context import in_dtype_of
from torch_rnn.ops.inputs import real_steps
from torch_rnn.reference import CLIP, PARAMETERS, NumpyRNN


class RNN(nn.Module):
    """A vanilla RNN (Elman, 1990) with a linear readout.

    Parameters: Wxh (H, D), Whh (H, H), Why (C, H), bh (H,), by (C,). Those of further layers and directions
    are called Wxh_l1, Wxh_reverse, Wxh_l1_reverse and so on. Their input, as that of Why, is the H (or, with
    two directions, 2 H) numbers of the layer below. Each Wxh is the transpose of a contiguous tensor, so that
    the column of an id is one block of memory; for torch.optim.LBFGS and parameters_to_vector, which view
    parameters as vectors, replace it by `nn.Parameter(rnn.Wxh.detach().contiguous())`.

    Args:
        input_size: D, the width of a float input, or the number of different ids.
        hidden_size: H.
        output_size: C, the number of logits.
        num_layers: the number of recurrences on top of each other.
        bidirectional: gives each layer a second recurrence, from the last step to the first.
        nonlinearity: "tanh", "relu" or "linear".
        bias: whether there are bh and by.
        dropout: in training, the probability of zeroing each number that a layer passes to the next.
        recurrent_dropout: in training, the probability of zeroing each entry of Whh, one draw for all
            rows and steps of a call (DropConnect on the recurrence; Merity et al., 2018, section 2).
        readout: what y is read from: the "last" state (of each direction, in its own order of time), the
            "mean" or the element-wise "max" of the states at real steps, or "every" state, one y each.
        init: "orthogonal" draws semi-orthogonal matrices (Saxe et al., 2014), "seed" normal * 0.01; biases
            start at zero. "integrator" is "orthogonal", but the first quarter of the units of each layer and
            direction begin as slow sums of the others: they keep their state, read no input, add little of
            the others' states and are not read by them. They are like the context units of Mikolov et al.
            (2015, "Learning Longer Memory in Recurrent Neural Networks"), but are trained as all others.
        input_scale: multiplies the initial Wxh of the first layer. Where x are ids, Wxh x is a column of a
            semi-orthogonal matrix, so its length is 1 or less, and that of h grows as sqrt(H). With a scale
            of about 10, both are of like size, and a language model learns faster.
        recurrent_scale: multiplies the initial Whh of every layer, but not the integrators'. Below 1, early
            states fade and the latest ids count for more.
        backend: of the recurrence: "auto", or a key of `torch_rnn.ops.BACKENDS`.
        recompute: whether the backward pass computes states again, so that the memory for them grows as
            sqrt(T).
        device, dtype: of the parameters; dtype is float32, float64 or bfloat16.

    Raises:
        TypeError, ValueError: for a setting out of range.
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
        input_scale: float = 1.0,
        recurrent_scale: float = 1.0,
        backend: str = "auto",
        recompute: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.input_size, self.hidden_size, self.output_size = input_size, hidden_size, output_size
        self.num_layers, self.bidirectional, self.bias = num_layers, bidirectional, bias
        self.nonlinearity, self.dropout, self.recurrent_dropout = nonlinearity, dropout, recurrent_dropout
        self.readout, self.init, self.backend, self.recompute = readout, init, backend, recompute
        self.input_scale, self.recurrent_scale = input_scale, recurrent_scale
        dtype = dtype or torch.get_default_dtype()
        check_settings(self.settings, dtype)
        check_backend(backend)
        check_device(device)
        if not isinstance(recompute, bool):
            raise TypeError(f"recompute is {recompute!r}; it must be True or False")
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

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that decide the shapes and what `forward` computes, as `save` writes them."""
        found = {name: getattr(self, name) for name in SETTINGS}
        return {
            name: value.item() if isinstance(value, np.generic) else value for name, value in found.items()
        }

    def reset_parameters(self) -> None:
        """Draws new initial weights from torch's global generator."""
        draw_weights(self)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        h0: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Computes the logits of a batch.

        Args:
            x: (B, T, D) floats or (B, T) integer ids; one sequence, (T, D) or (T,), has no B.
            lengths: (B,) integers in 0..T, the number of real steps of each row; T for every row if None.
            h0: (B, H), the state before the first step, or with several layers or directions (layers *
                directions, B, H); zeros if None.
            mask: (B, T) booleans, (T,) for one sequence, True at real steps. Holes, padding in front and rows
                without a real step are allowed. With lengths, a step is real where both say so.

        Returns:
            (B, C), or (B, T, C) with the readout "every", where a step that is not real repeats the state
            before it. A row without real steps is read from its h0.

        Raises:
            TypeError, ValueError: as `recurrence` does.
        """
        x, lengths, h0, mask, batched = self._as_batch(x, lengths, h0, mask)
        reduce = None if self.readout == "every" else functools.partial(read, self.readout)
        logits = self._recur(x, lengths, h0, mask, reduce)[0] @ self.Why.t()
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
        """Computes the top layer's states h (B, T, directions * H).

        With `final` it also returns hT, the last states of all layers and directions, in the shape of h0: the
        h0 of a call that continues. For one sequence, neither has a B. Arguments and errors are those of
        `forward`, which alone runs forward pre-hooks, such as those of torch.nn.utils.prune; parametrizations
        act here, too.
        """
        x, lengths, h0, mask, batched = self._as_batch(x, lengths, h0, mask)
        h, hT = self._recur(x, lengths, h0, mask)
        if not batched:
            h, hT = h[0], hT[:, 0]
        return (h, hT[0] if len(hT) == 1 else hT) if final else h

    def fit(
        self,
        x_train: Sequence[ArrayLike],
        y_train: Sequence[ArrayLike],
        epochs: int = 100,
        learning_rate: float = 0.1,
    ) -> list[float]:
        """Trains as `NumpyRNN.train` does: one sequence a step, gradients clipped at 5, plain descent.

        For anything larger there is `torch_rnn.training.Classifier`.

        Args:
            x_train: sequences of (T, D) floats or (T,) ids.
            y_train: a class each; with the readout "every" a class a step, (T,).

        Returns:
            The summed loss of each epoch.
        """
        if len(x_train) != len(y_train):
            raise ValueError(
                f"x_train has {len(x_train)} sequences, y_train {len(y_train)} labels; they must be as many"
            )
        sequences = [self._as_example(x, y) for x, y in zip(x_train, y_train, strict=True)]
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if not trained:
            raise ValueError("no parameter of the RNN requires a gradient; fit needs one to train")
        losses = []
        for _ in range(epochs):
            total = 0.0
            for x, y_true in sequences:
                loss = cross_entropy(self(x), y_true).sum()
                gradients = torch.autograd.grad(loss, trained, materialize_grads=True)
                with torch.no_grad():
                    for parameter, gradient in zip(trained, gradients, strict=True):
                        parameter -= learning_rate * gradient.clamp(-CLIP, CLIP)
                total += loss.item()
            losses.append(total)
        return losses

    @torch.no_grad()
    def predict(
        self, x: Tensor | ArrayLike, lengths: Tensor | None = None, h0: Tensor | None = None
    ) -> Tensor:
        """Returns the most probable classes, int64 (B,), or (B, T) with the readout "every". Dropout is off.

        x is what `forward` takes, or an array or nested list of that shape and type; for one sequence the
        result has no B. Texts are labelled by `torch_rnn.TextClassifier`.
        """
        with _dropout_off(self):
            return most_probable(self(self._as_tensor(x), lengths, h0))

    @torch.no_grad()
    def evaluate(
        self, x: Sequence[ArrayLike], y: Sequence[ArrayLike], batch_size: int = 32
    ) -> tuple[float, float]:
        """Returns the mean loss and the accuracy over all scored outputs, as `NumpyRNN.evaluate` does.

        Dropout is off, in training mode too.

        Args:
            x: sequences of (T, D) floats or (T,) ids, of any lengths.
            y: a class each; with the readout "every" a class a step, (T,).

        Raises:
            ValueError: where nothing is scored, or x and y differ in number.
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
            with _dropout_off(self):
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

    def generate(
        self,
        ids: Tensor | ArrayLike,
        steps: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
        h0: Tensor | None = None,
    ) -> Tensor:
        """Reads ids and draws the next ones, step by step, each from what the RNN predicts after the last.

        Needs as many outputs as ids, one direction, and the readout "last" or "every". Dropout is off, in
        training mode too. A step takes as long at the end of the text as at its beginning.

        Args:
            ids: (B, T) integers, the prompt, T at least 1; one sequence, (T,), has no B.
            steps: the number of ids to draw for each row.
            temperature: divides the logits before the softmax; 0 takes the most probable id, the first of
                equals, and otherwise it must be at least 1e-6.
            top_k: draws from the ids that fewer than top_k others exceed; all if None.
            top_p: draws from the nucleus (Holtzman et al., 2020), the ids for which those that are more
                probable have together less than top_p, after top_k. Equally probable ids stay together.
            generator: gives one uniform number a row and step, in that order; torch's global one if None.
            h0: as in `forward`.

        Returns:
            (B, steps) int64; for one sequence (steps,).

        Raises:
            TypeError, ValueError: for an argument out of range, or an RNN that cannot generate.
        """
        if isinstance(steps, bool) or not isinstance(steps, int | np.integer):
            raise TypeError(f"steps is {steps!r}; it must be a whole number")
        if steps < 0:
            raise ValueError(f"steps is {steps}; it must be at least 0")
        drawing = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "generator": generator}
        ids, h0, batched = self._as_prompt(ids, h0)
        drawn = self._generation(ids, h0, **drawing)
        text = ids.new_empty(len(ids), steps, dtype=torch.int64)
        for t in range(steps):
            text[:, t] = next(drawn)
        return text if batched else text[0]

    def generate_steps(
        self,
        ids: Tensor | ArrayLike,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
        h0: Tensor | None = None,
    ) -> Generation:
        """Returns an endless iterator over the ids (B,) of the steps that `generate` draws.

        Each step is computed when it is asked for. The iterator's `h` (layers, B, H) are the states before
        its latest ids are read. One sequence (T,) counts as B = 1.
        """
        drawing = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "generator": generator}
        ids, h0, _ = self._as_prompt(ids, h0)
        return self._generation(ids, h0, **drawing)

    def save(self, path: str | os.PathLike, **data: Any) -> None:
        """Writes weights and settings as one signed safetensors file; `data` is kept beside them as JSON.

        Raises ValueError or TypeError for data named "rnn" or "sha256", which are the file's own, and for
        attributes that were changed to settings that do not exist or do not fit the weights.
        """
        if reserved := {"rnn", "sha256"} & data.keys():
            raise ValueError(f"data has {', '.join(sorted(reserved))}; these names are the file's own")
        twin = RNN(**self.settings, device="meta", dtype=self.Why.dtype)
        _check_shapes("this RNN", self.state_dict(), twin)
        save_weights(path, self.state_dict(), {"rnn": self.settings, **data})

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        *,
        backend: str = "auto",
        device: torch.device | str | None = None,
    ) -> "RNN":
        """Reads the RNN that `save` or a training run wrote, in the dtype that it had.

        path is the file, or the folder of the run. Raises ValueError for a damaged or foreign file.
        """
        path = model_file(path)
        tensors, data = load_weights(path)
        if "rnn" not in data or "Why" not in tensors:
            raise ValueError(
                f"{path} holds {', '.join(sorted(tensors))}; these are not the weights of an RNN"
            )
        if unknown := data["rnn"].keys() - set(SETTINGS):
            raise ValueError(f"{path} has the settings {', '.join(sorted(unknown))}, which no RNN here has")
        rnn = cls(**data["rnn"], backend=backend, device=device, dtype=tensors["Why"].dtype)
        _check_shapes(str(path), tensors, rnn)
        return rnn._holding(tensors)

    @classmethod
    def from_numpy(
        cls,
        reference: NumpyRNN,
        *,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> "RNN":
        """Makes an RNN with a copy of the reference's weights."""
        sizes = (reference.input_size, reference.hidden_size, reference.output_size)
        settings = {"readout": reference.readout, "init": reference.init}
        rnn = cls(*sizes, **settings, backend=backend, device=device, dtype=dtype)
        return rnn._holding({name: torch.from_numpy(getattr(reference, name)) for name in PARAMETERS})

    @classmethod
    def from_torch(
        cls, rnn: nn.RNN, linear: nn.Linear, *, readout: str = "last", backend: str = "auto"
    ) -> "RNN":
        """Makes an RNN with copies of the weights of torch.nn's modules; nn.RNN's two biases are summed.

        Where one of the modules has no bias, it gets one of zeros. Raises TypeError for other modules, and
        ValueError where their sizes do not fit.
        """
        settings, tensors = from_torch(rnn, linear)
        like = {"dtype": tensors["Why"].dtype, "device": tensors["Why"].device}
        return cls(**settings, readout=readout, backend=backend, **like)._holding(tensors)

    def to_torch(self) -> tuple[nn.RNN, nn.Linear]:
        """Makes an nn.RNN (batch first, bias_hh zero) and an nn.Linear with copies of the weights.

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
        """Makes an RNN with the weights of Keras's SimpleRNN layers and a Dense layer (`get_weights()`).

        bidirectional says whether each SimpleRNN is in a Bidirectional that concatenates its directions.
        Raises ValueError for arrays of other shapes.
        """
        settings, tensors = from_keras(weights, bidirectional)
        settings |= {"nonlinearity": nonlinearity, "readout": readout}
        return cls(**settings, backend=backend, dtype=tensors["Why"].dtype)._holding(tensors)

    def to_keras(self) -> list[np.ndarray]:
        """Returns what `set_weights` takes of a Keras model of SimpleRNN layers and a Dense layer."""
        return to_keras(self.settings, self.state_dict())

    def extra_repr(self) -> str:
        settings = self.settings
        sizes = [str(settings.pop(f"{name}_size")) for name in ("input", "hidden", "output")]
        defaults = inspect.signature(RNN.__init__).parameters
        return ", ".join(sizes + [f"{k}={v!r}" for k, v in settings.items() if v != defaults[k].default])

    def _holding(self, tensors: dict[str, Tensor]) -> "RNN":
        self.load_state_dict(tensors)
        return self

    def _recur(
        self,
        x: Tensor,
        lengths: Tensor | None,
        h0: Tensor | None,
        mask: Tensor | None,
        reduce: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Computes h (B, T, directions * H), or what `layered` reduces it to, and hT (n, B, H)."""
        if h0 is not None and self._recurrences == 1:
            h0 = h0[None]
        weights = [[self._weights(name) for name in directions] for directions in self.names]
        dropout = (lambda h: F.dropout(h, self.dropout)) if self.training and self.dropout else None
        settings = {"nonlinearity": self.nonlinearity, "backend": self.backend, "recompute": self.recompute}
        return layered(x, weights, h0, lengths, mask, dropout=dropout, reduce=reduce, **settings)

    def _generation(self, ids: Tensor, h0: Tensor | None, **drawing: Any) -> Generation:
        weights = [
            Weights(*(getattr(self, kind + name) for kind in ("Wxh", "bh", "Whh"))) for (name,) in self.names
        ]
        settings = {"nonlinearity": self.nonlinearity, "backend": self.backend}
        return Generation(ids, weights, self.Why, self.by, h0, **settings, **drawing)

    def _as_prompt(self, ids: Tensor | ArrayLike, h0: Tensor | None) -> tuple[Tensor, Tensor | None, bool]:
        """Returns ids (B, T), h0 (layers, B, H), and whether ids had a B, or raises."""
        if self.bidirectional:
            raise ValueError("bidirectional is True; only one direction can write text from left to right")
        if self.readout not in ("last", "every"):
            raise ValueError(f"readout is {self.readout!r}; to generate, it must be 'last' or 'every'")
        if self.output_size != self.input_size:
            raise ValueError(
                f"output_size is {self.output_size}; to generate, it must be input_size, {self.input_size}"
            )
        ids = self._as_tensor(ids)
        if ids.is_floating_point() or ids.dim() not in (1, 2):
            raise ValueError(f"ids is {ids.dtype} of shape {tuple(ids.shape)}; it must be (B, T) integers")
        ids, _, h0, _, batched = self._as_batch(ids, None, h0, None)
        return ids, h0[None] if h0 is not None and self._recurrences == 1 else h0, batched

    @property
    def _recurrences(self) -> int:
        """Layers times directions."""
        return len(self.names) * len(self.names[0])

    def _weights(self, name: str) -> Weights:
        Wxh, bh, Whh = (getattr(self, kind + name) for kind in ("Wxh", "bh", "Whh"))
        return Weights(Wxh, bh, F.dropout(Whh, self.recurrent_dropout, self.training))

    def _as_batch(
        self, x: Tensor, lengths: Tensor | None, h0: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, bool]:
        """Gives one sequence a batch dimension of 1; the last item says whether x had one already."""
        if not isinstance(x, Tensor) or x.dim() == 0:
            return x, lengths, h0, mask, True  # `recurrence` refuses it
        batched, h0 = x.dim() != (2 if x.is_floating_point() else 1), in_dtype_of(self.Why, h0)
        self._check_shapes(x, lengths, h0, mask, batched)
        if batched:
            return x, lengths, h0, mask, True
        if h0 is not None:
            h0 = h0[None] if self._recurrences == 1 else h0[:, None]
        return x[None], None, h0, None if mask is None else mask[None], False

    def _check_shapes(
        self, x: Tensor, lengths: Tensor | None, h0: Tensor | None, mask: Tensor | None, batched: bool
    ) -> None:
        if not batched and x.is_floating_point() and x.shape[1] != self.input_size:
            D = self.input_size
            raise ValueError(f"x has shape {tuple(x.shape)}; floats must be (B, T, {D}) or (T, {D})")
        if not batched and lengths is not None:
            raise ValueError("lengths is given for one sequence; it must be None where x has no batch")
        if h0 is not None:
            layers = () if self._recurrences == 1 else (self._recurrences,)
            check_tensor("h0", h0, (*layers, *x.shape[: int(batched)], self.hidden_size), self.Why)
        if mask is not None:
            check_mask(mask, tuple(x.shape[: 1 + batched]))

    def _as_tensor(self, x: Tensor | ArrayLike) -> Tensor:
        """Returns ids, or floats in the parameters' dtype, on their device. Their values are checked."""
        if not isinstance(x, Tensor):
            try:
                x = np.asarray(x)
            except ValueError as error:
                raise ValueError("x has rows of different lengths; pad them, and give lengths") from error
            if x.dtype.kind in "US":
                raise TypeError("x is text; it must be ids or numbers. torch_rnn.TextClassifier labels texts")
            x = torch.as_tensor(x if x.size else np.empty(x.shape, dtype=int))
        if not x.is_floating_point() and x.dtype not in IDS:
            raise TypeError(f"x is {x.dtype}; it must be floats, or ids in one of {', '.join(map(str, IDS))}")
        check_values(x, self.input_size, None, None)
        return x.to(self.Wxh.device, self.Wxh.dtype if x.is_floating_point() else None)

    def _as_example(self, x: Tensor | ArrayLike, y: Tensor | ArrayLike) -> tuple[Tensor, Tensor]:
        """Returns one sequence, (T, D) or (T,), and its label, (T,) labels with the readout "every"."""
        x, y = torch.as_tensor(x), torch.as_tensor(y)
        x = self._as_tensor(x.to(self.Wxh.dtype) if x.dim() == 2 else x.long() if len(x) == 0 else x)
        if y.dtype == torch.bool or (y.is_floating_point() and torch.equal(y, y.round())):
            y = y.long()
        check_labels(y, x.shape[:1] if self.readout == "every" else (), self.output_size)
        return x, y.to(self.Wxh.device)


@contextmanager
def _dropout_off(rnn: RNN) -> Iterator[None]:
    """Sets the RNN to evaluation mode for a while."""
    training = rnn.training
    rnn.eval()
    try:
        yield
    finally:
        rnn.train(training)


def model_file(path: str | os.PathLike) -> Path:
    """Returns the weights file of a run's folder; any other path as it is."""
    path = Path(path)
    return path / "model.safetensors" if path.is_dir() else path


def _check_shapes(owner: str, tensors: dict[str, Tensor], rnn: RNN) -> None:
    """Raises ValueError where the tensors are not those that the RNN's settings need."""
    needed = {name: tuple(tensor.shape) for name, tensor in rnn.state_dict().items()}
    held = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if held != needed:
        raise ValueError(f"{owner} holds {_listing(held)}; its settings need {_listing(needed)}")


def _listing(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in sorted(shapes.items()))

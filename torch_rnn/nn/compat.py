"""A drop-in replacement for torch.nn.RNN that computes with this package's recurrence."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from torch_rnn.nn.layers import Weights, layered


class RNN(nn.RNN):
    """torch.nn.RNN with the same constructor, `state_dict`, arguments, results and errors, but faster.

    The input can be (T, B, D), batch first, unbatched, or a PackedSequence, sorted or not. What the
    recurrence does not support (half precision, autocast, other devices than CPU and CUDA, NaN in the input,
    T = 0) goes to torch.nn.RNN itself, which computes or raises; so does a single step on the CPU, where
    there is nothing to gain. A few steps of one sequence with a large H take as long as there. TorchScript is
    not supported.
    """

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Returns (output, h_n), as torch.nn.RNN does."""
        packed = isinstance(input, PackedSequence)
        data = input.data if packed else input
        if not isinstance(data, Tensor) or not isinstance(hx, Tensor | None) or not self._is_supported(data):
            return super().forward(input, hx)
        try:
            return self._forward_packed(input, hx) if packed else self._forward_padded(input, hx)
        except (TypeError, ValueError):  # torch.nn.RNN raises its own error
            return super().forward(input, hx)

    def _is_supported(self, data: Tensor) -> bool:
        kind = data.device.type
        return (
            kind in ("cpu", "cuda")
            and data.dtype in (torch.float32, torch.float64)
            and not torch.is_autocast_enabled(kind)
        )

    def _forward_padded(self, input: Tensor, hx: Tensor | None) -> tuple[Tensor, Tensor]:
        batched = input.dim() == 3
        x = input if batched else input[None]
        if batched and not self.batch_first:
            x = x.transpose(0, 1)
        if hx is not None and not batched:
            hx = hx.unsqueeze(min(1, hx.dim()))
        self._check(x, hx)
        h, hT = self._layered(x, hx, None)
        if not batched:
            return self._output(h)[0], hT[:, 0]
        return self._output(h if self.batch_first else h.transpose(0, 1)), hT

    def _forward_packed(self, input: PackedSequence, hx: Tensor | None) -> tuple[PackedSequence, Tensor]:
        """Computes on rows sorted by length, longest first, as a PackedSequence stores them."""
        data, batch_sizes, sorted_indices, unsorted_indices = input
        x, lengths = pad_packed_sequence(PackedSequence(data, batch_sizes), batch_first=True)
        self._check(x, hx)
        hx = self.permute_hidden(hx, sorted_indices) if hx is not None else None
        h, hT = self._layered(x, hx, lengths)
        output = pack_padded_sequence(h, lengths, batch_first=True).data
        output = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
        return output, self.permute_hidden(hT, unsorted_indices)

    def _output(self, h: Tensor) -> Tensor:
        """Returns h in rows. If the backward pass reads h, it is a copy, which may be changed in place."""
        if h.requires_grad and not self.bidirectional:
            return h.clone(memory_format=torch.contiguous_format)
        return h.contiguous()

    def _check(self, x: Tensor, hx: Tensor | None) -> None:
        """Raises ValueError unless x is (B, T, D) with steps enough and hx is (layers * directions, B, H)."""
        B, T, D = x.shape
        n = self.num_layers * (2 if self.bidirectional else 1)
        if (
            T == 0
            or (T == 1 and x.device.type == "cpu")
            or D != self.input_size
            or (hx is not None and tuple(hx.shape) != (n, B, self.hidden_size))
        ):
            raise ValueError("torch.nn.RNN computes this, or raises its own error")

    def _layered(self, x: Tensor, hx: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        directions = ("", "_reverse") if self.bidirectional else ("",)
        weights = [
            [self._weights(f"_l{layer}{direction}") for direction in directions]
            for layer in range(self.num_layers)
        ]

        def dropout(h: Tensor) -> Tensor:
            """Draws in torch.nn.RNN's order: time first, without padding."""
            if lengths is None:
                return F.dropout(h.transpose(0, 1).contiguous(), self.dropout).transpose(0, 1)
            data, batch_sizes, _, _ = pack_padded_sequence(h, lengths, batch_first=True)
            dropped = PackedSequence(F.dropout(data, self.dropout), batch_sizes)
            return pad_packed_sequence(dropped, batch_first=True)[0]

        active = dropout if self.training and self.dropout else None
        return layered(x, weights, hx, lengths, nonlinearity=self.nonlinearity, dropout=active)

    def _weights(self, name: str) -> Weights:
        bias = getattr(self, "bias_ih" + name) + getattr(self, "bias_hh" + name) if self.bias else None
        return Weights(getattr(self, "weight_ih" + name), bias, getattr(self, "weight_hh" + name))

"""LanguageModel: the LightningModule that trains an RNN to predict the next token of a text."""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_rnn.data.streams import PADDING, StreamBatch
from torch_rnn.data.textstream import TextStream
from torch_rnn.negatives import draw_negatives, inclusion_probabilities
from torch_rnn.nn.module import RNN
from torch_rnn.ops.context import trusted
from torch_rnn.softmax import linear_cross_entropy, sampled_cross_entropy
from torch_rnn.training.text_generator import TextGenerator
from torch_rnn.training.trained_rnn import TrainedRNN

SAMPLES, SAMPLE_LENGTH, SAMPLE_TEMPERATURE = 3, {"characters": 60, "words": 15}, 0.8
"""How many samples a report shows, how long they are, and the temperature at which they are drawn."""
NORM_STEPS = 10
"""Steps between two looks at the spectral norm, which takes as long as some steps."""


class LanguageModel(TrainedRNN):
    """Trains an RNN by the cross-entropy of each next token, with the state carried from batch to batch.

    At the start by is the logarithm of the tokens' frequencies, so that the softmax begins with these.
    It logs for each split the loss in nats a token, and in bits per character or as the perplexity of words.

    Args:
        input_size: V, the number of ids; the data set it.
        hidden_size: H, the size of the state.
        num_layers: the number of recurrences on top of each other.
        nonlinearity: of the recurrence.
        dropout: the probability of zeroing each number that a layer passes to the next.
        output_dropout: the probability of zeroing each number of the state before the readout.
        recurrent_dropout: the probability of zeroing each entry of Whh, drawn anew in each step of training.
        init: "orthogonal" for semi-orthogonal matrices (Saxe et al., 2014), "seed" for normal * 0.01.
        input_scale: multiplies the initial Wxh. With "orthogonal", the column of an id has a length of about
            min(1, sqrt(H / V)), far below that of a state.
        recurrent_scale: multiplies the initial Whh.
        recurrent_norm: the limit on the spectral norm of each Whh, which is scaled down to it every 10 steps;
            null for none. Below 1, the recurrence is stable (Miller and Hardt, 2019): with tanh, each step
            shrinks the difference of two states at least by this factor.
        backend: "auto", or one of eager, bptt, cpu, cuda, triton and cudnn.
        softmax: "full", or "sampled" to train with `negatives` (Jean et al., 2015). Validation and test are
            always exact.
        negatives: K, the number of ids that a step of the sampled softmax draws, in proportion to
            count ** 0.75 (Mikolov et al., 2013); null for the full softmax.
        optimizer, learning_rate, schedule, weight_decay, start_from, start_learning_rate: as in `Classifier`.
        cuda_graph: replays a step as two CUDA graphs, which saves the host's time: the forward and backward
            pass, then clipping and the optimiser's update. Needs one GPU.
        tokens: what the data consist of.
    """

    n_sums, scores = 2, ("loss",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: Literal["tanh", "relu", "linear"] = "tanh",
        dropout: float = 0.0,
        output_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        init: Literal["orthogonal", "seed"] = "orthogonal",
        input_scale: float = 1.0,
        recurrent_scale: float = 1.0,
        recurrent_norm: float | None = None,
        backend: str = "auto",
        softmax: Literal["full", "sampled"] = "full",
        negatives: int | None = None,
        optimizer: Literal["adam", "adamw", "sgd"] = "adam",
        learning_rate: float = 0.001,
        schedule: Literal["constant", "cosine"] = "constant",
        weight_decay: float = 0.0,
        start_from: str | None = None,
        start_learning_rate: float | None = None,
        cuda_graph: bool = False,
        tokens: Literal["characters", "words"] = "characters",
    ):
        super().__init__(
            optimizer, learning_rate, schedule, weight_decay, start_from, start_learning_rate, cuda_graph
        )
        if not 0 <= output_dropout < 1:
            raise ValueError(f"output_dropout is {output_dropout}; it must be at least 0 and below 1")
        if recurrent_norm is not None and not 0 < recurrent_norm < math.inf:
            raise ValueError(f"recurrent_norm is {recurrent_norm}; it must be above 0")
        if (softmax == "sampled") != (negatives is not None):
            raise ValueError(
                f"softmax is {softmax}, and negatives is {negatives}; a sampled softmax needs a number of "
                f"them, and a full one has none"
            )
        if negatives is not None and not 1 <= negatives <= input_size:
            raise ValueError(f"negatives is {negatives}; it must be in 1..{input_size}, the number of ids")
        self.rnn = RNN(
            input_size,
            hidden_size,
            input_size,
            num_layers=num_layers,
            nonlinearity=nonlinearity,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
            readout="every",
            init=init,
            input_scale=input_scale,
            recurrent_scale=recurrent_scale,
            backend=backend,
        )
        self.output_dropout, self.negatives, self.tokens = output_dropout, negatives, tokens
        self.recurrent_norm = recurrent_norm
        self._states: dict[str, Tensor] = {}

    def forward(self, x: Tensor, h0: Tensor | None = None) -> Tensor:
        return self.rnn(x, h0=h0)

    def setup(self, stage: str) -> None:
        if stage != "fit":
            return
        counts = torch.from_numpy(self.trainer.datamodule.counts()).double().clamp(min=1)
        if self.started is None or "by" not in self.started.taken:
            # A sampled softmax that had to learn the frequencies from zeros would diverge at first.
            self.rnn.by.data.copy_((counts / counts.sum()).log())
        if self.negatives is not None:
            self._inclusion = inclusion_probabilities(self.negatives, counts**0.75)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        state = self._states.get("train")
        if state is not None and self.trainer.world_size > 1:
            state = interleaved(self.all_gather(state))
        checkpoint["state"] = state  # of all rows, in their order

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["state"]
        if state is not None:
            mine = state[..., self.trainer.global_rank :: self.trainer.world_size, :]
            self._states["train"] = mine.to(self.device)

    def training_step(self, batch: StreamBatch, step: int) -> Tensor:
        negatives = ()
        if self.negatives is not None:
            negatives = (drawn.to(batch.x.device) for drawn in draw_negatives(self._inclusion))
        h0 = None if batch.first else self._states["train"]
        loss, total, self._states["train"] = self._step(batch.x, batch.targets, h0, batch.scored, *negatives)
        self._add("train", total, batch.targets.numel())
        return self._checked(loss)

    def _passes(
        self, x: Tensor, targets: Tensor, h0: Tensor | None, scored: int, *negatives: Tensor
    ) -> tuple:
        """Returns the loss, the sum of this process's losses, and the last states."""
        h, hT = self._states_of(x, h0)
        h, targets, Why, by = self._dropped(h).flatten(0, 1), targets.flatten(), self.rnn.Why, self.rnn.by
        if negatives:
            total = sampled_cross_entropy(h, Why, by, targets, *negatives)
        else:
            total = linear_cross_entropy(h, Why, by, targets)
        return self._mean(total, scored), total.detach(), hT.detach()

    @torch.no_grad()
    def on_train_batch_end(self, outputs: Any, batch: StreamBatch, batch_idx: int) -> None:
        if self.recurrent_norm is not None and self.trainer.global_step % NORM_STEPS == 0:
            for Whh in self._recurrent_weights():
                Whh *= (self.recurrent_norm / spectral_norm(Whh)).clamp(max=1)

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        norms = [spectral_norm(Whh) for Whh in self._recurrent_weights()]
        self.log("train/recurrent_norm", torch.stack(norms).max().float())

    def validation_step(self, batch: StreamBatch, step: int) -> None:
        self._score("validation", batch)

    def test_step(self, batch: StreamBatch, step: int) -> None:
        self._score("test", batch)

    def remarks(self, data: TextStream) -> list[str]:
        """Returns a few short samples for the report."""
        generator = TextGenerator(self.rnn, data.vocabulary, data.tokens)
        length = SAMPLE_LENGTH[data.tokens]
        texts = generator.generate("", length, SAMPLES, temperature=SAMPLE_TEMPERATURE, seed=data.seed)
        return [f"sample {number}: {text!r}" for number, text in enumerate(texts, start=1)]

    def _recurrent_weights(self) -> list[Tensor]:
        return [getattr(self.rnn, "Whh" + name).detach() for (name,) in self.rnn.names]

    def _states_of(self, x: Tensor, h0: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the top layer's states (B, T, H), and the last ones of all layers in the shape of h0."""
        with trusted():  # the vocabulary's own ids
            return self.rnn.states(x, h0=h0, final=True)

    def _dropped(self, h: Tensor) -> Tensor:
        """Zeros states (B, T, H) at random; several processes draw what one would draw for all rows."""
        if not self.output_dropout:
            return h
        B, rank, world = len(h), self.trainer.global_rank, self.trainer.world_size
        noise = F.dropout(h.new_ones(B * world, *h.shape[1:]), self.output_dropout)
        return h * noise[rank::world]

    def _score(self, split: str, batch: StreamBatch) -> None:
        h, self._states[split] = self._states_of(batch.x, None if batch.first else self._states[split])
        h, targets = h.flatten(0, 1), batch.targets.flatten()
        real = targets != PADDING
        total = linear_cross_entropy(h[real], self.rnn.Why, self.rnn.by, targets[real])
        self._add(split, total.double(), int(real.sum()))

    def _means(self, loss: Tensor, scored: Tensor) -> dict[str, Tensor]:
        loss = loss / scored
        if self.tokens == "characters":
            return {"loss": loss, "bits_per_character": loss / math.log(2)}
        return {"loss": loss, "perplexity": loss.exp()}


def spectral_norm(matrix: Tensor) -> Tensor:
    """Returns the largest singular value, the most by which the matrix stretches a vector."""
    return torch.linalg.matrix_norm(matrix.float() if matrix.dtype is torch.bfloat16 else matrix, 2)


def interleaved(states: Tensor) -> Tensor:
    """Puts the rows of the processes, (world, ..., B, H), in their order in the whole batch."""
    return states.movedim(0, -2).flatten(-3, -2)

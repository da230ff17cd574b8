"""The progress bar, on one line of a terminal of 80 columns."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.progress import ProgressColumn, TimeRemainingColumn

NAMES = {
    "train/batch_loss": "loss",
    "validation/loss": "val",
    "validation/accuracy": "acc",
    "validation/bits_per_character": "bpc",
    "validation/perplexity": "ppl",
}
"""What the metrics are called in the bar: the loss of the batch, and the last scores of the validation."""
OTHERS = 73
"""The columns of a terminal that all but the bar itself take."""


class ProgressBar(RichProgressBar):
    """Lightning's bar with short names of metrics, and without the time that has passed."""

    def get_metrics(self, trainer: Trainer, model: LightningModule) -> dict[str, Any]:
        found = super().get_metrics(trainer, model)
        return {NAMES.get(name, name): value for name, value in found.items() if name != "v_num"}

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        description, bar, batches, _, speed = super().configure_columns(trainer)
        bar.bar_width = max(5, min(40, self._console.width - OTHERS))
        return [description, bar, batches, TimeRemainingColumn(compact=True), speed]

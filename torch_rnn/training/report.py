"""metrics -> results.json, curves.png and a table: what a run leaves beside its weights."""

import csv
import json
import platform
import resource
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from torch_rnn import __version__
from torch_rnn.data.batches import Batch
from torch_rnn.devices import device_name
from torch_rnn.files import write_atomically
from torch_rnn.training.trained_rnn import TrainedRNN

METRICS, CURVES = "metrics.csv", "curves.png"
FORMATS = {
    "accuracy": "{:.2%}",
    "bits_per_character": "{:.4f}",
    "perplexity": "{:.2f}",
    "loss": "{:.4f}",
    "n": "{:,}",
}
"""The figures of a split in the order of the table."""
PACKAGES = ("torch", "lightning", "torchtext", "numpy")


class Clock(Callback):
    """Counts the training steps, their tokens, and the seconds that they took without validation.

    Totals include the time before a resume, but not the work that was lost between checkpoint and kill.
    `elapsed` is the whole time of the run.
    """

    def __init__(self) -> None:
        self.steps, self.tokens, self.seconds = 0, 0, 0.0
        self._since: float | None = None  # None while the clock is stopped
        self._began = time.perf_counter()

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self._began

    def state_dict(self) -> dict[str, Any]:
        state = {"steps": self.steps, "tokens": self.tokens, "elapsed": self.elapsed}
        return state | {"seconds": self.seconds + self._running()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps, self.tokens = state_dict["steps"], state_dict["tokens"]
        self.seconds = state_dict["seconds"]
        self._began -= state_dict["elapsed"]

    def on_train_start(self, trainer: Trainer, model: LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, model: LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, model: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.steps += 1
        self.tokens += batch.tokens

    def on_validation_start(self, trainer: Trainer, model: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._stop()

    def on_validation_end(self, trainer: Trainer, model: LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, model: LightningModule) -> None:
        self._stop()

    def _stop(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds += self._running()
        self._since = None

    def _running(self) -> float:
        return 0.0 if self._since is None else time.perf_counter() - self._since


def results(
    trainer: Trainer,
    model: TrainedRNN,
    data: LightningDataModule,
    clock: Clock,
    scores: Mapping[str, Mapping[str, float]],
    best_epoch: int,
) -> dict[str, Any]:
    """Returns what results.json holds.

    scores has for "validation" and "test" the metrics that the Trainer returned; best_epoch (from 1) is
    the epoch of the weights that were scored.
    """
    device = trainer.strategy.root_device
    return {
        "dataset": data.name,
        **data.facts(),
        **{split: _scores(split, metrics, model) for split, metrics in scores.items()},
        "parameters": sum(parameter.numel() for parameter in model.rnn.parameters()),
        "epochs": trainer.current_epoch,
        "best_epoch": best_epoch,
        "seed": data.seed,
        "started_from": None if model.started is None else model.started._asdict(),
        "seconds": round(clock.elapsed, 2),
        "ms_per_step": round(1000 * clock.seconds / max(clock.steps, 1), 3),
        "tokens_per_second": round(clock.tokens / clock.seconds) if clock.seconds else 0,
        "peak_memory": _peak_memory(device),
        "device": device_name(device),
        "versions": {"python": platform.python_version(), "torch_rnn": __version__}
        | {name: metadata.version(name) for name in PACKAGES},
    }


def write_results(path: Path, found: Mapping[str, Any]) -> None:
    """Writes results.json atomically, since its presence means that the run is finished."""
    text = json.dumps(found, indent=2) + "\n"
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def print_results(found: Mapping[str, Any], remarks: list[str], console: Console) -> None:
    """Prints the main figures as a table, and the data's own remarks."""
    table = Table(title=f"{found['dataset']}: {found['parameters']:,} parameters, {found['epochs']} epochs")
    columns = [name for name in FORMATS if name in found["validation"]]
    for column in ("split", *columns):
        table.add_column(column.replace("_", " "), justify="left" if column == "split" else "right")
    for split in ("validation", "test"):
        if split in found:
            table.add_row(split, *(FORMATS[name].format(found[split][name]) for name in columns))
    console.print(table)
    best, epochs = found["best_epoch"], found["epochs"]
    console.print(f"These are the scores of the best checkpoint, from epoch {best} of {epochs}.")
    console.print(
        f"{found['seconds']:.1f} s, {found['ms_per_step']:.2f} ms a step, "
        f"{found['tokens_per_second']:,} tokens a second, on {found['device']}"
    )
    for remark in remarks:
        console.print(remark, markup=False, highlight=False)


def draw_curves(metrics: Path, picture: Path) -> None:
    """Draws what metrics.csv has by step, such as loss, accuracy and gradient norm, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with open(metrics, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    panels = {
        "loss (nats)": {"train/batch_loss": "batch", "train/loss": "train", "validation/loss": "validation"},
        "accuracy": {"train/accuracy": "train", "validation/accuracy": "validation"},
        "bits per character": {
            "train/bits_per_character": "train",
            "validation/bits_per_character": "validation",
        },
        "perplexity": {"train/perplexity": "train", "validation/perplexity": "validation"},
        "disagreement with the evidence": {"train/disagreement": "train"},
        "gradient norm, before clipping": {"train/gradient_norm": "batch"},
    }
    measured = {name for row in rows for name, value in row.items() if value}
    panels = {title: curves for title, curves in panels.items() if measured & curves.keys()}
    figure, axes = plt.subplots(1, len(panels), figsize=(13, 3.6), squeeze=False)
    figure.subplots_adjust(left=0.04, right=0.99, bottom=0.14, top=0.91, wspace=0.22)
    for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
        for name, label in curves.items():
            points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
            fine = {"linewidth": 0.7, "alpha": 0.6, "color": "0.6"} if label == "batch" else {"marker": "."}
            axis.plot([step for step, _ in points], [value for _, value in points], label=label, **fine)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend()
        if "train/gradient_norm" in curves:
            axis.set_yscale("log")
    write_atomically(picture, lambda part: figure.savefig(part, format="png", dpi=130))
    plt.close(figure)


def _scores(split: str, metrics: Mapping[str, float], model: TrainedRNN) -> dict[str, float | int]:
    """Returns a split's metrics by the names in FORMATS."""
    scores = {name: float(metrics[key]) for name in FORMATS if (key := f"{split}/{name}") in metrics}
    return scores | {"n": model.scored[split]}


def _peak_memory(device: torch.device) -> int:
    """Returns the peak in bytes, of the GPU or else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak

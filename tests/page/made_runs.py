"""Folders of finished runs, made without training: an RNN with random weights, and all that a run leaves."""

import csv
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml

from torch_rnn.data.datamodule import SequenceData
from torch_rnn.data.grammar import Grammar
from torch_rnn.data.text import Vocabulary
from torch_rnn.nn.module import RNN

SIZES = {"train": 48, "validation": 10, "test": 40}


class Moods(Grammar):
    """Reviews of the grammar with three classes: the third one is called mixed, and drawn at random."""

    classes = ("negative", "positive", "<i>mixed</i>")

    def setup(self, stage=None):
        if self.splits:
            return
        super().setup(stage)
        for split, (sequences, labels) in list(self.splits.items()):
            mixed = np.random.default_rng(0).random(len(labels)) < 0.3
            self.add_split(split, sequences, np.where(mixed, 2, labels))


class Letters(SequenceData):
    """The letters of a short text, each of which is to be predicted from those before it."""

    name = "letters"
    labels_steps = True
    text = "the quick brown fox jumps over the lazy dog . " * 8

    def __init__(self, batch_size=8, seed=1):
        super().__init__(batch_size, seed)
        self.vocabulary = Vocabulary(["<unk>", *sorted(set(self.text))])
        self.classes, self.input_size = tuple(self.vocabulary.words), len(self.vocabulary)

    def setup(self, stage=None):
        ids = self.vocabulary.encode(self.text)
        rows = [ids[start : start + 41] for start in range(0, 320, 40)]
        for split in SIZES:
            self.add_split(split, [row[:-1] for row in rows], [row[1:].astype(np.int64) for row in rows])


class Made(NamedTuple):
    folder: Path
    data: SequenceData
    rnn: RNN


def make_run(folder: Path, data: SequenceData | None = None, **settings) -> Made:
    """Makes a run's folder; the settings are those of the RNN."""
    data = Grammar(**SIZES, batch_size=8, seed=1) if data is None else data
    data.setup()
    classes = len(data.classes)
    settings = {"hidden_size": 12, "output_size": 1 if classes == 2 else classes, **settings}
    torch.manual_seed(1)
    rnn = RNN(data.input_size, settings.pop("hidden_size"), settings.pop("output_size"), **settings)
    with torch.no_grad():  # away from the initial weights, so that the probabilities are not all 0.5
        for parameter in rnn.parameters():
            parameter += 0.08 * torch.randn(parameter.shape)
            if rnn.nonlinearity != "tanh":  # so that long texts do not overflow
                parameter *= 0.7
        rnn.Why *= 3
    folder.mkdir(parents=True, exist_ok=True)
    text = None if data.vocabulary is None or data.maxlen is None else data
    about = {"text": {"maxlen": text.maxlen, "vocabulary": text.vocabulary.words}} if text else {}
    rnn.save(folder / "model.safetensors", dataset=data.name, classes=data.classes, **about)
    (folder / "results.json").write_text(json.dumps(results(data, rnn)), encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump(config(data, rnn)), encoding="utf-8")
    write_metrics(folder / "metrics.csv")
    return Made(folder, data, rnn.eval())


def results(data: SequenceData, rnn: RNN) -> dict:
    scores = {"accuracy": 0.9, "loss": 0.3, "n": 40}
    return {
        "dataset": data.name, "test": scores, "validation": scores,
        "parameters": sum(parameter.numel() for parameter in rnn.parameters()),
        "epochs": 2, "best_epoch": 2, "seed": 1, "seconds": 1.5, "ms_per_step": 2.5,
        "tokens_per_second": 1000, "peak_memory": 1, "device": "a processor", "versions": {"torch": "2"},
        "command": "python train.py </script>",
    }  # fmt: skip


def config(data: SequenceData, rnn: RNN) -> dict:
    kind = type(data)
    sizes = SIZES if isinstance(data, Grammar) else {}
    return {
        "seed_everything": 1,
        "trainer": {"max_epochs": 2, "max_steps": -1, "gradient_clip_val": 1.0, "limit_train_batches": None},
        "model": {"hidden_size": rnn.hidden_size, "learning_rate": 0.01, "schedule": "cosine"},
        "data": {
            "class_path": f"{kind.__module__}.{kind.__qualname__}",
            "init_args": {**sizes, "batch_size": 8},
        },
        "checkpoint": {"monitor": "validation/accuracy"},
    }


def write_metrics(path: Path) -> None:
    columns = [
        "epoch",
        "step",
        "train/batch_loss",
        "train/gradient_norm",
        "validation/loss",
        "validation/accuracy",
    ]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, "train/loss", "train/accuracy"])
        for step in range(12):
            writer.writerow([step // 6, step, 0.7 - 0.01 * step, 1 / (1 + step), *([""] * 4)])
            if step % 6 == 5:
                writer.writerow([step // 6, step, "", "", 0.6, 0.5 + 0.01 * step, "", ""])
                writer.writerow([step // 6, step, "", "", "", "", 0.61, 0.7])

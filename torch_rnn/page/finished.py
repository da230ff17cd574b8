"""A finished run, read from its folder, with the data that it was trained on."""

import csv
import json
from argparse import ArgumentError
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import ArgumentParser

from torch_rnn.data.datamodule import SequenceData
from torch_rnn.data.textstream import TextStream
from torch_rnn.errors import RunError
from torch_rnn.nn.module import RNN, model_file
from torch_rnn.nn.weights import load_weights
from torch_rnn.training.cli import one_sentence
from torch_rnn.training.report import METRICS
from torch_rnn.training.resume import CONFIG, RESULTS


class FinishedRun(NamedTuple):
    """What a run has left, and its data."""

    folder: Path
    results: dict[str, Any]
    settings: dict[str, Any]
    """The content of config.yaml."""
    metrics: list[dict[str, str]]
    """The rows of metrics.csv, without empty cells."""
    rnn: RNN
    """The RNN with the weights that were scored, in float32 on the CPU, in evaluation mode."""
    data: SequenceData | TextStream

    @property
    def is_language(self) -> bool:
        """Whether it is a language model's: trained on one long text rather than on labelled sequences."""
        return isinstance(self.data, TextStream)

    @property
    def reads_text(self) -> bool:
        """Whether the run labels texts, word by word."""
        return self.data.vocabulary is not None and self.rnn.readout != "every"

    @property
    def writes_text(self) -> bool:
        """Whether each output is about the next token of the vocabulary."""
        vocabulary, rnn = self.data.vocabulary, self.rnn
        every = rnn.readout == "every" and not rnn.bidirectional
        return every and vocabulary is not None and rnn.output_size == len(vocabulary)


def read_run(folder: Path, data: SequenceData | TextStream | None = None) -> FinishedRun:
    """Reads what a finished run has left.

    Args:
        folder: The folder of the run.
        data: The data of the run, set up; None makes them from its settings.

    Raises:
        RunError: A file is missing or damaged, or the data are not those of the run.
    """
    try:
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        settings = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        with open(folder / METRICS, newline="", encoding="utf-8") as file:
            metrics = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
        rnn = RNN.load(folder).float().eval()
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunError(f"{folder} holds no finished run that can be read ({error})") from error
    if data is None:
        data = data_of(settings, folder)
        data.setup()
    check_data(folder, rnn, data)
    return FinishedRun(folder, results, settings, metrics, rnn, data)


def check_data(folder: Path, rnn: RNN, data: SequenceData | TextStream) -> None:
    """Raises RunError where the data are not those of the run, as far as sizes and tokens tell."""
    if isinstance(data, TextStream):
        about = load_weights(model_file(folder))[1].get("language")
        own = {"tokens": data.tokens, "vocabulary": data.vocabulary.words}
        if about != own:
            raise RunError(f"{folder} was trained on another text: the vocabulary of this one is different")
    elif rnn.input_size != data.input_size or max(rnn.output_size, 2) != len(data.classes):
        raise RunError(
            f"{folder} was trained on data of input size {rnn.input_size} with {max(rnn.output_size, 2)} "
            f"classes; these have {data.input_size} and {len(data.classes)}"
        )


def data_of(settings: dict[str, Any], folder: Path) -> SequenceData | TextStream:
    """Makes the data that the settings of a run describe. Raises RunError where they describe none."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments((SequenceData, TextStream), "data")
    try:
        data = settings["data"]
        arguments = {"seed": settings["seed_everything"], **data["init_args"]}
        config = parser.parse_object({"data": {"class_path": data["class_path"], "init_args": arguments}})
        make = (
            getattr(parser, "instantiate", None) or parser.instantiate_classes
        )  # its name in older releases
        return make(config).data
    except RunError:
        raise
    except (KeyError, TypeError, ValueError, ArgumentError) as error:
        why = one_sentence(str(error))
        raise RunError(f"{folder / CONFIG} describes no sequences with labels ({why})") from error

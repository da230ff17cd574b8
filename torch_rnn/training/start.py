"""start_from: the recurrence of another run as the start of this one."""

from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule

from torch_rnn.errors import RunError
from torch_rnn.nn.module import RNN, model_file
from torch_rnn.nn.weights import load_weights

NEEDED = ("Wxh", "bh", "Whh")
"""The weights that a start must have in the sizes of the run: those of the first layer."""


class Started(NamedTuple):
    """What a run has taken from another."""

    path: str
    taken: tuple[str, ...]
    """The names of the weights that were taken over."""
    drawn: tuple[str, ...]
    """The names of the others, which are drawn anew."""

    def __str__(self) -> str:
        drawn = f"{', '.join(self.drawn)} drawn anew" if self.drawn else "nothing drawn anew"
        return f"started from {self.path}: {', '.join(self.taken)} taken over, {drawn}"


def start_from(path: str, rnn: RNN, data: LightningDataModule) -> Started:
    """Takes over the weights of a run, or of a model file, that fit by name and shape.

    Raises:
        RunError: The file cannot be read, or its sizes, nonlinearity or vocabulary are not those of the run.
    """
    file = model_file(path)
    if not file.exists():
        raise RunError(f"model.start_from is {path}; {file} cannot be read (No such file or directory)")
    try:
        tensors, about = load_weights(file)
    except ValueError as error:
        raise RunError(f"model.start_from is {path}; {error}") from error
    _check_settings(path, about, rnn)
    _check_vocabulary(path, _vocabulary(about), data)
    own = dict(rnn.named_parameters())
    for name in NEEDED:
        if name not in tensors:
            raise RunError(f"model.start_from is {path}, which has no {name}")
    taken = [name for name in own if name in tensors and tensors[name].shape == own[name].shape]
    with torch.no_grad():
        for name in taken:
            own[name].copy_(tensors[name])
    return Started(path, tuple(taken), tuple(name for name in own if name not in taken))


def _check_settings(path: str, about: dict[str, Any], rnn: RNN) -> None:
    settings = about.get("rnn", {})
    for name in ("hidden_size", "input_size", "nonlinearity"):
        there, here = settings.get(name), getattr(rnn, name)
        if there != here:
            raise RunError(f"model.start_from is {path}, whose {name} is {there}; that of this run is {here}")


def _vocabulary(about: dict[str, Any]) -> list[str] | None:
    return about.get("language", about.get("text", {})).get("vocabulary")


def _check_vocabulary(path: str, there: list[str] | None, data: LightningDataModule) -> None:
    """Raises RunError where an id would mean another token."""
    here = None if data.vocabulary is None else data.vocabulary.words
    if there == here:
        return
    if there is None or here is None:
        which = "has none" if there is None else f"has one of {len(there):,} tokens"
        own = "has none" if here is None else f"has one of {len(here):,}"
        raise RunError(f"model.start_from is {path}, which {which} as its vocabulary; this run {own}")
    differing = next((i for i, (a, b) in enumerate(zip(there, here, strict=False)) if a != b), None)
    example = "" if differing is None else (
        f": id {differing} is {there[differing]!r} there and {here[differing]!r} here"
    )  # fmt: skip
    raise RunError(
        f"model.start_from is {path}, whose vocabulary of {len(there):,} tokens is not the {len(here):,} of "
        f"this run{example}; train both on the same text, with the same data.max_features"
    )

"""Weights files with a checksum.

A weights file is a safetensors file. Its metadata has one entry, "torch_rnn": a JSON object with the caller's
data and "sha256", the digest of the whole file with 64 zeros in place of the digest. safetensors itself does
not notice a flipped bit.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from torch_rnn.files import write_atomically

NO_DIGEST = "0" * 64


def save_weights(path: str | os.PathLike, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> None:
    """Writes named tensors and JSON data atomically to a safetensors file with a checksum.

    Raises TypeError for data that JSON cannot hold.
    """
    for name, value in data.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise TypeError(f"the data {name!r} cannot be kept as JSON ({error})") from error
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"torch_rnn": json.dumps({"sha256": NO_DIGEST, **data}, sort_keys=False)}
    blob = safetensors.torch.save(tensors, metadata)
    signed = blob.replace(NO_DIGEST.encode(), hashlib.sha256(blob).hexdigest().encode(), 1)
    write_atomically(path, lambda part: part.write_bytes(signed))


def load_weights(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the tensors and the data of a file that `save_weights` wrote.

    Raises FileNotFoundError, or ValueError if it is no weights file or has changed since it was written.
    """
    blob = Path(path).read_bytes()
    try:
        header_size = int.from_bytes(blob[:8], "little")
        header = json.loads(blob[8 : 8 + header_size])
        data = json.loads(header["__metadata__"]["torch_rnn"])
        digest = data.pop("sha256").encode()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        hint = "; name the run's folder, or its model.safetensors" if Path(path).suffix == ".ckpt" else ""
        raise ValueError(
            f"{path} is not a weights file of torch_rnn, or its header is damaged{hint}"
        ) from error
    if hashlib.sha256(blob.replace(digest, NO_DIGEST.encode(), 1)).hexdigest().encode() != digest:
        raise ValueError(f"{path} is damaged: its contents do not match its SHA-256")
    try:
        return safetensors.torch.load(blob), data
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error

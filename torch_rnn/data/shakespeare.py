"""tiny Shakespeare (Karpathy, 2015): a million characters of plays, the usual text of character models."""

import os
from pathlib import Path

from torch_rnn.data.download import download
from torch_rnn.errors import RunError
from torch_rnn.files import file_sha256

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SIZE = 1_115_394
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def find_shakespeare(root: str | None) -> Path:
    """Returns the text, shakespeare/input.txt in the root or beside it, or downloads it into the root.

    Args:
        root: None is $TORCH_RNN_DATA, else data/.

    Raises:
        RunError: The text is another one, or the download failed.
    """
    folder = Path(root or os.environ.get("TORCH_RNN_DATA") or "data")
    places = [folder / "shakespeare" / "input.txt", folder.parent / "shakespeare" / "input.txt"]
    if folder.name == "shakespeare":
        places.insert(0, folder / "input.txt")
    path = next((place for place in places if place.is_file()), places[0])
    if not path.is_file():
        try:
            download(URL, path, SIZE, SHA256)
        except (RunError, OSError) as error:
            raise RunError(
                f"tiny Shakespeare is not at {path}, and {error}. Put the file there, or train on a text of "
                f"your own: --data.path FILE"
            ) from error
    if (digest := file_sha256(path)) != SHA256:
        raise RunError(
            f"{path} has SHA-256 {digest}, not {SHA256}; it is not tiny Shakespeare: delete it, or name it "
            f"with --data.path"
        )
    return path

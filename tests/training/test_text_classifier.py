"""A trained model in Python: labels and probabilities of texts."""

import pytest
import torch

from torch_rnn import RNN, TextClassifier
from torch_rnn.losses import probabilities


def saved(folder, classes=("negative", "positive"), words=("<unk>", "good", "bad"), readout="last"):
    torch.manual_seed(0)
    rnn = RNN(len(words), 4, 1 if len(classes) == 2 else len(classes), readout=readout)
    text = {"maxlen": 4, "vocabulary": list(words)}
    rnn.save(folder / "model.safetensors", dataset="made", classes=list(classes), text=text)
    return rnn


TEXTS = ["Good, good!", "", "bad bad good", "never seen", "good " * 9 + "bad"]


@pytest.mark.parametrize("classes", [("negative", "positive"), ("a", "b", "c")])
@pytest.mark.parametrize("readout", ["last", "mean", "max"])
def test_labels_and_probabilities_are_those_of_the_rnn(tmp_path, classes, readout):
    rnn = saved(tmp_path, classes, readout=readout)
    model = TextClassifier.load(tmp_path)
    p = model.probabilities(TEXTS, batch_size=2)
    assert p.shape == (5, len(classes))
    torch.testing.assert_close(p.sum(dim=1), torch.ones(5))
    ids = torch.tensor([2, 2, 1])
    torch.testing.assert_close(p[2], probabilities(rnn(ids)).detach())
    last = torch.tensor([1, 1, 1, 2])  # maxlen is 4
    torch.testing.assert_close(p[4], probabilities(rnn(last)).detach())
    assert model.predict(TEXTS) == [classes[i] for i in p.argmax(dim=1)]
    assert model.predict([]) == []
    shown = f"TextClassifier(RNN(3, 4, {rnn.output_size}"
    assert repr(model).startswith(shown)
    assert repr(model).endswith(f"), 3 words, classes {', '.join(classes)}, maxlen 4)")


def test_the_file_can_be_named_and_moved_to_a_backend(tmp_path):
    saved(tmp_path)
    model = TextClassifier.load(tmp_path / "model.safetensors", backend="eager")
    assert model.rnn.backend == "eager"
    torch.testing.assert_close(model.probabilities(TEXTS), TextClassifier.load(tmp_path).probabilities(TEXTS))


@pytest.mark.cuda
def test_on_cuda(tmp_path):
    saved(tmp_path)
    on_gpu = TextClassifier.load(tmp_path, device="cuda")
    torch.testing.assert_close(
        on_gpu.probabilities(TEXTS), TextClassifier.load(tmp_path).probabilities(TEXTS), atol=1e-5, rtol=0
    )


@pytest.mark.bad_input
def test_refuses_bad_input(tmp_path):
    saved(tmp_path)
    model = TextClassifier.load(tmp_path)
    for texts, message in (
        ("a text", "texts is a str; it must be a list"),
        ([3], "texts has 3; each must be"),
    ):
        with pytest.raises(TypeError, match=message):
            model.predict(texts)
    with pytest.raises(ValueError, match="batch_size is 0"):
        model.predict(TEXTS, batch_size=0)
    RNN(2, 2, 1).save(tmp_path / "numbers", dataset="addition")
    with pytest.raises(ValueError, match="was trained on addition, not on text"):
        TextClassifier.load(tmp_path / "numbers")
    RNN(2, 2, 2).save(tmp_path / "writes", dataset="text", language={"vocabulary": [], "tokens": "words"})
    with pytest.raises(ValueError, match=r"writes is a language model, not a classifier"):
        TextClassifier.load(tmp_path / "writes")
    with pytest.raises(FileNotFoundError, match=r"missing"):
        TextClassifier.load(tmp_path / "missing")

"""scripts/sample.py and TextGenerator: text from a model, the same for the same seed."""

import pytest
import torch
from trials import TEXT

from torch_rnn import RNN
from torch_rnn.data.text import Vocabulary, tokenize
from torch_rnn.training import TextGenerator


@pytest.fixture(scope="module", params=["characters", "words"])
def model(request, tmp_path_factory):
    """The folder of a run whose model has not been trained, and its tokens."""
    folder, kind = tmp_path_factory.mktemp("run"), request.param
    tokens = sorted(set(TEXT if kind == "characters" else tokenize(TEXT)))
    torch.manual_seed(0)
    rnn = RNN(len(tokens) + 1, 8, len(tokens) + 1, readout="every")
    rnn.save(
        folder / "model.safetensors",
        dataset="text",
        language={"tokens": kind, "vocabulary": ["<unk>", *tokens]},
    )
    return folder, kind


@pytest.fixture
def sample(run, capsys):
    """Runs the script; returns its exit status, what it printed, and its error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        status = run("sample", *arguments)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


def test_text_goes_on_from_the_prompt(model, sample):
    folder, kind = model
    generator = TextGenerator.load(folder)
    (text,) = generator.generate("3 sheep came", 40, temperature=0.7, top_k=9, top_p=0.9, seed=5)
    assert len(text if kind == "characters" else text.split()) == 40
    arguments = ("--length", "40", "--temperature", "0.7", "--top-k", "9", "--top-p", "0.9", "--seed", "5")
    status, printed, error = sample(folder, "--prompt", "3 sheep came", *arguments)
    assert (status, error) == (0, "")
    assert printed == f"3 sheep came{text}\n"
    assert sample(folder, "--prompt", "3 sheep came", "--stream", *arguments) == (0, printed, "")


def test_samples_differ_and_are_those_of_the_seed(model):
    generator = TextGenerator.load(model[0])
    first = generator.generate("", 30, 4, seed=1)
    assert len(set(first)) == 4
    assert generator.generate("", 30, 4, seed=1) == first
    assert generator.generate("", 30, 4, seed=2) != first
    assert [text[:10] for text in generator.generate("", 10, 4, seed=1)] == [text[:10] for text in first]
    greedy = generator.generate("", 30, 2, temperature=0)
    assert greedy[0] == greedy[1] == generator.generate("", 30, temperature=0, seed=9)[0]


def test_ids_are_those_of_the_model(model):
    folder, kind = model
    generator = TextGenerator.load(folder)
    assert repr(generator).endswith(f", readout='every'), {generator.rnn.input_size} {kind})")
    for bad in ({"length": 1.5}, {"n": True}, {"seed": "a"}):
        with pytest.raises(TypeError, match=f"{next(iter(bad))} is .*; it must be a whole number"):
            generator.generate(**bad)
    ids = generator.encode("7 sheep came")
    expected = Vocabulary(generator.vocabulary.words).encode(
        list("7 sheep came") if kind == "characters" else ["7", "sheep", "came"]
    )
    assert ids.tolist() == expected.tolist()
    drawn = generator.rnn.generate(ids, 20, generator=torch.Generator().manual_seed(3))
    between = "" if kind == "characters" else " "
    text = "".join(between + generator.vocabulary.words[i] for i in drawn.tolist())
    assert generator.generate("7 sheep came", 20, seed=3) == [text]


def test_several_samples_are_numbered(model, sample):
    folder, _ = model
    texts = TextGenerator.load(folder).generate("", 20, 2, temperature=0.8, seed=0)
    expected = f"1:\n{texts[0]}\n2:\n{texts[1]}\n"
    assert sample(folder, "--n", "2", "--length", "20") == (0, expected, "")


@pytest.mark.bad_input
def test_an_unknown_character_is_named_and_an_unknown_word_is_not_known(model, sample):
    folder, kind = model
    generator = TextGenerator.load(folder)
    if kind == "words":
        assert generator.encode("sheep Zürich came")[1] == 0
        return
    with pytest.raises(
        ValueError, match=r"prompt has 'Z', 'i', 'r', 'ü', which the model has never read; it knows 29"
    ):
        generator.encode("sheep Zürich")
    status, printed, error = sample(folder, "--prompt", "Ü")
    assert (status, printed) == (2, "")
    assert error.startswith("error: prompt has 'Ü', which the model has never read")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--length", "0"), "error: length is 0; it must be at least 1"),
        (("--n", "0"), "error: n is 0; it must be at least 1"),
        (("--temperature", "-1"), "error: temperature is -1.0; it must be 0, or 1e-06 or more"),
        (("--top-k", "0"), "error: top_k is 0; it must be at least 1"),
        (("--seed", "9" * 20), f"error: seed is {'9' * 20}; it must be a whole number of 64 bits"),
        (("--top-p", "2"), "error: top_p is 2.0; it must be above 0 and at most 1"),
    ],
)
@pytest.mark.parametrize("model", ["characters"], indirect=True)
def test_refuses_bad_arguments(model, sample, arguments, message):
    status, printed, error = sample(model[0], *arguments)
    assert (status, printed) == (2, "")
    assert error.startswith(message)


@pytest.mark.bad_input
def test_refuses_another_model(tmp_path):
    RNN(9, 4, 2).save(tmp_path / "model.safetensors", dataset="imdb")
    with pytest.raises(
        ValueError, match=r"is no language model: it was trained on imdb; scripts/train_lm\.py"
    ):
        TextGenerator.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="a training run writes it when it ends"):
        TextGenerator.load(tmp_path / "none")
    rnn = RNN(9, 4, 9, readout="every")
    rnn.save(tmp_path / "model.safetensors", language={"tokens": "characters", "vocabulary": ["<unk>", "a"]})
    with pytest.raises(ValueError, match="has 2 tokens and weights for 9"):
        TextGenerator.load(tmp_path)

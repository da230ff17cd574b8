"""The Markdown of a benchmark on a GPU, which has times of CUDA graphs too."""

from torch_rnn.benchmarks.tables import language_table, report


def timings(training, replay=None):
    kinds = {"training": training} | ({} if replay is None else {"replay": replay})
    return {kind: {"median": median, "low": median, "high": median} for kind, median in kinds.items()}


def test_replays_of_cuda_graphs_have_their_own_table():
    shape = {"B": 128, "H": 64, "T": 500}
    milliseconds = {"triton": timings(0.5, 0.125), "eager": timings(60.0), "nn.RNN": timings(2.0, 1.5)}
    packed = {"nn.RNN, packed": timings(4.0)}
    text = report(
        {
            "T": 500, "V": 10_000, "dtype": "float32", "machine": "a GPU", "torch": "2.13",
            "shapes": [shape | {"milliseconds": milliseconds}],
            "imdb_lengths": [shape | {"milliseconds": milliseconds | packed}],
        }
    )  # fmt: skip
    assert "| 128, 64 | 0.500 (4.0x) | 60.0 (0.0x) | 2.0 |" in text
    assert "Forward and backward replayed as a CUDA graph, in milliseconds" in text
    assert "| B, H | `triton` | nn.RNN |" in text
    assert "| 128, 64 | 0.125 (12.0x) | 1.5 |" in text
    assert "0.500 ms (0.125 as a CUDA graph); `nn.RNN` takes 2.0 padded, 4.0 packed." in text


def test_language_models_have_a_table_with_memory():
    sizes = {"B": 32, "T": 64, "H": 512, "K": 1024}
    ours, peer = {"torch_rnn": timings(10.0)}, {"nn": timings(35.0)}
    sampled = {"torch_rnn, sampled": timings(5.0)}
    shapes = [
        sizes | {"V": 65, "milliseconds": ours | peer, "bytes": {"torch_rnn": 2**20, "nn": 2**21}},
        sizes | {"V": 10_000, "milliseconds": ours | sampled | peer, "bytes": {}},
    ]
    text = language_table({"language": shapes})
    assert "| V | torch_rnn | torch_rnn, sampled | `nn` |" in text
    assert "| 65 | 10.0 (3.5x), 1 MiB |  | 35.0, 2 MiB |" in text
    assert "| 10,000 | 10.0 (3.5x) | 5.0 (7.0x) | 35.0 |" in text
    assert "B = 32, T = 64, H = 512" in text

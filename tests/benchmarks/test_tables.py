"""The Markdown of a benchmark on a GPU, which has times of CUDA graphs too."""

from torch_rnn.benchmarks.tables import report


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

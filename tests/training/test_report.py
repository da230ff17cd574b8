"""The picture of the curves."""

import pytest

from torch_rnn.training import report


@pytest.mark.parametrize("norm", ["", "0.5"])
def test_only_the_gradient_norm_has_a_logarithmic_axis(tmp_path, monkeypatch, norm):
    from matplotlib import pyplot as plt

    scales = {}

    def note(*_):
        scales.update((axis.get_title(), axis.get_yscale()) for axis in plt.gcf().axes)

    monkeypatch.setattr(report, "write_atomically", note)
    metrics = tmp_path / "metrics.csv"
    metrics.write_text(f"step,train/accuracy,train/gradient_norm\n1,0.5,{norm}\n2,0.6,{norm}\n")
    report.draw_curves(metrics, tmp_path / "curves.png")
    measured = {"accuracy": "linear"} | ({"gradient norm, before clipping": "log"} if norm else {})
    assert scales == measured

"""Turns the contents of benchmark.json into a Markdown table and a picture."""

from pathlib import Path

from torch_rnn.files import write_atomically
from torch_rnn.ops import BACKENDS

PEER = "nn.RNN"


def report(results: dict) -> str:
    """Returns `table` followed by the times of real lengths and training steps, and the peak memory."""
    lines = [table(results)]
    if any("replay" in times for shape in results["shapes"] for times in shape["milliseconds"].values()):
        lines += [table(results, "replay")]
    lines += _packed_lines(results.get("imdb_lengths", []))
    lines += _step_lines(results.get("training_step", []))
    memory = results.get("peak_memory")
    if memory and memory["bytes"]:
        sizes = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in memory["bytes"].items())
        lines.append(f"Peak memory of such a pass at B = {memory['B']}, H = {memory['H']}: {sizes}.")
    if results.get("language"):
        lines += ["", language_table(results)]
    return "\n".join(lines).rstrip("\n") + "\n"


def table(results: dict, kind: str = "training") -> str:
    """Returns a Markdown table of median times and of how many times as long nn.RNN takes.

    kind is "training", or "replay" for the same passes as CUDA graphs.
    """
    names = [name for name, times in results["shapes"][0]["milliseconds"].items() if kind in times]
    replayed = " replayed as a CUDA graph," if kind == "replay" else ""
    lines = [
        f"Forward and backward{replayed} in milliseconds (median), T = {results['T']}, V = {results['V']:,}, "
        f"{results['dtype']}; in brackets",
        f"how many times as long `nn.Embedding` with `nn.RNN` takes. {results['machine']}, torch",
        f"{results['torch']}.",
        "",
        "| B, H | " + " | ".join(f"`{name}`" if name in BACKENDS else name for name in names) + " |",
        "|---|" + "---|" * len(names),
    ]
    for shape in results["shapes"]:
        medians = {
            name: times[kind]["median"] for name, times in shape["milliseconds"].items() if kind in times
        }
        cells = []
        for name in names:
            ratio = f" ({medians[PEER] / medians[name]:.1f}x)" if name != PEER and PEER in medians else ""
            cells.append(_rounded(medians[name]) + ratio if name in medians else "")
        lines.append(f"| {shape['B']}, {shape['H']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def language_table(results: dict) -> str:
    """Returns a Markdown table of a language model's step: time, relative to torch.nn, and peak memory."""
    shapes = results["language"]
    names = list(max((shape["milliseconds"] for shape in shapes), key=len))
    B, T, H, K = (shapes[0][name] for name in "BTHK")
    lines = [
        f"A language model: loss and all gradients in milliseconds (median), B = {B}, T = {T}, H = {H};",
        f"in brackets how many times as long `{names[-1]}` take; peak memory.",
        f"The sampled softmax has {K:,} negatives.",
        "",
        "| V | " + " | ".join(f"`{name}`" if name == names[-1] else name for name in names) + " |",
        "|---|" + "---|" * len(names),
    ]
    for shape in shapes:
        medians = {name: times["training"]["median"] for name, times in shape["milliseconds"].items()}
        cells = []
        for name in names:
            if name not in medians:
                cells.append("")
                continue
            ratio = f" ({medians[names[-1]] / medians[name]:.1f}x)" if name != names[-1] else ""
            size = shape["bytes"].get(name)
            cells.append(
                _rounded(medians[name]) + ratio + ("" if size is None else f", {size / 2**20:.0f} MiB")
            )
        lines.append(f"| {shape['V']:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _rounded(milliseconds: float) -> str:
    return f"{milliseconds:.1f}" if milliseconds >= 1 else f"{milliseconds:.3f}"


def _packed_lines(shapes: list[dict]) -> list[str]:
    lines = []
    for shape in shapes:
        medians = {name: times["training"]["median"] for name, times in shape["milliseconds"].items()}
        padded, packed = medians[PEER], medians[f"{PEER}, packed"]
        fastest = min((name for name in medians if name in BACKENDS), key=medians.get)
        replay = shape["milliseconds"][fastest].get("replay")
        replayed = f" ({_rounded(replay['median'])} as a CUDA graph)" if replay else ""
        lines.append(
            f"With the lengths of a batch of IMDB reviews (B = {shape['B']}, H = {shape['H']}, "
            f"T = {shape['T']}): {_rounded(medians[fastest])} ms{replayed}; `nn.RNN` takes "
            f"{_rounded(padded)} padded, {_rounded(packed)} packed.  "
        )
    return [*lines, ""] if lines else []


def _step_lines(shapes: list[dict]) -> list[str]:
    if not shapes:
        return []
    lines = [
        "A whole training step (lengths of 1 to T; forward, backward, clipping, fused Adam on all of Wxh):  "
    ]
    for shape in shapes:
        times = ", ".join(f"{ms['median']:.2f} ms {how}" for how, ms in shape["milliseconds"].items())
        lines.append(f"B = {shape['B']}, H = {shape['H']}: {times}.  ")
    return [*lines, ""]


def draw(results: dict, picture: Path) -> None:
    """Draws the speed relative to nn.RNN for each shape, and the time for each T."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (bars, lines) = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
    shapes, names = results["shapes"], [name for name in results["shapes"][0]["milliseconds"] if name != PEER]
    for i, name in enumerate(names):
        times = [shape["milliseconds"] for shape in shapes]
        ratios = [ms[PEER]["training"]["median"] / ms[name]["training"]["median"] for ms in times]
        width = 1 / (len(names) + 1)
        bars.bar([x + i * width for x in range(len(shapes))], ratios, width, label=name)
    bars.set_xticks(range(len(shapes)), [f"{s['B']}, {s['H']}" for s in shapes], rotation=60)
    bars.axhline(1, color="black", linewidth=0.8)
    bars.set(title="times as fast as nn.Embedding with nn.RNN", xlabel="B, H")
    bars.legend()
    for name in results["times"][0]["milliseconds"]:
        points = [(s["T"], s["milliseconds"][name]["training"]["median"]) for s in results["times"]]
        lines.loglog(*zip(*points, strict=True), marker=".", label=name)
    lines.set(title="forward and backward by T (B = 32, H = 32)", xlabel="T", ylabel="milliseconds")
    lines.grid(alpha=0.3)
    lines.legend()
    write_atomically(picture, lambda part: figure.savefig(part, format="png", dpi=120))
    plt.close(figure)


def replace_section(text: str, path: Path, mark: str) -> None:
    """Replaces the text between the lines <!-- mark --> and <!-- /mark --> of a Markdown file."""
    begin, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->\n"
    before, rest = path.read_text(encoding="utf-8").split(begin)
    after = rest.split(end)[1]
    new = f"{before}{begin}{text}{end}{after}"
    write_atomically(path, lambda part: part.write_text(new, encoding="utf-8"))

"""benchmark.json -> the README's table, and a picture."""

from pathlib import Path

from torch_rnn.files import write_atomically
from torch_rnn.ops import BACKENDS

PEER = "nn.RNN"


def table(found: dict) -> str:
    """The README's table: medians of forward with backward, and how many times as long nn.RNN takes."""
    names = list(found["shapes"][0]["milliseconds"])
    lines = [
        f"Forward and backward in milliseconds (median), T = {found['T']}, V = {found['V']:,}, "
        f"{found['dtype']}; in brackets",
        f"how many times as long `nn.Embedding` with `nn.RNN` takes. {found['machine']}, torch",
        f"{found['torch']}.",
        "",
        "| B, H | " + " | ".join(f"`{name}`" if name in BACKENDS else name for name in names) + " |",
        "|---|" + "---|" * len(names),
    ]
    for shape in found["shapes"]:
        peer = shape["milliseconds"][PEER]["training"]["median"]
        cells = []
        for name in names:
            median = shape["milliseconds"][name]["training"]["median"]
            cells.append(f"{median:.1f}" if name == PEER else f"{median:.1f} ({peer / median:.1f}x)")
        lines.append(f"| {shape['B']}, {shape['H']} | " + " | ".join(cells) + " |")
    lines += ["", *_of_lengths(found.get("imdb_lengths", [])), *_of_steps(found["training_step"])]
    if not found["peak_memory"]["bytes"]:
        return "\n".join(lines) + "\n"
    held = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in found["peak_memory"]["bytes"].items())
    B, H = found["peak_memory"]["B"], found["peak_memory"]["H"]
    lines.append(f"Memory that such a pass takes at its peak, at B = {B}, H = {H}: {held}.")
    return "\n".join(lines) + "\n"


def _of_lengths(shapes: list[dict]) -> list[str]:
    lines = []
    for shape in shapes:
        of = {name: times["training"]["median"] for name, times in shape["milliseconds"].items()}
        padded, packed = of[PEER], of[f"{PEER}, packed"]
        fused = min(milliseconds for name, milliseconds in of.items() if name in BACKENDS)
        lines.append(
            f"With the lengths of a batch of IMDB reviews (B = {shape['B']}, H = {shape['H']}, "
            f"T = {shape['T']}): {fused:.1f} ms; `nn.RNN` takes {padded:.1f} padded, {packed:.1f} packed.  "
        )
    return [*lines, ""] if lines else []


def _of_steps(shapes: list[dict]) -> list[str]:
    lines = [
        "A whole training step (lengths of 1 to T; forward, backward, clipping, fused Adam on all of Wxh):  "
    ]
    for shape in shapes:
        times = ", ".join(f"{ms['median']:.2f} ms {how}" for how, ms in shape["milliseconds"].items())
        lines.append(f"B = {shape['B']}, H = {shape['H']}: {times}.  ")
    return [*lines, ""]


def draw(found: dict, picture: Path) -> None:
    """How many times as fast as the peer by shape, and the time by T."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (bars, lines) = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
    shapes, names = found["shapes"], [name for name in found["shapes"][0]["milliseconds"] if name != PEER]
    for i, name in enumerate(names):
        of = [shape["milliseconds"] for shape in shapes]
        ratios = [one[PEER]["training"]["median"] / one[name]["training"]["median"] for one in of]
        bars.bar(
            [x + i / (len(names) + 1) for x in range(len(shapes))], ratios, 1 / (len(names) + 1), label=name
        )
    bars.set_xticks(range(len(shapes)), [f"{s['B']}, {s['H']}" for s in shapes], rotation=60)
    bars.axhline(1, color="black", linewidth=0.8)
    bars.set(title="times as fast as nn.Embedding with nn.RNN", xlabel="B, H")
    bars.legend()
    for name in found["times"][0]["milliseconds"]:
        points = [(s["T"], s["milliseconds"][name]["training"]["median"]) for s in found["times"]]
        lines.loglog(*zip(*points, strict=True), marker=".", label=name)
    lines.set(title="forward and backward by T (B = 32, H = 32)", xlabel="T", ylabel="milliseconds")
    lines.grid(alpha=0.3)
    lines.legend()
    write_atomically(picture, lambda part: figure.savefig(part, format="png", dpi=120))
    plt.close(figure)


def into_readme(text: str, readme: Path, mark: str) -> None:
    """Puts the text between <!-- mark --> and <!-- /mark -->."""
    begin, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->\n"
    before, rest = readme.read_text(encoding="utf-8").split(begin)
    after = rest.split(end)[1]
    new = f"{before}{begin}{text}{end}{after}"
    write_atomically(readme, lambda part: part.write_text(new, encoding="utf-8"))

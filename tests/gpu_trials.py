"""Trials of what only a GPU can show, which scripts/gpu_check.py runs one by one.

    python tests/gpu_trials.py NAME

A trial returns figures and problems. They are the last line that the command prints, as JSON; the exit status
is 1 if there are problems.
"""

import json
import logging
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

BACKENDS = ("cuda", "triton", "cudnn", "eager", "bptt")
BATCHES = ((300, 128), (1200, 128), (600, 64), (5000, 32))
"""B and H for which one block computes several sequences."""
AUTO = (
    *((H, torch.float32, False) for H in (32, 64, 128, 300)),
    (128, torch.float64, False),
    *((H, torch.float32, True) for H in (32, 64, 128, 300)),
)
"""Hidden size, dtype, and whether autocast with bfloat16 is on."""
SMALL = (4, 5, 16, True), (4, 5, 37, False), (3, 5, 128, True)
"""B, T, H and whether the input is ids: a warp, two warps with padding, and the largest block."""
Figures = dict[str, float | int | str]


def auto_trial(device: str = "cuda") -> tuple[Figures, list[str]]:
    """Checks that "auto" stands for the fastest backend that fits the device."""
    from torch_rnn.ops import auto, which
    from torch_rnn.ops.cuda_backend import why_not

    figures, problems, messages = {}, [], []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    log = logging.getLogger("torch_rnn.ops")  # its modules say why a backend is not used
    log.addHandler(handler)
    try:
        for H, dtype, bf16 in AUTO:
            messages.clear()
            kind = "bf16" if bf16 else str(dtype).removeprefix("torch.")
            first = auto.candidates(torch.cuda.get_device_capability(device), H, kind)[0]
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                chosen = figures[f"H = {H}, {kind}"] = which("auto", device, dtype, H)
            if chosen != first:
                absent = why_not(torch.device(device)) if first == "cuda" else ""
                reason = "; ".join(messages) or absent or f"{first} does not run here"
                problems.append(f"H = {H}, {kind}: auto is {chosen}, not {first}: {reason}")
    finally:
        log.removeHandler(handler)
    return figures, problems


def ladder_trial(backend: str, device: str = "cuda", shapes: int | None = None) -> tuple[Figures, list[str]]:
    """Runs the checks of tests/ladder.py with every dtype and nonlinearity of a backend on the device."""
    import ladder

    from torch_rnn.ops import FUSED_NONLINEARITIES, available
    from torch_rnn.ops.nonlinearities import NONLINEARITIES

    figures, problems = {}, []
    dtypes = [d for d in (torch.float32, torch.float64) if backend in available(device, d)]
    for dtype in dtypes:
        for i, shape in enumerate(ladder.SHAPES[:shapes]):
            rungs = {"rung 2": (ladder.rung_2, (backend, shape, "every", 3, dtype, device))}
            if backend != "eager":
                for f in FUSED_NONLINEARITIES.get(backend, NONLINEARITIES):
                    if f == "tanh" or i < 2:  # each has kernels of its own, which take seconds to compile
                        rungs[f"rung 3 {f}"] = (ladder.rung_3, (backend, shape, dtype, f, device))
                # Of one step of floats, dWhh has one number, on which eager in bfloat16 happens to be right.
                if dtype is torch.float32 and (shape.ids or shape.B * shape.T > 1):
                    rungs["bf16"] = (rung_3_in_bf16, (backend, shape, device))
            for name, (rung, arguments) in rungs.items():
                kind = "bf16" if name == "bf16" else str(dtype).removeprefix("torch.")
                key = f"{kind}, comparisons"
                figures[key] = figures.get(key, 0) + 1
                problems += problem(f"{backend}, {kind}, {name}, {shape}", rung, *arguments)
        for readout in ladder.READOUTS:
            where = f"{backend}, {dtype}, ten training steps, readout {readout}"
            problems += problem(where, ladder.rung_4, backend, readout, 3, dtype, device)
    if not dtypes:
        figures["note"] = f"{backend} does not run on this {device} device"
    return figures | {"failed": len(problems)}, problems


def rung_3_in_bf16(backend: str, shape: NamedTuple, device: str) -> None:
    """Does what rung_3 of tests/ladder.py does, under autocast with bfloat16."""
    import ladder

    from torch_rnn.testing import assert_parity, twice_the_error

    truth = ladder.states_and_gradients("eager", shape, torch.float64, "tanh", "cpu")
    with torch.autocast(device, torch.bfloat16):
        eager = ladder.states_and_gradients("eager", shape, torch.float32, "tanh", device)
        got = ladder.states_and_gradients(backend, shape, torch.float32, "tanh", device)
    for name, want in truth.items():
        assert_parity(name, got[name], want, torch.float32, twice_the_error(eager[name].float(), want))


def batches_trial(device: str = "cuda", batches: tuple = BATCHES) -> tuple[Figures, list[str]]:
    """Compares fused backends with eager: several sequences in a block, large ids, and one frequent id."""
    import ladder

    from torch_rnn.ops import available

    def with_a_frequent_id(shape, seed=0):
        x, lengths, h0 = inputs(shape, seed)
        x[::2, ::2] = shape.D - 1
        return x, lengths, h0

    backends = [name for name in available(device) if name not in ("eager", "bptt")]
    problems = [] if backends else ["no fused backend runs here"]
    inputs, ladder.inputs = ladder.inputs, with_a_frequent_id
    try:
        for B, H in batches:
            lengths = tuple(12 - b % 13 for b in range(B))
            shape = ladder.Shape(B, 12, 40_000, H, ids=True, lengths=lengths)
            for name in backends:
                where = f"{name}, B = {B}, H = {H}"
                problems += problem(where, ladder.rung_3, name, shape, torch.float32, "tanh", device)
                if name == "triton":
                    problems += problem(f"{where}, bf16", rung_3_in_bf16, name, shape, device)
    finally:
        ladder.inputs = inputs
    return {"backends": ", ".join(backends), "batches": len(batches), "failed": len(problems)}, problems


def reserve_trial(backend: str = "cudnn", device: str = "cuda") -> tuple[Figures, list[str]]:
    """Checks that cuDNN's reserve space survives a second backward pass and the capture of a CUDA graph.

    Also compares states without a gradient, for which cuDNN gets no reserve space.
    """
    from torch_rnn import RNN
    from torch_rnn.testing import assert_parity

    problems = []
    for is_ids in (True, False):
        rnn = RNN(9, 40, 2, backend=backend, device=device)
        parameters, lengths = list(rnn.parameters()), torch.tensor([20, 1, 0, 13, 20, 7], device=device)
        x = torch.randint(9, (6, 20), device=device) if is_ids else torch.randn(6, 20, 9, device=device)

        def run(x, rnn=rnn, parameters=parameters, lengths=lengths):
            y = rnn(x, lengths)
            loss = y.square().sum()
            return [y.detach(), *torch.autograd.grad(loss, parameters, retain_graph=True)], loss

        def compare(results, wanted):
            for got, want in zip(results, wanted, strict=True):
                assert_parity("logits or gradient", got, want.double(), torch.float32)

        def second_backward(x=x, run=run, parameters=parameters, compare=compare):
            (_, *first), loss = run(x)
            for _ in range(2):
                compare(torch.autograd.grad(loss, parameters, retain_graph=True), first)

        def inference(x=x, rnn=rnn, run=run, lengths=lengths, compare=compare):
            wanted = run(x)[0][:1]
            with torch.no_grad():
                compare([rnn(x, lengths)], wanted)

        def capture(x=x, run=run, compare=compare):
            wanted = run(x)[0]
            compare(replayed(lambda x: run(x)[0], x), wanted)

        for check in (second_backward, inference, capture):
            kind = "ids" if is_ids else "floats"
            problems += problem(f"{kind}, {check.__name__.replace('_', ' ')}", check)
    return {"comparisons": 6, "failed": len(problems)}, problems


def replayed(function: Callable, x: torch.Tensor) -> list[torch.Tensor]:
    """Captures function(buffer) as a CUDA graph, and returns its results after x is copied to the buffer."""
    buffer, side = x.flip(0).clone(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        function(buffer)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function(buffer)
    buffer.copy_(x)
    graph.replay()
    torch.cuda.synchronize()
    return results


def problem(where: str, function: Callable, *arguments: object) -> list[str]:
    """Returns what a function raises, as a list of at most one sentence."""
    try:
        function(*arguments)
    except Exception as error:  # after an error of CUDA, all later comparisons may fail too
        text = f"{where}: {type(error).__name__}: {''.join(str(error).splitlines()[:1])}"
        print(text, file=sys.stderr)
        return [text]
    return []


def small_trial(device: str = "cuda") -> tuple[Figures, list[str]]:
    """Runs forward and backward of this package's own kernels on small shapes, for compute-sanitizer."""
    import ladder

    from torch_rnn.ops import available

    backends = [name for name in available(device) if name not in ("eager", "bptt", "cudnn")]
    problems = [] if backends else ["none of this package's kernels runs here"]
    for backend in backends:
        for B, T, H, ids in SMALL:
            D = 40_000 if H == 128 else 6  # beyond 16 bits, ids are sorted as wider keys
            shape = ladder.Shape(B, T, D, H, ids, lengths=(T, 1, 0, 4)[:B])
            arguments = (backend, shape, torch.float32, "tanh", device)
            problems += problem(f"{backend}, {shape}", ladder.states_and_gradients, *arguments)
            with torch.autocast(device, torch.bfloat16):
                problems += problem(f"{backend}, bf16, {shape}", ladder.states_and_gradients, *arguments)
    return {"backends": ", ".join(backends)}, problems


def resume_trial() -> tuple[Figures, list[str]]:
    """Kills runs at random moments and resumes them to the same bits (tests/trials.py)."""
    import trials

    with tempfile.TemporaryDirectory() as work:
        found = trials.kills(Path(work), 3)
    return {"kills": found.tries}, found.failures


def shared_trial() -> tuple[Figures, list[str]]:
    """Trains the same model in two processes at once, which must end in the bits of a process alone."""
    import trials

    problems = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        trials.train(work / "alone", trials.SMALL)
        pair = [trials.start(work / folder, trials.SMALL, work / "log") for folder in ("first", "second")]
        for process, folder in zip(pair, ("first", "second"), strict=True):
            process.join()
            if process.exitcode:
                last = (work / "log").read_text(errors="replace").strip().splitlines()[-1:]
                problems.append(f"{folder} process: exit status {process.exitcode}: {''.join(last)}")
            else:
                problems += [
                    f"{folder} process: {text}" for text in trials.differences(work / folder, work / "alone")
                ]
    return {"processes": len(pair)}, problems


TRIALS = {
    "auto": auto_trial,
    **{f"ladder-{backend}": partial(ladder_trial, backend) for backend in BACKENDS},
    "batches": batches_trial,
    "reserve": reserve_trial,
    "small": small_trial,
    "resume": resume_trial,
    "shared": shared_trial,
}


def main() -> int:
    figures, problems = TRIALS[sys.argv[1]]()
    print(json.dumps({"figures": figures, "problems": problems}))
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())

"""Timing in turns, with a fake clock."""

from torch_rnn.benchmarks import timing


def test_calls_alternate_and_the_first_call_of_each_turn_is_not_timed(monkeypatch):
    calls, clock = [], [0.0]

    def slow():
        calls.append("slow")
        clock[0] += (
            9.0 if calls.count("slow") % 3 == 1 else 0.5 * calls.count("slow")
        )  # each turn's first: 9 s

    def quick():
        calls.append("quick")
        clock[0] += 0.001

    monkeypatch.setattr(timing, "_now", lambda: clock[0])
    timings = timing.in_turns({"slow": slow, "quick": quick}, turns=2, calls_a_turn=2)
    assert calls == (["slow"] * 3 + ["quick"] * 3) * 2
    assert timings["slow"] == (2000.0, 1000.0, 3000.0)  # the timed calls take 1.0, 1.5, 2.5 and 3.0 s
    assert round(timings["quick"].median, 6) == 1.0


def test_repeated_calls_are_timed_together_and_divided(monkeypatch):
    calls, clock = [], [0.0]

    def call():
        calls.append(1)
        clock[0] += 0.002 if len(calls) % 2 else 0.001

    monkeypatch.setattr(timing, "_now", lambda: clock[0])
    timings = timing.in_turns({"graph": call}, turns=2, calls_a_turn=2, repeats=10)
    assert len(calls) == 2 * (1 + 2 * 10)
    assert [round(milliseconds, 6) for milliseconds in timings["graph"]] == [1.5, 1.5, 1.5]

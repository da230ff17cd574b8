"""Timing in turns, with a clock of the test's own."""

from torch_rnn.benchmarks import timing


def test_calls_come_in_turns_and_the_first_of_each_is_not_counted(monkeypatch):
    seen, clock = [], [0.0]

    def slow():
        seen.append("slow")
        clock[0] += 9.0 if seen.count("slow") % 3 == 1 else 0.5 * seen.count("slow")  # each turn's first: 9 s

    def quick():
        seen.append("quick")
        clock[0] += 0.001

    monkeypatch.setattr(timing, "_now", lambda: clock[0])
    found = timing.in_turns({"slow": slow, "quick": quick}, turns=2, calls_a_turn=2)
    assert seen == (["slow"] * 3 + ["quick"] * 3) * 2
    assert found["slow"] == (2000.0, 1000.0, 3000.0)  # of 1.0, 1.5, 2.5 and 3.0 s
    assert round(found["quick"].median, 6) == 1.0

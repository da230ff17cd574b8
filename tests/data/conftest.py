"""Files of small made texts, where a test asks for them."""

import pytest
from teaching_trials import text_rows


@pytest.fixture
def files(tmp_path):
    """Files of labelled and of unlabelled texts; three of the latter are among the labelled ones."""
    from test_formats import write_table  # pytest must collect a test module before others import it

    train = text_rows(100, 1)
    write_table(tmp_path / "train.csv", train)
    write_table(tmp_path / "test.csv", text_rows(20, 2))
    more = [(f" {train[i][0].upper()} ", "?") for i in range(3)] + text_rows(30, 3)
    write_table(tmp_path / "more.csv", more)
    return tmp_path

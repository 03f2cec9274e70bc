"""Tables for people."""

from pipeline.commands.show import align


def test_the_cells_of_a_column_begin_at_one_place_and_no_line_ends_in_blanks():
    assert align([["model", "loss"], ["a", "0.5"], ["finetuned", ""]]) == ["model      loss", "a          0.5", "finetuned"]

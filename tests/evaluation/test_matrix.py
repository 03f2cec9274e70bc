"""The confusion matrix as a drawing, and the pairs that are mistaken."""

from pipeline.report.charts import Confusion, Number, Shade, lay_out, most_confused, read_counts

COUNTS = [[3, 1], [0, 2]]


def test_counts_are_read_with_their_classes():
    rows = [{"true/predicted": "ants", "ants": "3", "bees": "1"}, {"true/predicted": "bees", "ants": "0", "bees": "2"}]
    assert read_counts(rows) == (["ants", "bees"], COUNTS)


def test_cells_lie_in_the_row_of_the_truth_and_the_column_of_the_answer():
    drawing = lay_out(["a", "b"], COUNTS)
    # The gutter is one letter of 6.6 pixels and 12 more; The root of 1/4 is a half, that of 3/4 seventeen twentieths.
    assert drawing.shades == [
        Shade("mistake", 0.5, "M82 18h63v63h-63z"),
        Shade("right", 0.85, "M18 18h63v63h-63z"),
        Shade("right", 1.0, "M82 82h63v63h-63z"),
    ]


def test_cells_without_pictures_are_not_drawn():
    assert lay_out(["a", "b"], COUNTS).numbers == [
        Number(49.5, 49.5, 3, True),
        Number(113.5, 49.5, 1, False),
        Number(113.5, 113.5, 2, True),
    ]


def test_a_hundred_classes_have_small_cells_without_numbers():
    names = [f"a long name {number}" for number in range(100)]
    drawing = lay_out(names, [[int(row == column) for column in range(100)] for row in range(100)])
    assert (drawing.side, drawing.numbers, drawing.turned, drawing.size) == (15, [], True, int(14 * 6.6) + 12 + 1500 + 4)


def test_one_mistake_in_many_is_still_a_tenth_opaque():
    assert [shade.opacity for shade in lay_out(["a", "b"], [[999, 1], [0, 1]]).shades] == [0.1, 1.0]


def test_a_class_without_pictures_has_an_empty_row():
    assert len(lay_out(["a", "b"], [[0, 0], [0, 2]]).numbers) == 1


def test_a_long_name_is_cut():
    assert lay_out(["a" * 30, "b"], COUNTS).names == ["a" * 17 + "…", "b"]


def test_the_most_frequent_mistakes_come_first():
    assert most_confused(["a", "b", "c"], [[5, 1, 0], [1, 1, 0], [0, 3, 9]]) == [
        Confusion("c", "b", 3, 0.25),
        Confusion("b", "a", 1, 0.5),
        Confusion("a", "b", 1, 1 / 6),
    ]


def test_eight_pairs_are_named_at_the_most():
    assert len(most_confused([str(number) for number in range(10)], [[1] * 10] * 10)) == 8

"""Groups of the user: by a part of the path, or by a table."""

import hashlib

import pytest

from pipeline.core.errors import PipelineError
from pipeline.pictures.splits import GroupTable, read_groups

NAMES = ["a/p1_x.png", "a/p1_y.png", "b/p2.png", "b/other.png"]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The project's root."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def table(root):
    """Write a table at the project's root, and pin it."""

    def write(content, digest=None, name="groups.csv"):
        content = content if isinstance(content, bytes) else content.encode()
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
        return GroupTable(csv=name, digest=digest or hashlib.sha256(content).hexdigest())

    return write


def message_of(group, names=NAMES):
    with pytest.raises(PipelineError) as caught:
        read_groups(names, group)
    return str(caught.value)


def test_without_a_rule_nothing_is_grouped():
    assert read_groups(NAMES, None) == {}


@pytest.mark.parametrize("group", ["(", GroupTable(csv="missing.csv", digest=None)])
def test_without_pictures_no_rule_is_looked_at(group):
    assert read_groups([], group) == {}


def test_an_expression_names_the_group_in_the_path():
    assert read_groups(NAMES, r"p(\d+)") == {"a/p1_x.png": "1", "a/p1_y.png": "1", "b/p2.png": "2"}


def test_an_expression_may_take_a_folder():
    assert read_groups(NAMES, "^([^/]+)/") == {name: name[0] for name in NAMES}


def test_further_parentheses_may_group_without_a_number():
    assert read_groups(NAMES, r"(?:p|q)(\d)")["b/p2.png"] == "2"


@pytest.mark.parametrize("expression", [r"p(\d)_|other", r"/p?(\d*)_|other"])
def test_a_path_in_which_the_group_is_not_or_is_empty_has_none(expression):
    assert read_groups(NAMES, expression) == {"a/p1_x.png": "1", "a/p1_y.png": "1"}


@pytest.mark.parametrize(
    ("expression", "reason"),
    [("p(", "missing ), unterminated subpattern at position 1"), ("*", "nothing to repeat at position 0")],
)
def test_a_bad_expression_is_refused(expression, reason):
    assert message_of(expression) == f"params.yaml: split.group: {expression!r} is not a regular expression: {reason}"


@pytest.mark.parametrize(("expression", "count"), [(r"p\d", 0), (r"(p)(\d)", 2)])
def test_an_expression_needs_one_pair_of_parentheses(expression, count):
    assert message_of(expression) == (
        f"params.yaml: split.group: {expression!r} has {count} pairs of parentheses; put one around the group's name"
    )


@pytest.mark.parametrize("expression", ["z(x)", "(z*)"])
def test_an_expression_that_is_found_nowhere_is_refused(expression):
    assert message_of(expression) == (
        f"params.yaml: split.group: {expression!r} matches no path, such as 'a/p1_x.png'; correct it, or set null"
    )


def test_a_table_names_the_groups(table):
    assert read_groups(NAMES, table("image_id,group\na/p1_x.png,one\nb/p2.png,one\nb/other.png,two\n")) == {
        "a/p1_x.png": "one", "b/p2.png": "one", "b/other.png": "two",
    }  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("\ufeffimage_id,group\na/p1_x.png,1\n", id="a mark of Unicode in front"),
        pytest.param("image_id,group\r\na/p1_x.png,1\r\n", id="line ends of Windows"),
        pytest.param("group,note,image_id\n1,hello,a/p1_x.png\n", id="other columns in another order"),
        pytest.param("image_id,group\na/p1_x.png,1\na/p1_x.png,1\n", id="a row twice"),
        pytest.param("image_id,group\na/p1_x.png,1\nb/p2.png,\nb/other.png\n", id="a picture without a group"),
        pytest.param("image_id,group\na/p1_x.png,1\nno/such.png,2\n", id="a picture that is not there"),
        pytest.param('image_id,group\n"a/p1_x.png","1"\n\n', id="quotes and an empty line"),
    ],
)
def test_a_table_may_look_otherwise(content, table):
    assert read_groups(NAMES, table(content)) == {"a/p1_x.png": "1"}


def test_a_table_may_lie_in_a_folder(table):
    assert read_groups(NAMES, table("image_id,group\nb/p2.png,1\n", name="tables/of/groups.csv")) == {"b/p2.png": "1"}


def test_a_name_with_a_comma_and_a_line_break_is_found(table):
    assert read_groups(["a/1,\n2.png"], table('image_id,group\n"a/1,\n2.png",g\n')) == {"a/1,\n2.png": "g"}


def test_a_table_that_is_not_there_is_refused(root):
    assert message_of(GroupTable(csv="g.csv", digest=None)) == (
        "params.yaml: split.group.csv: 'g.csv' does not exist; name a CSV file with the columns image_id and group"
    )


def test_a_table_that_has_changed_is_refused(table):
    content = "image_id,group\nb/p2.png,1\n"
    assert message_of(table(content, "0" * 64)) == (
        f"params.yaml: split.group.digest: the sha256 of groups.csv is {hashlib.sha256(content.encode()).hexdigest()}, "
        f"not {'0' * 64}; if the table is right, set this digest"
    )


def test_a_table_that_is_not_pinned_is_refused(table):
    digest = table("x").digest
    assert message_of(GroupTable(csv="groups.csv", digest=None)) == (
        f"params.yaml: split.group.digest: the sha256 of groups.csv is {digest}, not None; if the table is right, set this digest"
    )


@pytest.mark.parametrize(
    "content",
    ["", "image_id,group\n", "image,group\nb/p2.png,1\n", "image_id\nb/p2.png\n", "image_id;group\nb/p2.png;1\n"],
)
def test_a_table_without_the_columns_is_refused(content, table):
    assert message_of(table(content)) == "groups.csv: has no rows with the columns image_id and group; add them"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"image_id,group\n\xff,1\n", "'utf-8' codec can't decode byte 0xff in position 15: invalid start byte"),
        (b'image_id,group\n"b/p2.png,1\n', "unexpected end of data"),
        (b"image_id,group\nb/p2.png," + b"x" * 140_000, "field larger than field limit (131072)"),
    ],
)
def test_what_is_no_table_is_refused(content, reason, table):
    assert message_of(table(content)) == f"groups.csv: is not a CSV file in UTF-8: {reason}"


def test_a_picture_in_two_groups_is_refused(table):
    found = message_of(table("image_id,group\nb/p2.png,1\nb/p2.png,2\n"))
    assert found == "groups.csv: 'b/p2.png' is in two groups, '1' and '2'; keep one"


@pytest.mark.parametrize("content", ["image_id,group\np2.png,1\n", "image_id,group\nb/p2.png,\n"])
def test_a_table_that_names_no_picture_is_refused(content, table):
    assert message_of(table(content)) == "groups.csv: contains no picture; image_id is the path in the archive, such as 'a/p1_x.png'"

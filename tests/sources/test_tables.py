"""Tables of labels: which picture a row means, and what is said of rows and pictures that do not fit."""

import pytest

from pipeline.core.errors import PipelineError
from pipeline.sources.layout import LABELS, read_labels
from pipeline.sources.tables import Table, label_pictures
from tests.archives import limits

PICTURES = ["train/1.jpg", "train/2.jpg", "train/3.jpg"]
TABLE = Table(table="labels.csv", image="file", label="breed")


def labelled(text, pictures=PICTURES, table=TABLE, folders="auto", **changed):
    """What the stage `split` reads of pictures and a table with this text, and the names of what is packed."""
    files = {**dict.fromkeys(pictures, bytes), "labels.csv": lambda: text.encode() if isinstance(text, str) else text}
    with label_pictures(files, table, "set", limits(**changed)) as found:
        assert sorted(found.members) == sorted([*pictures, LABELS])
        return read_labels(found.members[LABELS](), folders)


def labels(*arguments, **settings):
    return {entry.name: entry.label for entry in labelled(*arguments, **settings).layout.entries}


def message_of(*arguments, **settings):
    with pytest.raises(PipelineError) as caught:
        labelled(*arguments, **settings)
    return str(caught.value)


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


@pytest.mark.parametrize("first", ["train/1.jpg", "./train/1.jpg", "/train/1.jpg", "train\\1.jpg", "1.jpg", "1", "train/1"])
def test_a_row_names_a_picture_by_its_path_or_the_end_of_it_and_may_omit_the_suffix(first):
    assert labels(f"file,breed\n{first},cat\n2.jpg,dog\n") == {"train/1.jpg": "cat", "train/2.jpg": "dog"}


@pytest.mark.parametrize(
    "text", ["breed;file\ncat;1\ndog;2", "file\tbreed\r\n1\tcat\r\n2\tdog\r\n", '\ufeff file ,breed\n"1", cat\n\n2,dog\n']
)
def test_tables_come_with_other_separators_line_ends_and_spaces(text):
    assert labels(text) == {"train/1.jpg": "cat", "train/2.jpg": "dog"}


def test_a_suffix_decides_between_pictures_of_one_stem():
    assert labels("file,breed\n1.png,cat\n", ["a/1.jpg", "a/1.png"]) == {"a/1.png": "cat"}


def test_a_row_that_fits_several_pictures_is_refused():
    assert message_of("file,breed\n1.jpg,cat\n", ["a/1.jpg", "b/1.jpg"]) == (
        "set: labels.csv: '1.jpg' is the end of several paths: 'a/1.jpg', 'b/1.jpg'; write whole paths"
    )


def test_what_does_not_fit_is_named():
    found = labelled("file,breed\n1,cat\n1,cat\n2,cat\n2,dog\n4,dog\n5,\n", [*PICTURES, "5.jpg"])
    assert [entry.name for entry in found.layout.entries] == ["train/1.jpg"]
    assert sorted(found.faults) == [
        ("contradicted", "train/2.jpg", "listed 2 times in labels.csv, as 'cat' and 'dog'"),
        ("missing", "4", "in labels.csv, but not among the files"),
        ("repeated", "train/1.jpg", "listed 2 times in labels.csv, always the same"),
        ("unlabelled", "5.jpg", "without a label in labels.csv"),
        ("unlabelled", "train/3.jpg", "not in labels.csv"),
    ]


def test_what_does_not_fit_is_counted():
    files = {**dict.fromkeys(PICTURES, bytes), "labels.csv": lambda: b"file,breed\n1,cat\n1,cat\n2,cat\n2,dog\n4,dog\n"}
    with label_pictures(files, TABLE, "set", limits()) as found:
        assert found.counts == {"rows": 5, "labelled": 1, "missing": 1, "unlabelled": 1, "contradicted": 1, "repeated": 1}


@pytest.mark.parametrize(("column", "said"), [("split", "'train' and 'val'"), ("group", "'' and 'val'")])
def test_rows_of_one_picture_that_differ_in_split_or_group_contradict_each_other(column, said):
    first = said.split("'")[1]
    table = TABLE.model_copy(update={column: "extra"})
    assert labelled(f"file,breed,extra\n1,cat,{first}\n1,cat,val\n", table=table).faults[0] == (
        "contradicted", "train/1.jpg", f"listed 2 times in labels.csv, as {said}",
    )  # fmt: skip


def test_a_group_column_gives_groups():
    found = labelled("file,breed,dog\n1,cat,x\n2,cat,\n3,dog,x\n", table=TABLE.model_copy(update={"group": "dog"}))
    assert found.groups == {"train/1.jpg": "x", "train/3.jpg": "x"}


SPLIT = TABLE.model_copy(update={"split": "part"})


def folders_of(text, folders="auto"):
    found = labelled(f"file,breed,part\n{text}", table=SPLIT, folders=folders)
    return found.layout.folders, {entry.name[6]: entry.folder for entry in found.layout.entries}


def test_a_split_column_gives_splits():
    folders, entries = folders_of("1,cat,training\n2,cat,valid\n3,dog,\n")
    assert folders == {"training": "train", "valid": "val"}
    assert entries == {"1": "training", "2": "valid", "3": None}


def test_the_params_say_what_the_values_of_a_split_column_are():
    folders, entries = folders_of("1,cat,0\n2,cat,1\n3,dog,2\n", {"0": "test", "1": "train", "2": "unlabelled"})
    assert folders == {"0": "test", "1": "train"}
    assert entries == {"1": "0", "2": "1"}


def test_rows_of_a_split_that_is_left_out_are_named():
    found = labelled("file,breed,part\n1,cat,a\n2,cat,b\n3,cat,a\n", table=SPLIT, folders={"a": "train"})
    assert found.faults == [("spare", "train/2.jpg", "its split 'b' is left out according to split.folders")]


def test_the_params_can_ignore_a_split_column():
    assert folders_of("1,cat,0\n2,cat,1\n", "none") == ({}, {"1": None, "2": None})


def test_a_split_that_is_not_known_is_refused():
    assert message_of("file,breed,part\n1,cat,fold 1\n2,dog,train\n", table=SPLIT) == (
        "params.yaml: download.split: the column has 'fold 1', which name no split; "
        "set split.folders to what each of 'fold 1', 'train' is, or to none"
    )


def test_a_key_of_the_params_that_is_in_no_split_column_is_refused():
    assert message_of("file,breed\n1,cat\n", folders={"train": "train"}) == (
        "params.yaml: split.folders: 'train' is not in the split column; it has none"
    )


def test_a_picture_keeps_its_path_below_the_folder_of_all():
    found = labelled("file,breed\n1,cat\n2,dog\n", ["all/a/1.jpg", "all/b/2.jpg"])
    assert [entry.inner_path for entry in found.layout.entries] == ["a/1.jpg", "b/2.jpg"]


def test_several_tables_are_splits_by_their_names():
    files = {**dict.fromkeys(PICTURES, bytes), "train.csv": lambda: b"file,breed\n1,cat\n", "test.csv": lambda: b"file,breed\n2,cat\n"}
    with label_pictures(files, TABLE.model_copy(update={"table": "*.csv"}), "set", limits()) as found:
        layout = read_labels(found.members[LABELS](), "auto").layout
    assert {entry.name: entry.folder for entry in layout.entries} == {"train/1.jpg": "train", "train/2.jpg": "test"}


def test_a_label_with_a_slash_becomes_a_folder_and_is_named(capsys):
    assert labels("file,breed\n1,shirt / top\n2,coat\n") == {"train/1.jpg": "shirt _ top", "train/2.jpg": "coat"}
    assert capsys.readouterr().out == "set: labels.csv: the class 'shirt / top' is called 'shirt _ top', since it becomes a folder\n"


@pytest.mark.parametrize("label", ["..", ".cat", "ca\x01t", "c" * 256])
def test_a_label_that_no_folder_can_have_is_refused(label):
    assert "cannot be the name of a folder; rename it" in message_of(f"file,breed\n1,{label}\n")


def test_labels_that_differ_in_case_alone_are_refused():
    assert message_of("file,breed\n1,Cat\n2,cat\n") == (
        "set: labels.csv: the labels 'Cat' and 'cat' would be one folder on some systems; rename one"
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("file,race\n1,cat\n", "has no column 'breed'; its columns are 'file', 'race'; set download.label in params.yaml"),
        (
            "file,breed,breed\n1,cat,dog\n",
            "has 2 columns 'breed'; its columns are 'file', 'breed', 'breed'; set download.label in params.yaml",
        ),
        ("", "has no column 'file'; its columns are none; set download.image in params.yaml"),
        ("file,breed\n1,cat\n2\n", "line 3 has 1 cells, the first line 2; correct it"),
        ("file,breed\n1,cat\n,cat\n", "row 2 has no picture; correct it"),
        ('file,breed\n"1,cat\n', "is not a CSV file in UTF-8: unexpected end of data; save it as one"),
        (
            b"file,breed\n1,\xe9\n",
            "is not a CSV file in UTF-8: 'utf-8' codec can't decode byte 0xe9 in position 13: invalid continuation byte; save it as one",
        ),
        ("file,breed\n7,cat\n", "names none of the 3 pictures, but '7'; set download.image to the column with their paths"),
        ("file,breed\n", "names none of the 3 pictures; set download.image to the column with their paths"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(text, fault):
    assert message_of(text) == f"set: labels.csv: {fault}"


def test_more_rows_than_the_limits_allow_files_are_refused():
    assert message_of("file,breed\n1,cat\n2,dog\n3,cat\n", files=2) == (
        "set: contains more than 2 files; raise download.limits.files if this is intended"
    )


def test_a_table_that_is_not_there_is_refused():
    assert message_of("", table=TABLE.model_copy(update={"table": "label.csv"})) == (
        "params.yaml: download.table: 'label.csv' is no file of set; its tables are 'labels.csv'"
    )


def test_a_name_of_several_tables_is_refused():
    files = {"a/labels.csv": bytes, "b/labels.csv": bytes}
    with pytest.raises(PipelineError, match=r"names several files of set: 'a/labels\.csv', 'b/labels\.csv'; write a whole path"):
        label_pictures(files, TABLE, "set", limits()).__enter__()


def test_files_that_are_no_pictures_are_not_packed():
    files = {"1.jpg": bytes, "notes.txt": bytes, "labels.csv": lambda: b"file,breed\n1,cat\n"}
    with label_pictures(files, TABLE, "set", limits()) as found:
        assert sorted(found.members) == [LABELS, "1.jpg"]

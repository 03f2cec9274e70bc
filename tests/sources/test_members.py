"""Members of an archive: safe names, names that clash, and the errors of damaged archives."""

import errno

import pytest

from pipeline.core.errors import PipelineError
from pipeline.sources.members import ArchiveEntry, Budget, choose_members, damage_named, is_junk, name_fault, shown
from tests.archives import limits


def choose(*names):
    """The members of an archive of these names, of which those with a slash at the end are folders."""
    entries = [ArchiveEntry(name, name.endswith("/"), lambda: iter([b"x"])) for name in names]
    return list(choose_members(entries, Budget("pics", limits())))


def message_of(*names):
    with pytest.raises(PipelineError) as caught:
        choose(*names)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("../a", "leads out of the archive"),
        ("a/../../b", "leads out of the archive"),
        ("a/..", "leads out of the archive"),
        ("..", "leads out of the archive"),
        ("/etc/a", "has an absolute path"),
        ("//a", "has an absolute path"),
        ("C:/a", "has an absolute path"),
        ("c:a", "has an absolute path"),
        ("a\\b", "does not have a plain path as its name"),
        ("..\\a", "does not have a plain path as its name"),
        ("a\0b", "does not have a plain path as its name"),
        ("a//b", "does not have a plain path as its name"),
        ("a/./b", "does not have a plain path as its name"),
        ("a/", "does not have a plain path as its name"),
        ("", "does not have a plain path as its name"),
        (".", "does not have a plain path as its name"),
        ("a/\udce9", "has a name that is not UTF-8"),
        ("é" * 128, "has a name of more than 255 bytes in a part or 1000 in all"),
        ("a/" * 500 + "b", "has a name of more than 255 bytes in a part or 1000 in all"),
    ],
)
def test_an_unsafe_name_has_a_fault(name, fault):
    assert name_fault(name) == fault


@pytest.mark.parametrize("name", ["a", "é" * 127 + "a", "a/" * 499 + "ab", "...", "a..b", "ab:c", " ", "a\nb"])
def test_a_safe_name_has_no_fault(name):
    assert name_fault(name) is None


@pytest.mark.parametrize("name", ["./../a", "././a", ".//a", "././", ".//", "/", "a//"])
def test_a_leading_dot_and_a_slash_at_the_end_hide_nothing(name):
    assert message_of(name).endswith("; pack the archive again without it")


def test_a_leading_dot_is_no_part_of_a_name():
    assert choose("./", "./a/", "./a/1") == ["a/1"]


def test_junk_with_an_unsafe_name_is_refused_all_the_same():
    assert message_of("../.DS_Store") == "pics: member '../.DS_Store' leads out of the archive; pack the archive again without it"


def test_junk_that_is_there_twice_is_left_out():
    assert choose(".git/HEAD", ".git/head", ".git/HEAD", "a") == ["a"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (".a/b", True),
        ("a/.b", True),
        ("a/Thumbs.db", True),
        ("a/thumbs.DB", True),
        ("__MACOSX/a", True),
        ("cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", True),
        ("#recycle/cat/1.jpg", True),
        ("@Recycle/1.jpg", True),
        ("$RECYCLE.BIN/$R1.jpg", True),
        ("cat/1.jpg:Zone.Identifier", True),
        ("a.b", False),
        ("eaDir/1.jpg", False),
        ("recycle/@1.jpg", False),
        ("recycled/1.jpg", False),
    ],
)
def test_junk_is_known_by_its_name(name, expected):
    assert is_junk(name) is expected


def test_a_folder_may_be_there_twice():
    assert choose("a/", "a/1", "a/") == ["a/1"]


@pytest.mark.parametrize(
    ("names", "there", "here"),
    [
        (("a/X.png", "a/x.png"), "a/X.png", "a/x.png"),
        (("Cats/1.png", "cats/2.png"), "Cats", "cats"),
        (("Cats/", "cats/2.png"), "Cats", "cats"),
        (("a/b/1", "a/B/2"), "a/b", "a/B"),
        (("straße", "STRASSE"), "straße", "STRASSE"),
        (("\u00e9/1", "e\u0301/2"), "\u00e9", "e\u0301"),
        (("\u1fb4/1", "\u03b1\u0345\u0301/2"), "\u1fb4", "\u03b1\u0345\u0301"),  # equal before their case is folded alone
        (("\u01c4/1", "\u01c5/2"), "\u01c4", "\u01c5"),
        (("a", "A/1"), "a", "A"),
    ],
)
def test_names_that_meet_on_some_file_system_are_refused(names, there, here):
    expected = f"pics: {there!r} and {here!r} differ only by case or Unicode form; rename one and pack the archive again"
    assert message_of(*names) == expected


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a"), ("a", "a/"), ("a/", "a")])
def test_a_file_that_is_a_folder_too_is_refused(names):
    assert message_of(*names) == "pics: 'a' is both a file and a folder; rename one and pack the archive again"


def test_a_long_name_is_cut_in_messages():
    assert shown("a" * 101) == f"'{'a' * 100}'…"


def test_damage_of_many_lines_is_one_short_line():
    with pytest.raises(PipelineError) as caught, damage_named("pics"):
        raise EOFError("a\nb " * 200)
    assert str(caught.value) == f"pics: is damaged or not an archive: {'a b ' * 74}a …; download it again"


def test_damage_without_words_gets_some():
    with pytest.raises(PipelineError) as caught, damage_named("pics"):
        raise EOFError
    assert str(caught.value) == "pics: is damaged or not an archive: it ends too early; download it again"


def test_too_little_memory_is_told_as_such():
    with pytest.raises(PipelineError) as caught, damage_named("pics"):
        raise MemoryError
    assert str(caught.value) == "pics: needs more memory to unpack than there is; pack it again as a plain zip or tar"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_what_the_system_raises_is_no_damage(number):
    with pytest.raises(OSError, match="of the system"), damage_named("pics"):
        raise OSError(number, "of the system")


def test_a_fault_of_ours_is_no_damage():
    with pytest.raises(ValueError, match="of ours"), damage_named("pics"):
        raise ValueError("of ours")

"""The store: files by sha256 and alias, and partial downloads that a later process resumes."""

import json

import pytest

from pipeline.net.store import Partial, alias, forget, keep, stored

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # sha256 of "abc"
URL = "http://host/a"
NAME = "0dd9364bfabec3e9059c2cb90509be7753f200a0d6b2a628176414d02b0bd375"  # sha256 of the URL


@pytest.fixture
def abc(root, tmp_path):
    """A file in the store."""
    (tmp_path / "a").write_bytes(b"abc")
    return keep(tmp_path / "a", ABC)


def names(root):
    return sorted(path.name for path in (root / ".cache" / "store").iterdir())


def bring(content, validator='"1"'):
    with Partial(URL) as partial:
        partial.restart(validator)
        partial.append(content)


def facts():
    with Partial(URL) as partial:
        return partial.size, partial.validator


def note(root):
    return next((root / ".cache" / "store").glob("*.json"))


# Whole files


def test_what_was_kept_is_found_by_its_sum(root, abc):
    assert (abc, stored(ABC)) == (root / ".cache" / "store" / ABC, abc)


def test_what_was_kept_is_moved(tmp_path, abc):
    assert not (tmp_path / "a").exists()


def test_what_was_never_kept_is_not_found(root):
    assert stored(ABC) is None


def test_a_damaged_stored_file_is_removed(root, abc):
    abc.write_bytes(b"abd")
    assert (stored(ABC), names(root)) == (None, [])


def test_an_alias_leads_to_the_file(abc):
    alias("0" * 64, abc)
    assert stored("0" * 64) == abc


def test_a_forgotten_alias_leads_nowhere_and_the_file_stays(abc):
    alias("0" * 64, abc)
    forget("0" * 64)
    assert (stored("0" * 64), stored(ABC)) == (None, abc)


def test_an_alias_of_a_damaged_file_leads_nowhere(abc):
    alias("0" * 64, abc)
    abc.write_bytes(b"abd")
    assert stored("0" * 64) is None


def test_forgetting_what_is_not_there_is_no_fault(root):
    forget("0" * 64)
    assert names(root) == []


# What comes in


def test_a_url_without_a_partial_starts_with_nothing(root):
    assert facts() == (0, "")


def test_a_later_process_finds_the_bytes_and_their_validator(root):
    bring(b"ab")
    assert facts() == (2, '"1"')


def test_what_comes_in_is_named_by_the_sum_of_its_url(root):
    bring(b"ab")
    assert names(root) == [f"{NAME}.json", f"{NAME}.partial"]


def test_the_sum_of_what_a_process_found_goes_on(root):
    bring(b"ab")
    with Partial(URL) as partial:
        partial.append(b"c")
        assert partial.sha256 == ABC


def test_the_sum_by_another_algorithm_is_that_of_all_bytes_so_far(root):
    bring(b"ab")
    with Partial(URL) as partial:
        partial.append(b"c")
        assert partial.checksum("md5") == "900150983cd24fb0d6963f7d28e17f72"
        partial.append(b"d")
        assert (partial.checksum("sha256"), partial.size) == (partial.sha256, 4)


def test_what_is_whole_is_kept_and_nothing_else_left(root):
    with Partial(URL) as partial:
        partial.restart('"1"')
        partial.append(b"abc")
        assert partial.keep() == stored(ABC)
    assert names(root) == [ABC]


def test_bytes_without_a_validator_are_not_left(root):
    bring(b"ab", "")
    assert names(root) == []


def test_a_validator_without_bytes_is_not_left(root):
    bring(b"")
    assert names(root) == []


def test_beginning_again_leaves_no_byte_behind(root):
    with Partial(URL) as partial:
        partial.restart('"1"')
        partial.append(b"abcdef")
        partial.restart('"2"')
        partial.append(b"abc")
        assert partial.keep().read_bytes() == b"abc"


def test_beginning_again_without_a_validator_takes_the_old_one_away(root):
    bring(b"ab")
    with Partial(URL) as partial:
        partial.restart("")
        partial.append(b"x")
        assert not list((root / ".cache" / "store").glob("*.json"))


def test_discarding_leaves_nothing(root):
    bring(b"ab")
    with Partial(URL) as partial:
        partial.discard()
    assert names(root) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "3",
        "[]",
        "{}",
        b"\xff",
        '{"validator": 1}',
        '{"validator": "x"}',
        '{"validator": "W/\\"1\\""}',
        '{"validator": "\\"1\\"\\r\\nEvil: 1"}',
        json.dumps({"validator": f'"{"x" * 201}"'}),
    ],
)
def test_bytes_beside_a_broken_note_are_not_gone_on_with(root, text):
    bring(b"ab")
    note(root).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert facts() == (0, "")


def test_bytes_without_their_note_are_not_gone_on_with(root):
    bring(b"ab")
    note(root).unlink()
    assert facts() == (0, "")


@pytest.mark.parametrize("validator", ['""', '"5f-a:b"', "Sun, 22 Nov 2026 10:00:00 GMT"])
def test_an_etag_and_a_date_are_taken_back_as_they_were(root, validator):
    bring(b"ab", validator)
    assert facts() == (2, validator)

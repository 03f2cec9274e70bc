"""The table of trials: rows of the same versions are kept, in the order of the catalogues; a failure is a row too."""

import subprocess
from types import SimpleNamespace

import pytest
import timm

from bench import zoo

ROW = ["resnet18", "11,689,512", "64", "512", "fc", *["yes"] * 6]


@pytest.fixture(autouse=True)
def table(tmp_path, monkeypatch):
    """A table in a folder of its own."""
    monkeypatch.setattr(zoo, "TABLE", tmp_path / "zoo.md")
    return tmp_path / "zoo.md"


def test_rows_come_back_in_the_order_of_the_catalogues(table):
    rows = {"timm/b": ["timm/b", *ROW[1:]], "resnet18": ROW}
    zoo.write_rows(rows, ["resnet18", "timm/b"])
    assert zoo.read_rows() == rows
    assert list(zoo.read_rows()) == ["resnet18", "timm/b"]


def test_rows_of_other_versions_are_dropped(table, monkeypatch):
    zoo.write_rows({"resnet18": ROW}, [])
    monkeypatch.setattr(zoo, "version", lambda _: "0.0")
    assert zoo.read_rows() == {}


def test_what_took_too_long_has_a_row(monkeypatch):
    def run(*_, **options):
        raise subprocess.TimeoutExpired("python", options["timeout"])

    monkeypatch.setattr(zoo.subprocess, "run", run)
    assert zoo.try_apart("resnet18") == ["resnet18", "-", "-", "-", "-", f"took more than {zoo.SECONDS} s", *["-"] * 5]


def test_what_crashed_has_a_row(monkeypatch):
    ended = SimpleNamespace(returncode=-9, stderr="", stdout="")
    monkeypatch.setattr(zoo.subprocess, "run", lambda *_, **__: ended)
    assert zoo.try_apart("resnet18")[5] == "ended with -9: no message"


@pytest.fixture
def kept():
    """The lines of the table that is kept in docs/."""
    return (zoo.ROOT / "docs" / "zoo.md").read_text(encoding="utf-8").splitlines()


def test_every_row_of_the_kept_table_has_all_columns(kept):
    assert {line.count("|") for line in kept if line.startswith("|")} == {len(zoo.COLUMNS) + 1}


def test_the_kept_table_has_the_lines_above_its_rows_by_which_it_is_known(kept):
    differing = [line for line, wanted in zip(kept, zoo.head_of_table(), strict=False) if line != wanted]
    assert all(line.startswith("Versions: ") for line in differing)


def test_each_network_of_torchvision_and_each_family_of_timm_has_a_row(kept):
    rows = {line.split("|")[1].strip() for line in kept if line.startswith("|")}
    assert set(zoo.zoo.torchvision_names()) <= rows
    families = {family: map(zoo.qualified, timm.list_models(module=family)) for family in timm.list_modules()}
    assert [family for family, names in families.items() if rows.isdisjoint(names)] == []

"""README and docs: the README is short, and every link, command, param and room that they name exists."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.__main__ import main
from pipeline.core.params import parse_yaml
from pipeline.sources.tables import Table
from tests.conftest import ROOT

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "CHANGELOG.md"]
PARAMS: dict[str, Any] = parse_yaml((ROOT / "params.yaml").read_text(encoding="utf-8"))
PARAMS["download"] |= Table().model_dump()  # optional keys, of which params.yaml has a comment
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
COMMAND = re.compile(r"(?<![\w/-])(?<!from )(?:\.venv/bin/)?pipeline +(data \w+|[a-z][a-z-]*)([^|;&>`\n]*)")
LINK = re.compile(r'\]\(([^)\s]+)\)|<img src="([^"]+)"')


def code_in(page: Path) -> list[str]:
    """The code spans of a page, and the lines of its code blocks without those that a command printed."""
    text = page.read_text(encoding="utf-8")
    lines = [line for language, block in BLOCK.findall(text) for line in _typed(language, block.splitlines())]
    return [*lines, *SPAN.findall(BLOCK.sub("", text))]


def _typed(language: str, lines: list[str]) -> list[str]:
    prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return prompted if language == "console" and prompted else lines


def anchors_of(page: Path) -> set[str]:
    """The headings of a page as GitHub links to them."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


LINKS = {
    page: [first or second for first, second in LINK.findall(page.read_text(encoding="utf-8")) if not re.match(r"https?:", first or second)]
    for page in PAGES
}
OPTIONS: dict[str, set[str]] = {}  # by command
for name, rest in (command for page in PAGES for code in code_in(page) for command in COMMAND.findall(code)):
    OPTIONS.setdefault(name, set()).update(re.findall(r"(?<!\S)-\w\b|(?<!\S)--[\w-]+", rest))
NAMED_PARAMS = {
    span.partition(":")[0]
    for page in PAGES
    for span in code_in(page)
    if re.match(r"[a-z_]+(\.[a-z0-9_]+)+($|: )", span) and span.partition(".")[0] in PARAMS
}
YAML_BLOCKS = [block for page in PAGES for language, block in BLOCK.findall(page.read_text(encoding="utf-8")) if language == "yaml"]


def test_the_readme_has_at_most_150_lines_of_120_characters_and_1200_words():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1200
    assert [line for line in text.splitlines() if len(line) > 120] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_relative_link_leads_to_a_file_and_a_heading(page):
    for link in LINKS[page]:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors_of(target), link


def test_the_readme_links_to_every_page():
    linked = {README.parent / link.partition("#")[0] for link in LINKS[README]}
    assert set(ROOT.glob("docs/*.md")) - linked == set()


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_a_named_command_and_its_options_exist(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*name.split(), "--help"])
    assert ended.value.code == 0
    assert OPTIONS[name] - set(re.findall(r"--?[\w-]+", capsys.readouterr().out)) == set()


def test_the_readme_names_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = set(re.findall(r"^  ([a-z][a-z-]*)", capsys.readouterr().out, re.MULTILINE))
    assert commands
    assert commands - {name.split()[0] for code in code_in(README) for name, _ in COMMAND.findall(code)} == set()


def test_the_readme_names_every_room():
    rooms = {f"pipeline/{path.name}" for path in (ROOT / "pipeline").iterdir() if any(path.glob("*.py"))}
    assert rooms == set(re.findall(r"^pipeline/\w+", README.read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("name", sorted(NAMED_PARAMS))
def test_a_named_param_exists(name):
    value: Any = PARAMS
    for key in name.split("."):
        assert key in value
        value = value[key]


@pytest.mark.parametrize("block", YAML_BLOCKS, ids=lambda block: block.partition(":")[0])
def test_the_params_of_an_example_exist(block):
    for section, entries in parse_yaml(block).items():
        if section == "models":
            assert {key for entry in entries.values() for key in entry} <= {"regime", *PARAMS["recipe"]}
        else:
            assert set(entries) <= set(PARAMS[section])


def test_the_page_on_training_explains_every_key_of_the_recipe():
    text = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.+?) \|", text.partition("## Recipe")[2], re.MULTILINE)
    assert {key for row in rows for key in SPAN.findall(row)} == set(PARAMS["recipe"])


def test_the_page_on_data_quotes_the_measured_recall_of_near_duplicates():
    measured = json.loads((ROOT / "bench/duplicates.json").read_text(encoding="utf-8"))
    rows = [f"| {change} | {100 * share:.1f} % |" for change, share in measured["recall"].items()]
    text = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    assert [row for row in rows if row not in text] == []
    assert f"Of {measured['pairs_of_different_photographs']:,} pairs of different photographs, none" in text
    assert measured["linked_photographs"] == {}

"""params.yaml: read as DVC reads it, and every fault named in one whole line."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from dvc.utils.serialize import parse_yaml as read_as_dvc
from pydantic import Field

from pipeline.core.errors import PipelineError
from pipeline.core.params import parse_yaml, read_params
from pipeline.core.sections import Section, read_section
from pipeline.stages.download import Params as Download
from pipeline.stages.split import Params as Split

TOP_LEVEL = (
    "seed, threads, processes, false_alarm_rate, download, split, backbone, embed, train_baseline, recipe, models, tune, evaluate, gate"
)

SCALARS = (
    "1e-3 1E5 1.e3 3.0e-4 1.5e+3 1.5e3 12e03 -1e3 .5 -.5 +.5 .5e3 .5e+3 1. 1e 0e0 09.5 1_0.5 1.5_0 1_0e3 1e3_0 .e3 +.e1 1.2.3 1,000 "
    "010 -010 +010 08 00 0 -0 +7 0777 0o17 +0o17 0o8 0o 0O7 0x1F -0x1F 0x 0xG 0X1f 0b101 -0b11 0b 0B1 1_000 1__0 1_ _1 0_1 "
    "on off yes no y n On YES true True TRUE tRUE false False FALSE ~ null Null NULL nULL .inf -.inf +.inf .Inf inf .nan nan "
    "1:30 190:20:30 1:30.5 '1' 'true' . a#b a"
)


class Embed(Section):
    count: int
    share: float
    title: str
    is_on: bool
    grid: list[float]
    level: Annotated[int, Field(ge=1, le=5)]
    rate: Annotated[float, Field(gt=0)]
    regime: Literal["linear", "finetuned"]


class Seeded(Section):
    seed: int
    count: int


GOOD = {"count": "1", "share": "0.5", "title": "a", "is_on": "true", "grid": "[1.0]", "level": "1", "rate": "0.1", "regime": "linear"}


def write(text):
    Path("params.yaml").write_text(text, encoding="utf-8")


def embed(**changed):
    return "embed: {" + ", ".join(f"{key}: {value}" for key, value in {**GOOD, **changed}.items()) + "}\n"


def message_of(name, section_class):
    with pytest.raises(PipelineError) as caught:
        read_section(name, section_class)
    return str(caught.value)


@pytest.fixture(autouse=True)
def inside_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("scalar", SCALARS.split())
def test_a_scalar_means_what_it_means_to_dvc(scalar):
    document = f"a: {scalar}\n"
    expected = read_as_dvc(document, "params.yaml")["a"]
    found = parse_yaml(document)["a"]
    assert (type(found), repr(found)) == (type(expected), repr(expected))


@pytest.mark.parametrize(
    "document", ["a:\n", "a: !!str 3\n", "a: !!int 12\n", "a: !!float 3\n", "a: &x {b: 1}\nc: {<<: *x, d: 010}\n", "1e-3: on\n"]
)
def test_a_document_means_what_it_means_to_dvc(document):
    assert repr(parse_yaml(document)) == repr(read_as_dvc(document, "params.yaml"))


def test_a_date_stays_text():
    assert parse_yaml("a: 2026-11-26") == {"a": "2026-11-26"}


@pytest.mark.parametrize(("text", "line"), [("a: 1\nb: [", 2), ("a: {b: 1}\na: 2", 2), ("a: 1\nb: !foo 2", 2), ("a: 1\n---\nb: 1", 2)])
def test_a_fault_of_a_document_names_its_line(text, line):
    with pytest.raises(ValueError, match=rf"^line {line}: "):
        parse_yaml(text)


@pytest.mark.parametrize("text", ["a: \x00", "a: !!int\n", "a: {? {b: 1} : 2}", "a: !!int b"])
def test_what_yaml_cannot_be_built_from_is_a_fault(text):
    with pytest.raises(ValueError):
        parse_yaml(text)


def test_the_rate_of_yaml_1_2_is_a_number():
    assert parse_yaml("a: 1e-3") == {"a": 0.001}


def test_a_section_arrives_as_its_class():
    write(embed())
    section = read_section("embed", Embed)
    assert (section.count, section.share, section.title, section.is_on, section.grid) == (1, 0.5, "a", True, [1.0])


def test_a_dotted_name_leads_to_a_section_below():
    write("seed: 3\nrecipe: {}\nmodels:\n  linear: {count: 7}\n")
    assert read_section("models.linear", Seeded) == Seeded(seed=3, count=7)


@pytest.mark.parametrize(("entry", "count"), [("{}", 5), ("{count: 7}", 7)])
def test_what_an_entry_of_models_leaves_open_the_recipe_says(entry, count):
    write(f"seed: 3\nrecipe: {{count: 5}}\nmodels:\n  linear: {entry}\n")
    assert read_section("models.linear", Seeded) == Seeded(seed=3, count=count)


@pytest.mark.parametrize(
    ("recipe", "entry", "fault"),
    [
        ("{count: a}", "{}", "recipe.count: 'a' is not a whole number"),
        ("{count: 1}", "{count: a}", "models.linear.count: 'a' is not a whole number"),
        ("{count: 1}", "{cont: 1}", "models.linear.cont: unknown key; did you mean 'count'?"),
        ("{cont: 1}", "{count: 1}", "recipe.cont: unknown key; did you mean 'count'?"),
        ("{}", "{}", "recipe.count: is missing"),
        ("{seed: 1}", "{count: 1}", "recipe.seed: belongs at the top level; move it there"),
    ],
)
def test_a_fault_is_named_where_it_stands(recipe, entry, fault):
    write(f"seed: 3\nrecipe: {recipe}\nmodels:\n  linear: {entry}\n")
    assert message_of("models.linear", Seeded) == f"params.yaml: {fault}"


def test_without_a_recipe_there_is_no_model():
    write("seed: 3\nmodels:\n  linear: {count: 7}\n")
    assert message_of("models.linear", Seeded) == "params.yaml: recipe: is missing"


def test_the_seed_comes_from_the_top_level():
    write("seed: 5\nembed: {count: 1}\n")
    assert read_section("embed", Seeded).seed == 5


class OwnSeed(Section):
    overridable = ("seed",)

    seed: Annotated[int, Field(ge=0)]
    threads: int
    count: int


@pytest.mark.parametrize(("own", "seed"), [("", 5), ("seed: null, ", 5), ("seed: 7, ", 7), ("seed: 0, ", 0)])
def test_a_section_may_set_a_shared_key_that_it_declares_and_null_is_the_top_level_value(own, seed):
    write(f"seed: 5\nthreads: 2\nembed: {{{own}count: 1}}\n")
    assert read_section("embed", OwnSeed) == OwnSeed(seed=seed, threads=2, count=1)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("seed: 5\nthreads: 2\nembed: {seed: one, count: 1}\n", "embed.seed: 'one' is not a whole number"),
        ("seed: 5\nthreads: 2\nembed: {seed: -1, count: 1}\n", "embed.seed: -1 is not at least 0"),
        ("seed: -1\nthreads: 2\nembed: {seed: null, count: 1}\n", "seed: -1 is not at least 0"),
        ("threads: 2\nembed: {seed: null, count: 1}\n", "seed: is missing"),
        ("seed: 5\nthreads: 2\nembed: {threads: 1, count: 1}\n", "embed.threads: belongs at the top level; move it there"),
    ],
)
def test_a_fault_of_a_shared_key_is_named_where_it_stands(text, fault):
    write(text)
    assert message_of("embed", OwnSeed) == f"params.yaml: {fault}"


def test_the_split_may_have_a_seed_of_its_own():
    write("seed: 5\nsplit: {seed: 7, val: 0.1, test: 0.1, folders: auto, group: null, similarity: null, folders_up_to: 9, leak: repair}\n")
    assert read_section("split", Split).seed == 7


def test_a_section_cannot_be_changed():
    section = Seeded(seed=1, count=2)
    with pytest.raises(ValueError, match="frozen"):
        section.count = 3


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"counts": "1"}, "embed.counts: unknown key; did you mean 'count'?"),
        ({"zzz": "1"}, "embed.zzz: unknown key; known are count, share, title, is_on, grid, level, rate, regime"),
        ({"count": "1.0"}, "embed.count: 1.0 is not a whole number"),
        ({"count": "many"}, "embed.count: 'many' is not a whole number"),
        ({"count": "true"}, "embed.count: true is not a whole number"),
        ({"share": "half"}, "embed.share: 'half' is not a number"),
        ({"share": "true"}, "embed.share: true is not a number"),
        ({"title": "1"}, "embed.title: 1 is not a text"),
        ({"is_on": "1"}, "embed.is_on: 1 is not true or false"),
        ({"is_on": "yes"}, "embed.is_on: 'yes' is not true or false"),
        ({"grid": "1.0"}, "embed.grid: 1.0 is not a list"),
        ({"grid": "[1.0, a]"}, "embed.grid.1: 'a' is not a number"),
        ({"level": "0"}, "embed.level: 0 is not at least 1"),
        ({"level": "6"}, "embed.level: 6 is not at most 5"),
        ({"rate": "0"}, "embed.rate: 0 is not above 0"),
        ({"regime": "both"}, "embed.regime: 'both' is not 'linear' or 'finetuned'"),
    ],
)
def test_a_wrong_value_is_named_in_one_line(changed, fault):
    write(embed(**changed))
    assert message_of("embed", Embed) == f"params.yaml: {fault}"


@pytest.mark.parametrize(
    ("val", "test", "fault"),
    [
        ("0.1", "1.4", "split.test: 1.4 is not below 1"),
        ("0.1", "1", "split.test: 1 is not below 1"),
        ("0", "0.1", "split.val: 0 is not above 0"),
        ("[0.1]", "0.1", "split.val: [0.1] is not a number"),
    ],
)
def test_a_share_out_of_range_is_named(val, test, fault):
    write(f"seed: 0\nsplit: {{val: {val}, test: {test}}}\n")
    assert message_of("split", Split) == f"params.yaml: {fault}"


def test_a_misspelt_key_is_named_with_the_nearest_known_one():
    write("seed: 0\nsplit: {vall: 0.1, test: 0.1}\n")
    assert message_of("split", Split) == "params.yaml: split.vall: unknown key; did you mean 'val'?"


@pytest.mark.parametrize(
    ("group", "fault"),
    [
        ("{csv: a.csv}", "split.group.digest: is missing"),
        ("{csv: a.csv, digest: null, digset: b}", "split.group.digset: unknown key; did you mean 'digest'?"),
        ("{csv: 3, digest: null}", "split.group.csv: 3 is not a text"),
        ("3", "split.group: 3 is not a text"),
    ],
)
def test_a_fault_in_a_table_that_may_also_be_a_text_is_named_where_it_is(group, fault):
    write(f"seed: 0\nsplit: {{val: 0.1, test: 0.1, folders: auto, group: {group}, similarity: null, folders_up_to: 9, leak: repair}}\n")
    assert message_of("split", Split) == f"params.yaml: {fault}"


def test_a_misspelt_key_of_an_inner_section_is_named_with_its_neighbours():
    limits = "{fetch_gigabytes: 1, fetch_hours: 1, file: 1, gigabytes: 1, ratio: 1}"
    write(f"download: {{source: a, digest: null, url_mirrors: [], encoding: null, limits: {limits}}}\n")
    assert message_of("download", Download) == "params.yaml: download.limits.file: unknown key; did you mean 'files'?"


def test_a_number_among_the_mirrors_is_named_by_its_place():
    write("download: {source: a, digest: null, url_mirrors: [a, 1]}\n")
    assert message_of("download", Download) == "params.yaml: download.url_mirrors.1: 1 is not a text"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("emb: {}\n", "emb: unknown key; did you mean 'embed'?"),
        ("zzzzz: {}\n", f"zzzzz: unknown key; known are {TOP_LEVEL}"),
        ("1: {}\n", f"1: unknown key; known are {TOP_LEVEL}"),
        ("split: {}\n", "embed: is missing"),
        ("embed: 3\n", "embed: 3 is not a set of keys"),
        ("embed: [1]\n", "embed: [1] is not a set of keys"),
        ("", "contains no keys"),
        ("- 1\n", "contains no keys"),
        ("seed: 0\nembed: {}\n", "embed.count: is missing"),
        ("embed: {count: 1}\n", "seed: is missing"),
        ("seed: one\nembed: {count: 1}\n", "seed: 'one' is not a whole number"),
        ("seed: 0\nembed: {count: 1, seed: 2}\n", "embed.seed: belongs at the top level; move it there"),
        ("threads: 0\nembed: {count: 1, threads: 2}\n", "embed.threads: belongs at the top level; move it there"),
        ("embed: [1\n", "is not YAML: line 2: expected ',' or ']', but got '<stream end>'"),
    ],
)
def test_a_fault_of_the_file_is_named_in_one_line(text, fault):
    write(text)
    assert message_of("embed", Seeded) == f"params.yaml: {fault}"


def test_a_missing_section_below_another_is_named_in_full():
    write("models: {finetuned: {}}\n")
    assert message_of("models.linear", Seeded) == "params.yaml: models.linear: is missing"


def test_no_file_says_where_to_run():
    assert message_of("embed", Seeded) == "params.yaml: does not exist; run in the project's root"


def test_a_key_that_is_there_twice_is_refused_as_dvc_refuses_it():
    write("seed: 0\nembed: {count: 1, count: 2}\n")
    fault = message_of("embed", Seeded)
    assert fault.startswith("params.yaml: is not YAML: line 2: ")
    assert "count" in fault


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "params.yaml").write_bytes(b"seed: \xff\n")
    with pytest.raises(PipelineError) as caught:
        read_params()
    assert str(caught.value).startswith("params.yaml: is not YAML: ")


# Names of entries


STRANGE = [
    "lr0.5",
    "my model",
    "7",
    "on",
    "No",
    "a/b",
    "../data",
    "a@b",
    "'a;touch HACKED'",
    "'$(id)'",
    "'-rf'",
    "é",
    "''",
    "null",
    "a" * 65,
]


@pytest.mark.parametrize("name", [*STRANGE, "a" * 65])
def test_a_name_of_an_entry_that_is_no_plain_word_is_refused_with_the_cure(tmp_path, name):
    (tmp_path / "params.yaml").write_text(f"models:\n  {name}: {{regime: frozen}}\n")
    with pytest.raises(PipelineError, match=r"^params\.yaml: models: .* cannot be a name; use letters, .* with a letter$"):
        read_params()


@pytest.mark.parametrize("name", ["baseline", "Backbone", "comparison", "champion"])
def test_a_name_that_the_pipeline_uses_itself_is_refused(tmp_path, name):
    (tmp_path / "params.yaml").write_text(f"models: {{{name}: {{regime: frozen}}}}\n")
    with pytest.raises(PipelineError, match=rf"^params\.yaml: models\.{name}: the pipeline uses this name itself; choose another$"):
        read_params()


def test_names_that_differ_in_case_alone_are_refused(tmp_path):
    (tmp_path / "params.yaml").write_text("models: {wide: {regime: frozen}, Wide: {regime: scratch}}\n")
    with pytest.raises(PipelineError, match=r"^params\.yaml: models\.Wide: differs from wide in case alone, "):
        read_params()


def test_models_that_are_no_set_of_keys_are_refused(tmp_path):
    (tmp_path / "params.yaml").write_text("models: [finetuned]\n")
    with pytest.raises(PipelineError, match=r"^params\.yaml: models: \['finetuned'\] is not a set of keys$"):
        read_params()


@pytest.mark.parametrize(("text", "key"), [("seed: 4294967296", "seed"), ("split: {seed: 99999999999999999999}", "split.seed")])
def test_a_seed_that_numpy_does_not_take_is_refused(tmp_path, text, key):
    (tmp_path / "params.yaml").write_text(f"{text}\n")
    with pytest.raises(PipelineError, match=rf"^params\.yaml: {key}: \d+ is above 4294967295; choose a smaller one$"):
        read_params()

"""`pipeline store`: what refers to each stored file, and that --trim removes nothing which a stage needs or another process uses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.commands.storage import find_references, referring, trim
from pipeline.core.errors import PipelineError
from pipeline.core.files import process_space, sha256_of
from pipeline.net.store import Partial, alias, keep, list_items, remember, stored
from pipeline.networks import weights, zoo
from pipeline.sources.source import NAMED

URL, MIRROR = "https://data.example/pictures.zip", "https://copies.example/pictures.zip"
LIMITS = "{fetch_gigabytes: 1, fetch_hours: 1, files: 10, gigabytes: 1, ratio: 10}"


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """A project that needs nothing from the store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    write_params()
    return tmp_path


def write_params(source="pictures", digest="null", mirrors=(), backbone="{name: test_resnet, weights: none, digest: null}"):
    lines = f"source: {source}, digest: {digest}, url_mirrors: {json.dumps(list(mirrors))}, limits: {LIMITS}"
    Path("params.yaml").write_text(f"seed: 0\ndownload: {{{lines}}}\nbackbone: {backbone}\n")


def fetched(content):
    """Keep a file in the store, as a download does, and return its sha256."""
    Path("fetched").write_bytes(content)
    return keep(Path("fetched"), sha256_of(content)).name


def interrupted(url):
    with Partial(url) as partial:
        partial.restart('"1"')
        partial.append(b"the first half")


def referred():
    """What refers to each item, by its name."""
    references = find_references()
    return {item.name: referring(item, references) for item in list_items()}


def typed(*arguments):
    try:
        main(["store", *arguments])
    except SystemExit as end:
        return end.code
    return 0


def left():
    return sorted(path.name for path in Path(".cache/store").iterdir())


def test_a_pinned_archive_is_needed_and_so_is_what_its_address_last_gave():
    pinned, newest, other = fetched(b"pinned"), fetched(b"newest"), fetched(b"other")
    write_params(URL, pinned, [MIRROR])
    remember(URL, '"2"', Path(newest))
    interrupted(MIRROR)
    assert referred() == {
        **{key: ["params.yaml: download"] for key in (pinned, newest, f"{sha256_of(MIRROR.encode())}.partial")},
        other: [],
    }


@pytest.mark.parametrize("name", ["mnist", "food101"])
def test_the_files_of_a_named_dataset_are_needed_by_their_published_sums(name):
    sums = [fetched(file.url.encode()) for file in NAMED[name].files]
    for file, sha256 in zip(NAMED[name].files, sums, strict=True):
        alias(file.md5, Path(sha256))
    assert referred() == {key: [] for key in sums}
    write_params(name)
    assert referred() == {key: ["params.yaml: download"] for key in sums}


def test_the_files_of_a_dataset_without_published_sums_are_needed_by_the_pinned_digest():
    sha256 = fetched(b"ants and bees")
    alias("ab" * 32, Path(sha256))
    write_params("hymenoptera", "ab" * 32)
    assert referred() == {sha256: ["params.yaml: download"]}


@pytest.mark.parametrize("url", ["https://weights.example/model.safetensors", "https://weights.example/model-{digits}.pth"])
def test_published_weights_are_needed_by_their_address_or_the_digits_in_it(url, monkeypatch):
    sha256 = fetched(b"weights")
    url = url.format(digits=sha256[:8])
    if "-" not in url:
        alias(weights.store_key(url), Path(sha256))
    monkeypatch.setattr(weights, "published_source", lambda _: (url, "MIT"))
    monkeypatch.setattr(zoo, "find_architecture", lambda _: None)
    assert referred() == {sha256: []}
    write_params(backbone="{name: resnet18, weights: pretrained, digest: null}")
    assert referred() == {sha256: ["params.yaml: backbone"]}


def test_what_the_last_run_used_and_wrote_refers_to_its_files():
    data, network, old = fetched(b"data"), fetched(b"network"), fetched(b"old")
    Path("data").mkdir()
    Path("data/source.json").write_text(json.dumps({"digest": data}))
    Path("models/backbone").mkdir(parents=True)
    Path("models/backbone/backbone.json").write_text(json.dumps({"weights": {"sha256": network}}))
    locked = {"download": {"source": URL, "digest": old, "url_mirrors": []}}
    Path("dvc.lock").write_text(json.dumps({"stages": {"download": {"params": {"params.yaml": locked}}}}))
    assert referred() == {data: ["data/source.json"], network: ["models/backbone/backbone.json"], old: ["dvc.lock: download"]}


def test_a_network_that_is_unknown_is_refused_in_the_params_and_passed_by_in_the_last_run():
    old = fetched(b"old")
    network = {"name": "of_long_ago", "weights": "pretrained", "digest": None}
    locked = {"download": {"source": URL, "digest": old, "url_mirrors": []}}
    stages = {"download": {"params": {"params.yaml": locked}}, "backbone": {"params": {"params.yaml": {"backbone": network}}}}
    Path("dvc.lock").write_text(json.dumps({"stages": stages}))
    assert referred() == {old: ["dvc.lock: download"]}
    write_params(backbone="{name: of_long_ago, weights: pretrained, digest: null}")
    with pytest.raises(PipelineError, match="of_long_ago"):
        trim({old})


def test_trim_says_what_and_how_much_and_removes_that_with_its_notes(capsys):
    pinned, other = fetched(b"pinned"), fetched(b"x" * 2_500_000)
    write_params(URL, pinned)
    remember("https://other.example/", '"1"', Path(other))
    alias("cd" * 16, Path(other))
    interrupted("https://other.example/half")
    Path(".cache/store/README").write_text("mine")
    assert typed("--trim", "--yes") == 0
    printed = capsys.readouterr().out
    assert (other[:12] in printed, pinned[:12] in printed, "unfinished" in printed) == (True, False, True)
    assert printed.splitlines()[-1] == "removed 2 files, 2.5 MB"
    assert left() == sorted([pinned, "README"])
    assert stored(pinned)


def test_without_agreement_nothing_is_removed(capsys, monkeypatch):
    other = fetched(b"other")
    assert typed("--trim") == 1
    assert capsys.readouterr().err == ".cache/store: 1 file, 0.0 kB would be removed, nothing was; add --yes to remove them\n"
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    for answer, code, kept in (("", 1, [other]), ("n", 1, [other]), ("y", 0, [])):
        monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
        assert (typed("--trim"), left()) == (code, kept)


def test_what_became_needed_after_the_question_stays():
    first, second = fetched(b"first"), fetched(b"second")
    write_params(URL, first)
    assert [item.name for item in trim({first, second})] == [second]
    assert left() == [first]


def test_nothing_is_removed_while_another_process_uses_the_store(root):
    other = fetched(b"other")
    script = "from pipeline.net.store import Partial\nwith Partial('https://a.example/'):\n    print('open', flush=True)\n    input()"
    process = subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "DVC_ROOT": str(root)}, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout.readline() == "open\n"
        with pytest.raises(PipelineError, match=r"^\.cache/store: another process is using it; run the command again when that has ended$"):
            trim({other})
        assert stored(other)
        process.communicate("\n")
    assert [item.name for item in trim({other})] == [other]


def test_a_file_that_a_killed_process_left_half_moved_is_removed_and_that_of_a_live_one_is_not():
    Path(".cache/store").mkdir(parents=True)
    dead, live = (f".{'0' * 64}.{process_space()}-{pid}.partial" for pid in (2**22 + 1, os.getppid()))
    for name in (dead, live):
        Path(".cache/store", name).write_bytes(b"half")
    assert [item.name for item in trim({dead, live})] == [dead]
    assert left() == [live]


@pytest.mark.parametrize("lock", ["stages: [\n", "3\n", "stages: {download: 3}\n"])
def test_where_the_last_run_cannot_be_read_nothing_is_removed(lock):
    other = fetched(b"other")
    Path("dvc.lock").write_text(lock)
    with pytest.raises(PipelineError, match=r"^dvc\.lock: is not what DVC writes; run `pipeline mend`$"):
        trim({other})
    assert left() == [other]


def test_a_file_that_is_found_was_used_just_now():
    path = Path(".cache/store", fetched(b"old"))
    os.utime(path, (0, 0))
    assert list_items()[0].used == 0
    stored(path.name)
    assert list_items()[0].used > 1e9


def test_an_empty_store_is_said_to_be_so(capsys):
    for arguments in ([], ["--trim"]):
        assert typed(*arguments) == 0
    assert capsys.readouterr().out == ".cache/store: is empty\n" * 2

"""`pipeline data refresh`: the digest is pinned anew, and nothing else in params.yaml moves."""

import hashlib

import pytest

from pipeline.commands.upkeep import refresh
from pipeline.core.errors import PipelineError
from pipeline.core.params import parse_yaml
from pipeline.sources.source import find_source
from tests.archives import ZipMember, zip_bytes

OLD = "ab" * 32
PICTURES, OTHER_PICTURES = (zip_bytes(ZipMember(f"{label}/1.png".encode())) for label in ("ants", "bees"))
LIMITS = "limits: {fetch_gigabytes: 1, fetch_hours: 1, files: 10, gigabytes: 1, ratio: 10}"

FORMS = [
    pytest.param("# top\ndownload:\n  source: pictures.zip   # mine\n  digest: {} # pinned\n  url_mirrors: []\nseed: 0\n", id="block"),
    pytest.param("seed: 0\ndownload: {{source: pictures.zip, digest: {}, url_mirrors: []}}\n", id="flow"),
    pytest.param("download:\n  digest: {}\n  source: pictures.zip\n", id="digest first"),
    pytest.param("download:\n  source: pictures.zip\n  digest: {}", id="no newline at the end"),
    pytest.param("# größer, 例, 🙂\ndownload:\n  source: pictures.zip  # ←\n  digest: {}   # 🙂\n", id="beyond ASCII"),
    pytest.param("backbone: {{digest: null}}  # digest: null\ndownload:\n  source: pictures.zip\n  digest: {}\n", id="another digest"),
    pytest.param("download:\r\n  source: pictures.zip\r\n  digest: {}  # pinned\r\nseed: 0\r\n", id="CRLF"),
    pytest.param("\ufeffdownload:\n  source: pictures.zip\n  digest: {}\n", id="byte order mark"),
]


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """A project whose source is one archive."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    (tmp_path / "pictures.zip").write_bytes(PICTURES)
    return tmp_path


def digest_of(content):
    return hashlib.sha256(content).hexdigest()


def with_limits(text):
    return text.replace("  source:", f"  {LIMITS}\n  source:").replace("{source:", f"{{{LIMITS}, source:")


def write_params(root, text):
    (root / "params.yaml").write_bytes(with_limits(text).encode())


def refusal():
    with pytest.raises(PipelineError) as error:
        refresh()
    return str(error.value)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("before", [OLD, "null", "~", f"'{OLD}'", f'"{OLD}"'])
def test_no_other_byte_changes(form, before, root):
    write_params(root, form.format(before))
    refresh()
    assert (root / "params.yaml").read_bytes() == with_limits(form.format(digest_of(PICTURES))).encode()


def test_the_digest_before_and_after_is_returned(root):
    write_params(root, f"download: {{source: pictures.zip, digest: {OLD}}}\n")
    assert refresh() == (OLD, digest_of(PICTURES))


def test_a_digest_that_was_not_set_is_none(root):
    write_params(root, "download: {source: pictures.zip, digest: null}\n")
    assert refresh() == (None, digest_of(PICTURES))


@pytest.mark.parametrize("line", ["digest:", "digest: ", "digest:  # not yet", "digest:\n  url_mirrors: []"])
def test_a_digest_left_empty_is_written(line, root):
    write_params(root, f"download:\n  source: pictures.zip\n  {line}\nseed: 0\n")
    refresh()
    params = parse_yaml((root / "params.yaml").read_text())
    assert params["download"]["digest"] == digest_of(PICTURES)
    assert params["seed"] == 0


def test_refreshing_twice_changes_nothing(root):
    write_params(root, "download: {source: pictures.zip, digest: null}\n")
    refresh()
    content, changed = (root / "params.yaml").read_bytes(), (root / "params.yaml").stat().st_mtime_ns
    assert refresh() == (digest_of(PICTURES),) * 2
    assert (root / "params.yaml").read_bytes() == content
    assert (root / "params.yaml").stat().st_mtime_ns == changed


def test_a_changed_source_is_pinned_anew(root):
    write_params(root, "download: {source: pictures.zip, digest: null}\n")
    refresh()
    (root / "pictures.zip").write_bytes(OTHER_PICTURES)
    assert refresh() == (digest_of(PICTURES), digest_of(OTHER_PICTURES))


def test_an_encoding_of_the_params_that_is_none_is_refused(root):
    write_params(root, "download: {source: pictures.zip, encoding: 932, digest: null}\n")
    assert refusal() == "params.yaml: download.encoding: 932 is not an encoding of names; write one, as cp932, or null"


def test_a_folder_is_pinned_by_its_content(root):
    for name in ("ants", "bees"):
        (root / "pictures" / name).mkdir(parents=True)
        (root / "pictures" / name / "1.png").write_bytes(name.encode())
    write_params(root, "download: {source: pictures, digest: null}\n")
    _, first = refresh()
    (root / "pictures").rename(root / "moved")
    write_params(root, f"download: {{source: moved, digest: {first}}}\n")
    assert refresh() == (first, first)


@pytest.mark.parametrize("name", ["absent.zip", "page.zip"])
def test_a_fault_leaves_params_yaml_alone(name, root):
    (root / "page.zip").write_bytes(b"<html>")
    write_params(root, f"download: {{source: {name}, digest: {OLD}}}\n")
    before = (root / "params.yaml").read_bytes()
    refusal()
    assert (root / "params.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("download: digits\n", "download.source"),
        ("download: {digest: null}\n", "download.source"),
        ("download: {source: 3, digest: null}\n", "download.source"),
        ("download: {source: pictures.zip, digest: null}\n", "download.limits"),
    ],
)
def test_a_missing_key_is_named(text, key, root):
    (root / "params.yaml").write_text(text)
    assert refusal() == f"params.yaml: {key}: is missing"


def test_a_source_with_another_digest_than_the_known_one_is_reported(root, monkeypatch, capsys):
    monkeypatch.setattr("pipeline.sources.source.measure_digest", lambda *_: "cd" * 32)
    write_params(root, "download: {source: digits, digest: null}\n")
    refresh()
    known = find_source("digits").known_digest
    assert known
    assert known in capsys.readouterr().err

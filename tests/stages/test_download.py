"""The stage `download`: shards of the source, pinned and described."""

import hashlib
import io
import json
import tarfile

import pytest

from pipeline.core.errors import PipelineError
from pipeline.sources.archives import digest_of
from pipeline.sources.folders import folder_members
from pipeline.sources.members import Limits
from pipeline.stages.download import Params, run
from tests.archives import ZipMember, read_shards, zip_bytes

WRONG = "0" * 64
LIMITS = Limits(fetch_gigabytes=1, fetch_hours=1, files=1000, gigabytes=1, ratio=1000)
NAMES = ["cats/1.png", "cats/2.png", "dogs/day/1.png", "README"]


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def folder(root):
    """A folder of pictures (of which only the names count here)."""
    for name in NAMES:
        (root / "pics" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "pics" / name).write_text(name)
    return root / "pics"


def digest_by_hand(names):
    lines = (f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n" for name in sorted(names))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def make_tar(root):
    with tarfile.open(root / "pics.tar.gz", "w:gz") as archive:
        for name in reversed(NAMES):
            info = tarfile.TarInfo(f"./{name}")
            info.size, info.mtime = len(name), 12345
            archive.addfile(info, io.BytesIO(name.encode()))
    return hashlib.sha256((root / "pics.tar.gz").read_bytes()).hexdigest()


def download(root, source, digest, limits=LIMITS):
    run(
        Params(source=source, digest=digest, url_mirrors=[], encoding=None, limits=limits),
        root / "data" / "raw",
        root / "data" / "source.json",
    )


def message_of(root, source, digest, limits=LIMITS):
    with pytest.raises(PipelineError) as caught:
        download(root, source, digest, limits)
    return str(caught.value)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def outs(root):
    return sorted(path.name for path in root.glob("data/*"))


def test_a_folder_becomes_shards_of_its_files(root, folder):
    download(root, "pics", digest_by_hand(NAMES))
    assert read_shards(root / "data/raw") == {name: name.encode() for name in NAMES}


def test_the_source_is_described(root, folder):
    download(root, "pics", digest_by_hand(NAMES))
    assert json.loads((root / "data" / "source.json").read_text()) == {
        "source": "pics",
        "licence": "unknown",
        "digest": digest_by_hand(NAMES),
        "raw_digest": digest_by_hand(NAMES),
        "files": 4,
    }


def test_no_path_of_this_machine_is_written(root, folder):
    download(root, str(folder), digest_by_hand(NAMES))
    assert str(root) not in (root / "data" / "source.json").read_text()


def test_a_tar_is_repacked_to_the_same_shards_as_its_folder(root, folder):
    download(root, "pics", digest_by_hand(NAMES))
    from_folder = contents(root / "data/raw")
    download(root, "pics.tar.gz", make_tar(root))
    assert contents(root / "data/raw") == from_folder


def test_names_are_read_in_the_encoding_of_the_params(root):
    content = zip_bytes(*(ZipMember(f"{label}/1.png".encode("koi8-r")) for label in ("кот", "пёс")))
    (root / "pics.zip").write_bytes(content)
    params = Params(source="pics.zip", digest=hashlib.sha256(content).hexdigest(), url_mirrors=[], encoding="koi8-r", limits=LIMITS)
    run(params, root / "raw", root / "source.json")
    assert read_shards(root / "raw").keys() == {"кот/1.png", "пёс/1.png"}


def test_the_same_source_gives_the_same_bytes_twice(root, folder):
    found = []
    for _ in range(2):
        download(root, "pics", digest_by_hand(NAMES))
        found.append(contents(root / "data"))
    assert found[0] == found[1]


def test_a_wrong_digest_of_a_folder_is_refused_and_both_are_named(root, folder):
    assert message_of(root, "pics", WRONG) == (
        f"pics: its digest is {digest_by_hand(NAMES)}, params.yaml pins download.digest {WRONG}; "
        "if the change is intended, run `pipeline data refresh`"
    )


def test_a_wrong_digest_of_an_archive_is_refused_and_both_are_named(root):
    found = make_tar(root)
    assert message_of(root, "pics.tar.gz", WRONG).startswith(
        f"pics.tar.gz: its digest is {found}, params.yaml pins download.digest {WRONG}; "
    )


@pytest.mark.parametrize("source", ["pics", "pics.tar.gz"])
def test_nothing_is_written_where_the_digest_is_wrong(root, folder, source):
    make_tar(root)
    message_of(root, source, WRONG)
    assert outs(root) == []


def test_a_digest_that_is_not_set_is_refused(root, folder):
    found = message_of(root, "pics", None)
    assert found == "params.yaml: download.digest: is not set; run `pipeline data refresh` to pin the pictures"


def test_more_files_than_the_limits_allow_are_refused(root):
    assert message_of(root, "pics.tar.gz", make_tar(root), LIMITS.model_copy(update={"files": 3})) == (
        "pics.tar.gz: contains more than 3 files; raise download.limits.files if this is intended"
    )


def test_an_empty_folder_is_refused(root):
    (root / "pics").mkdir()
    assert message_of(root, "pics", WRONG) == "pics: contains no files; name a folder or an archive of pictures"


def test_pictures_without_folders_are_refused(root):
    (root / "pics").mkdir()
    (root / "pics" / "1.png").touch()
    digest = digest_of(folder_members(root / "pics", LIMITS))
    assert message_of(root, "pics", digest) == "pics: contains no folders of pictures; make one folder for each class"


def test_nothing_is_written_where_the_layout_is_refused(root):
    (root / "pics").mkdir()
    (root / "pics" / "1.png").touch()
    message_of(root, "pics", digest_of(folder_members(root / "pics", LIMITS)))
    assert outs(root) == []


def test_a_source_that_is_not_there_is_refused(root):
    assert message_of(root, "digit", WRONG) == "params.yaml: download.source: 'digit' does not exist; did you mean 'digits'?"

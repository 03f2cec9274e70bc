"""The values of `download.source`, and the digests that pin them."""

import hashlib
import io
import zipfile

import pytest

from pipeline.core.errors import PipelineError
from pipeline.net import store
from pipeline.sources import source as sources
from pipeline.sources.archives import digest_of, open_archive
from pipeline.sources.formats import PublishedFile
from pipeline.sources.members import Limits
from pipeline.sources.source import NAMED, NamedSource, expect_digest, find_source, measure_digest, open_source
from tests.conftest import HYMENOPTERA
from tests.servers import drip, offer

ONE, TWO = "1" * 64, "2" * 64
LIMITS = Limits(fetch_gigabytes=0.001, fetch_hours=1, files=10_000, gigabytes=1, ratio=1000)
KNOWN = "digits, hymenoptera, pizza_steak_sushi, mnist, fashion_mnist, cifar10, cifar100, flowers102, oxford_iiit_pet, food101, eurosat"


def zipped(**contents):
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in contents.items():
                archive.writestr(zipfile.ZipInfo(f"{name}/1.png"), content)
        return file.getvalue()


def digest_of_one(name, content):
    return hashlib.sha256(f"{hashlib.sha256(content).hexdigest()}  {name}/1.png\n".encode()).hexdigest()


def message_of(call, *arguments):
    with pytest.raises(PipelineError) as caught:
        call(*arguments)
    return str(caught.value)


def contents_of(source, digest=None, mirrors=()):
    with open_source(source, mirrors, digest, LIMITS) as members:
        return {name: read() for name, read in members.items()}


@pytest.fixture
def named(server, monkeypatch):
    """A data set with a name, published on the server."""
    monkeypatch.setitem(NAMED, "cats", NamedSource("free", (PublishedFile(f"{server.url}/cats.zip"),)))
    return find_source("cats")


@pytest.mark.parametrize("name", KNOWN.split(", "))
def test_a_named_source_is_pinned_by_its_content(root, name):
    source = find_source(name)
    assert (source.title, source.licence, source.path, source.pinned_by_content) == (name, NAMED[name].licence, None, True)


@pytest.mark.parametrize("url", ["http://host/a", "https://host/a.zip?x=1", "HTTPS://host/a"])
def test_a_url_is_pinned_by_the_archives_bytes(root, url):
    source = find_source(url)
    assert (source.title, source.licence, source.url, source.pinned_by_content) == (url, "unknown", url, False)


def test_a_password_is_in_no_title(root):
    assert find_source("https://user:word@host/a.zip").title == "https://host/a.zip"


def test_a_relative_path_starts_at_the_projects_root(root, tmp_path, monkeypatch):
    (root / "pics").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    source = find_source("pics")
    assert (source.title, source.path, source.pinned_by_content) == ("pics", root / "pics", True)


def test_a_path_may_climb_out_of_the_root(root, tmp_path):
    (tmp_path / "pics").mkdir()
    assert find_source("../pics").title == "pics"


def test_an_absolute_path_is_taken_as_it_is(root, tmp_path):
    (tmp_path / "pics").mkdir()
    assert find_source(str(tmp_path / "pics")).path == tmp_path / "pics"


def test_a_tilde_is_the_home_folder(root, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "pics").mkdir()
    assert find_source("~/pics").path == tmp_path / "pics"


def test_a_file_url_is_a_path(root, tmp_path):
    (tmp_path / "my pics").mkdir()
    assert find_source(f"file://{tmp_path}/my%20pics").path == tmp_path / "my pics"


def test_an_archive_is_named_without_its_folder(root):
    (root / "pics.tar.gz").touch()
    source = find_source("pics.tar.gz")
    assert (source.title, source.path, source.pinned_by_content) == ("pics.tar.gz", root / "pics.tar.gz", False)


@pytest.mark.parametrize(
    ("text", "cure"),
    [
        ("nowhere/pics", f"give a path, a URL, or one of {KNOWN}"),
        ("ftp://host/pics.zip", f"give a path, a URL, or one of {KNOWN}"),
        ("ftp://user:word@host/pics.zip", f"give a path, a URL, or one of {KNOWN}"),
        ("digit", "did you mean 'digits'?"),
        ("cifar-10", "did you mean 'cifar10'?"),
        ("FashionMNIST", "did you mean 'fashion_mnist'?"),
        ("hymenopterans", "did you mean 'hymenoptera'?"),
    ],
)
def test_a_path_that_is_not_there_is_named(root, text, cure):
    assert message_of(find_source, text) == f"params.yaml: download.source: {text.replace('user:word@', '')!r} does not exist; {cure}"


def test_a_file_that_is_no_archive_is_named(root):
    (root / "pics.rar").touch()
    assert message_of(find_source, "pics.rar").startswith("params.yaml: download.source: 'pics.rar' is not a folder, .zip, .tar,")


def test_an_address_that_cannot_be_one_is_a_fault_of_the_user(root):
    assert message_of(find_source, "http://user:word@[host/a.zip") == (
        f"params.yaml: download.source: 'http://[host/a.zip' is not a valid address; give a path, a URL, or one of {KNOWN}"
    )


def test_another_digest_takes_the_alias_back(root, tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    store.alias(ONE, store.keep(tmp_path / "a", hashlib.sha256(b"abc").hexdigest()))
    message_of(expect_digest, find_source("digits"), TWO, ONE)
    assert store.stored(ONE) is None


def test_a_url_that_was_fetched_is_not_fetched_again(root, server):
    content = zipped(cats=b"one")
    server.answers["/a.zip"] = [(200, {}, content)]
    source, digest = find_source(f"{server.url}/a.zip"), hashlib.sha256(content).hexdigest()
    assert contents_of(source, digest) == contents_of(source, digest) == {"cats/1.png": b"one"}
    assert server.asked == ["/a.zip"]


def test_a_url_of_another_digest_is_refused_and_both_are_named(root, server):
    content = zipped(cats=b"one")
    server.answers["/a.zip"] = [(200, {}, content)]
    url, found = f"{server.url}/a.zip", hashlib.sha256(content).hexdigest()
    assert message_of(contents_of, find_source(url), ONE) == (
        f"{url}: its digest is {found}, params.yaml pins download.digest {ONE}; if the change is intended, run `pipeline data refresh`"
    )


def test_a_mirror_serves_where_the_url_does_not(root, server):
    content = zipped(cats=b"one")
    server.answers["/a.zip"], server.answers["/b.zip"] = [(404, {}, b"")], [(200, {}, content)]
    digest = hashlib.sha256(content).hexdigest()
    assert contents_of(find_source(f"{server.url}/a.zip"), digest, (f"{server.url}/b.zip",)) == {"cats/1.png": b"one"}


def test_a_mirror_serves_where_the_url_holds_other_bytes(root, server):
    content = zipped(cats=b"one")
    server.answers["/a.zip"], server.answers["/b.zip"] = [(200, {}, b"other")], [(200, {}, content)]
    digest = hashlib.sha256(content).hexdigest()
    assert contents_of(find_source(f"{server.url}/a.zip"), digest, (f"{server.url}/b.zip",)) == {"cats/1.png": b"one"}


def test_a_url_of_more_bytes_than_the_limits_allow_is_refused(root, server):
    server.answers["/a.zip"] = [(200, {"Content-Length": "1000001"}, b"")]
    assert message_of(contents_of, find_source(f"{server.url}/a.zip"), ONE) == (
        f"{server.url}/a.zip: is larger than 0.001 gigabytes; raise download.limits.fetch_gigabytes if this is intended"
    )


def test_a_url_that_drips_for_longer_than_the_limits_allow_is_refused(root, server):
    server.answers["/a.zip"] = [drip]
    limits = LIMITS.model_copy(update={"fetch_hours": 0.0001})
    assert message_of(measure_digest, find_source(f"{server.url}/a.zip"), (), limits) == (
        f"{server.url}/a.zip: was not complete after 0.0001 hours; run again, or raise download.limits.fetch_hours"
    )


def test_a_named_source_that_was_fetched_is_not_fetched_again(named, root, server):
    server.answers["/cats.zip"] = [(200, {}, zipped(cats=b"one"))]
    assert contents_of(named, ONE) == contents_of(named, ONE) == {"cats/1.png": b"one"}
    assert server.asked == ["/cats.zip"]


def test_a_named_source_that_came_damaged_is_fetched_again_next_time(named, root, server):
    server.answers["/cats.zip"] = [(200, {}, b"<html>log in first</html>"), (200, {}, zipped(cats=b"one"))]
    message_of(contents_of, named, ONE)
    assert contents_of(named, ONE) == {"cats/1.png": b"one"}


def test_a_named_source_that_came_damaged_has_no_digest(named, root, server):
    server.answers["/cats.zip"] = [(200, {}, b"<html>log in first</html>")]
    assert message_of(measure_digest, named, (), LIMITS).startswith("cats: ")


def test_the_digest_of_a_named_source_is_that_of_its_content(named, root, server):
    server.answers["/cats.zip"] = [(200, {}, zipped(cats=b"one"))]
    assert measure_digest(named, (), LIMITS) == digest_of_one("cats", b"one")


def test_measuring_looks_at_the_source_as_it_is_now(named, root, server):
    server.answers["/cats.zip"] = [(200, {}, zipped(cats=b"one")), (200, {}, zipped(cats=b"two"))]
    assert [measure_digest(named, (), LIMITS) for _ in range(2)] == [digest_of_one("cats", b"one"), digest_of_one("cats", b"two")]


def test_what_was_measured_is_not_fetched_again(named, root, server):
    server.answers["/cats.zip"] = [(200, {}, zipped(cats=b"one"))]
    assert contents_of(named, measure_digest(named, (), LIMITS)) == {"cats/1.png": b"one"}
    assert server.asked == ["/cats.zip"]


def test_measuring_goes_on_with_what_was_cut_short(named, root, server):
    content = zipped(cats=b"one")
    server.answers["/cats.zip"] = [offer(content, stop=50)]
    message_of(measure_digest, named, (), LIMITS)
    server.answers["/cats.zip"] = [offer(content)]
    assert measure_digest(named, (), LIMITS) == digest_of_one("cats", b"one")
    assert server.headers[-1]["Range"] == "bytes=50-"


def test_the_digest_of_a_folder_is_that_of_its_content(root):
    (root / "pics" / "cats").mkdir(parents=True)
    (root / "pics" / "cats" / "1.png").write_bytes(b"one")
    assert measure_digest(find_source("pics"), (), LIMITS) == digest_of_one("cats", b"one")


def test_the_digest_of_an_archive_is_that_of_its_bytes(root):
    (root / "pics.zip").write_bytes(zipped(cats=b"one"))
    assert measure_digest(find_source("pics.zip"), (), LIMITS) == hashlib.sha256(zipped(cats=b"one")).hexdigest()


def test_the_digest_of_a_url_is_that_of_its_bytes(root, server):
    server.answers["/a"] = [(200, {}, zipped(cats=b"one"))]
    assert measure_digest(find_source(f"{server.url}/a"), (), LIMITS) == hashlib.sha256(zipped(cats=b"one")).hexdigest()


@pytest.mark.parametrize(
    ("body", "page"),
    [
        (b"<!DOCTYPE html>\n<HTML><head><title>\n Shared &amp; free\n</title>", "an HTML page with the title 'Shared & free'"),
        (b"\xef\xbb\xbf <!-- x --><html lang='en'>", "an HTML page"),
        (b"<html><title>\x1b[31m</title>", r"an HTML page with the title '\x1b[31m'"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML document"),
        (b'{"error": "expired"}', "a JSON document"),
        (b"", "an empty file"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "one picture"),
        (b"%PDF-1.7\n\xe2\xe3", "a PDF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a pointer of Git LFS"),
        ("Lien expiré.\n".encode(), "a text that begins with 'Lien expiré.'"),
        (b"image;label\n" * 99, "a text that begins with '" + "image;label " * 4 + "…'"),
    ],
)
def test_an_answer_that_is_no_archive_has_no_digest(root, server, body, page):
    server.answers["/a"] = [(200, {}, body)]
    url = f"{server.url}/a"
    cure = "not an archive; give the address or path of the file itself"
    assert message_of(measure_digest, find_source(url), (), LIMITS) == f"{url}: is {page}, {cure}"


@pytest.mark.parametrize(("begins", "kind"), [(b"Rar!\x1a\7\1\0", "RAR"), (b"7z\xbc\xaf'\x1c", "7z"), (b"(\xb5/\xfd", "Zstandard")])
def test_an_archive_that_is_not_read_is_called_by_its_kind(root, begins, kind):
    (root / "pics.zip").write_bytes(begins + bytes(600))
    cure = "which is not read; unpack it into a folder and name that in download.source"
    assert message_of(measure_digest, find_source("pics.zip"), (), LIMITS) == f"pics.zip: is a {kind} archive, {cure}"


def test_an_archive_without_pictures_has_no_digest(root):
    (root / "pics.zip").write_bytes(zipped(cats=b"one").replace(b"1.png", b"1.csv"))
    cure = "name a folder or an archive of pictures"
    assert message_of(measure_digest, find_source("pics.zip"), (), LIMITS) == f"pics.zip: contains no pictures: 'cats/1.csv'; {cure}"


def test_an_archive_without_folders_has_no_digest(root):
    (root / "pics.zip").write_bytes(zipped(cats=b"one").replace(b"/1.png", b"-1.png"))
    found = message_of(measure_digest, find_source("pics.zip"), (), LIMITS)
    assert found == "pics.zip: contains no folders of pictures; make one folder for each class"


def test_an_archive_of_another_digest_is_not_opened(root, monkeypatch):
    (root / "pics.zip").write_bytes(b"no zip")
    monkeypatch.setattr(sources, "open_archive", None)
    assert message_of(contents_of, find_source("pics.zip"), ONE).startswith("pics.zip: its digest is ")


def test_the_digits_are_those_that_their_name_is_known_for():
    source = find_source("digits")
    assert measure_digest(source, (), LIMITS) == source.known_digest


@pytest.mark.skipif(not HYMENOPTERA.is_file(), reason="the hymenoptera archive is not beside this checkout")
def test_the_real_hymenoptera_pictures_are_those_that_their_name_is_known_for():
    with open_archive(HYMENOPTERA, "hymenoptera", LIMITS) as members:
        assert digest_of(members) == find_source("hymenoptera").known_digest

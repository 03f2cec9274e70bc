"""Photographs: the same pipeline with another source, from a file, over HTTP, and in a temporary copy. test_faults splits them."""

import functools
import http.server
import json
import re
import shutil
import threading

import pytest

from tests.conftest import HYMENOPTERA, ROOT
from tests.repro import stages_run

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(not HYMENOPTERA.is_file(), reason="the hymenoptera archive is not beside this checkout"),
]
DIGEST = "86a359afe8c199f40fdcbfff9dc32bc64d679bddd4ea4adf013e917edb546a3a"


@pytest.fixture(scope="module")
def hymenoptera(tmp_path_factory, clone, type_in):
    """A clone in which the documented experiment ran on the archive beside it; only source and digest were changed."""
    folder = tmp_path_factory.mktemp("hymenoptera")
    (folder / "shared/data").mkdir(parents=True)
    shutil.copy(HYMENOPTERA, folder / "shared/data")
    clone(folder / "clone")
    pages = "\n".join(path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    command = re.search(rf"^(?:\$ )?(dvc exp run .*{DIGEST})$", pages, re.MULTILINE)[1]
    type_in(folder / "clone", "bash", "-euc", command)
    return folder / "clone"


@pytest.mark.parametrize("name", ["baseline", "finetuned"])
def test_both_models_reach_nine_in_ten_on_the_published_val_pictures(hymenoptera, name):
    comparison = json.loads((hymenoptera / "metrics/comparison.json").read_text())
    assert comparison["test_pictures"] == 153
    assert comparison["models"][name]["top1_accuracy"] >= 0.90


def test_photographs_enter_at_the_size_of_the_backbone(hymenoptera):
    assert json.loads((hymenoptera / "data/embeddings/embedding.json").read_text())["preprocessing"]["image_size"] == 224


def test_the_same_pictures_over_http_in_a_temporary_copy_train_nothing_anew(hymenoptera, type_in):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=HYMENOPTERA.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{HYMENOPTERA.name}"
        output = type_in(
            hymenoptera, "dvc", "exp", "run", "--temp", "-n", "over-http", "-S", f"download.source={url}", "-S", f"download.digest={DIGEST}"
        )
        server.shutdown()
    assert stages_run(output)[0] == "download"
    shown = json.loads(type_in(hymenoptera, "dvc", "exp", "show", "--json", "--drop", ".*params.*"))
    assert "over-http" in json.dumps(shown)
    type_in(hymenoptera, "dvc", "exp", "apply", "over-http")
    assert json.loads((hymenoptera / "metrics/baseline.json").read_text())["baseline"]["top1_accuracy"] >= 0.90

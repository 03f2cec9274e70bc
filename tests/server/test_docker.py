"""The Dockerfile has what serving imports, no more, and runs as nobody."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement

from pipeline.server.docker import PACKAGES, dockerfile, instructions
from tests.checkout import ROOT

SERVE = """
import json, sys
from pathlib import Path

folder, foreign = json.load(sys.stdin)


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in foreign:
            raise ModuleNotFoundError(name, name=name)


sys.meta_path.insert(0, Absent())
from pipeline.__main__ import make_parser
from pipeline.commands import serve
from pipeline.promotion.champions import find_served
from pipeline.server.app import create_app
from pipeline.server.listening import make_server

parsed = make_parser().parse_args(["serve", "--model", folder])
engine, settings, connections = serve._configure(parsed, *find_served(parsed.model, Path()), None)
app = create_app(engine, settings)
make_server(app, connections).config.load()
app.openapi()
engine.model.predictor.predict_pixels(__import__("numpy").zeros((1, 8, 8, 3), "uint8"))
engine.close()
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def normal(name):
    """The name of a package as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def with_what_they_need(names):
    """The packages and, in turn, what they require without extras."""
    found, waiting = set(), [normal(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            needed = [Requirement(text) for text in requires(name) or []]
            waiting += [normal(each.name) for each in needed if not each.marker or each.marker.evaluate({"extra": ""})]
    return found


def test_the_packages_of_the_image_suffice_and_all_are_imported(model_folder, tmp_path):
    owners = {module: {normal(name) for name in names} for module, names in packages_distributions().items()}
    there = with_what_they_need(PACKAGES)
    foreign = [module for module, names in owners.items() if module != "pipeline" and not names & there]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", SERVE],
        input=json.dumps([str(model_folder), foreign]),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert (done.returncode, done.stderr) == (0, "")
    imported = {name for module in json.loads(done.stdout) for name in owners.get(module, ())}
    assert set(PACKAGES) - imported == set()


def test_the_dockerfile_runs_one_server_as_a_user_without_rights(model_folder):
    lines = dockerfile(Path("champions/0123456789abcdef")).splitlines()
    assert [line for line in lines if line.startswith(("COPY", "USER"))] == [
        "COPY pipeline pipeline",
        "COPY champions/0123456789abcdef model",
        "USER 10001",
    ]
    assert re.fullmatch(r"FROM python:3\.\d+-slim", lines[1])
    assert all(re.search(rf"^    {re.escape(name)}==\d", "\n".join(lines), re.MULTILINE) for name in PACKAGES)
    assert "--workers" not in "".join(lines)
    assert lines[-1].startswith('ENTRYPOINT ["python", "-m", "pipeline", "serve", "--model", "/srv/model"')
    build, run = instructions(None).splitlines()
    assert build.startswith("pipeline serve --dockerfile | docker build")
    assert "--read-only" in run

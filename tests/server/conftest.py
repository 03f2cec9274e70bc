"""A small model with golden answers, made once; and for the tests of the page, a server whose model they can change."""

import pytest

from pipeline.networks.artifact import write_golden
from pipeline.server.engine import Engine
from tests.painted import running
from tests.stored import write_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """The folder of a small stored model. It is shared: do not write there."""
    folder = write_model(tmp_path_factory.mktemp("served") / "model")
    write_golden(folder, 1)
    return folder


@pytest.fixture(scope="module")
def engine(models):
    """An engine with the model `painted` of the module's `models`."""
    return Engine(models["painted"])


@pytest.fixture(scope="module")
def address(engine):
    """Where a server with that engine answers."""
    with running(engine) as url:
        yield url


@pytest.fixture
def serve(engine, models):
    """Let the server answer with another model during a test."""
    yield lambda name: engine.swap(models[name])
    engine.swap(models["painted"])

"""A small model with golden answers, made once, for the tests of the server."""

import pytest

from tests.stored import write_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """The folder of a small stored model. It is shared: do not write there."""
    return write_model(tmp_path_factory.mktemp("served") / "model")

"""`pipeline serve`: where it listens, with which token, and what it says of it."""

from types import SimpleNamespace

import pytest

from pipeline.commands import serve
from pipeline.core.errors import PipelineError


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.7", False),
        ("example.org", False),
    ],
)
def test_only_addresses_of_this_machine_need_no_token(host, is_loopback, model_folder_of, capsys, monkeypatch):
    monkeypatch.delenv(serve.TOKEN, raising=False)
    monkeypatch.setattr(serve, "_listen", lambda parsed, engine, *_: engine.close())
    model_folder_of(host)
    assert ("there is no token" in capsys.readouterr().err) == (not is_loopback)


@pytest.fixture
def model_folder_of(tmp_path, monkeypatch):
    """Run the command with a small model at a host, and further arguments."""
    from pipeline.__main__ import main
    from tests.stored import write_model

    folder = write_model(tmp_path / "model")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return lambda host, *arguments: main(["serve", "--model", str(folder), "--host", host, *arguments])


def test_a_token_comes_from_the_file_or_else_from_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv(serve.TOKEN, "of-the-variable")
    (tmp_path / "token").write_text("of-the-file\n")
    read = [serve._read_token(SimpleNamespace(token_file=name, here=tmp_path)) for name in ("token", None)]
    assert read == ["of-the-file", "of-the-variable"]
    monkeypatch.setenv(serve.TOKEN, "")
    assert serve._read_token(SimpleNamespace(token_file=None, here=tmp_path)) is None


@pytest.mark.parametrize("content", [None, b" \n", b"\xff", b"two words"])
def test_a_token_file_without_a_token_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    with pytest.raises(PipelineError, match="--token-file"):
        serve._read_token(SimpleNamespace(token_file="token", here=tmp_path))


def test_an_address_that_is_taken_is_one_sentence(model_folder_of, capsys):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as exit_code:
        model_folder_of("127.0.0.1", "--port", str(taken.getsockname()[1]))
    assert (exit_code.value.code, "cannot listen there" in capsys.readouterr().err) == (1, True)


def test_a_dockerfile_is_printed_for_a_model_of_the_project_and_refused_for_another(model_folder_of, tmp_path, monkeypatch, capsys):
    model_folder_of("127.0.0.1", "--dockerfile")
    printed = capsys.readouterr()
    assert "\nCOPY model model\n" in printed.out
    assert [line.split()[0] for line in printed.err.splitlines()] == ["pipeline", "docker"]
    (tmp_path / "other").mkdir()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "other"))
    with pytest.raises(SystemExit):
        model_folder_of("127.0.0.1", "--dockerfile")
    assert "is not in the project" in capsys.readouterr().err

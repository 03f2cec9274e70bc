"""`pipeline models` lists what params.yaml may name."""

import pytest

from pipeline.__main__ import main


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty project."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def test_a_search_counts_the_networks_that_it_finds(capsys):
    main(["models", "--search", "efficientnet_lite2"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:3]]
    assert [(row[0], row[2], row[4], row[5]) for row in rows] == [
        ("efficientnet_lite2", "6.1", "0.86", "260"),
        ("tf_efficientnet_lite2", "6.1", "0.86", "260"),
    ]


def test_all_models_fit_into_120_columns(capsys):
    main(["models"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 1000
    assert max(map(len, lines)) <= 120


def test_a_text_that_is_in_no_name_lists_the_nearest_names(capsys):
    with pytest.raises(SystemExit) as end:
        main(["models", "--search", "resnett18"])
    out, error = capsys.readouterr()
    assert (end.value.code, out, error.count("\n"), "resnet18" in error) == (1, "", 1, True)

"""`pipeline models` lists what params.yaml may name."""

import pytest

from pipeline.__main__ import main
from pipeline.stock import networks as catalogue


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty project."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def test_a_search_gives_a_table(capsys):
    main(["models", "--search", "efficientnet_lite2"])
    assert capsys.readouterr().out == (
        "name                   library  parameters  GFLOPs   px  licence     source  on disk\n"
        "efficientnet_lite2     timm          6.1 M    0.86  260  -           -       -\n"
        "tf_efficientnet_lite2  timm          6.1 M    0.86  260  apache-2.0  github  packaged\n"
        "\n"
        "2 models. GFLOPs: thousand millions of multiply-adds a picture. Take one: backbone.name in params.yaml.\n"
    )


def test_all_models_fit_into_120_columns(capsys):
    main(["models"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 1000
    assert max(map(len, lines)) <= 120
    assert lines[-1] == "timm has no table of sizes; they are counted where a search leaves 50 of its models or fewer."


def test_a_long_licence_is_cut(capsys, monkeypatch):
    monkeypatch.setattr(catalogue, "_COUNTED", 0)
    main(["models", "--search", "vit_small_patch16_dinov3"])
    assert "  dinov3-licen…  huggingface" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        (["--search", "resnett18"], "'resnett18': no model has that in its name; the nearest are resnet18, "),
        (["--search", "lite0", "--library", "torchvision"], "'lite0': no model has that in its name among those of torchvision; "),
    ],
)
def test_no_match_is_told_the_nearest(arguments, start, capsys):
    with pytest.raises(SystemExit) as end:
        main(["models", *arguments])
    assert end.value.code == 1
    out, error = capsys.readouterr()
    assert (out, error.count("\n"), error.startswith(start)) == ("", 1, True)

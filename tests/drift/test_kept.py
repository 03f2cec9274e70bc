"""The reference is frozen with the champion; a champion without one is whole."""

from pathlib import Path

from pipeline.drift.reference import REFERENCE, reference_path
from pipeline.promotion.champions import restore, store
from tests.scored import make_scored


def test_the_champion_keeps_the_reference_that_evaluate_wrote(tmp_path, monkeypatch):
    sha256 = make_scored(tmp_path, monkeypatch)
    (tmp_path / "results/own" / REFERENCE).write_bytes(b"as it was")
    folder = store("own")
    (tmp_path / "results/own" / REFERENCE).write_bytes(b"as it is")
    kept = reference_path("champion", folder)
    assert kept.read_bytes() == b"as it was"
    assert reference_path("own", Path("models/own")) == Path("results/own") / REFERENCE
    kept.unlink()
    assert restore(sha256) == folder  # without a word to DVC: it is whole
    assert not kept.exists()

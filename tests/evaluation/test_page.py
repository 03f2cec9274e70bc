"""The report's page: names escaped, nothing loaded from elsewhere, a text for every picture."""

import base64
import re
from html.parser import HTMLParser

import pytest

from pipeline.data.findings import KINDS
from pipeline.evaluation import page
from pipeline.evaluation.page import embed, format_figure, write_page

HISTORY = [{"epoch": "1", "train_loss": "0.8", "train_accuracy": "0.6", "val_loss": "0.7", "val_accuracy": "0.75"}]
THUMBNAIL = "data:image/jpeg;base64,AAAA"
VERDICT = "finetuned is better by 7.1 points."


def make_audit(class_names, *findings):
    """An audit, as its file holds it; each finding is (kind, image_ids, sentence)."""
    counts = {kind: sum(finding[0] == kind for finding in findings) for kind in KINDS}
    shown = [dict(zip(("kind", "image_ids", "sentence"), finding, strict=True)) for finding in findings]
    return {
        "pictures": 10, "quarantined": 1, "median_width": 8, "median_height": 8.5,
        "classes": {name: {"train": 6, "val": 3, "test": 1} for name in class_names},
        "found": counts, "findings": shown, "thumbnails": {name: THUMBNAIL for finding in findings for name in finding[1]},
    }  # fmt: skip


def make_doubt(image_id="a.png", label="ants"):
    """A row of out_of_fold.csv, with its thumbnail."""
    return {
        "image_id": image_id, "label": label, "predicted": "bees", f"prob_{label}": "0.0312", "prob_bees": "0.96", "thumbnail": THUMBNAIL
    }  # fmt: skip


def make_scores(class_names):
    """The scores of a model, as its metrics file holds them."""
    figures = {f"{name}{end}": 0.5 for name in ("top1_accuracy", "balanced_accuracy", "log_loss") for end in ("", "_low", "_high")}
    facts = {f"{name}{end}": 0.25 for name in ("precision", "recall", "f1") for end in ("", "_low", "_high")}
    classes = {name: {**facts, "support": 3} for name in class_names}
    return {**figures, "ece": 0.1, "test_pictures": 268, "confidence": 0.95, "model_sha256": "ab" * 32, "classes": classes}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write the page of a model with some class names, and return its text."""
    monkeypatch.setattr(page, "plot_curves", lambda path, histories: path.write_bytes(b"curves"))  # the drawing takes its time

    def write_one(class_names=("ants", "bees"), model="finetuned", verdict=VERDICT, best_epoch=3, findings=(), doubts=()):
        facts = {"mcnemar_p": 0.00123, "against": "baseline", "only_first_right": 2, "only_second_right": 21, "best_epoch": best_epoch}
        comparison = {model: {"verdict": verdict, **facts}}
        for name in ("baseline", model):
            (tmp_path / "results" / name).mkdir(parents=True, exist_ok=True)
            for kind in ("confusion_matrix", "mistakes"):
                (tmp_path / "results" / name / f"{kind}.png").write_bytes(kind.encode())
        scores = {name: make_scores(class_names) for name in ("baseline", model)}
        write_page(
            tmp_path / "report",
            scores,
            comparison,
            dict.fromkeys(scores, HISTORY),
            tmp_path / "results",
            make_audit(class_names, *findings),
            doubts,
        )
        return (tmp_path / "report" / "index.html").read_text(encoding="utf-8")

    return write_one


def tags_of(html):
    """All start tags with their attributes."""
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, dict(attributes)))
    parser.feed(html)
    return found


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "it's <b>bold</b>", "{{ 7 * 7 }}"])
def test_a_class_name_makes_no_tags(write, name):
    plain = [tag for tag, _ in tags_of(write(["ants", "bees"]))]
    assert [tag for tag, _ in tags_of(write([name, "bees"]))] == plain


def test_a_class_name_is_shown_as_it_is(write):
    html = write(["<script>alert(1)</script>", "bees"])
    assert '<th scope="row">&lt;script&gt;alert(1)&lt;/script&gt;</th>' in html


def test_a_quote_in_a_models_name_stays_within_its_attribute(write):
    images = [attributes for tag, attributes in tags_of(write(model='a" onerror="b')) if tag == "img"]
    assert 'Surest mistakes of a" onerror="b' in [attributes["alt"] for attributes in images]


def test_a_verdict_is_escaped(write):
    assert "a &lt; b" in write(verdict="a < b")


def test_nothing_is_loaded_from_elsewhere(write):
    sources = [attributes.get("src") or attributes.get("href") for _, attributes in tags_of(write())]
    assert {source.partition(",")[0] for source in sources if source} == {"data:image/png;base64"}


def test_the_page_names_no_address_at_all(write):
    assert not re.search(r"https?://|@import|url\(", write())


def test_the_page_holds_no_script(write):
    assert "script" not in {tag for tag, _ in tags_of(write())}


def test_every_picture_has_a_text(write):
    texts = [attributes.get("alt") for tag, attributes in tags_of(write()) if tag == "img"]
    assert len(texts) == 5  # the curves, and two of each model
    assert all(texts)


def test_the_page_says_how_many_pictures_were_tested(write):
    assert "268 test pictures of 2 classes" in write()


def test_the_verdict_stands_with_its_test(write):
    text = " ".join(write().split())
    assert "finetuned is better by 7.1 points. McNemar's exact test: p = 0.0012; right alone: baseline 2, finetuned 21." in text


@pytest.mark.parametrize(
    ("best_epoch", "sentence"),
    [
        (0, "No epoch had a lower val loss than the start, so finetuned kept the weights it started from."),
        (3, "Its weights are those of epoch 3."),
    ],
)
def test_the_epoch_whose_weights_were_kept_is_told(write, best_epoch, sentence):
    assert sentence in " ".join(write(best_epoch=best_epoch).split())


def test_the_curves_lie_beside_the_page(write, tmp_path):
    write()
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["curves.png", "index.html"]


def test_a_page_written_twice_has_equal_bytes(write):
    assert write() == write()


FINDING = ("exact_duplicate", ["x.png", "y.png"], "'x.png', 'y.png': one picture 2 times")


def text_of(html):
    return " ".join(re.sub("<[^>]*>", "", html).split())


def test_the_page_counts_the_pictures_of_each_class_and_split(write):
    assert '<tr><th scope="row">ants</th><td>6</td><td>3</td><td>1</td></tr>' in write()


def test_the_page_says_how_many_pictures_were_left_out(write):
    assert "10 are used, 1 was left out (data/quarantine.csv names each). The median picture has 8 × 8.5 pixels." in text_of(write())


def test_the_page_says_so_where_nothing_was_found(write):
    assert "All of them decode, none is there twice." in write()


def test_a_finding_is_shown_with_its_fate_and_its_pictures(write):
    html = write(findings=[FINDING])
    assert "One picture several times: 1, kept in one split &#39;x.png&#39;, &#39;y.png&#39;: one picture 2 times" in text_of(html)
    assert html.count(THUMBNAIL) == 2


def test_findings_beyond_the_eighth_of_a_kind_are_counted(write):
    html = write(findings=[FINDING] * 11)
    assert (html.count("one picture 2 times"), "And 3 more in data/audit.json." in text_of(html)) == (8, True)


def test_a_doubted_label_is_shown_with_what_the_picture_looks_like(write):
    assert "labelled ants (0.03), looks like bees (0.96)a.png" in text_of(write(doubts=[make_doubt()]))


def test_the_page_says_so_where_no_label_is_in_doubt(write):
    assert "None: heads that had not seen a picture name its class each time." in write()


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>.png', "it's <b>new\nline</b>"])
def test_a_files_name_makes_no_tags(write, name):
    def tags(name):
        return [tag for tag, _ in tags_of(write(findings=[("broken", [name], f"{name!r} is bad")], doubts=[make_doubt(name, name)]))]

    assert tags(name) == tags("a.png")


def test_a_picture_lies_in_the_page_byte_for_byte(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    assert base64.b64decode(embed(tmp_path / "a.png").partition(",")[2]) == b"\x89PNG"


@pytest.mark.parametrize(
    ("scores", "text"),
    [
        ({"x": 0.9479, "x_low": 0.9011, "x_high": 0.9739}, "0.948 (0.901 to 0.974)"),
        ({"x": 0.02766}, "0.028"),
        ({"x": None, "x_low": None, "x_high": None}, "not defined"),
        ({"x": 0.5, "x_low": None, "x_high": None}, "0.500"),
    ],
)
def test_a_figure_is_written_with_its_interval(scores, text):
    assert format_figure(scores, "x") == text

"""The report's page: verdict first, names escaped, nothing loaded from elsewhere, a text for every picture."""

import re
from html.parser import HTMLParser

import pytest

from pipeline.report import page
from pipeline.report.page import interval, points, share, three, write_page
from tests.reports import PICTURE, make_audit, make_doubt, make_figure, make_gallery, make_model, make_report

HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "it's <b>bold</b>", "{{ 7 * 7 }}"]
FINDING = ("exact_duplicate", ["x.png", "y.png"], "'x.png', 'y.png': one picture 2 times")


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write the page of a small report, changed as told, and return its text."""
    monkeypatch.setattr(page, "plot_curves", lambda path, histories: path.write_bytes(b"curves"))  # the drawing takes its time

    def write_one(**changes):
        write_page(tmp_path / "report", make_report(**changes))
        return (tmp_path / "report" / "index.html").read_text(encoding="utf-8")

    return write_one


def tags_of(html):
    """All start tags with their attributes."""
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, dict(attributes)))
    parser.feed(html)
    return found


def text_of(html):
    return " ".join(re.sub("<[^>]*>", "", html.partition("</style>")[2]).split())


# Names


@pytest.mark.parametrize("name", HOSTILE)
def test_a_class_name_makes_no_tags(write, name):
    plain = [tag for tag, _ in tags_of(write(class_names=["ants", "bees"]))]
    assert [tag for tag, _ in tags_of(write(class_names=[name, "bees"]))] == plain


@pytest.mark.parametrize("name", HOSTILE)
def test_a_files_name_makes_no_tags(write, name):
    def tags(name):
        html = write(
            findings=[("broken", [name], f"{name!r} is bad")],
            doubts=[make_doubt(name, name)],
            models=[make_model(galleries=make_gallery(["ants", "bees"], name))],
            source={"source": name, "licence": name},
            sums={name: name},
            versions={name: name},
        )
        return [tag for tag, _ in tags_of(html)]

    assert tags(name) == tags("a.png")


def test_a_class_name_is_shown_as_it_is(write):
    html = write(class_names=["<script>alert(1)</script>", "bees"])
    assert '<th scope="row">&lt;script&gt;alert(1)&lt;/script&gt;</th>' in html


def test_a_quote_in_a_models_name_stays_within_its_attribute(write):
    labels = [attributes.get("aria-label") for _, attributes in tags_of(write(model='a" onerror="b'))]
    assert 'Confusion matrix of a" onerror="b' in labels


def test_a_verdict_is_escaped(write):
    assert "a &lt; b" in write(comparison={"verdict": "a < b"})


# By itself


def test_nothing_is_loaded_from_elsewhere(write):
    sources = [attributes.get("src") for _, attributes in tags_of(write(findings=[FINDING], doubts=[make_doubt()]))]
    assert {source for source in sources if source} == {PICTURE}


def test_links_lead_to_places_in_the_page(write):
    tags = tags_of(write())
    places = {f"#{attributes['id']}" for _, attributes in tags if "id" in attributes}
    links = [attributes["href"] for tag, attributes in tags if tag == "a"]
    assert len(links) == 9
    assert set(links) <= places


def test_the_page_names_no_address_at_all(write):
    assert not re.search(r"https?://|@import|url\(", write())


def test_the_page_refuses_all_but_its_own_style_and_pictures(write):
    policies = [attributes["content"] for tag, attributes in tags_of(write()) if attributes.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_the_page_holds_no_script(write):
    tags = tags_of(write())
    assert "script" not in {tag for tag, _ in tags}
    assert [key for _, attributes in tags for key in attributes if key.startswith("on")] == []


def test_every_picture_and_every_drawing_has_a_text(write):
    tags = tags_of(write(findings=[FINDING]))
    texts = [attributes.get("alt") for tag, attributes in tags if tag == "img"]
    # Two findings; of each model a mistake and a right answer with maps; three pictures of each class. The glimpse repeats these.
    assert (len(texts) - texts.count(""), texts.count(""), None in texts) == (2 + 2 * 2 * 2 + 3 * 2, 6, False)
    assert all(attributes.get("aria-label") for tag, attributes in tags if tag == "svg")


def test_the_curves_lie_beside_the_page(write, tmp_path):
    write()
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["curves.png", "index.html"]


def test_a_page_written_twice_has_equal_bytes(write):
    assert write() == write()


# What it says


def test_the_verdict_stands_first_with_its_test(write):
    assert (
        "insects.zip · 1,234 pictures · 2 classes What the models scored on 268 test pictures finetuned is better by 7.1 points. "
        "McNemar's exact test: p = 0.0012; right alone: baseline 2, finetuned 21. Its weights are those of epoch 3. "
        "baseline50.0 %"
    ) in text_of(write())


def test_a_start_that_was_never_beaten_is_told(write):
    text = text_of(write(comparison={"best_epoch": 0}))
    assert "No epoch was better on val than the start, so finetuned kept the weights it started from." in text


def test_every_model_has_its_verdict(write):
    models = [make_model(), *(make_model(name, comparison={**make_report().models[1].comparison, "verdict": f"{name}!"}) for name in "ab")]
    assert re.findall('<p class="verdict">(.*)</p>', write(models=models)) == ["a!", "b!"]


def test_a_baseline_alone_has_no_verdict(write):
    assert 'class="verdict"' not in write(models=[make_model()])


def test_the_meaning_of_an_interval_is_told(write):
    assert "about 95 of 100 such intervals would hold the true figure" in text_of(write())


def test_a_figure_stands_with_its_interval_and_what_it_was_without_its_temperature(write):
    cell = "<td>0.500<small>0.250 to 0.750</small>\n<small>without: 0.500</small></td>"
    assert write().count(cell) == 6  # log loss, Brier score and calibration error of two models


def test_a_figure_that_was_not_computed_has_no_row(write):
    assert "Top-5 accuracy" not in write()


def test_a_figure_that_is_not_defined_is_a_dash(write):
    model = make_model()
    model.scores["figures"]["roc_auc"] = make_figure(None, None, None)
    assert "<td>–<small></small>" in write(models=[model])


def test_the_weakest_class_comes_first(write):
    labels = re.findall(r'<tr><th scope="row">(ants|bees)</th><td>0\.\d+<small>', write(models=[make_model()]))
    assert labels == ["bees", "ants"]


def test_each_figure_of_a_class_stands_with_its_interval(write):
    (row,) = re.findall(r'<tr><th scope="row">ants</th><td>0\.900.*?</tr>', write(models=[make_model()]), re.DOTALL)
    assert row.count("<td>0.900<small>0.250 to 0.750</small></td>") == 5


def test_the_probabilities_are_shown_before_temperature_scaling_too(write):
    html = write(models=[make_model()])
    assert (html.count('<circle class="before"'), "before temperature scaling" in text_of(html)) == (1, True)


def test_a_class_without_f1_comes_last():
    model = make_model()
    model.scores["classes"]["bees"]["f1"] = make_figure(None, None, None)
    assert [label for label, _ in model.weakest_first] == ["ants", "bees"]


def test_the_figures_of_many_classes_are_folded_away(write):
    few, many = (write(class_names=[f"c{number}" for number in range(count)]) for count in (12, 13))
    assert (few.count("<details open>\n<summary>12 classes, the"), many.count("<details>\n<summary>13 classes, the")) == (2, 2)


def test_what_is_mistaken_for_what_is_told(write):
    assert '<tr><th scope="row">ants</th><td>bees</td><td>1</td><td>3.2 %</td></tr>' in write()


def test_a_mistake_is_shown_with_both_classes_and_where_the_model_looked(write):
    html = write(models=[make_model()])
    assert "✗ answers bees 0.90labelled ants 0.10 a.png" in text_of(html)
    assert html.count('alt="where the model looked"') == 2


def test_a_right_answer_is_shown_as_one(write):
    assert "✓ right: ants 0.80 a.png" in text_of(write())


def test_a_model_without_maps_shows_its_pictures_alone(write):
    model = make_model(galleries=make_gallery(["ants", "bees"], with_maps=False))
    assert "where the model looked" not in write(models=[model])


def test_a_kind_of_which_there_is_none_is_told(write):
    assert "Likely mislabelled: none." in text_of(write())


@pytest.mark.parametrize(("count", "shown"), [(2, 12), (3, 8), (20, 4)])
def test_the_more_models_there_are_the_fewer_pictures_of_each_are_shown(write, count, shown):
    models = [make_model(f"m{number}", galleries=make_gallery(["ants", "bees"], shown=12)) for number in range(count)]
    assert write(models=models).count("✗ answers") == shown * count


# The pictures


def test_a_class_is_shown_with_its_draw_and_how_many_there_are(write):
    html = write()
    assert html.count(f'<img src="{PICTURE}" alt="ants" decoding="async">') == 3
    assert "<figcaption><b>ants</b> · 1,006 in train</figcaption>" in html


def test_the_page_begins_with_a_glimpse_of_one_class_after_the_other():
    montage = {"ants": ["a1", "a2", "a3"], "bees": ["b1"], "wasps": ["w1", "w2"]}
    assert make_report(montage=montage).glimpse == ["a1", "b1", "w1", "a2", "w2", "a3"]


def test_a_glimpse_is_of_twelve_pictures_at_the_most():
    assert len(make_report(montage={"ants": ["a"] * 8, "bees": ["b"] * 8}).glimpse) == 12


def test_classes_that_are_not_drawn_are_counted(write):
    assert "The first 1 of 2 classes." in text_of(write(montage={"ants": [PICTURE]}))


def test_the_page_counts_the_pictures_of_each_class_and_split(write):
    html = write()
    assert '<tr><th scope="row">ants</th><td>1006</td><td>3</td><td>1</td></tr>' in html
    assert '<tr><th scope="row">All</th><td>2,012</td><td>6</td><td>2</td></tr>' in html


def test_the_page_says_how_many_pictures_were_left_out(write):
    assert "1,234 are used, 1 was left out (data/quarantine.csv names each)." in text_of(write())


def test_the_page_tells_the_sizes_and_the_licence_of_the_pictures(write):
    wanted = "The median picture has 8 × 8.5 pixels, the smallest 8 × 8, the largest 640 × 480. Licence: CC BY 4.0."
    assert wanted in text_of(write())


def test_the_page_says_so_where_nothing_was_found(write):
    assert "Nothing: all of them decode, none is there twice." in write()


def test_a_finding_is_shown_with_its_fate_and_its_pictures(write):
    html = write(findings=[FINDING])
    assert "Duplicate pictures: 1, kept in one split &#39;x.png&#39;, &#39;y.png&#39;: one picture 2 times" in text_of(html)
    assert (html.count('alt="x.png"'), html.count('alt="y.png"')) == (1, 1)


def test_findings_beyond_the_eighth_of_a_kind_are_counted(write):
    html = write(findings=[FINDING] * 11)
    assert (html.count("one picture 2 times"), "And 3 more in data/audit.json." in text_of(html)) == (8, True)


def test_a_doubted_label_is_shown_with_what_the_picture_looks_like(write):
    assert "labelled ants (0.03), looks like bees (0.96)a.png" in text_of(write(doubts=[make_doubt()]))


def test_the_page_says_so_where_no_label_is_in_doubt(write):
    assert "None: heads that had not seen a picture name its class each time." in write()


@pytest.mark.parametrize(("width", "tiny"), [(8, True), (48, False)])
def test_tiny_pictures_are_shown_pixel_by_pixel(write, width, tiny):
    assert ('<body class="tiny">' in write(audit={**make_audit(), "median_width": width})) == tiny


# What it was made from


def test_the_sums_and_the_versions_are_told(write):
    text = text_of(write())
    assert f"data/manifest.csv{'ef' * 32}" in text
    assert "python 3.11.7" in text


def test_the_params_and_the_sums_of_a_model_are_told(write):
    assert f"seed0 image_size64 devicecpu sum of: data{'cd' * 32}" in text_of(write())


def test_the_backbone_is_told_with_its_licence(write):
    assert "The backbone: resnet18 (torchvision), weights of a package, licence MIT." in text_of(write())


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (make_figure(0.9479, 0.9011, 0.9739), "0.948, 0.901 to 0.974"),
        (make_figure(0.5, None, None), "0.500, "),
        (make_figure(None, None, None), "–, "),
    ],
)
def test_a_figure_is_written_with_its_interval(figure, text):
    assert f"{three(figure['value'])}, {interval(figure)}" == text


def test_a_share_is_written_in_percent():
    assert share(0.9776) == "97.8 %"


def test_places_are_written_for_svg():
    assert points([(46.0, 12.5), (348, 190)]) == "46,12.5 348,190"

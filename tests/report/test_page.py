"""The report's page: verdict first, names escaped, nothing loaded from elsewhere, an alternative text for every picture."""

import re

import numpy as np
import pytest

from pipeline.evaluation.galleries import TITLES
from pipeline.report import page
from pipeline.report.page import interval, points, share, three, write_page
from tests.reports import PICTURE, VERDICT, make_audit, make_doubt, make_figure, make_gallery, make_model, make_report, tags_of

HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "it's <b>bold</b>", "{{ 7 * 7 }}"]
FINDING = ("exact_duplicate", ["x.png", "y.png"], "'x.png', 'y.png': one picture 2 times")


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write the page of a small report with changes, and return its text."""
    monkeypatch.setattr(page, "plot_curves", lambda path, histories: path.write_bytes(b"curves"))  # drawing them is slow

    def write_one(**changes):
        write_page(tmp_path / "report", make_report(**changes))
        return (tmp_path / "report" / "index.html").read_text(encoding="utf-8")

    return write_one


def text_of(html):
    return " ".join(re.sub("<[^>]*>", "", html.partition("</style>")[2]).split())


# Names


@pytest.mark.parametrize("name", HOSTILE)
def test_a_class_name_adds_no_tags(write, name):
    plain = [tag for tag, _ in tags_of(write(class_names=["ants", "bees"]))]
    assert [tag for tag, _ in tags_of(write(class_names=[name, "bees"]))] == plain


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_name_adds_no_tags(write, name):
    def tags(name):
        html = write(
            findings=[("broken", [name], f"{name!r} is bad")],
            doubts=[make_doubt(name, name)],
            models=[make_model(galleries=make_gallery(["ants", "bees"], name))],
            source={"source": name, "licence": name},
            digests={name: name},
            versions={name: name},
        )
        return [tag for tag, _ in tags_of(html)]

    assert tags(name) == tags("a.png")


def test_a_class_name_is_shown_unchanged(write):
    html = write(class_names=["<script>alert(1)</script>", "bees"])
    assert '<th scope="row">&lt;script&gt;alert(1)&lt;/script&gt;</th>' in html


def test_a_quote_in_a_models_name_stays_within_its_attribute(write):
    labels = [attributes.get("aria-label") for _, attributes in tags_of(write(model='a" onerror="b'))]
    assert 'Confusion matrix of a" onerror="b' in labels


def test_a_verdict_is_escaped(write):
    assert "a &lt; b" in write(comparison={"verdict": "a < b"})


# One file


def test_nothing_is_loaded_from_elsewhere(write):
    sources = [attributes.get("src") for _, attributes in tags_of(write(findings=[FINDING], doubts=[make_doubt()]))]
    assert {source for source in sources if source} == {PICTURE}


def test_links_point_into_the_page(write):
    tags = tags_of(write())
    targets = {f"#{attributes['id']}" for _, attributes in tags if "id" in attributes}
    links = [attributes["href"] for tag, attributes in tags if tag == "a"]
    assert len(links) == 9
    assert set(links) <= targets


def test_the_page_contains_no_address(write):
    assert not re.search(r"https?://|@import|url\(", write())


def test_the_page_allows_only_its_own_style_and_pictures(write):
    policies = [attributes["content"] for tag, attributes in tags_of(write()) if attributes.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_the_page_contains_no_script(write):
    tags = tags_of(write())
    assert "script" not in {tag for tag, _ in tags}
    assert [key for _, attributes in tags for key in attributes if key.startswith("on")] == []


def test_every_picture_and_every_drawing_has_an_alternative_text(write):
    tags = tags_of(write(findings=[FINDING]))
    texts = [attributes.get("alt") for tag, attributes in tags if tag == "img"]
    # Two findings; per model a mistake and a correct answer with maps; three pictures per class. The preview repeats these without text.
    assert (len(texts) - texts.count(""), texts.count(""), None in texts) == (2 + 2 * 2 * 2 + 3 * 2, 6, False)
    assert all(attributes.get("aria-label") for tag, attributes in tags if tag == "svg")


def test_the_curves_are_a_file_beside_the_page(write, tmp_path):
    write()
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["curves.png", "index.html"]


def test_a_page_written_twice_has_equal_bytes(write):
    assert write() == write()


# Content


def assert_in_order(text, *facts):
    """The facts are in the text, one after the other."""
    assert re.search(".*".join(map(re.escape, facts)), text), text


def test_the_page_begins_with_the_data_the_verdict_and_its_test(write):
    html = write()
    text = text_of(html[: html.index('id="figures"')])
    assert_in_order(
        text, "insects.zip", "1,234", "2 classes", "268", VERDICT, "p = 0.0012", "baseline 2, finetuned 21", "epoch 3", "50.0 %"
    )


def test_a_model_that_kept_its_initial_weights_is_reported(write):
    assert "kept" in re.findall('<p class="note">McNemar.*?</p>', write(comparison={"best_epoch": 0}), re.DOTALL)[0]
    assert "kept" not in re.findall('<p class="note">McNemar.*?</p>', write(), re.DOTALL)[0]


def test_every_model_has_its_verdict(write):
    models = [make_model(), *(make_model(name, comparison={**make_report().models[1].comparison, "verdict": f"{name}!"}) for name in "ab")]
    assert re.findall('<p class="verdict">(.*)</p>', write(models=models)) == ["a!", "b!"]


def test_a_baseline_alone_has_no_verdict(write):
    assert 'class="verdict"' not in write(models=[make_model()])


def test_the_meaning_of_an_interval_is_explained(write):
    assert "about 95 of 100 such intervals" in text_of(write())


def test_a_figure_has_its_interval_and_its_value_before_temperature_scaling(write):
    cell = "<td>0.500<small>0.250 to 0.750</small>\n<small>before: 0.500</small></td>"
    assert write().count(cell) == 6  # log loss, Brier score and calibration error of two models


def test_a_figure_that_was_not_computed_has_no_row(write):
    assert "Top-5 accuracy" not in write()


def test_an_undefined_figure_is_a_dash(write):
    model = make_model()
    model.scores["figures"]["roc_auc"] = make_figure(None, None, None)
    assert "<td>–<small></small>" in write(models=[model])


def test_the_weakest_class_comes_first(write):
    labels = re.findall(r'<tr><th scope="row">(ants|bees)</th><td>0\.\d+<small>', write(models=[make_model()]))
    assert labels == ["bees", "ants"]


def test_each_figure_of_a_class_has_its_interval(write):
    (row,) = re.findall(r'<tr><th scope="row">ants</th><td>0\.900.*?</tr>', write(models=[make_model()]), re.DOTALL)
    assert row.count("<td>0.900<small>0.250 to 0.750</small></td>") == 5


def test_the_reliability_before_temperature_scaling_is_drawn_too(write):
    html = write(models=[make_model()])
    assert (html.count('<circle class="before"'), "before temperature scaling" in text_of(html)) == (1, True)


def test_a_class_without_f1_comes_last():
    model = make_model()
    model.scores["classes"]["bees"]["f1"] = make_figure(None, None, None)
    assert [label for label, _ in model.weakest_first] == ["ants", "bees"]


def test_the_figures_of_many_classes_are_collapsed(write):
    few, many = (write(class_names=[f"c{number}" for number in range(count)]) for count in (12, 13))
    assert (few.count("<details open>\n<summary>12 classes, lowest"), many.count("<details>\n<summary>13 classes, lowest")) == (2, 2)


def test_the_page_of_a_thousand_classes_is_bounded(write):
    names = [f"a_class_of_a_thousand_{number}" for number in range(1000)]
    counts = np.random.default_rng(0).poisson(0.1, (1000, 1000))
    models = [make_model(name, names, confusion=(names, counts)) for name in ("baseline", "finetuned")]
    html = write(class_names=names, models=models, montage={})
    assert len(html) < 1e6
    assert text_of(html).count("The other 900 classes are in") == 3  # of each model, and of the splits
    assert html.count('class="pixels"') == 2


def test_a_model_that_tells_unfamiliar_pictures_is_shown_with_its_rate_beside_the_stated_one_and_with_what_it_detects(write):
    text = text_of(write())
    assert "calls 4.1 % unfamiliar (interval 2.0 % to 7.0 %; stated: 5.0 % of familiar pictures)" in text
    assert_in_order(text, "Foreign pictures", "digits", "0.900", "0.987", "60")


def test_a_model_that_does_not_tell_unfamiliar_pictures_says_so(write):
    assert "The model does not tell unfamiliar pictures" in text_of(write(models=[make_model(tells=False)]))
    assert "The model does not tell unfamiliar pictures" not in text_of(write())


def test_the_most_frequent_mistakes_are_listed(write):
    assert '<tr><th scope="row">ants</th><td>bees</td><td>1</td><td>3.2 %</td></tr>' in write()


def test_a_mistake_is_shown_with_both_classes_and_its_activation_map(write):
    html = write(models=[make_model()])
    assert_in_order(text_of(html), "✗", "bees 0.90", "labelled ants 0.10", "a.png")
    assert html.count('alt="class activation map"') == 2


def test_a_correct_answer_is_marked(write):
    assert_in_order(text_of(write()), "✓", "ants 0.80", "a.png")


def test_a_model_without_maps_shows_only_its_pictures(write):
    model = make_model(galleries=make_gallery(["ants", "bees"], with_maps=False))
    assert "class activation map" not in write(models=[model])


def test_an_empty_gallery_is_reported(write):
    assert f"{TITLES['mislabelled']}: none." in text_of(write())


@pytest.mark.parametrize(("count", "shown"), [(2, 12), (3, 8), (20, 4)])
def test_the_more_models_there_are_the_fewer_pictures_of_each_are_shown(write, count, shown):
    models = [make_model(f"m{number}", galleries=make_gallery(["ants", "bees"], shown=12)) for number in range(count)]
    assert write(models=models).count("✗ predicted") == shown * count


# The dataset


def test_a_class_is_shown_with_random_pictures_and_their_number(write):
    html = write()
    assert html.count(f'<img src="{PICTURE}" alt="ants" decoding="async">') == 3
    assert "<figcaption><b>ants</b> · 1,006 in train</figcaption>" in html


def test_the_preview_takes_one_picture_per_class_in_turn():
    montage = {"ants": ["a1", "a2", "a3"], "bees": ["b1"], "wasps": ["w1", "w2"]}
    assert make_report(montage=montage).preview == ["a1", "b1", "w1", "a2", "w2", "a3"]


def test_the_preview_has_at_most_twelve_pictures():
    assert len(make_report(montage={"ants": ["a"] * 8, "bees": ["b"] * 8}).preview) == 12


def test_classes_without_pictures_on_the_page_are_counted(write):
    assert "first 1 of 2 classes" in text_of(write(montage={"ants": [PICTURE]}))


def test_the_page_counts_the_pictures_of_each_class_and_split(write):
    html = write()
    assert '<tr><th scope="row">ants</th><td>1006</td><td>3</td><td>1</td></tr>' in html
    assert '<tr><th scope="row">All</th><td>2,012</td><td>6</td><td>2</td></tr>' in html


def test_the_page_reports_used_and_left_out_pictures_their_sizes_and_their_licence(write):
    html = write()
    text = text_of(html[: html.index('id="audit"')])
    assert_in_order(text, "1,234 pictures", "1 is", "8 × 8.5", "8 × 8,", "640 × 480", "CC BY 4.0")


def test_the_page_says_so_where_nothing_was_found(write):
    assert "Nothing: all of them decode, none is there twice." in write()


def test_a_finding_is_shown_with_its_fate_and_its_pictures(write):
    html = write(findings=[FINDING])
    assert "Duplicate pictures: 1, kept in one split &#39;x.png&#39;, &#39;y.png&#39;: one picture 2 times" in text_of(html)
    assert (html.count('alt="x.png"'), html.count('alt="y.png"')) == (1, 1)


def test_findings_beyond_the_eighth_of_a_kind_are_counted(write):
    html = write(findings=[FINDING] * 11)
    assert (html.count("one picture 2 times"), "And 3 more in data/audit.json." in text_of(html)) == (8, True)


def test_a_doubtful_label_is_shown_with_the_predicted_class(write):
    assert_in_order(text_of(write(doubts=[make_doubt()])), "labelled ants (0.03)", "bees (0.96)", "a.png")


def test_the_absence_of_doubtful_labels_is_reported(write):
    (section,) = re.findall('<section id="doubts".*?</section>', write(), re.DOTALL)
    assert "None:" in section


@pytest.mark.parametrize(("width", "tiny"), [(8, True), (48, False)])
def test_tiny_pictures_are_enlarged_without_smoothing(write, width, tiny):
    assert ('<body class="tiny">' in write(audit={**make_audit(), "median_width": width})) == tiny


# Image size


def test_the_sides_that_were_tried_are_a_table(write):
    row = {"log_loss": 0.2069, "accuracy": 0.938, "above_lowest": 0.0077, "standard_error": 0.017}
    rows = [{**row, "image_size": 64}, {**row, "image_size": 96, "above_lowest": 0.0}]
    text = text_of(write(embedding={"preprocessing": {"image_size": 64}, "image_sizes": rows}))
    assert_in_order(text, "enter the network at 64 × 64 pixels. It is the smallest side", "64 (chosen) 0.2070.0080.0170.938")
    assert_in_order(text, "64 (chosen)", "96 0.2070.0000.0170.938")


def test_without_a_measurement_the_side_alone_is_named(write):
    html = write()
    assert "enter the network at 64 × 64 pixels." in text_of(html)
    assert "Sides that were tried" not in html


# Provenance


def test_digests_and_versions_are_listed(write):
    text = text_of(write())
    assert f"data/manifest.csv{'ef' * 32}" in text
    assert "python 3.11.7" in text


def test_the_params_and_input_digests_of_a_model_are_listed(write):
    assert f"seed0 image_size64 devicecpu digest of: data{'cd' * 32}" in text_of(write())


def test_the_backbone_is_named_with_its_licence(write):
    assert_in_order(text_of(write()), "Backbone:", "resnet18 (torchvision)", "a package", "MIT")


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


def test_coordinates_are_written_for_svg():
    assert points([(46.0, 12.5), (348, 190)]) == "46,12.5 348,190"

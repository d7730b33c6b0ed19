"""The heat-map: one file that needs no other, with every token's value, readable in all its
colours, whatever the text says."""

import html
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from memjax.experiment.report import ReportError
from memjax.experiment.report.heatmap import HeatmapError, Measure, shares, write_heatmap

PIECES = [["The", " cat", "\n", "sat", "<pad>"], ["a", " \\xe2", "", "\t", "!"]]
VALUES = np.array([[1.0, 3.0, 2.0, 1.5, 99.0], [0.25, 0.25, 0.5, 1.25, 0.75]])
COUNTED = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], bool)
IDS = np.arange(10).reshape(2, 5) + 500
MEASURES = [
    Measure("occlusion_loss", "nats by which the loss moves", VALUES),
    Measure("gradient", "its gradient", -VALUES),
]


class Page(HTMLParser):
    """The tokens, inputs and labels of a page, and all it links to."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags, self.links, self.tokens, self.inputs, self.labels, self._in_token = (
            [],
            [],
            [],
            [],
            [],
            False,
        )
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.links += [values[key] for key in ("src", "href", "action", "data") if key in values]
        self._in_token = tag == "span" and "title" in values
        if self._in_token:
            self.tokens.append({**values, "text": ""})
        if tag == "input":
            self.inputs.append(values)
        if tag == "label":
            self.labels.append(values["for"])

    def handle_endtag(self, tag):
        self._in_token = False

    def handle_data(self, data):
        if self._in_token:
            self.tokens[-1]["text"] += data


@pytest.fixture
def page(tmp_path):
    return Page(
        write_heatmap(tmp_path / "a.html", PIECES, MEASURES, IDS, COUNTED, lead="Two texts.")
    )


def test_every_token_is_there_with_its_value_and_its_id(page):
    assert [token["text"] for token in page.tokens] == [
        "The",
        " cat",
        "↵\u200b",
        "sat",
        "<pad>",
        "a",
        " \\xe2",
        "∅",
        "⇥",
        "!",
    ]
    assert page.tokens[1]["title"] == "token 1, id 501\nocclusion_loss 3\ngradient -3"
    assert page.tokens[8]["title"] == "token 3, id 508\nocclusion_loss 1.25\ngradient -1.25"
    assert page.tokens[4]["title"] == "token 4, id 504\nno value"
    assert page.tokens[4]["class"] == "t none"


def test_colours_go_from_the_least_of_a_text_to_its_largest(page):
    styles = [dict(part.split(":") for part in token["style"].split(";")) for token in page.tokens]
    assert [float(style["--a0"]) for style in styles] == [0, 1, 0.5, 0.25, 0, 0, 0, 0.25, 1, 0.5]
    assert [float(style["--a1"]) for style in styles] == [1, 0, 0.5, 0.75, 0, 1, 1, 0.75, 0, 0.5]
    assert re.findall(
        r"<span>occlusion_loss</span><span>(.*?)</span>.*?<span>(.*?)</span>", page.source
    ) == [
        ("1", "3"),
        ("0.25", "1.25"),
    ]
    np.testing.assert_array_equal(
        shares(np.array([2.0, 2.0, 5.0]), np.array([True, True, False])), 0
    )
    np.testing.assert_array_equal(shares(np.array([2.0]), np.array([False])), 0)


def test_the_page_needs_no_other_file_and_no_script(page):
    assert page.links == ["data:,"]
    assert not {"script", "iframe", "object", "img"} & set(page.tags)
    for word in ("@import", "url(", "http:", "https:"):
        assert word not in page.source


def test_every_choice_has_a_label_and_a_rule(page):
    groups = {
        name: [one["id"] for one in page.inputs if one["name"] == name]
        for name in ("measure", "text")
    }
    assert groups == {"measure": ["m0", "m1"], "text": ["t0", "t1", "t2"]}
    assert [one["id"] for one in page.inputs if "checked" in one] == ["m0", "t0"]
    assert page.labels == ["m0", "m1", "t0", "t1", "t2"]
    css = re.search(r"<style>(.*?)</style>", page.source, re.DOTALL)[1]
    assert css.count("{") == css.count("}")
    for i in range(2):
        assert f"#m{i}:checked ~ main .t {{ --v: var(--a{i}); }}" in css
        assert f"#t{i + 1}:checked ~ main .text:not(#text-{i + 1}) {{ display: none; }}" in css
        assert f'id="text-{i + 1}"' in page.source
    for name in page.labels:
        assert (
            f"#{name}:checked ~ header label[for={name}]" in css
            and f"#{name}:focus-visible ~ header label" in css
        )
    # What is chosen can come behind the choices only where both are children of one parent.
    assert (
        page.source.rindex("<input") < page.source.index("<header>") < page.source.index("<main>")
    )


def luminance(rgb):
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (x / 255 for x in rgb)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_is_readable_on_the_darkest_colour(page, scheme):
    """WCAG 2: a contrast of 4.5 at least; between the ends of the scale there must be a difference
    too."""
    heat = [int(x) for x in re.search(r"--heat: (\d+) (\d+) (\d+)", page.source).groups()]
    top = [float(x) for x in re.findall(r"--top: ([\d.]+)", page.source)][scheme]
    paper, ink = (
        [
            int(re.findall(rf"--{name}: #(\w{{6}})", page.source)[scheme][i : i + 2], 16)
            for i in (0, 2, 4)
        ]
        for name in ("paper", "ink")
    )
    darkest = [top * h + (1 - top) * p for h, p in zip(heat, paper, strict=True)]

    def contrast(one, other):
        high, low = sorted((luminance(one), luminance(other)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    assert contrast(ink, darkest) >= 4.5
    assert contrast(paper, darkest) >= 1.8


def test_hostile_text_is_text(tmp_path):
    attack = '"><script>alert(1)</script>{{ 7 * 7 }}'
    pieces = [[attack, "\x00\x1b", "\u202e", "\ud800", "</p>"]]
    measures = [Measure(attack, attack, VALUES[:1])]
    page = Page(write_heatmap(tmp_path / "a.html", pieces, measures, title=attack, lead=attack))
    assert "script" not in page.tags and "<script" not in page.source
    assert (
        page.source.count(html.escape(attack).replace("&quot;", "&#34;").replace("&#x27;", "&#39;"))
        >= 5
    )
    assert "49" not in page.source.replace("{{ 7 * 7 }}", "").split("<body>")[1]
    assert [token["text"] for token in page.tokens] == [attack, "␀␛", "\u202e", "?", "</p>"]
    assert "unicode-bidi: isolate" in page.source, (
        "an override must not turn around what follows it"
    )


def test_what_cannot_be_shown_is_named(tmp_path):
    path = tmp_path / "a.html"
    with pytest.raises(
        HeatmapError, match=r"a\.html: got 2 texts and 0 measures, expected at least one"
    ):
        write_heatmap(path, PIECES, [])
    with pytest.raises(
        HeatmapError, match=r"got values of x of shape \(1, 5\), expected \(2, 5\) as the pieces"
    ):
        write_heatmap(path, PIECES, [Measure("x", "", VALUES[:1])])
    with pytest.raises(HeatmapError, match=r"got ids of shape \(1, 5\)"):
        write_heatmap(path, PIECES, MEASURES, IDS[:1])
    with pytest.raises(HeatmapError, match=r"got texts of \[2, 5\] pieces"):
        write_heatmap(path, [PIECES[0], ["a", "b"]], MEASURES)
    with pytest.raises(HeatmapError, match="got NaNs or infinities in the values of x"):
        write_heatmap(path, PIECES, [Measure("x", "", np.where(COUNTED, np.nan, 0))])
    assert issubclass(HeatmapError, ReportError)
    assert not path.exists()

"""The report: one file that needs no other, says what the numbers say, and survives what a run
leaves out."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from memjax.experiment.report import ReportError, write_report
from memjax.experiment.report.run import read_run
from memjax.files import sealed, sha256, write_json


class Page(HTMLParser):
    """Collects attributes, visible text and the marked tokens of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.alts: list[str] = []
        self.ids: list[str] = []
        self.language = ""
        self.text = ""
        self.skip = 0
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        self.tags.append(tag)
        self.links += [
            values[key]
            for key in ("src", "href", "srcset", "data", "action", "poster")
            if key in values
        ]
        self.ids += [values["id"]] if "id" in values else []
        self.language = values.get("lang", "") if tag == "html" else self.language
        if tag == "img":
            self.alts.append(values.get("alt", ""))
        self.skip += tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self.skip -= tag == "style"

    def handle_data(self, data: str) -> None:
        self.text += "" if self.skip else data


def claim_of(page: Page) -> str:
    return html.unescape(
        re.search(r'<p class="lead" id="claim">(.*?)</p>', page.source, re.DOTALL)[1]
    )


def sides_of(page: Page, kind: str) -> list[list[str]]:
    """For each passage, the marked tokens of one model's text, with their titles."""
    blocks = re.findall(
        rf'<div class="{kind}"><h3>.*?<p class="piece-text">(.*?)</p>', page.source, re.DOTALL
    )
    return [re.findall(r"<mark title=\"should be (.*?)\">(.*?)</mark>", block) for block in blocks]


@pytest.fixture
def page(make_run) -> Page:
    return Page(write_report(make_run()))


def test_page_needs_no_other_file(page):
    assert page.links
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert not {"script", "link rel=stylesheet", "iframe", "object"} & set(page.tags)
    assert "@import" not in page.source
    assert "url(" not in page.source
    assert "http:" not in page.source
    assert "https:" not in page.source


def test_page_can_be_read_by_everyone(page):
    assert page.language == "en"
    assert len(page.alts) == 6
    assert all(len(alt) > 30 for alt in page.alts)
    assert len(page.ids) == len(set(page.ids))
    assert "prefers-color-scheme: dark" in page.source
    assert "@media print" in page.source


def test_headline_figures_are_the_results(page):
    for figure in (
        "97.0%",
        "25.0%",
        "22.0%",
        "71.0%",
        "91 of 128",
        "+4.2%",
        "3.75",
        "3.60",
        "3.70",
        "9 min 20 s",
        "21,000",
        "98.5%",
    ):
        assert figure in page.text, figure
    for fact in (
        "python-docs",
        "550,000",
        "4 × 32",
        "ab12cd34",
        "2.90",
        "configs/quickstart.py",
        "jax 0.10.2",
        "2 × cpu cores",
        "6.93",
    ):
        assert fact in page.text, fact


def test_curriculum_says_where_weights_come_from(page):
    rows = re.findall(r"<tr>(.*?)</tr>", page.source, re.DOTALL)
    copy = next(row for row in rows if '<th scope="row">copy</th>' in row)
    assert re.findall(r"<td[^>]*>(.*?)</td>", copy) == [
        "copy\u00a0×\u00a01 + blank copy\u00a0×\u00a00.5 + next token\u00a0×\u00a00.5",
        *("blank copy", "2.3 M", "52%", "60", "246 k", "17 s", "14,629"),
    ]


def test_best_values_are_of_the_final_model_and_its_controls(page):
    best = re.findall(r'<td class="best">(.*?)<span', page.source)
    assert best == ["97.0%", "90.0%", "71.0%", "3.60", "1.79"]  # not the 97.5% of the earlier stage


def test_claim_carries_the_numbers_when_they_support_it(page):
    assert "97.0%" in claim_of(page)
    assert "3.9 times the 25.0%" in claim_of(page)
    assert "22.0%" in claim_of(page)
    assert "4.2% above" in claim_of(page)
    assert "claim shown" in page.text


@pytest.mark.parametrize(
    ("changes", "verdict", "words"),
    [
        ({"copy_accuracy": 0.40}, "not shown", ["less than twice", "40.0%"]),
        ({"copy_accuracy": 0.10}, "not shown", ["less than twice", "10.0%"]),
        (
            {"copy_accuracy_no_memory": 0.60},
            "not shown",
            ["less than twice", "60.0% without any memory"],
        ),
        ({"copy_accuracy": 0.50}, "shown", ["2.0 times the 25.0%"]),
        ({"next_token_nats": 3.5}, "shown", ["2.8% below"]),
        ({"next_token_nats": 3.6}, "shown", ["is that of the next-token control"]),
    ],
)
def test_claim_follows_the_numbers(make_run, changes, verdict, words):
    page = Page(write_report(make_run(lambda results: results.update(changes), curves=False)))
    assert f"claim {verdict}" in page.text
    assert all(word in claim_of(page) for word in words), claim_of(page)


def test_a_run_started_from_python_has_no_command(make_run):
    page = Page(write_report(make_run(lambda results: results.update(command=""), curves=False)))
    assert "The run was started from Python, not by a command" in page.text
    assert "memjax train" not in page.text


def without_controls(results: dict[str, Any]) -> None:
    results["controls"] = []
    for name in ("causal_control", "no_memory"):
        del results["stages"][name], results["models"][name]
    del results["copy_accuracy_causal_control"], results["next_token_nats_causal_control"]
    for passage in results["passages"]:
        del passage["control"], passage["control_correct"]


def test_a_run_without_controls_is_compared_with_no_memory_in_view(make_run):
    page = Page(write_report(make_run(without_controls, curves=False)))
    assert claim_of(page) == (
        "The memory model reconstructs 97.0% of held-out tokens from its memories, 4.4 times the"
        " 22.0% without any memory."
    )
    assert "next-token control" not in page.text
    assert "trained on next tokens alone" not in page.text
    assert "3.75 nats per token and 3.70 without memory" in page.text


def test_a_run_with_nothing_to_compare_says_so(make_run):
    def change(results: dict[str, Any]) -> None:
        without_controls(results)
        del results["copy_accuracy_no_memory"], results["next_token_nats_no_memory"]

    page = Page(write_report(make_run(change, curves=False)))
    assert "claim not compared" in page.text
    assert "reconstructs 97.0% of held-out tokens from its memories. The run has no control" in (
        claim_of(page)
    )


def test_another_control_has_its_own_name(make_run):
    def change(results: dict[str, Any]) -> None:
        results["controls"] = ["plain_memory"]
        for part in ("stages", "models"):
            results[part]["plain_memory"] = results[part].pop("causal_control")
        for key in ("copy_accuracy", "next_token_nats"):
            results[f"{key}_plain_memory"] = results.pop(f"{key}_causal_control")

    page = Page(write_report(make_run(change, curves=False)))
    assert "3.9 times the 25.0% of the control plain memory and against 22.0%" in claim_of(page)
    assert "next-token control" not in page.text
    assert '<div class="none"><h3>plain memory<small>' in page.source


def test_claim_is_open_when_a_control_is_missing(make_run):
    def change(results: dict[str, Any]) -> None:
        del results["copy_accuracy_causal_control"]
        results["models"]["causal_control"] = None

    page = Page(write_report(make_run(change, curves=False)))
    assert "claim not measured" in page.text
    assert "neither supports nor contradicts" in claim_of(page)


def test_wrong_tokens_are_marked_exactly_where_they_differ(make_run):
    def change(results: dict[str, Any]) -> None:
        source = ["def", " foo", "(", "x", ")", ":", "\n", "return"]
        made = ["def", " bar", "(", "x", ")", "\n", "\n", "return"]
        results["passages"] = [
            {
                "source": source,
                "regenerated": made,
                "correct": [a == b for a, b in zip(source, made, strict=True)],
                "control": source,
            },
            {
                "source": source,
                "regenerated": source[:6],
                "control": [" the"] * 8,
                "control_correct": [False] * 8,
            },
        ]

    page = Page(write_report(make_run(change, curves=False)))
    ours, control = sides_of(page, "ours"), sides_of(page, "causal")
    assert ours[0] == [("“ foo”", "bar"), ("“:”", "↵\u200b")]
    assert control[0] == []  # no flags: compared by text
    assert [shown for _, shown in ours[1]] == ["∅", "∅"]  # two tokens that never came
    assert len(control[1]) == 8
    assert "6 of 8 tokens correct" in page.text
    assert "8 of 8 tokens correct" in page.text


def test_passages_from_far_back_have_their_place(make_run):
    source = ["def", " foo", "(", ")"]
    found = {"source": source, "regenerated": ["def", " bar", "(", ")"]}
    flags = {"correct": [True, False, True, True]}

    def change(results: dict[str, Any]) -> None:
        results["passages"] = []
        results["far_passages"] = [
            found | flags | {"memories": 4096, "place": 96},
            {"source": source, "regenerated": source, "memories": 16, "place": None},
            {"source": source, "memories": 16, "place": 0},
        ]

    page = Page(write_report(make_run(change, curves=False)))
    assert "4 tokens, recalled among 4,096 memories, 4,000 chunks back" in page.text
    assert "16 memories, 16 chunks back" in page.text
    assert page.text.count("chunks back") == 2, "one has no place"
    assert sides_of(page, "ours")[0] == [("“ foo”", "bar")]
    assert "reconstructed no passages" not in page.text


def test_a_run_without_passages_from_far_back_has_no_heading_for_them(page):
    assert "far back" not in page.text


def test_flags_know_better_than_equal_text(make_run):
    record = {"source": ["a", "b"], "regenerated": ["a", "b"], "correct": [True, False]}
    page = Page(
        write_report(make_run(lambda results: results.update(passages=[record]), curves=False))
    )
    assert sides_of(page, "ours") == [[("“b”", "b")]]


def test_hostile_text_is_escaped(make_run):
    attack = '"><script>alert(1)</script>'

    def change(results: dict[str, Any]) -> None:
        results.update(
            name=attack,
            device=attack,
            memjax_version=attack,
            created=attack,
            versions={attack: attack},
        )
        results["data"].update(corpus=attack, tokenizer_fingerprint=attack)
        results["stages"]["copy"].update(init_from=attack, objectives={attack: 1.0})
        results["passages"] = [
            {"source": [attack, attack], "regenerated": [attack, "x"], "correct": [True, False]}
        ]

    page = Page(write_report(make_run(change, curves=False)))
    assert "script" not in page.tags
    assert "<script" not in page.source
    assert page.source.count("&lt;script&gt;") >= 8


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["autoencoder", "combined", "causal_control"])
def test_a_missing_stage_reads_as_not_run(make_run, missing):
    def change(results: dict[str, Any]) -> None:
        results["stages"].pop(missing)
        results["models"].pop(missing, None)

    workdir = make_run(change)
    assert "unfinished: the last logged step is" in Page(write_report(workdir)).text
    shutil.rmtree(workdir / "stages" / missing)
    assert "not run" in Page(write_report(workdir)).text


def test_only_the_controls_ran(make_run):
    workdir = make_run(lambda results: results.update(stages={}, models={}))
    for stage in ("autoencoder", "blank_copy", "copy", "combined"):
        shutil.rmtree(workdir / "stages" / stage)
    page = Page(write_report(workdir))
    assert page.source.count('colspan="8">not run') == 4
    assert len(page.alts) == 1  # next-token loss of the controls


NOTHING: dict[str, Any] = {"models": {}, "stages": {}}


def test_nothing_but_an_empty_result_still_gives_a_page(tmp_path):
    write_json(tmp_path / "results.json", NOTHING)
    page = Page(write_report(tmp_path))
    assert "claim not measured" in page.text
    assert "no stage logged a loss" in page.text
    assert "–" in page.text
    assert page.alts == []


@pytest.mark.parametrize("value", [None, math.nan, "n/a", [], {}])
def test_any_number_may_be_absent(make_run, value):
    def blank(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: blank(item) for key, item in node.items()}
        return value if isinstance(node, (int, float)) else node

    page = Page(
        write_report(make_run(lambda results: results.update(blank(results)), curves=value is None))
    )
    assert "nan" not in re.sub(r"[a-z]*nan[a-z]+|[a-z]+nan[a-z]*", "", page.text.lower())
    assert "None" not in page.text


def test_errors_name_the_file_and_the_remedy(tmp_path):
    with pytest.raises(ReportError, match=r"results\.json: does not exist; `memjax train"):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ReportError, match=r"results\.json: no JSON .*\. Delete it and repeat"):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ReportError, match=r"results\.json: \[\], expected an object"):
        write_report(tmp_path)
    write_json(tmp_path / "results.json", sealed({"tokenizer": "another file of a workdir"}))
    with pytest.raises(ReportError, match=r"results\.json: no models, expected it there"):
        write_report(tmp_path)


MEASURED = {"stage": "copy", "step": 8, "texts": 16, "tokens_a_text": 16}


def test_results_that_changed_by_chance_are_refused(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, sealed(NOTHING | {"tokens_per_second": 1024.0}))
    write_report(tmp_path)
    path.write_text(path.read_text().replace("1024", "1025"))
    with pytest.raises(ReportError, match=r"results\.json: not what was written .* Delete it and"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("name", "contents", "said"),
    [
        ("probe.json", {}, r"KeyError \('results'\), expected what `memjax probe` writes"),
        ("stages/copy/instruments.json", {"stage": "copy"}, "no step, expected it there"),
        ("stages/copy/instruments.json", MEASURED | {"instruments": {"recall": []}}, "TypeError"),
    ],
)
def test_numbers_of_another_command_are_refused(tmp_path, name, contents, said):
    write_json(tmp_path / "results.json", NOTHING)
    write_json(tmp_path / name, sealed(contents))
    with pytest.raises(ReportError, match=rf"{name}: .*{said}.*Delete it and repeat `memjax "):
        write_report(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_log_that_is_not_what_was_written_is_named(tmp_path, caplog, damage):
    path = tmp_path / "stages" / "copy" / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('{"step": 8, "copy/nats": 9.0}\n')
    sums = {"metrics_sha256": {"copy": sha256(path)}}
    write_json(tmp_path / "results.json", sealed(NOTHING | sums))
    read_run(tmp_path)
    assert not caplog.messages
    path.write_text("" if damage == "cut" else path.read_text().replace("9", "1"))
    if damage == "gone":
        path.unlink()
    read_run(tmp_path)
    assert [said.partition(",")[0] for said in caplog.messages] == [
        f"{path}: not what was written; curves on the page lack or change points"
    ]


def test_after_a_resume_the_last_line_of_a_step_wins(make_run):
    workdir = make_run()
    path = workdir / "stages" / "copy" / "metrics.jsonl"
    lines = [
        {"step": 10, "split": "train", "copy/nats": 9.0},
        {"step": 20, "split": "train", "copy/nats": 8.0},
    ]
    lines += [
        {"step": 10, "split": "train", "copy/nats": 1.0},
        {"step": 5, "split": "validation", "copy/nats": math.nan},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 30, "spl')
    assert read_run(workdir).curve("copy", "train", "copy/nats") == ([10.0, 20.0], [1.0, 8.0])
    assert read_run(workdir).curve("copy", "validation", "copy/nats") == ([], [])
    write_report(workdir)


def test_plots_have_pixels_and_come_out_the_same_every_time(make_run):
    workdir = make_run()
    (workdir / "plots").mkdir()
    (workdir / "plots" / "stale.png").write_bytes(b"")
    first = write_report(workdir).read_bytes()
    names = sorted(path.name for path in (workdir / "plots").iterdir())
    terms = ("blank_copy", "copy", "next_token", "reconstruction")
    assert names == [
        "accuracy_over_training.png",
        "copy_by_position.png",
        *(f"loss_{term}.png" for term in terms),
    ]
    for name in names:
        pixels = matplotlib.image.imread(workdir / "plots" / name)
        assert pixels.shape[0] > 400
        assert pixels.shape[1] > 700
        assert pixels[..., :3].std() > 0.01
    assert write_report(workdir).read_bytes() == first


def test_a_run_that_read_many_memories_has_figures_of_its_recall(make_run):
    def change(results: dict[str, Any]) -> None:
        model = results["models"]["combined"]
        model["asked_to_copy_by"] = "recall"
        model["recall_accuracy"] = {"16": 0.97, "64": 0.96, "1024": 0.9}
        model["recall_exact"] = {"1024": 0.5, "16": 0.8, "64": None}
        model["recall_exact_by_place"] = {"16": [0.8] * 16, "64": [0.9] * 9 + [0.25], "256": [None]}

    page = Page(write_report(make_run(change, curves=False)))
    by_memories, by_place = page.alts[:2]
    assert "tokens 97.0% among 16, 96.0% among 64, 90.0% among 1,024;" in by_memories
    assert by_memories.endswith("whole chunks 80.0% among 16, 50.0% among 1,024.")
    assert by_place.endswith("Worst tenth of the places: 80.0% among 16, 25.0% among 64.")
    assert "recalled by its place, among all memories of the sequence" in page.text


def test_a_run_that_did_not_has_none(page):
    assert not any("recall" in alt and "memories" in alt for alt in page.alts)
    assert "recalled by its place" not in page.text

"""The report as a reader sees it, in Chromium. Screenshots go to build/screenshots."""

import base64
import dataclasses
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from chromium import Page, chromium, needs_chromium, opened
from evaluation_factory import dictated_judge, three_stages, write_predictions
from media_factory import write_clip

from fgce.client import FgceClient
from humanomni.evaluation.cards import MAX_CARDS, choose_samples, with_views
from humanomni.evaluation.clips import STRIP_BYTES, ClipPart, ClipView, view_clips
from humanomni.evaluation.coherence import CoherenceScorer
from humanomni.evaluation.conveyed import EmotionNamer
from humanomni.evaluation.predictions import read_predictions
from humanomni.evaluation.report import render_report
from humanomni.evaluation.stage import Stage
from humanomni.evaluation.summary import evaluation_summary
from humanomni.labels import LABEL_SETS

webdriver = pytest.importorskip("selenium.webdriver")
pytestmark = needs_chromium

CLIPS = 28
ATTACK = "</script><img src=x onerror=\"document.title='taken'\"><b>bold</b>"


def build_report(files: dict[str, Path], info: dict[str, Any], views: Mapping[str, ClipView], label_set: str) -> str:
    """URL of the report of these prediction files, written beside them."""
    folder = files["sft"].parent
    with dictated_judge() as judge:
        client = FgceClient(judge.url)
        scorer = CoherenceScorer(client, folder / "scores.jsonl")
        namer = EmotionNamer(client, LABEL_SETS[label_set], folder / "emotions.jsonl")
        stages = []
        for name, path in files.items():
            predictions = read_predictions(path)
            scores, conveyed = scorer.score(predictions, name), namer.name(predictions, name)
            stages.append(Stage(name, predictions, scores, conveyed, info=info.get(name, {})))
    ablated = [dataclasses.replace(stages[0], name="audio", media="audio")]
    summary = evaluation_summary(stages, ablated, label_set, LABEL_SETS[label_set], scorer, namer, seed=0)
    page = folder / "report.html"
    samples = with_views(choose_samples(stages, MAX_CARDS), views)
    page.write_text(render_report(summary, stages, samples), encoding="utf-8")
    return page.as_uri()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report of three stages over 28 clips; one explanation tries to become markup."""
    folder = tmp_path_factory.mktemp("report")
    videos = [
        write_clip(folder / "a.mp4", frames=16, seconds=0.7),
        write_clip(folder / "silent.mp4", frames=16, sound=None),
        folder / "gone.mp4",
    ]
    files = three_stages(folder, CLIPS, videos)
    rows = [json.loads(line) for line in files["sft"].read_text().splitlines()]
    rows[0]["think_text"] = f"{ATTACK} [e v 3]"
    write_predictions(files["sft"], rows)
    history = [{"step": step, "reward": step / 10, "kl": 0.01} for step in range(1, 20)]
    info = {"grpo1": {"seconds": 60.0, "log_history": history}, "grpo2": {"log_history": history}}
    return build_report(files, info, view_clips({row["id"]: ClipPart(Path(row["video"])) for row in rows}), "toy")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


@pytest.fixture
def page(browser: Any, report: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A fresh page; the test's parameters, where it has some, are (width, colour scheme)."""
    with opened(browser, report, request.node.name, *getattr(request, "param", ())) as page:
        yield page


def test_curves_have_a_point_a_stage_and_say_their_values(page: Page) -> None:
    charts = page.all("#curves .chart")
    titles = [chart.find_element("css selector", "figcaption").text for chart in charts]
    assert titles == ["WAR", "UAR", "Coherence (S_coh)", "Faithful consistency (FCR)"]
    for chart in charts:
        assert len(chart.find_elements("css selector", "circle.mark")) == 3
    values = [element.text for element in charts[0].find_elements("css selector", ".value")]
    assert values == ["0.46", "0.68", "0.82"]
    heights = [float(mark.get_attribute("cy")) for mark in charts[0].find_elements("css selector", ".mark")]
    assert heights == sorted(heights, reverse=True)
    training = {chart.text.split("\n")[0]: chart for chart in page.all("#training .chart")}
    assert training.keys() == {"Reward, all functions", "KL to the reference"}
    assert len(training["Reward, all functions"].find_elements("css selector", ".curve path")) == 2


def test_headline_confusion_and_heat_map_show_the_figures(page: Page) -> None:
    rows = [row.text for row in page.all("#figures tbody tr")]
    assert [row.split()[0] for row in rows] == ["sft", "grpo1", "grpo2"]
    assert "0.464" in rows[0]
    assert "93 %" in rows[0]
    assert len(page.all("#confusion .matrix")) == 3
    assert (
        sum(int(cell.text) for cell in page.all("#confusion .matrix")[0].find_elements("css selector", "td[style]"))
        == 28
    )
    assert "dictated" in page.one("#reliability").text
    assert "no_explanation: 1" in page.one("#reliability").text
    assert "3.5\n28" in page.all("#coherence .heat")[2].text
    steps = [row.text for row in page.all("#comparisons tbody tr")]
    assert [row[:13] for row in steps] == ["sft → grpo1 +", "grpo1 → grpo2", "sft → grpo2 +"]
    assert "+0.36" in steps[2]
    assert page.all("#classes tbody tr")[0].text.startswith("anger 4 0.50")
    assert not page.all("#published")


def test_a_card_shows_clip_answers_and_sentences(page: Page) -> None:
    first, silent, gone = page.all(".card")[:3]
    assert "clip-000" in first.text
    assert "True emotion anger" in first.text
    strip = first.find_element("css selector", ".strip")
    assert page.script("return arguments[0].naturalWidth > 300", strip)
    assert first.find_element("css selector", ".wave").size["height"] > 20
    assert "✓ anger" in first.text
    grpo2 = first.find_elements("css selector", ".answer")[2]
    sentences = grpo2.find_elements("css selector", ".sentence")
    assert [s.find_element("css selector", ".function").text for s in sentences] == [
        "information extraction", "information extraction", "information analysis", "conclusion",
    ]  # fmt: skip
    assert len({s.value_of_css_property("border-left-color") for s in sentences}) == 3
    assert "audio" in sentences[1].text
    assert "4 of 5" in sentences[0].text
    assert not silent.find_elements("css selector", ".wave")
    assert "The clip has no sound." in silent.text
    assert "The clip cannot be shown: no such file" in gone.text


def test_text_from_a_model_is_text(page: Page) -> None:
    sentence = page.one(".card .sentence .text")
    assert sentence.text == ATTACK
    assert page.browser.title == "Evaluation: toy"


def test_filters_change_what_is_shown(page: Page) -> None:
    assert len(page.all(".card")) == 24
    page.one("#more").click()
    assert len(page.all(".card")) == CLIPS
    assert not page.all("#more")
    page.choose("f-emotion", "fear")
    assert len(page.all(".card")) == 4
    assert all("True emotion fear" in card.text for card in page.all(".card"))
    page.choose("f-emotion", "all")
    page.choose("f-answer", "wrong")
    assert len(page.all(".card")) == 5
    assert "5 of 5 matching clips" in page.one("#count").text
    page.choose("f-answer", "right, and wrong before")
    gained = {card.text.split("\n")[0] for card in page.all(".card")}
    assert "clip-001" in gained
    page.choose("f-answer", "not what its explanation says")
    assert not page.all(".card")
    page.choose("f-stage", "sft")
    page.choose("f-answer", "unparseable")
    assert [card.text.split("\n")[0] for card in page.all(".card")] == ["clip-005", "clip-012"]
    assert "no emotion: “who knows”" in page.all(".card")[1].text
    page.choose("f-answer", "any")
    page.choose("f-score", "4 to 5")
    assert not page.all(".card")
    assert page.one("#count").text == "No clip matches these filters."


def test_order_and_comparison(page: Page) -> None:
    page.choose("f-order", "lowest S_coh first")
    scores = [float(e.text.split()[1]) for e in page.all(".answer:nth-child(3) .s-coh")]
    assert scores == sorted(scores)
    assert len(page.all(".card")[0].find_elements("css selector", ".answer")) == 3
    assert not page.all(".answer:nth-child(2) .change")
    page.choose("f-order", "largest gain first")
    changes = [float(e.text) for e in page.all(".answer:nth-child(3) .change")]
    assert changes == sorted(changes, reverse=True)
    page.choose("f-base", "grpo1")
    page.choose("f-answer", "another than before")
    assert "12 of 12 matching clips" in page.one("#count").text  # 9 are wrong in grpo1, 5 in grpo2, one in both
    page.choose("f-answer", "any")
    page.all("#f-shown input")[1].click()
    stages = [e.text for e in page.all(".card")[0].find_elements("css selector", ".stage")]
    assert stages == ["sft", "grpo2"]


def test_the_judges_reason_appears_on_hover_and_on_focus(page: Page) -> None:
    assert not page.all(".reason")
    conclusion = page.all(".card")[0].find_elements("css selector", ".f-conclusion")[0]
    webdriver.ActionChains(page.browser).move_to_element(conclusion).perform()
    assert [reason.text for reason in page.all(".reason")] == ["Scored 3 because the test says so. (weight 2)"]
    webdriver.ActionChains(page.browser).move_to_element(page.one("h1")).perform()
    assert not page.all(".reason")
    page.script("document.querySelectorAll('.sentence')[0].focus()")
    assert len(page.all(".reason")) == 1
    described = page.script("return document.activeElement.getAttribute('aria-describedby')")
    assert page.one(".reason").get_attribute("id") == described
    page.press("\ue00c")  # Escape
    assert not page.all(".reason")


def test_the_keyboard_reaches_everything(page: Page) -> None:
    page.press("j")
    page.press("j")
    assert page.script("return document.activeElement.getAttribute('aria-labelledby')") == "card-1"
    page.press("k")
    assert page.script("return document.activeElement.getAttribute('aria-labelledby')") == "card-0"
    page.press("\ue004")  # Tab
    assert page.script("return document.activeElement.closest('.card') !== null")
    page.script("document.activeElement.blur(); window.scrollTo(0, 0)")
    focusable = page.script(
        "return [...document.querySelectorAll('select, input, button')].every((e) => e.tabIndex === 0)"
    )
    assert focusable


def test_ablations_are_shown_side_by_side(page: Page) -> None:
    full, audio = (row.text for row in page.all("#shown-less tbody tr"))
    assert full.startswith("video and audio 0.821")
    assert audio.startswith("audio 0.464")
    assert "51 %" in audio  # of sft's sentences cite what is seen


@pytest.mark.parametrize("page", [(1280, "light"), (1280, "dark")], indirect=True, ids=["light", "dark"])
def test_all_text_stands_out_from_what_is_behind_it(page: Page) -> None:
    page.script("document.querySelectorAll('.sentence')[0].focus()")
    assert page.poor_contrasts() == []


@pytest.mark.parametrize("page", [(1280, "dark")], indirect=True, ids=["dark"])
def test_it_is_dark_where_the_reader_asks_for_it(page: Page) -> None:
    assert max(page.colour("body", "background-color")) < 60
    assert min(page.colour("body", "color")) > 200
    assert max(page.colour(".card", "background-color")) < 70


@pytest.mark.parametrize(
    "page", [(390, "light"), (390, "dark"), (768, "light")], indirect=True, ids=["phone", "dark phone", "tablet"]
)
def test_nothing_is_wider_than_the_screen(page: Page) -> None:
    page.script("document.querySelectorAll('.sentence')[1].focus()")
    width, inner = page.script("return [document.documentElement.scrollWidth, innerWidth]")
    assert width <= inner
    assert page.all(".reason")[0].rect["x"] >= 0
    assert len(page.all(".card")) == 24


def test_two_thousand_clips_open_at_once(browser: Any, tmp_path: Path) -> None:
    """The size that a data set's test fold has, on the classes of DFEW, with strips as large as they may be."""
    clips = 2000
    strip = "data:image/jpeg;base64," + base64.b64encode(os.urandom(STRIP_BYTES // clips)).decode()
    view = ClipView(strip=strip, peaks=[50] * 72, seconds=3.0)
    views = {f"clip-{number:03d}": view for number in range(clips)}
    url = build_report(three_stages(tmp_path, clips), {}, views, "dfew")
    assert (tmp_path / "report.html").stat().st_size < 30_000_000
    start = time.monotonic()
    browser.get(url)
    page = Page(browser)
    assert len(page.all(".card")) == 24
    page.choose("f-order", "lowest S_coh first")
    assert len(page.all(".card")) == 24
    assert time.monotonic() - start < 3
    assert "R1-Omni 0.658 0.563" in page.one("#published").text
    assert "do not state the folds" in page.one("#headline").text

"""The report's file and its charts, without a browser."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgce.emotion import ConveyedEmotion
from fgce.schema import ExplanationScore
from humanomni.evaluation import cards
from humanomni.evaluation.ablation import ablation_summary
from humanomni.evaluation.cards import choose_samples, with_views
from humanomni.evaluation.charts import HEIGHT, LEFT, TOP, WIDTH, nice_ticks, stage_chart, training_charts
from humanomni.evaluation.predictions import Prediction
from humanomni.evaluation.published import PUBLISHED
from humanomni.evaluation.report import render_report
from humanomni.evaluation.significance import compare
from humanomni.evaluation.stage import Stage
from humanomni.evaluation.stage_summary import stage_summary
from humanomni.labels import LABEL_SETS

HOSTILE = "</script><script>alert(1)</script>\"'&<img src=x>"


@pytest.fixture(scope="module")
def html() -> str:
    """A report whose every text is hostile, as far as a user or a model can choose it."""
    prediction = Prediction(HOSTILE, HOSTILE, "anger", None, HOSTILE, HOSTILE, HOSTILE)
    score = ExplanationScore(id="", status="ok", flags=[HOSTILE], score=3.0, normalised=0.5)
    conveyed = ConveyedEmotion(id="", status="ok", emotion="sadness")
    stages = [Stage(name, [prediction], [score], [conveyed]) for name in (HOSTILE, "other")]
    classes = LABEL_SETS["ravdess"]
    judge = {"backend": HOSTILE, "model": HOSTILE, "revision": HOSTILE}
    summary = {
        "seed": 0,
        "label_set": HOSTILE,
        "classes": classes,
        "fgce": {
            "rubric": {"version": HOSTILE, "sha256": HOSTILE},
            "judge": judge,
            "method": {"decoding": HOSTILE, "splitter": HOSTILE},
            "message": HOSTILE,
        },
        "stages": [stage_summary(stage, classes, 0) for stage in stages],
        "comparisons": [compare(*stages, classes, 0)],
        "conveyed": {"question": {"version": HOSTILE, "sha256": HOSTILE}, "judge": judge},
        "ablations": ablation_summary(stages[0], [dataclasses.replace(stages[1], media="audio")], classes, 0),
        "published": PUBLISHED["ravdess"],
    }
    return render_report(summary, stages, with_views(choose_samples(stages, 10), {}))


class Tags(HTMLParser):
    """Start tags with their attributes, and the text of scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] == "script":
            self.scripts.append(data)


def test_hostile_text_stays_text_and_nothing_is_loaded(html: str) -> None:
    tags = Tags()
    tags.feed(html)
    assert [attributes.get("type") for tag, attributes in tags.found if tag == "script"] == [
        "application/json",
        None,
        None,
    ]
    assert not [tag for tag, _ in tags.found if tag in {"img", "iframe", "object", "embed"}]
    links = [
        str(value) for _, attributes in tags.found for name, value in attributes.items() if name in {"src", "href"}
    ]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest", html)
    assert "default-src 'none'" in html
    data = json.loads(tags.scripts[0])
    assert data["samples"][0]["answers"][0]["words"] == HOSTILE
    assert data["stages"] == [HOSTILE, "other"]


def test_cards_beyond_the_cap_are_spread_over_classes_and_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def prediction(number: int) -> Prediction:
        truth = "anger" if number < 90 else "fear"
        answer = "sadness" if number % 30 == 0 else truth
        return Prediction(f"{number:03d}", "", truth, answer, answer, "x", None)

    predictions = [prediction(number) for number in range(100)]
    scores = [ExplanationScore(id=p.id, status="ok") for p in predictions]
    stage = Stage("sft", predictions, scores, [ConveyedEmotion(id=p.id, status="ok") for p in predictions])
    chosen = [int(sample["id"]) for sample in choose_samples([stage], 20)]
    assert len(chosen) == 20
    assert chosen == sorted(chosen)
    assert {0, 30, 60, 90} <= set(chosen)  # every wrong one, of both classes
    assert sum(number >= 90 for number in chosen) >= 7
    assert len(choose_samples([stage], 2000)) == 100
    monkeypatch.setattr(cards, "TEXT_BYTES", 5000)
    few = choose_samples([stage], 2000)
    assert 10 < len(few) < 50
    assert len(json.dumps(few, separators=(",", ":"))) < 5100


def test_a_stage_without_a_figure_has_no_point() -> None:
    chart = stage_chart("S_coh", ["sft", "grpo"], [None, 3.0], [None, (2.0, 4.0)], (1.0, 5.0))
    [mark] = chart.curves[0].marks
    assert mark.text == "3.00"
    assert TOP < mark.y < HEIGHT
    assert mark.high is not None
    assert mark.low is not None
    assert mark.high < mark.y < mark.low
    assert chart.spoken == "S_coh: sft missing, grpo 3.000"


def test_training_curves_are_one_a_figure_and_one_a_stage() -> None:
    sft = [{"step": step, "loss": 1 / step} for step in range(1, 2000)]
    grpo = [{"step": step, "loss": 0.0, "reward": float(step), "fgce/missing": 0} for step in range(1, 50)]
    grpo += [{"step": 50, "reward": float("nan")}, {"train_runtime": 3.0}]
    charts = {chart.title: chart for chart in training_charts({"sft": sft, "grpo": grpo})}
    assert charts.keys() == {"Loss", "Reward, all functions", "Missing: fgce/missing"}
    assert [curve.name for curve in charts["Loss"].curves] == ["sft"]
    assert charts["Loss"].curves[0].path.count("L") < 300
    points = re.findall(r"([\d.]+) ([\d.]+)", charts["Loss"].curves[0].path)
    assert all(LEFT <= float(x) <= WIDTH and 0 <= float(y) <= HEIGHT for x, y in points)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_even_and_span_the_data(low: float, span: float) -> None:
    ticks = nice_ticks(low, low + span)
    assert 2 <= len(ticks) <= 7
    slack = 1e-6 * (abs(low) + span)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= low + span - slack
    steps = [b - a for a, b in zip(ticks, ticks[1:], strict=False)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-3, abs=slack)

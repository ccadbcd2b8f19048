"""Geometry of the report's line charts. The template draws them as SVG; nothing here knows about markup."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from humanomni.evaluation.metrics import Interval

WIDTH, HEIGHT = 300, 190
LEFT, RIGHT, TOP, BOTTOM = 40, 14, 14, 28
MAX_POINTS = 300


@dataclass(frozen=True)
class Mark:
    """A point with its label; `low` and `high` are the ends of its interval, as y coordinates."""

    x: float
    y: float
    text: str
    low: float | None = None
    high: float | None = None

    @property
    def text_y(self) -> float:
        """Above the interval, or below it where it reaches the top."""
        top, bottom = self.high or self.y, self.low or self.y
        return top - 9 if top - 9 > TOP + 9 else bottom + 18


@dataclass(frozen=True)
class Curve:
    """A line: SVG path data, its points where they are few, and its rank among the stages, 0 to 1."""

    name: str
    path: str
    marks: list[Mark]
    rank: float = 1.0


@dataclass(frozen=True)
class Chart:
    """Curves, tick labels on both axes with their coordinates, and a sentence for screen readers."""

    title: str
    curves: list[Curve]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    spoken: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM


def stage_chart(
    title: str,
    names: Sequence[str],
    values: Sequence[float | None],
    intervals: Sequence[Interval | None],
    bounds: tuple[float, float],
) -> Chart:
    """A figure over the stages, on its whole scale; a stage without the figure has no mark."""
    inset = (WIDTH - LEFT - RIGHT) / (2 * max(len(names), 1))
    xs = [LEFT + inset * (2 * i + 1) for i in range(len(names))]
    marks = [
        Mark(x, _y(value, bounds), f"{value:.2f}", *(_y(end, bounds) for end in interval or ()))
        for x, value, interval in zip(xs, values, intervals, strict=True)
        if value is not None
    ]
    low, high = bounds
    ticks = [low + (high - low) * i / 4 for i in range(5)]
    spoken = ", ".join(
        f"{name} {'missing' if value is None else format(value, '.3f')}"
        for name, value in zip(names, values, strict=True)
    )
    return Chart(
        title=title,
        curves=[Curve(title, _path([(mark.x, mark.y) for mark in marks]), marks)],
        x_ticks=list(zip(xs, names, strict=True)),
        y_ticks=[(_y(tick, bounds), f"{tick:g}") for tick in ticks],
        spoken=f"{title}: {spoken}",
    )


def training_charts(histories: Mapping[str, Sequence[Mapping[str, object]]]) -> list[Chart]:
    """One chart a logged figure, one curve a stage, from log histories: lists of {"step", figure: value}."""
    charts = []
    for key, title in _figures(histories).items():
        series = {
            # A GRPO loss says nothing about progress; its reward does.
            stage: _points(history, key)
            for stage, history in histories.items()
            if not (key == "loss" and any("reward" in entry for entry in history))
        }
        series = {stage: points for stage, points in series.items() if len(points) > 1}
        if series:
            charts.append(_training_chart(title, series))
    return charts


def _figures(histories: Mapping[str, Sequence[Mapping[str, object]]]) -> dict[str, str]:
    """The logged figures worth a chart, with their titles."""
    titles = {
        "loss": "Loss",
        "reward": "Reward, all functions",
        "kl": "KL to the reference",
        "completions/mean_length": "Completion length (tokens)",
    }
    logged = {key for history in histories.values() for entry in history for key in entry}
    rewards = sorted(key for key in logged if key.startswith("rewards/") and key.endswith("/mean"))
    titles |= {key: f"Reward: {key.split('/')[1]}" for key in rewards}
    titles |= {key: f"Missing: {key}" for key in sorted(logged) if "missing" in key}
    return {key: title for key, title in titles.items() if key in logged}


def _points(history: Sequence[Mapping[str, object]], key: str) -> list[tuple[float, float]]:
    """(step, value) pairs, thinned to MAX_POINTS; entries without a finite number are left out."""
    points = []
    for entry in history:
        step, value = entry.get("step"), entry.get(key)
        if isinstance(step, int | float) and isinstance(value, int | float) and math.isfinite(value):
            points.append((float(step), float(value)))
    return points[:: math.ceil(len(points) / MAX_POINTS) or 1]


def _training_chart(title: str, series: Mapping[str, list[tuple[float, float]]]) -> Chart:
    steps = [x for points in series.values() for x, _ in points]
    values = [y for points in series.values() for _, y in points]
    y_ticks, x_ticks = nice_ticks(min(values), max(values)), nice_ticks(0, max(steps))
    x_bounds, y_bounds = (0.0, max(steps) or 1.0), (y_ticks[0], y_ticks[-1])
    curves = []
    for index, (stage, points) in enumerate(series.items(), start=1):
        placed = [(_x(x, x_bounds), _y(y, y_bounds)) for x, y in points]
        curves.append(Curve(stage, _path(placed), [], rank=index / len(series)))
    ends = ", ".join(f"{stage} from {p[0][1]:.3g} to {p[-1][1]:.3g}" for stage, p in series.items())
    return Chart(
        title=title,
        curves=curves,
        x_ticks=[(_x(tick, x_bounds), f"{tick:g}") for tick in x_ticks if tick <= x_bounds[1]],
        y_ticks=[(_y(tick, y_bounds), f"{tick:.4g}") for tick in y_ticks],
        spoken=f"{title}: {ends}",
    )


def nice_ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that span [low, high]."""
    span = (high - low) or abs(high) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / 3))
    step = next(unit * factor for factor in (1, 2, 5, 10) if span / (unit * factor) <= 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * i, 12) for i in range(first, max(last, first + 1) + 1)]


def _x(value: float, bounds: tuple[float, float]) -> float:
    return LEFT + (value - bounds[0]) / (bounds[1] - bounds[0]) * (WIDTH - LEFT - RIGHT)


def _y(value: float, bounds: tuple[float, float]) -> float:
    share = (value - bounds[0]) / (bounds[1] - bounds[0])
    return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 2)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) if points else ""

"""Prometheus metrics of a server. One registry an app, so that several apps in a process do not mix."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from fgce.canary import CanaryReport
from fgce.schema import ExplanationScore, SentenceScore

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class Metrics:
    """What the server counts. `queue_depth` is asked at each scrape."""

    def __init__(self, queue_depth: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests by route and HTTP status", ["path", "status"])
        self.latency = self._seconds("request_seconds", "Time to answer a scoring request", ["path"])
        self._items = self._counter("items", "Explanations by status", ["status"])
        self._sentences = self._counter("sentences", "Sentences by status", ["status"])
        self._missing = self._counter("missing", "What has no score, by level and reason", ["level", "reason"])
        self._cache_hits = self._counter("cache_hits", "Sentences answered from the cache")
        self._judge_seconds = self._seconds("judge_seconds", "Time of a judge for both steps of a sentence")
        self._tokens = self._counter("tokens", "Tokens of a judge that is a model, by kind", ["kind"])
        self._canary = Gauge(
            "fgce_canary_score", "S_coh of the canaries at the last check", ["canary"], registry=self.registry
        )
        self._drifted = Gauge(
            "fgce_canary_drifted", "1 where a canary's score is not its first", ["canary"], registry=self.registry
        )
        self._ready = Gauge("fgce_ready", "1 where the judge scored the canaries", registry=self.registry)
        depth = Gauge("fgce_queue_depth", "Explanations being scored", registry=self.registry)
        depth.set_function(queue_depth)

    def count(self, result: ExplanationScore) -> None:
        """Counts one explanation and its sentences."""
        self._items.labels(result.status).inc()
        if result.reason:
            self._missing.labels("item", result.reason.value).inc()
        for sentence in result.sentences:
            self._count_sentence(sentence)

    def note_canaries(self, report: CanaryReport) -> None:
        """Keeps the canaries' scores."""
        for name, score in report.scores.items():
            self._canary.labels(name).set(float("nan") if score is None else score)
            self._drifted.labels(name).set(name in report.drifted)
        self._ready.set(report.ready)

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def _count_sentence(self, sentence: SentenceScore) -> None:
        self._sentences.labels(sentence.status).inc()
        if sentence.reason:
            self._missing.labels("sentence", sentence.reason.value).inc()
        if sentence.trace.cached:
            self._cache_hits.inc()
            return
        self._judge_seconds.observe(sentence.trace.seconds)
        for usage in sentence.trace.usage:
            self._tokens.labels("prompt").inc(usage.prompt)
            self._tokens.labels("completion").inc(usage.completion)
            self._tokens.labels("prefix_cache_hit").inc(usage.cached)

    def _counter(self, name: str, summary: str, labels: list[str] | None = None) -> Counter:
        return Counter(f"fgce_{name}", summary, labels or [], registry=self.registry)

    def _seconds(self, name: str, summary: str, labels: list[str] | None = None) -> Histogram:
        return Histogram(f"fgce_{name}", summary, labels or [], registry=self.registry, buckets=_SECONDS)

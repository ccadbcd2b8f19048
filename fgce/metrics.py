"""Prometheus metrics of a server. One registry an app, so that several apps in a process do not mix."""

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from fgce.schema import ExplanationScore, SentenceScore


class Metrics:
    """What the server counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "fgce_requests", "Requests by path and HTTP status", ["path", "status"], registry=self.registry
        )
        self.latency = Histogram(
            "fgce_request_seconds", "Time to answer a scoring request", ["path"], registry=self.registry
        )
        self.items = Counter("fgce_items", "Explanations by status", ["status"], registry=self.registry)
        self.sentences = Counter("fgce_sentences", "Sentences by status", ["status"], registry=self.registry)
        self.missing = Counter(
            "fgce_missing",
            "What has no score, by level and reason",
            ["level", "reason"],
            registry=self.registry,
        )

    def count_explanation(self, result: ExplanationScore) -> None:
        """Counts one scored explanation and its sentences."""
        self.items.labels(result.status).inc()
        if result.reason:
            self.missing.labels("item", result.reason.value).inc()
        self.count_sentences(result.sentences)

    def count_sentences(self, sentences: list[SentenceScore]) -> None:
        """Counts scored sentences."""
        for sentence in sentences:
            self.sentences.labels(sentence.status).inc()
            if sentence.reason:
                self.missing.labels("sentence", sentence.reason.value).inc()

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)

"""What `/metrics` shows, in Prometheus' text format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from pipeline.server.engine import Answer, Engine

PHASES = ("decode", "queue", "infer", "explain")
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_CONFIDENCES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


class Metrics:
    """The figures of one server, in a registry of its own, where others may register theirs."""

    def __init__(self, engine: Engine) -> None:
        self.registry = registry = CollectorRegistry()
        self._engine = engine
        seconds = Histogram("pipeline_seconds", "Seconds per picture, by phase", ["phase"], registry=registry, buckets=_SECONDS)
        self._seconds = {phase: seconds.labels(phase) for phase in PHASES}
        self._answers = Counter("pipeline_answers", "Answered pictures, by predicted class", ["class"], registry=registry)
        self._confidence = Histogram(
            "pipeline_confidence", "Probability of the predicted class, by class", ["class"], registry=registry, buckets=_CONFIDENCES
        )
        self._unfamiliar = Counter("pipeline_unfamiliar", "Answered pictures that are unfamiliar", registry=registry)
        self._refusals = Counter("pipeline_refusals", "Requests and pictures without an answer, by reason", ["reason"], registry=registry)
        self._requests = Counter("pipeline_requests", "HTTP answers, by status", ["status"], registry=registry)
        self._model = Info("pipeline_model", "The model that is served", registry=registry)
        for name, text, value in (
            ("pipeline_queue_depth", "Pictures that wait for the model", lambda: engine.depth),
            ("pipeline_decoding", "Pictures that are decoded or wait for it", lambda: engine.coming),
            ("pipeline_unobserved", "Calls of listeners and observers that were dropped", lambda: engine.background.dropped),
        ):
            Gauge(name, text, registry=registry).set_function(value)

    def answered(self, answer: Answer, decode_seconds: float) -> None:
        """Count an answered picture."""
        best = int(answer.probs.argmax())
        name = answer.model.predictor.facts["class_names"][best]
        for phase, seconds in zip(PHASES[:3], (decode_seconds, answer.queue_seconds, answer.infer_seconds), strict=True):
            self._seconds[phase].observe(seconds)
        self._answers.labels(name).inc()
        self._confidence.labels(name).observe(float(answer.probs[best]))
        if answer.unfamiliarity is not None and answer.unfamiliarity > 1:
            self._unfamiliar.inc()

    def explained(self, seconds: float) -> None:
        """Count a picture of which an activation map was asked for."""
        self._seconds["explain"].observe(seconds)

    def refused(self, reason: str) -> None:
        """Count a request, or a picture of one, that was not answered."""
        self._refusals.labels(reason).inc()

    def responded(self, status: int) -> None:
        """Count an HTTP answer."""
        self._requests.labels(str(status)).inc()

    def text(self) -> bytes:
        """All figures, in Prometheus' text format."""
        model = self._engine.model
        self._model.info({"name": model.name, "sha256": model.sha256, "version": model.version or ""})
        return generate_latest(self.registry)

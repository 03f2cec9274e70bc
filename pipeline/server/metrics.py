"""What `/metrics` shows, in Prometheus' text format."""

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from pipeline.server.engine import Engine


class Metrics:
    """The figures of one server, in a registry of its own, where others may register theirs."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        Gauge("pipeline_queue_depth", "Pictures that wait for the model", registry=self.registry).set_function(lambda: engine.depth)

    def text(self) -> bytes:
        """All figures, in Prometheus' text format."""
        return generate_latest(self.registry)

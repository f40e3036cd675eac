"""What ``statistics()`` says, as metrics for Prometheus. Needs the extra ``metrics``.

Nothing is counted twice: a scrape reads the service's own numbers. Only how old messages are at hand-over is counted
here, by :class:`TimedHandler`, which stands in front of the handler.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

from twisted.internet.defer import Deferred

from ipc_twisted.core.envelope import SecureEnvelope
from ipc_twisted.errors import ConfigError, NotConnected
from ipc_twisted.protocol import Handler, SecureIPCProtocol
from ipc_twisted.statistics import Statistics

try:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
except ImportError:
    raise ConfigError(["metrics: need prometheus-client; type: pip install 'ipc_twisted[metrics]'"]) from None


class MetricOf(NamedTuple):
    """One metric and where it comes from.

    :ivar name: without the prefix; counters get ``_total`` behind it.
    :ivar field: of :class:`Statistics`.
    :ivar label: of its series, where the field is a dict; else None.
    """

    kind: type[CounterMetricFamily] | type[GaugeMetricFamily]
    name: str
    field: str
    label: str | None
    help: str


METRICS = (
    MetricOf(CounterMetricFamily, "accepted", "accepted", None, "Envelopes handed over to the handler"),
    MetricOf(CounterMetricFamily, "rejected", "rejected", "category", "Envelopes of the other side's not handed over"),
    MetricOf(CounterMetricFamily, "handler_failures", "handler_failures", None, "Handlers that raised"),
    MetricOf(CounterMetricFamily, "sent", "sent", "outcome", "Messages of this side's by what became of them"),
    MetricOf(CounterMetricFamily, "unclaimed", "unclaimed", "category", "Those not accepted that nobody awaited"),
    MetricOf(CounterMetricFamily, "handshakes", "handshakes", "outcome", "Handshakes that have ended"),
    MetricOf(
        CounterMetricFamily, "connections_ended", "ended", "category", "Authenticated connections that have ended"
    ),
    MetricOf(CounterMetricFamily, "received_bytes", "bytes_received", None, "Bytes from all peers, strangers too"),
    MetricOf(CounterMetricFamily, "sent_bytes", "bytes_sent", None, "Bytes to all peers, strangers too"),
    MetricOf(GaugeMetricFamily, "connections", "connections", None, "Authenticated connections"),
    MetricOf(GaugeMetricFamily, "pending_handshakes", "pending", None, "Connections that have not proved themselves"),
    MetricOf(GaugeMetricFamily, "in_flight", "in_flight", None, "Envelopes whose handlers have not ended"),
    MetricOf(GaugeMetricFamily, "unsettled", "unsettled", None, "Messages of this side's without an outcome"),
    MetricOf(GaugeMetricFamily, "send_buffer_bytes", "buffered", None, "Bytes that these count for"),
    MetricOf(GaugeMetricFamily, "credit_messages", "credit_messages", None, "Messages that the peers let us write"),
    MetricOf(GaugeMetricFamily, "credit_bytes", "credit_bytes", None, "Bytes of frames that the peers let us write"),
    MetricOf(GaugeMetricFamily, "guard_entries", "guard_entries", None, "Nonces that the replay guard remembers"),
    MetricOf(
        GaugeMetricFamily, "guard_window_seconds", "guard_window_seconds", None, "How old a message may be to be taken"
    ),
)
"""All but the histogram."""

AGE = "age_at_hand_over_seconds"
AGE_HELP = "Clock second of the hand-over minus ts, in whole seconds"
AGE_BOUNDS = (0, 1, 2, 3, 5, 10, 20, 30, 60, 300, 3_600, 86_400)
"""Upper bounds in seconds, both ends of a bucket whole seconds: ``ts`` says no more."""


class TimedHandler:
    """The same handler, and how old each message was when it was called: the clock's whole second, minus ``ts``.

    Both are cut to whole seconds, so one message's age may be off by almost a second either way; the mean of many is
    not. A message from the future counts as one of now. Costs one look at the clock and two additions for each message.

    :param wall: wall-clock time in unix seconds.
    :ivar counts: of messages, by bucket of :data:`AGE_BOUNDS`; the last is for what is older.
    :ivar seconds: all ages together.
    """

    def __init__(self, handler: Handler, *, wall: Callable[[], float] = time.time) -> None:
        self.counts = [0] * (len(AGE_BOUNDS) + 1)
        self.seconds = 0
        self._handler = handler
        self._wall = wall

    def __call__(self, envelope: SecureEnvelope, connection: SecureIPCProtocol) -> Deferred[Any] | Any:
        age = max(0, int(self._wall()) - envelope.ts)
        self.counts[bisect_left(AGE_BOUNDS, age)] += 1
        self.seconds += age
        return self._handler(envelope, connection)


class HasStatistics(Protocol):
    """:class:`ExecutionIPCService`, or :class:`ExecutionIPCClientService`."""

    def statistics(self) -> Statistics:
        """What was counted."""


class Metrics:
    """A collector of prometheus-client, in a registry of its own.

    :param service: server or client; before its start it has no samples.
    :param timed: the handler that the service was given, for the histogram; None: there is none.
    :param prefix: of all names; two services in one registry need two.
    :ivar registry: holds this and nothing else. ``other.register(metrics)`` adds it to one of yours.
    """

    def __init__(
        self, service: HasStatistics, timed: TimedHandler | None = None, *, prefix: str = "ipc_twisted"
    ) -> None:
        self._service = service
        self._timed = timed
        self._prefix = prefix
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def describe(self) -> Iterator[Metric]:
        """Names and types; what a registry compares for duplicates."""
        for metric in METRICS:
            yield self._family(metric)
        if self._timed is not None:
            yield HistogramMetricFamily(f"{self._prefix}_{AGE}", AGE_HELP)

    def collect(self) -> Iterator[Metric]:
        """What a scrape shows. In the reactor's thread only, as ``statistics()``."""
        try:
            statistics = self._service.statistics()
        except NotConnected:  # it was not started
            return
        for metric in METRICS:
            family = self._family(metric)
            value = getattr(statistics, metric.field)
            if metric.label is None:
                family.add_metric((), value)
            else:
                for label in sorted(value):
                    family.add_metric((label,), value[label])
            yield family
        if self._timed is not None:
            yield self._ages(self._timed)

    def _family(self, metric: MetricOf) -> CounterMetricFamily | GaugeMetricFamily:
        labels = () if metric.label is None else (metric.label,)
        return metric.kind(f"{self._prefix}_{metric.name}", metric.help, labels=labels)

    def _ages(self, timed: TimedHandler) -> HistogramMetricFamily:
        bounds = [*(f"{bound:.1f}" for bound in AGE_BOUNDS), "+Inf"]
        family = HistogramMetricFamily(f"{self._prefix}_{AGE}", AGE_HELP)
        family.add_metric((), list(zip(bounds, accumulate(timed.counts), strict=True)), timed.seconds)
        return family

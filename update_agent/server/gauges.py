"""What Prometheus learns beside what is counted while running: how hosts and rollouts stand."""

from collections.abc import Iterator
from datetime import UTC

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from tuf.api.metadata import Timestamp

from update_agent.core import trust
from update_agent.core.rollout import RING
from update_agent.errors import UpdateAgentError
from update_agent.publish import channels
from update_agent.server import api, figures
from update_agent.server.site import Site
from update_agent.server.tables import seconds


class Gauges(Collector):
    """Asked for at each scrape. What cannot be learned is left out, and ``up`` says so."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def describe(self) -> Iterator[Metric]:
        """Name nothing beforehand: registering must not ask the database."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Return all gauges."""
        up = GaugeMetricFamily("update_server_up", "Whether a source could be asked", labels=["of"])
        for name, ask in (("database", self._hosts), ("repository", self._rollouts)):
            try:
                found = list(ask())
            except UpdateAgentError:
                up.add_metric([name], 0)
            else:
                up.add_metric([name], 1)
                yield from found
        waiting = GaugeMetricFamily("update_server_reports_waiting", "For a commit")
        waiting.add_metric([], self._site.intake.waiting)
        yield from (up, waiting)

    def _hosts(self) -> Iterator[Metric]:
        gauge = GaugeMetricFamily(
            "update_server_hosts", "Hosts by what they do", labels=["channel", "state"]
        )
        unheard = GaugeMetricFamily(
            "update_server_hosts_unheard", "Hosts that were not heard for a day", labels=["channel"]
        )
        now = seconds(self._site.now())
        with self._site.database.read() as connection:
            for channel, known in figures.by_channel(connection).items():
                heard = figures.by_state(connection, channel, now)
                unheard.add_metric([channel], known - sum(heard.values()))
                for state, hosts in heard.items():
                    gauge.add_metric([channel, state], hosts)
        yield from (gauge, unheard)

    def _rollouts(self) -> Iterator[Metric]:
        site, repository = self._site, self._site.repository()
        repository.want()
        labels = ["channel", "version"]
        opened = GaugeMetricFamily(
            "update_server_rollout_open_ratio", "Of the hosts, who is offered it", labels=labels
        )
        paused = GaugeMetricFamily("update_server_rollout_paused", "By anyone", labels=labels)
        tried = GaugeMetricFamily(
            "update_server_rollout_hosts", "Hosts by how it went", labels=[*labels, "result"]
        )
        for it in channels.listed(repository):
            seen = api.view(site, it)
            names = [it.channel, str(it.version)]
            if seen.tally is None:
                continue
            opened.add_metric(names, seen.open / RING)
            paused.add_metric(names, it.paused is not None)
            for result in ("running", "confirmed", "fell_back", "refused", "stuck", "silent"):
                tried.add_metric([*names, result], getattr(seen.tally, result))
        yield from (opened, paused, tried)
        data = repository.published(Timestamp.type)
        if data:
            expires = trust.metadata(data).signed.expires.astimezone(UTC).timestamp()
            gauge = GaugeMetricFamily(
                "update_server_timestamp_expires_seconds", "When hosts believe it no more"
            )
            gauge.add_metric([], expires)
            yield gauge

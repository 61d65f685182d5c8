"""A Phloem node on its link: what it is subscribed to."""

from __future__ import annotations

from collections.abc import Sequence

from collector.endpoints import DurableSubscription, Endpoint, Handles
from sapflow.runtime.session import LinkSession

ORGS_TOLD = 500
"""In one notice: it must fit a control frame."""


class Subscriber:
    """A Phloem node on its link: its subscription to each endpoint."""

    def __init__(self, session: LinkSession, name: str) -> None:
        self.name = name
        self.handles: Handles = {}
        self._session = session
        self._subscriptions: dict[str, DurableSubscription] = {}

    def subscribe(self, endpoint: Endpoint) -> None:
        """Everything of this org, from now until the link ends."""
        if endpoint.org not in self._subscriptions:
            subscription = DurableSubscription(endpoint, self._session, self.handles, self.name)
            self._subscriptions[endpoint.org] = subscription
            endpoint.subscribe(subscription)

    def unsubscribe(self, org: str) -> None:
        """No more of this org: its streams end on this link. Another subscriber has them, or they wait."""
        subscription = self._subscriptions.pop(org, None)
        if subscription is not None:
            subscription.close()

    def tell(self, orgs: Sequence[str], *, here: bool = True) -> None:
        """There are these orgs, or they are gone."""
        for at in range(0, len(orgs), ORGS_TOLD):
            told = {"orgs" if here else "gone": orgs[at : at + ORGS_TOLD]}
            self._session.send(self._session.connection.notice(kind="orgs", **told))

    def close(self) -> None:
        """The link ended, and every subscription with it."""
        for subscription in self._subscriptions.values():
            subscription.endpoint.unsubscribe(subscription)
        self._subscriptions.clear()

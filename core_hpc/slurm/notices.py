"""Messages to the user about lasting conditions, such as a full queue.

A message is shown once, and again only when it has changed.
"""

from __future__ import annotations

from collections.abc import Callable


class Notices:
    """Shows a message per topic when it is new or has changed."""

    def __init__(self, notify: Callable[[str], None]) -> None:
        self._notify = notify
        self._shown: dict[str, str] = {}

    def show(self, topic: str, message: str) -> None:
        if self._shown.get(topic) != message:
            self._shown[topic] = message
            self._notify(message)

    def clear(self, topic: str, message: str | None = None) -> None:
        """The condition is over; `message` is shown if it had been reported."""
        if self._shown.pop(topic, None) is not None and message is not None:
            self._notify(message)

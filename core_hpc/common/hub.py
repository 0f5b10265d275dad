"""Whether the hub of models and data sets can be reached from this machine.

A client of the hub repeats each request for half a minute on a machine without a network. Its
callers ask here first, and use their local cache if the answer is no. Nothing is downloaded here.
"""

from __future__ import annotations

import functools
import os
import socket
import threading
import urllib.request
from urllib.parse import urlsplit

DEFAULT_ENDPOINT = "https://huggingface.co"
SILENCE_S = 5.0
"""Seconds after which a network that answers nothing counts as absent. A machine without a network
mostly reports it at once."""


def why_no_hub() -> str | None:
    """Why the hub cannot be used here, or None if it can.

    The variables of its client are respected: HF_HUB_OFFLINE, HF_ENDPOINT, and those of a proxy.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    address = _address(os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT)
    problem = _connection_problem(*address)
    return f"the hub cannot be reached ({address[0]}: {problem})" if problem else None


def _address(endpoint: str) -> tuple[str, int]:
    """Host and port of the first connection to the hub: of the proxy, if there is one."""
    url = urlsplit(endpoint)
    proxy = urllib.request.getproxies().get(url.scheme)
    if proxy and not urllib.request.proxy_bypass(url.hostname or ""):
        url = urlsplit(proxy if "//" in proxy else f"//{proxy}", scheme="http")
    return url.hostname or "", url.port or (443 if url.scheme == "https" else 80)


@functools.cache
def _connection_problem(host: str, port: int) -> str | None:
    """Why no connection can be opened, or None. Looking up a name has no time-out of its own, hence the thread."""
    found: list[str | None] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=SILENCE_S).close()
            found.append(None)
        except OSError as e:
            found.append(e.strerror or str(e) or type(e).__name__)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(SILENCE_S)
    return found[0] if found else f"no answer within {SILENCE_S:g} s"

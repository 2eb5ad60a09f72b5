"""Which requests the server answers: those of programs, and of its own pages, on this computer.

A browser sends requests for any page that is open in it, also to this computer. It says so: a page of elsewhere, one
without an origin (`null`) and one whose name was bound to this address (DNS rebinding) are told by their headers.
"""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse

HERE = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?")

Scope = MutableMapping[str, Any]
Channel = Callable[..., Awaitable[Any]]


def refusal(scheme: str, headers: Headers) -> str | None:
    """Why a request is not answered, whatever its method; None for one that is.

    Args:
        scheme: `http` or `https`.
        headers: of the request.
    """
    hosts, origins = headers.getlist("host"), headers.getlist("origin")
    if len(hosts) != 1 or not HERE.fullmatch(hosts[0]):
        return f"this server answers to 127.0.0.1 and localhost alone, not to {', '.join(hosts) or 'no host'}"
    if any(origin != f"{scheme}://{hosts[0]}" for origin in origins):
        return f"this server answers no page of elsewhere ({', '.join(origins)})"
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):  # a picture or a form has no origin
        return "this server answers no page of elsewhere"
    return None


class LocalOnly:
    """ASGI middleware: 403 for a request that `refusal` names, before anything else sees it."""

    def __init__(self, app: Callable[[Scope, Channel, Channel], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Channel, send: Channel) -> None:
        reason = refusal(scope["scheme"], Headers(scope=scope)) if scope["type"] in ("http", "websocket") else None
        answer = self.app if reason is None else PlainTextResponse(f"{reason}\n", status_code=403)
        await answer(scope, receive, send)

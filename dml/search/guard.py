"""What a request must be to be answered, and what every answer says to the browser."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS = {
    # Nothing from elsewhere, and no script that is not a file of this page.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Guard:
    """Refuse requests that another site makes in the user's browser.

    A name of another site may be made to lead to this machine (DNS rebinding): its requests still say that name as
    ``Host``. A page of another site may send a form here: the browser says from where as ``Origin``.

    Args:
        app: That answers the others.
        hosts: Names under which it may be asked for; empty for any.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app, self._hosts = app, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        headers = Headers(scope=scope)
        refusal = self._refusal(scope["method"], headers)
        if refusal is None:
            await self._app(scope, receive, send_with_headers)
        else:
            message, status = refusal
            await JSONResponse({"error": message}, status)(scope, receive, send_with_headers)

    def _refusal(self, method: str, headers: Headers) -> tuple[str, int] | None:
        host = headers.get("host", "")
        if self._hosts and _name(host) not in self._hosts:
            return f"host is {host!r}; this page is at {' or '.join(sorted(self._hosts))}", 400
        if method in ("GET", "HEAD"):
            return None
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return f"origin is {origin!r}; only this page itself may send images", 403
        if origin is None and headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return "the request is of another site; only this page itself may send images", 403
        return None


def _name(host: str) -> str:
    """The name in a ``Host``, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # of brackets that do not match
        return ""

"""Requests that are too large are refused before they are read."""

from __future__ import annotations

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """Answers 413 to a body of more than `max_bytes`, whether or not its length was announced.

    Args:
        app: what the others go to.
        max_bytes: of a body at most.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body up to the limit, then hand it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        too_large = announced.isdigit() and int(announced) > self.max_bytes
        messages: list[Message] = []
        size, more = 0, True
        while more and not too_large:
            messages.append(await receive())
            size += len(messages[-1].get("body", b""))
            too_large = size > self.max_bytes
            more = bool(messages[-1].get("more_body"))
        if too_large:
            said = f"the body has more than {self.max_bytes} bytes: send fewer rows at once."
            await JSONResponse({"detail": said}, status_code=413)(scope, receive, send)
            return
        read = iter(messages)

        async def again() -> Message:
            return next(read, None) or await receive()

        await self.app(scope, again, send)

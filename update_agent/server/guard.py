"""What every caller is held to, before anything else looks at a request: who, how much, how fast.

Bodies have a size and a deadline, connections a time for their headers, each address a rate at
which reports are taken. A caller that is refused learns why, in one sentence.
"""

import asyncio
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from update_agent.core.bucket import Bucket
from update_agent.core.report import MAX_REPORTS
from update_agent.server.tokens import Role, Token, Tokens

COOKIE = "update-server"
_HEADERS = 10.0
"""Seconds for a request's headers."""
_HEADER_BYTES = 64 * 1024
_BODY = 20.0
"""Seconds for a request's body."""
_CERTIFIED = "certified"
_ADDRESSES = 10_000
"""Callers whose rate is remembered."""


class Rates:
    """How fast each address may come: ``rate`` a second, after a burst of ten seconds' worth.

    A burst is never smaller than the largest batch, which is taken whole or not at all.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = max(10 * rate, MAX_REPORTS)
        self._clock = clock
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def check(self, address: str, count: int = 1) -> None:
        """Raise HTTPException 429 for who comes too fast."""
        now = self._clock()
        bucket = self._buckets.pop(address, None) or Bucket(
            rate=self._rate, burst=self._burst, level=self._burst, since=now
        )
        taken, wait = bucket.take(count, now)
        self._buckets[address] = bucket if wait else taken
        if len(self._buckets) > _ADDRESSES:
            self._buckets.popitem(last=False)
        if wait:
            raise HTTPException(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"more than {self._rate:g} reports a second from one address",
                {"retry-after": str(int(wait) + 1)},
            )


async def body(request: Request, max_size: int) -> bytes:
    """Return the body. Raises HTTPException 413 for a large one, 408 for a slow one."""
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > max_size:
        raise _too_large(max_size)
    data = bytearray()
    try:
        async with asyncio.timeout(_BODY):
            async for piece in request.stream():
                data += piece
                if len(data) > max_size:
                    raise _too_large(max_size)
    except TimeoutError as error:
        raise HTTPException(
            HTTPStatus.REQUEST_TIMEOUT,
            f"the body took longer than {_BODY:g} seconds",
            {"connection": "close"},
        ) from error
    except ClientDisconnect as error:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "the body ended early") from error
    return bytes(data)


def bearer(request: Request) -> str | None:
    """Return the token that a program shows."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


async def want(tokens: Tokens, token: str | None, role: Role) -> Token:
    """Return who it is. Raises HTTPException 401 for nobody, 403 for who may not do this."""
    if not token:
        raise HTTPException(
            HTTPStatus.UNAUTHORIZED, "a token is needed: Authorization: Bearer TOKEN",
            {"www-authenticate": "Bearer"},
        )  # fmt: skip
    holder = await tokens.holder(token)
    if holder is None:
        raise HTTPException(
            HTTPStatus.UNAUTHORIZED, "this token is not valid (any more)",
            {"www-authenticate": 'Bearer error="invalid_token"'},
        )  # fmt: skip
    if not holder.role.allows(role):
        raise HTTPException(
            HTTPStatus.FORBIDDEN, f"{holder.name} is a {holder.role}, and this is for {role}s"
        )
    return holder


def certified(request: Request) -> bool:
    """Return whether the caller showed a certificate that --client-ca signed: it is a host."""
    return bool(request.scope.get("state", {}).get(_CERTIFIED))


def form_key(token: str) -> str:
    """Return what a form carries to prove that it came from a page for the holder of ``token``."""
    return hmac.new(token.encode(), b"form", sha256).hexdigest()


def _too_large(max_size: int) -> HTTPException:
    return HTTPException(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the body has more than {max_size} bytes",
        {"connection": "close"},
    )


class Impatient(HttpToolsProtocol):
    """A connection whose headers neither take for ever nor grow without end."""

    _deadline: asyncio.TimerHandle | None = None
    _head = 0
    _certified = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        self._certified = bool(tls and tls.getpeercert())  # of a certificate that was verified
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Read, and measure as long as it is headers."""
        super().data_received(data)
        if self._deadline:
            self._head += len(data)
            if self._head > _HEADER_BYTES:
                self.transport.abort()

    def on_message_begin(self) -> None:
        """Begin to wait, on a connection that is used again."""
        self._wait()
        super().on_message_begin()
        self.scope["state"][_CERTIFIED] = self._certified

    def on_headers_complete(self) -> None:
        """Wait no more."""
        self._stop()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if not self._deadline:
            self._head = 0
            self._deadline = self.loop.call_later(_HEADERS, self.transport.abort)

    def _stop(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

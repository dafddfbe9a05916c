"""The repository's files over HTTP, for hosts and for the CDN between.

What may be asked for is a list of shapes, of what a repository holds and in words that cannot leave
it; anything else is not there. Everything but ``timestamp.json`` is written once, so it may be kept
for ever; that one is asked for again. An ETag is made of the name (which has a version or a hash in
it) and the size, or of the content of the timestamp, so that it is the same on every server.
"""

import re
import stat
from hashlib import sha256
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response

_NAME = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,150}"
_SHAPES = re.compile(
    rf"metadata/(timestamp|[0-9]{{1,16}}\.[a-z]{{1,20}})\.json"
    rf"|targets/channels/[0-9a-f]{{64}}\.[a-z0-9_-]{{1,64}}\.json"
    rf"|targets/releases/{_NAME}/{_NAME}/[0-9a-f]{{64}}\.release\.json"
    rf"|payloads/{_NAME}/{_NAME}/[0-9a-f]{{64}}\.(index|blob)"
)
_TIMESTAMP = "metadata/timestamp.json"

FOR_EVER = "public, max-age=31536000, immutable"
SHORTLY = "public, max-age=30, stale-if-error=86400"
_NOT_THERE = {"cache-control": "public, max-age=10"}
"""Of what may be published any moment: hosts look for the next root by asking for it."""


async def answer(folder: Path, path: str, request: Request) -> Response:
    """Answer a GET or HEAD for ``path`` in the repository ``folder``."""
    if not _SHAPES.fullmatch(path):
        return PlainTextResponse("not found\n", 404, headers=_NOT_THERE)
    file = folder / path
    if path == _TIMESTAMP:
        return await _timestamp(file, request)
    try:
        status = await run_in_threadpool(file.stat)
    except OSError:
        return PlainTextResponse("not found\n", 404, headers=_NOT_THERE)
    if not stat.S_ISREG(status.st_mode):
        return PlainTextResponse("not found\n", 404, headers=_NOT_THERE)
    tag = f'"{sha256(f"{path} {status.st_size}".encode()).hexdigest()[:32]}"'
    headers = {"etag": tag, "cache-control": FOR_EVER}
    if _is_known(request, tag):
        return Response(status_code=304, headers=headers)
    kind = "application/json" if path.endswith(".json") else "application/octet-stream"
    return FileResponse(file, headers=headers, media_type=kind, stat_result=status)


async def _timestamp(file: Path, request: Request) -> Response:
    try:
        data = await run_in_threadpool(file.read_bytes)
    except OSError:
        return PlainTextResponse("not found\n", 404, headers=_NOT_THERE)
    tag = f'"{sha256(data).hexdigest()[:32]}"'
    headers = {"etag": tag, "cache-control": SHORTLY}
    if _is_known(request, tag):
        return Response(status_code=304, headers=headers)
    return Response(data, media_type="application/json", headers=headers)


def _is_known(request: Request, tag: str) -> bool:
    """Return whether the caller has what ``tag`` stands for, RFC 9110 13.1.2."""
    given = request.headers.get("if-none-match", "")
    tags = [it.strip().removeprefix("W/") for it in given.split(",")]
    return tag in tags or tags == ["*"]

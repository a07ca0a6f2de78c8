"""The HTTP side of the server: routes, what they take, and every refusal in one form.

Owns nothing that lasts but a folder for the videos of running requests. Scores come from the engine.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response
from fastapi_offline import FastAPIOffline
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from qualivision.labels import DIMENSIONS
from qualivision.serving.answers import (
    PROMPT,
    AspectWeights,
    ErrorAnswer,
    FiveScores,
    FrameSpecAnswer,
    ModelAnswer,
    Reference,
    ScoreAnswer,
    StateAnswer,
)
from qualivision.serving.bodies import Body, Form, check_prompt
from qualivision.serving.engine import NAME, ClosingError, FullError
from qualivision.serving.observed import Observed
from qualivision.serving.references import copy_file, download
from qualivision.serving.refusals import Refusal
from qualivision.video import VideoError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

    from fastapi import FastAPI

    from qualivision.scoring import Scores
    from qualivision.serving.engine import Engine
    from qualivision.serving.observing import Metrics
    from qualivision.settings import ServeSettings

log = logging.getLogger(__name__)

_MOST_JSON_BYTES = 1 << 16
_RETRY_SECONDS = "5"
_LINGER_SECONDS = 1.0

_ABOUT = """Five mean opinion scores (MOS) from 1 to 5 for an AI-generated video, against the prompt it was made from.

    curl -F video=@clip.mp4 -F "prompt=A cat is running on the grass" http://127.0.0.1:8000/v1/score

Every answer has `X-Request-ID`, which the server's log has too. Every error is
`{"error": {"code": ..., "message": ...}}`, and its message says the way out. After a 429 try again when `Retry-After`
says so: the queue is bounded, and what is admitted is scored."""

_WHY: dict[int, str] = {
    400: "The request is malformed.",
    403: "The path or address is not allowed by the server's settings.",
    404: "There is no such file.",
    408: "The request arrives too slowly.",
    411: "There is no body, or its length is not told.",
    413: "The video or the request is too large.",
    415: "Another content type is needed.",
    422: "The video can't be used, the prompt is blank or too long, or a field is missing.",
    429: "The queue is full; `Retry-After` says when to try again.",
    500: "A defect of the server.",
    503: "The server is shutting down.",
}
_FORM = {
    "type": "object",
    "required": ["video", "prompt"],
    "properties": {
        "video": {
            "type": "string",
            "format": "binary",
            "description": "a video file, in any container and codec that FFmpeg reads",
        },
        "prompt": {
            "type": "string",
            "description": "the text that the video was generated from",
            "examples": [PROMPT],
        },
    },
}


def create_app(engine: Engine, settings: ServeSettings, metrics: Metrics, *, follows: str | None = None) -> FastAPI:
    """The application; an ASGI server runs it.

    Args:
        engine: what scores.
        settings: the `serve` section.
        metrics: what is counted, and shown at /metrics.
        follows: the alias that decides which model scores, to be told at /v1/model.
    """
    app = FastAPIOffline(redoc_url=None, title="QualiVision", version="1", description=_ABOUT)
    routes = _Routes(engine, settings, metrics, follows)
    routes.add_to(app)
    app.add_exception_handler(Refusal, _refuse)
    app.add_exception_handler(HTTPException, _refuse_by_status)
    app.add_middleware(Observed, metrics=metrics, linger_seconds=min(_LINGER_SECONDS, settings.body_seconds))
    return app


class _Routes:
    def __init__(self, engine: Engine, settings: ServeSettings, metrics: Metrics, follows: str | None) -> None:
        self._engine = engine
        self._settings = settings
        self._metrics = metrics
        self._follows = follows
        self._most_bytes = int(settings.max_megabytes * 1e6)
        self._folder = tempfile.TemporaryDirectory(prefix="qualivision-serve-")  # goes with the app

    def add_to(self, app: FastAPI) -> None:
        scoring: dict[str, Any] = {"methods": ["POST"], "response_model": ScoreAnswer, "tags": ["scores"]}
        app.add_api_route(
            "/v1/score",
            self.score,
            summary="Score a video",
            responses=_errors(400, 408, 411, 413, 415, 422, 429, 500, 503),
            openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}},
            **scoring,
        )
        schema = Reference.model_json_schema()
        app.add_api_route(
            "/v1/score-reference",
            self.score_reference,
            summary="Score a video that the server can reach",
            responses=_errors(400, 403, 404, 408, 411, 413, 415, 422, 429, 500, 503),
            openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}},
            **scoring,
        )
        app.add_api_route("/v1/model", self.model, response_model=ModelAnswer, tags=["scores"])
        app.add_api_route("/health", self.health, response_model=StateAnswer, tags=["operation"])
        app.add_api_route("/ready", self.ready, response_model=StateAnswer, responses=_errors(503), tags=["operation"])
        app.add_api_route("/metrics", self.metrics, response_class=Response, tags=["operation"])

    async def score(self, request: Request) -> ScoreAnswer:
        """Send a video file and its prompt as a multipart form. The file is scored and removed."""
        with self._upload() as (path, file):
            form = Form(file, most_bytes=self._most_bytes, most_characters=self._settings.max_prompt_characters)
            body = self._accept(request, "multipart/form-data", form.limit)
            prompt = await form.read(body)
            return await self._score(request, path, prompt)

    async def score_reference(self, request: Request) -> ScoreAnswer:
        """Name a video by its path on the server, or by its address. Nothing is allowed unless the settings say so."""
        wanted = _reference(await self._accept(request, "application/json", _MOST_JSON_BYTES).whole())
        prompt = check_prompt(wanted.prompt, self._settings.max_prompt_characters)
        settings = self._settings
        with self._upload() as (path, file):
            if wanted.path is not None:
                await asyncio.to_thread(
                    copy_file, wanted.path, file, folders=settings.allow_folders, most_bytes=self._most_bytes
                )
            else:
                assert wanted.url is not None
                await download(
                    wanted.url,
                    file,
                    origins=settings.allow_urls,
                    most_bytes=self._most_bytes,
                    seconds=settings.body_seconds,
                )
            return await self._score(request, path, prompt)

    async def model(self) -> ModelAnswer:
        """Which model scores what comes now, and what it reads of a video."""
        scorer = self._engine.scorer
        return ModelAnswer(
            model=scorer.name,
            kind=scorer.kind,
            follows=self._follows,
            frames=[FrameSpecAnswer(**spec.model_dump()) for spec in scorer.specs],
            dimensions=list(DIMENSIONS),
        )

    async def health(self) -> StateAnswer:
        """Whether the process answers at all."""
        return StateAnswer(state="alive")

    async def ready(self) -> StateAnswer:
        """Whether clips are taken: a model is loaded, and the server is not shutting down."""
        if not self._engine.ready:
            raise _refusal_of(ClosingError())
        return StateAnswer(state="ready")

    async def metrics(self) -> Response:
        """Prometheus metrics."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def _accept(self, request: Request, media_type: str, most_bytes: int) -> Body:
        """The body, if it is worth reading: a clip that finds no place need not be sent."""
        body = Body(request, media_type, most_bytes=most_bytes, seconds=self._settings.body_seconds)
        try:
            self._engine.check_room()
        except (FullError, ClosingError) as err:
            raise _refusal_of(err) from None
        return body

    @contextmanager
    def _upload(self) -> Iterator[tuple[Path, IO[bytes]]]:
        """A file of ours for one video: its name is ours, and it is removed whatever happens."""
        try:
            with tempfile.NamedTemporaryFile(dir=self._folder.name) as file:
                yield Path(file.name), file.file
        except OSError as err:
            if err.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            log.error("there is no room for videos in %s", self._folder.name)
            raise Refusal(
                503, "no_room", "the server has no room for the video; try again", {"Retry-After": _RETRY_SECONDS}
            ) from None

    async def _score(self, request: Request, path: Path, prompt: str) -> ScoreAnswer:
        try:
            scores = await _unless_gone(request, asyncio.wrap_future(self._engine.submit(path, prompt)))
        except (FullError, ClosingError, VideoError) as err:
            raise _refusal_of(err) from None
        request.state.model = scores.model
        return _answer(scores, request.state.request_id)


def _answer(scores: Scores, request_id: str) -> ScoreAnswer:
    return ScoreAnswer(
        scores=FiveScores(**{name: round(value, 4) for name, value in scores.values.items()}),
        aspect_weights=AspectWeights(**{name: round(value, 4) for name, value in scores.aspect_weights.items()}),
        distance=round(scores.distance, 4),
        warning=scores.warning or None,
        model=scores.model,
        prompt=scores.prompt,
        request_id=request_id,
    )


async def _unless_gone(request: Request, scores: asyncio.Future[Scores]) -> Scores:
    """The scores; a clip that nobody waits for any more is not scored."""
    gone: asyncio.Future[None] = asyncio.ensure_future(_gone(request))
    either: set[asyncio.Future[Any]] = {scores, gone}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not scores.done():
            raise ClientDisconnect
        return scores.result()
    finally:
        gone.cancel()
        scores.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _reference(sent: bytes) -> Reference:
    try:
        found = Reference.model_validate_json(sent)
    except ValidationError as err:
        first = err.errors()[0]
        if first["type"] == "json_invalid":
            raise Refusal(400, "malformed", "the request is no JSON; see /docs") from None
        where = ".".join(map(str, first["loc"])) or "the request"
        raise Refusal(422, "wrong_field", f"{where[:80]}: {first['msg']}; see /docs") from None
    if (found.path is None) == (found.url is None):
        raise Refusal(422, "wrong_field", "give either 'path' or 'url'; see /docs")
    return found


def _refusal_of(err: FullError | ClosingError | VideoError) -> Refusal:
    if isinstance(err, FullError):
        return Refusal(429, "queue_full", str(err), {"Retry-After": str(err.retry_after)})
    if isinstance(err, ClosingError):
        return Refusal(503, "shutting_down", str(err), {"Retry-After": _RETRY_SECONDS})
    return Refusal(422, "video_unusable", f"{NAME} {err.cause}")  # the cause alone: it does not say where it lay


async def _refuse(request: Request, err: Exception) -> Response:
    assert isinstance(err, Refusal)
    request.state.reason = f"{err.code}: {err}"
    return err.answer()


async def _refuse_by_status(request: Request, err: Exception) -> Response:
    """What the framework refuses: no such route, another method."""
    assert isinstance(err, HTTPException)
    codes = {
        404: ("not_found", "there is no such page; see /docs"),
        405: ("wrong_method", "use another method; see /docs"),
    }
    code, message = codes.get(err.status_code, ("refused", "the request can't be answered; see /docs"))
    return await _refuse(request, Refusal(err.status_code, code, message, err.headers))


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorAnswer, "description": _WHY[status]} for status in statuses}

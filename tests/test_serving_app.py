"""The routes of the server in this process: what they answer, and every refusal in one form that gives nothing away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import av
import httpx
import numpy as np
import pytest
from serving_parts import FORM_TYPE, PROMPT, FakeDecoders, FakeScorer, form, parts
from small_models import FRAMES, write_checkpoint, write_clip
from starlette.testclient import TestClient

from qualivision.labels import DIMENSIONS
from qualivision.models.quality import ASPECTS
from qualivision.scoring import Scorer
from qualivision.serving import engine as engine_room
from qualivision.serving.answers import AspectWeights, FiveScores
from qualivision.serving.app import create_app
from qualivision.serving.engine import Engine
from qualivision.serving.observing import REQUESTS, JsonLines, Metrics
from qualivision.settings import DecodeSettings, ServeSettings

BIG = 300_000


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("app")


@pytest.fixture(scope="module")
def scorer(place):
    return Scorer(write_checkpoint(place / "checkpoint"))


@pytest.fixture(scope="module")
def clip(place):
    (place / "allowed").mkdir()
    return write_clip(place / "allowed" / "clip.mp4")


@pytest.fixture(scope="module")
def elsewhere():
    """A web server on this machine: every address has its answer, and every question is remembered."""
    asked = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            kind = self.path.rpartition("/")[2]
            self.send_response({"moved": 302, "gone": 404}.get(kind, 200))
            body = self.server.clip
            if kind == "moved":
                self.send_header("location", "http://169.254.169.254/latest/meta-data")
            if kind in ("big", "announced"):
                body = bytes(2 * BIG)
            if kind != "big":
                self.send_header("content-length", str(len(body)))
            self.end_headers()
            if kind == "slow":
                body = body[:10]
                time.sleep(3)
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        server.asked = asked
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def settings(place, elsewhere):
    return ServeSettings(
        max_megabytes=BIG / 1e6,
        max_prompt_characters=100,
        body_seconds=1.5,
        workers=1,
        allow_folders=(place / "allowed",),
        allow_urls=(f"http://127.0.0.1:{elsewhere.server_port}", "https://cdn.example.com"),
    )


@pytest.fixture(scope="module")
def app(scorer, settings):
    metrics = Metrics()
    engine = Engine(scorer, settings, DecodeSettings(), metrics)
    app = create_app(engine, settings, metrics, follows="models:/qualivision@champion")
    app.state.engine = engine
    yield app
    engine.close()


@pytest.fixture(scope="module")
def client(app, clip, elsewhere):
    elsewhere.clip = clip.read_bytes()
    with TestClient(app) as client:
        client.post("/v1/score", content=form(clip.read_bytes()), headers=FORM_TYPE)  # the worker is there
        yield client


@pytest.fixture
def fake(monkeypatch):
    """`fake(queue=1)` gives an app whose scorer obeys, and the engine."""
    monkeypatch.setattr(engine_room, "Decoders", FakeDecoders)
    engines = []

    def make(**changes):
        settings, metrics = ServeSettings(**changes), Metrics()
        engines.append(Engine(FakeScorer(), settings, DecodeSettings(), metrics))
        return create_app(engines[-1], settings, metrics), engines[-1]

    yield make
    for engine in engines:
        engine.scorer.gate.set()
        engine.close(5)


def error(answer):
    """The code of a refusal, which has the form of all refusals and gives nothing away."""
    found = answer.json()
    assert set(found) == {"error"}
    assert set(found["error"]) == {"code", "message"}
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    told = answer.text.lower()
    assert not re.search(r"traceback|\.py|/tmp|/opt|/home|/work|qualivision-serve|errno", told), told
    return answer.status_code, found["error"]["code"]


# Scores


def test_a_video_gets_the_scores_that_the_model_gives_it(client, scorer, clip):
    answer = client.post("/v1/score", files={"video": clip.read_bytes()}, data={"prompt": PROMPT})
    assert answer.status_code == 200, answer.text
    found, expected = answer.json(), scorer.score(clip, prompt=PROMPT)
    assert found["scores"] == pytest.approx(dict(expected.values), abs=2e-4)
    assert found["aspect_weights"] == pytest.approx(dict(expected.aspect_weights), abs=2e-4)
    assert found["distance"] == pytest.approx(expected.distance, abs=2e-4)
    assert found["warning"] == (expected.warning or None)
    assert (found["model"], found["prompt"]) == (scorer.name, PROMPT)
    assert found["request_id"] == answer.headers["x-request-id"]


def test_the_types_of_the_answer_name_the_dimensions(client):
    assert tuple(FiveScores.model_fields) == DIMENSIONS
    assert tuple(AspectWeights.model_fields) == ASPECTS


@pytest.mark.parametrize("prompt", ["Ein Kätzchen 🐈 läuft", "x" * 100, "two\nlines", "\x00", " padded "])
def test_a_prompt_comes_back_as_it_was_sent(client, clip, prompt):
    answer = client.post("/v1/score", content=form(clip.read_bytes(), prompt), headers=FORM_TYPE)
    assert (answer.status_code, answer.json().get("prompt")) == (200, prompt)


@pytest.mark.parametrize(
    "name", ["../../../../tmp/evil.mp4", "/etc/cron.d/evil", "http://example.com/a.mp4", "-i", "a\\..\\b", "video.m3u8"]
)
def test_what_a_client_calls_its_file_does_not_matter(client, clip, name):
    answer = client.post("/v1/score", content=form(clip.read_bytes(), filename=name), headers=FORM_TYPE)
    assert answer.status_code == 200, answer.text


def test_a_sane_request_id_is_kept_and_another_replaced(client):
    assert client.get("/health", headers={"x-request-id": "run-7.a_b"}).headers["x-request-id"] == "run-7.a_b"
    for other in ("", "a b", "x" * 65, 'a"}{"'):
        given = client.get("/health", headers={"x-request-id": other}).headers["x-request-id"]
        assert re.fullmatch(r"[0-9a-f]{32}", given)


def test_the_model_is_told(client, scorer):
    found = client.get("/v1/model").json()
    assert found == {
        "model": scorer.name,
        "kind": "lite",
        "follows": "models:/qualivision@champion",
        "frames": [FRAMES.model_dump()],
        "dimensions": list(DIMENSIONS),
    }


# Refusals


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        # no form
        (b"", {}, (415, "wrong_content_type")),
        (b"{}", {"content-type": "application/json"}, (415, "wrong_content_type")),
        (b"video=a&prompt=b", {"content-type": "application/x-www-form-urlencoded"}, (415, "wrong_content_type")),
        (form(b"x"), {"content-type": "multipart/form-data"}, (400, "malformed")),
        (form(b"x"), {"content-type": f"multipart/form-data; boundary={'b' * 500}"}, (400, "malformed")),
        (form(b"x"), {"content-type": "multipart/form-data; boundary=other"}, (400, "malformed")),
        (b"nothing of the kind", FORM_TYPE, (400, "malformed")),
        (b"", FORM_TYPE, (400, "malformed")),
        (form(b"x")[:-20], FORM_TYPE, (400, "malformed")),
        (form(b"x").replace(b"\r\n\r\n", b"\r\n", 1), FORM_TYPE, (400, "malformed")),
        (form(b"x").replace(b"Content-Disposition:", b"Content-Disposition" + b"x" * 5000 + b":"), FORM_TYPE,
         (400, "malformed")),
        (form(b"x").replace(b"Content-", b"A: b\r\n" * 20 + b"Content-", 1), FORM_TYPE, (400, "malformed")),
        # fields
        (parts(('form-data; name="video"', b"x")), FORM_TYPE, (422, "missing_field")),
        (parts(('form-data; name="prompt"', b"x")), FORM_TYPE, (422, "missing_field")),
        (parts(), FORM_TYPE, (422, "missing_field")),
        (parts(('form-data; name="path"', b"/etc/passwd")), FORM_TYPE, (422, "unknown_field")),
        (parts(("form-data", b"x")), FORM_TYPE, (422, "unknown_field")),
        (parts(*[('form-data; name="prompt"', b"x")] * 2), FORM_TYPE, (422, "double_field")),
        (parts(*[('form-data; name="video"; filename="a"', b"x")] * 2), FORM_TYPE, (422, "double_field")),
        # the prompt
        (form(b"x", ""), FORM_TYPE, (422, "prompt_blank")),
        (form(b"x", " \t\n"), FORM_TYPE, (422, "prompt_blank")),
        (form(b"x", "x" * 101), FORM_TYPE, (422, "prompt_too_long")),
        (form(b"x", "x" * 50_000), FORM_TYPE, (422, "prompt_too_long")),
        (form(b"x", b"\xff\xfe"), FORM_TYPE, (422, "prompt_no_text")),
        # sizes
        (form(bytes(BIG + 1)), FORM_TYPE, (413, "too_large")),
        (form(bytes(2 * BIG)), FORM_TYPE, (413, "too_large")),
        # no video
        (form(b""), FORM_TYPE, (422, "video_unusable")),
        (form(b"certainly no video"), FORM_TYPE, (422, "video_unusable")),
        (form(bytes(1000)), FORM_TYPE, (422, "video_unusable")),
        # lists of files, by which a demuxer would read what nobody sent
        (form(b"ffconcat version 1.0\nfile clip.mp4\n"), FORM_TYPE, (422, "video_unusable")),
        (form(b"#EXTM3U\n#EXTINF:8,\n/etc/passwd\n#EXT-X-ENDLIST\n"), FORM_TYPE, (422, "video_unusable")),
        (form(b"v=0\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n"), FORM_TYPE, (422, "video_unusable")),
    ],
)  # fmt: skip
def test_a_request_that_cant_be_scored_is_refused_with_its_reason(client, body, headers, expected):
    assert error(client.post("/v1/score", content=body, headers=headers)) == expected


def test_a_cut_off_video_is_refused_with_its_cause(client, clip):
    answer = client.post("/v1/score", content=form(clip.read_bytes()[:-3000]), headers=FORM_TYPE)
    assert error(answer) == (422, "video_unusable")
    assert answer.json()["error"]["message"].startswith("the video ")


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/nothing", (404, "not_found")),
        ("GET", "/v1/score", (405, "wrong_method")),
        ("POST", "/health", (405, "wrong_method")),
        ("GET", "/static-offline-docs/../../../../etc/passwd", (404, "not_found")),
        ("GET", "/static-offline-docs/%2e%2e/%2e%2e/core.py", (404, "not_found")),
    ],
)
def test_a_page_that_is_not_there_is_refused_in_the_same_form(client, method, path, expected):
    answer = client.request(method, path)
    assert error(answer) == expected
    assert expected[0] != 405 or answer.headers["allow"]


def test_a_body_without_a_length_is_asked_for_one(client):
    def nothing(request):
        del request.headers["content-length"]
        return request

    request = nothing(client.build_request("POST", "/v1/score", headers=FORM_TYPE, content=b""))
    assert error(client.send(request)) == (411, "no_length")


def in_chunks(body):
    return (body[at : at + 9999] for at in range(0, len(body), 9999))


@pytest.mark.parametrize(
    "body",
    [form(bytes(3 * BIG)), form(b"x") + bytes(3 * BIG), form(b"x", "x" * 3 * BIG)],
    ids=["video", "behind the form", "prompt"],
)
def test_bytes_are_counted_where_no_length_is_told(client, body):
    answer = client.post("/v1/score", content=in_chunks(body), headers=FORM_TYPE)
    assert error(answer) in {(413, "too_large"), (422, "prompt_too_long")}


def test_bytes_of_json_are_counted_too(client):
    body = b'{"path": "/a", "prompt": "' + b"x" * 100_000 + b'"}'
    answer = client.post("/v1/score-reference", content=in_chunks(body), headers={"content-type": "application/json"})
    assert error(answer) == (413, "too_large")


def test_every_upload_is_removed(app, client, clip):
    folder = next(route for route in app.routes if getattr(route, "path", "") == "/v1/score").endpoint.__self__._folder
    for body in (form(clip.read_bytes()), form(b"junk"), form(clip.read_bytes())[:-9], form(bytes(BIG + 1))):
        client.post("/v1/score", content=body, headers=FORM_TYPE)
    client.post("/v1/score-reference", json={"path": str(clip), "prompt": PROMPT})
    assert os.listdir(folder.name) == []


def test_a_small_file_with_huge_frames_is_refused_before_they_are_decoded(client, tmp_path):
    path = tmp_path / "huge.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 8192, 7000, "gray"
        picture = np.zeros((7000, 8192), np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="gray")))
        container.mux(stream.encode(None))
    assert path.stat().st_size < BIG
    answer = client.post("/v1/score", content=form(path.read_bytes()), headers=FORM_TYPE)
    assert error(answer) == (422, "video_unusable")
    assert "frames of 8192 x 7000" in answer.text


def test_a_small_file_that_lasts_for_ever_is_refused(client, tmp_path, make_clip):
    path = make_clip(tmp_path / "long.mp4", frames=700, rate=1, width=32, height=32)
    answer = client.post("/v1/score", content=form(path.read_bytes()), headers=FORM_TYPE)
    assert error(answer) == (422, "video_unusable")
    assert "lasts 700.0 seconds, more than 600" in answer.text


def test_a_defect_says_nothing_of_itself_to_the_client_and_all_to_the_log(fake, caplog):
    app, _ = fake()
    with TestClient(app) as client:
        answer = client.post("/v1/score", content=form(b"x", "spoilt"), headers=FORM_TYPE)
    assert error(answer) == (500, "defect")
    assert "no kernel image in /opt/secret/driver.so" in caplog.text


# Videos by reference


def refer(client, **what):
    return client.post("/v1/score-reference", json={"prompt": PROMPT, **what})


def test_an_allowed_file_gets_the_scores_of_its_upload(client, scorer, clip):
    found = refer(client, path=str(clip))
    assert found.status_code == 200, found.text
    assert found.json()["scores"] == pytest.approx(dict(scorer.score(clip, prompt=PROMPT).values), abs=2e-4)


@pytest.fixture(scope="module")
def traps(place, clip):
    """What leads out of the allowed folder, or is no file in it."""
    allowed, secret = place / "allowed", place / "secret"
    secret.mkdir()
    (secret / "clip.mp4").write_bytes(clip.read_bytes())
    (place / "allowed-not").mkdir()
    (place / "allowed-not" / "clip.mp4").write_bytes(clip.read_bytes())
    (allowed / "link.mp4").symlink_to(secret / "clip.mp4")
    (allowed / "linked").symlink_to(secret)
    (allowed / "circle").symlink_to(allowed / "circle")
    (allowed / "folder.mp4").mkdir()
    os.mkfifo(allowed / "pipe.mp4")
    return place


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("{place}/secret/clip.mp4", (403, "path_not_allowed")),
        ("{place}/secret/none.mp4", (403, "path_not_allowed")),  # whether it is there is nobody's business
        ("{place}/allowed/../secret/clip.mp4", (403, "path_not_allowed")),
        ("{place}/allowed/link.mp4", (403, "path_not_allowed")),
        ("{place}/allowed/linked/clip.mp4", (403, "path_not_allowed")),
        ("{place}/allowed-not/clip.mp4", (403, "path_not_allowed")),
        ("{place}/allowed/circle", (403, "path_not_allowed")),
        ("clip.mp4", (403, "path_not_allowed")),
        ("allowed/clip.mp4", (403, "path_not_allowed")),
        ("", (403, "path_not_allowed")),
        ("/etc/passwd", (403, "path_not_allowed")),
        ("/proc/self/environ", (403, "path_not_allowed")),
        ("file://{place}/allowed/clip.mp4", (403, "path_not_allowed")),
        ("{place}/allowed/clip.mp4\x00.txt", (403, "path_not_allowed")),
        ("{place}/allowed/none.mp4", (404, "no_such_video")),
        ("{place}/allowed/folder.mp4", (422, "video_unusable")),
        ("{place}/allowed/pipe.mp4", (422, "video_unusable")),
    ],
)
def test_a_path_that_is_not_allowed_or_no_file_is_refused(client, traps, path, expected):
    assert error(refer(client, path=path.format(place=traps))) == expected


def test_an_allowed_file_may_also_be_named_by_a_roundabout_way(client, traps):
    assert refer(client, path=f"{traps}/secret/../allowed/./clip.mp4").status_code == 200


def test_an_allowed_file_that_is_too_large_is_refused(client, place, clip):
    (place / "allowed" / "big.mp4").write_bytes(bytes(BIG + 1))
    assert error(refer(client, path=str(place / "allowed" / "big.mp4"))) == (413, "too_large")


def test_an_allowed_address_gets_the_scores_of_its_video(client, scorer, clip, elsewhere):
    found = refer(client, url=f"http://127.0.0.1:{elsewhere.server_port}/videos/clip.mp4?size=1")
    assert found.status_code == 200, found.text
    assert found.json()["scores"] == pytest.approx(dict(scorer.score(clip, prompt=PROMPT).values), abs=2e-4)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{other}/clip.mp4",
        "https://127.0.0.1:{port}/clip.mp4",
        "http://localhost:{port}/clip.mp4",
        "http://127.0.0.1:{port}@169.254.169.254/",
        "http://user:secret@127.0.0.1:{port}/clip.mp4",
        "http://user@127.0.0.1:{port}/clip.mp4",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]:{port}/clip.mp4",
        "http://2130706433:{port}/clip.mp4",
        "http://127.0.0.1:{port}\\@169.254.169.254/",
        "http://127.0.0.1:{port}.evil.example/clip.mp4",
        "https://cdn.example.com.evil.example/clip.mp4",
        "https://cdn.example.com:8443/clip.mp4",
        "file:///etc/passwd",
        "ftp://127.0.0.1:{port}/clip.mp4",
        "//127.0.0.1:{port}/clip.mp4",
        "clip.mp4",
        "",
        "http://",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:{port}\r\nHost: x/",
        "concat:http://127.0.0.1:{port}/clip.mp4",
    ],
)
def test_an_address_of_another_origin_is_refused_and_never_asked(client, elsewhere, url):
    before = len(elsewhere.asked)
    answer = refer(client, url=url.format(port=elsewhere.server_port, other=elsewhere.server_port + 1))
    assert error(answer) == (403, "url_not_allowed")
    assert len(elsewhere.asked) == before


@pytest.mark.parametrize(
    ("page", "expected", "says"),
    [
        ("moved", (422, "url_unusable"), "answers 302; redirects are not followed"),
        ("gone", (422, "url_unusable"), "answers 404"),
        ("announced", (413, "too_large"), "more than 300000 bytes"),
        ("big", (413, "too_large"), "more than 300000 bytes"),
        ("slow", (422, "url_unusable"), "takes longer than 1.5 s"),
    ],
)
def test_an_allowed_address_that_gives_no_video_is_refused(client, elsewhere, page, expected, says):
    answer = refer(client, url=f"http://127.0.0.1:{elsewhere.server_port}/{page}")
    assert error(answer) == expected
    assert says in answer.text


def test_nothing_is_allowed_by_default(fake, clip):
    app, _ = fake()
    with TestClient(app) as client:
        assert error(refer(client, path=str(clip))) == (403, "path_not_allowed")
        assert error(refer(client, url="http://127.0.0.1/clip.mp4")) == (403, "url_not_allowed")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{", (400, "malformed")),
        (b"\xff", (400, "malformed")),
        (b"[]", (422, "wrong_field")),
        (b"{}", (422, "wrong_field")),
        (b'{"prompt": "a"}', (422, "wrong_field")),
        (b'{"prompt": "a", "path": "/a", "url": "http://b"}', (422, "wrong_field")),
        (b'{"prompt": "a", "path": "/a", "follow": true}', (422, "wrong_field")),
        (b'{"prompt": 1, "path": "/a"}', (422, "wrong_field")),
        (b'{"prompt": " ", "path": "/a"}', (422, "prompt_blank")),
        (b'{"prompt": "\\ud800", "path": "/a"}', (400, "malformed")),
        (b'{"prompt": "' + b"x" * 200 + b'", "path": "/a"}', (422, "prompt_too_long")),
        (b'{"prompt": "' + b"x" * 70_000 + b'", "path": "/a"}', (413, "too_large")),
        (b"[" * 60_000, (400, "malformed")),
    ],
)
def test_a_reference_that_says_nothing_usable_is_refused(client, body, expected):
    answer = client.post("/v1/score-reference", content=body, headers={"content-type": "application/json"})
    assert error(answer) == expected


# Load, and the stop


def raw(app, chunks, *, path="/v1/score", headers=FORM_TYPE):
    """What an ASGI application sent, and how much of the body it had asked for when its answer began."""
    sent, asked, at_answer = [], [], []
    waiting = iter(chunks)

    async def receive():
        asked.append(1)
        chunk = next(waiting, None)
        return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}

    async def send(message):
        if message["type"] == "http.response.start":
            at_answer.append(len(asked))
        sent.append(message)

    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
             "headers": [*pairs, (b"transfer-encoding", b"chunked")], "http_version": "1.1", "scheme": "http",
             "server": ("test", 80), "client": ("test", 1), "asgi": {"version": "3.0"}}  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(m.get("body", b"") for m in sent[1:]), at_answer[0]


def test_a_full_queue_answers_429_with_retry_after_before_the_body_is_read(fake, tmp_path):
    app, engine = fake(queue=1)
    engine.scorer.gate.clear()
    engine.submit(tmp_path, PROMPT)
    status, headers, body, asked = raw(app, [bytes(1000)] * 5)
    assert (status, json.loads(body)["error"]["code"], asked) == (429, "queue_full", 0)
    assert 1 <= int(headers[b"retry-after"]) <= 60
    assert headers[b"connection"] == b"close"


def test_the_last_part_of_a_refusal_waits_until_the_client_has_sent_its_body(fake, tmp_path):
    app, engine = fake(queue=1)
    engine.scorer.gate.clear()
    engine.submit(tmp_path, PROMPT)
    taken = []

    def chunks():
        for number in range(5):
            taken.append(number)
            yield bytes(1000)

    raw(app, chunks())
    assert taken == [0, 1, 2, 3, 4]


def test_while_it_shuts_down_it_is_not_ready_and_takes_nothing(fake):
    app, engine = fake()
    with TestClient(app) as client:
        assert client.get("/ready").json() == {"state": "ready"}
        engine.stop_admitting()
        assert error(client.get("/ready")) == (503, "shutting_down")
        answer = client.post("/v1/score", content=form(b"x"), headers=FORM_TYPE)
        assert error(answer) == (503, "shutting_down")
        assert answer.headers["retry-after"]
        assert client.get("/health").json() == {"state": "alive"}


def test_a_clip_whose_client_went_away_is_not_scored(fake):
    app, engine = fake()
    engine._decoders.hold = True

    async def leave():
        told = asyncio.Event()
        body = [{"type": "http.request", "body": form(b"x"), "more_body": False}]

        async def receive():
            if body:
                return body.pop()
            await told.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            raise AssertionError(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/score", "raw_path": b"", "query_string": b"",
                 "headers": [(b"content-type", FORM_TYPE["content-type"].encode()), (b"content-length", b"9")],
                 "http_version": "1.1", "scheme": "http", "server": None, "client": None}  # fmt: skip
        running = asyncio.create_task(app(scope, receive, send))
        while not engine._decoders.held:
            await asyncio.sleep(0.01)
        told.set()
        await running

    asyncio.run(leave())
    engine._decoders.release()
    deadline = time.monotonic() + 5
    while engine._admitted and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (engine._admitted, engine.scorer.batches) == (0, [])


# What is to be seen


@pytest.mark.parametrize(("distance", "warns"), [(0.0, False), (1.0, False), (1.2, True), (float(7), True)])
def test_a_clip_unlike_those_of_training_is_said_to_be_so_and_counted(fake, distance, warns):
    app, engine = fake()
    engine.scorer.distance = distance
    with TestClient(app) as client:
        found = client.post("/v1/score", content=form(b"x"), headers=FORM_TYPE).json()
        metrics = client.get("/metrics").text
    said = f"unlike what this model was trained on (distance {distance:.2f}; clips of its own kind are below 1): "
    assert found["distance"] == distance
    assert found["warning"] == (said + "do not trust the absolute scores" if warns else None)
    assert f"qualivision_clips_unfamiliar_total {float(warns)}" in metrics.splitlines()


def test_metrics_tell_what_happened(fake):
    app, _ = fake()
    with TestClient(app) as client:
        client.post("/v1/score", content=form(b"x"), headers=FORM_TYPE)
        client.post("/v1/score", content=form(b"x", " "), headers=FORM_TYPE)
        client.get("/made-up-1")
        client.get("/made-up-2")
        text = client.get("/metrics").text
    for line in (
        'qualivision_requests_total{route="/v1/score",status="200"} 1.0',
        'qualivision_requests_total{route="/v1/score",status="422"} 1.0',
        'qualivision_requests_total{route="other",status="404"} 2.0',
        'qualivision_request_seconds_count{route="/v1/score"} 2.0',
        "qualivision_queue_clips 0.0",
        "qualivision_decode_seconds_count 1.0",
        "qualivision_model_seconds_count 1.0",
        'qualivision_batch_clips_bucket{le="1.0"} 1.0',
        "qualivision_clips_unfamiliar_total 0.0",
        "qualivision_decoders_lost_total 0.0",
        "qualivision_model_swaps_total 0.0",
        'qualivision_model_info{model="models:/fake/1"} 1.0',
    ):
        assert line in text.splitlines()
    assert "made-up" not in text


def test_a_request_is_one_json_line_in_the_log_with_its_reason_and_without_its_prompt(fake, caplog):
    app, _ = fake()
    caplog.set_level("INFO", logger=REQUESTS.name)
    with TestClient(app) as client:
        client.post("/v1/score", content=form(b"xyz", "a secret"), headers={**FORM_TYPE, "x-request-id": "one"})
        client.post("/v1/score", content=form(b"xyz", " "), headers=FORM_TYPE)
    lines = [JsonLines().format(record) for record in caplog.records if record.name == REQUESTS.name]
    assert [len(line.splitlines()) for line in lines] == [1, 1]
    scored, refused = map(json.loads, lines)
    assert scored["request_id"] == "one"
    assert (scored["method"], scored["route"], scored["status"]) == ("POST", "/v1/score", 200)
    assert scored["bytes_in"] == len(form(b"xyz", "a secret"))
    assert scored["ms"] > 0
    assert (scored["model"], scored["reason"]) == ("models:/fake/1", None)
    assert (refused["status"], refused["reason"].partition(":")[0]) == (422, "prompt_blank")
    assert "secret" not in lines[0]


def test_the_docs_load_nothing_from_outside(client):
    page = client.get("/docs").text
    loaded = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)""", page)
    assert len(loaded) >= 4
    for address in loaded:
        assert address.startswith("/"), address
        assert client.get(address).status_code == 200, address
    assert not re.findall(r"https?://", page)


def test_the_openapi_page_teaches_what_to_send_and_what_comes_back(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        "/v1/score", "/v1/score-reference", "/v1/model", "/health", "/ready", "/metrics"}  # fmt: skip
    score = paths["/v1/score"]["post"]
    assert set(score["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]) == {"video", "prompt"}
    assert {"200", "400", "408", "413", "415", "422", "429", "503"} <= set(score["responses"])
    assert "application/json" in paths["/v1/score-reference"]["post"]["requestBody"]["content"]


def test_httpx_without_a_server_works_too(app, client, clip):
    async def ask():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as asking:
            return await asking.post("/v1/score", files={"video": clip.read_bytes()}, data={"prompt": PROMPT})

    assert asyncio.run(ask()).status_code == 200

"""The registered model behind MLflow's interface, and behind MLflow's own server: bytes in, a row for each out."""

from __future__ import annotations

import base64
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from servers import answers, free_port, running
from small_models import own_store, write_checkpoint, write_clip, write_evaluation

from qualivision.labels import DIMENSIONS
from qualivision.registry import register
from qualivision.scoring import Scorer
from qualivision.settings import RegistrySettings

PROMPT = "A cat is running on the grass"
ROOT = Path(__file__).parents[1]
NUMBERS = (*DIMENSIONS, "distance")
NOTHING = dict.fromkeys(NUMBERS) | {"warning": ""}
"""Of a video that can't be scored."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder with an MLflow store of its own."""
    with own_store(tmp_path_factory.mktemp("pyfunc")) as folder:
        yield folder


@pytest.fixture(scope="module")
def checkpoint(place) -> Path:
    return write_checkpoint(place / "checkpoint")


@pytest.fixture(scope="module")
def clip(place) -> bytes:
    return write_clip(place / "clip.mp4").read_bytes()


@pytest.fixture(scope="module")
def wanted(place, checkpoint, clip) -> dict[str, object]:
    """What the scorer says of the clip."""
    return said(checkpoint, place / "clip.mp4", PROMPT)


def said(checkpoint: Path, clip: Path, prompt: str) -> dict[str, object]:
    found = Scorer(checkpoint).score(clip, prompt=prompt)
    return {**found.values, "distance": found.distance, "warning": found.warning}


@pytest.fixture(scope="module")
def uri(place, checkpoint) -> str:
    """The model in the registry."""
    report = write_evaluation(place / "report", checkpoint)
    return register(checkpoint, report, RegistrySettings(name="served")).uri


@pytest.fixture(scope="module")
def served(uri):
    return mlflow.pyfunc.load_model(uri)


def request(*rows: tuple[object, object]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["video", "prompt"])


def test_the_signature_says_bytes_and_text_in_scores_and_error_out(served):
    schema = served.metadata.signature
    assert {column.name: column.type.name for column in schema.inputs} == {"video": "binary", "prompt": "string"}
    out = {column.name: column.type.name for column in schema.outputs}
    assert out == dict.fromkeys(NUMBERS, "double") | {"warning": "string", "error": "string"}


def test_served_model_gives_the_scores_of_the_scorer(served, place, checkpoint, clip, wanted):
    other = said(checkpoint, place / "clip.mp4", "A dog")
    found = served.predict(request((clip, PROMPT), (clip, "A dog")))
    assert found.to_dict("records") == [wanted | {"error": ""}, other | {"error": ""}]
    assert (found.dtypes[list(NUMBERS)] == "float64").all()
    assert wanted["distance"] > 1 and wanted["warning"].startswith("unlike what this model was trained on")


@pytest.mark.parametrize(
    ("video", "prompt", "error"),
    [
        (b"no video", PROMPT, "the video can't be decoded"),
        (b"", PROMPT, "the video is empty (0 bytes)"),
        (None, PROMPT, "the video is not the bytes of a file"),
        ("clip.mp4", PROMPT, "the video is not the bytes of a file"),  # never a file of the server's
        ("CLIP", None, "the video: the prompt is blank"),
        ("CLIP", " ", "the video: the prompt is blank"),
    ],
)
def test_a_row_that_cannot_be_scored_says_why_and_costs_itself_alone(served, clip, wanted, video, prompt, error):
    found = served.predict(request((clip, PROMPT), (clip if video == "CLIP" else video, prompt)))
    good, bad = found.to_dict("records")
    assert good == wanted | {"error": ""}
    assert bad.pop("error").startswith(error)
    assert bad == NOTHING
    assert "qualivision-" not in found["error"][1], "where the video lay is nobody's business"


def test_the_index_of_the_request_is_kept(served, clip):
    rows = request((clip, PROMPT), (b"no video", PROMPT)).set_index(pd.Index([7, 3]))
    assert list(served.predict(rows).index) == [7, 3]


def test_many_rows_leave_no_file_behind(served, clip, place, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(place / "scratch"))
    (place / "scratch").mkdir(exist_ok=True)
    found = served.predict(request(*[(b"no video", PROMPT)] * 40))
    assert len(found) == 40 and found["error"].all()
    assert not list((place / "scratch").iterdir())


# MLflow's server


def ask(address: str, body: object = None) -> tuple[int, str]:
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    call = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(call, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as err:
        return err.code, err.read().decode()


@pytest.fixture(scope="module")
def server(place, uri):
    """`mlflow models serve`, by its address; `server.alive()` asks whether it still runs."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", uri, "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # MLflow calls uvicorn by its name
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{place / 'mlflow.db'}", "PATH": path}
    with running(command, place / "server.log", ready=lambda: answers(f"{address}/ping"), env=environment):
        yield address


def split(*rows: tuple[object, object], columns: tuple[str, ...] = ("video", "prompt")) -> dict[str, object]:
    return {"dataframe_split": {"columns": columns, "data": rows}}


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


@pytest.mark.slow
def test_mlflows_server_scores_a_video_and_names_one_that_it_cannot(server, clip, wanted):
    assert [ask(f"{server}/{page}")[0] for page in ("ping", "health")] == [200, 200]
    sent = base64.b64encode(clip).decode()
    rows = [(sent, PROMPT), (base64.b64encode(b"garbage" * 1000).decode(), PROMPT), (sent, "")]
    status, text = ask(f"{server}/invocations", split(*rows))
    assert status == 200, text
    good, bad, blank = json.loads(text, parse_constant=refuse_constant)["predictions"]
    assert good == pytest.approx(wanted | {"error": ""})
    assert bad.pop("error").startswith("the video can't be decoded") and blank.pop("error")
    assert bad == blank == NOTHING


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        split(("AAAA", PROMPT), columns=("film", "prompt")),
        split(("AAAA",), columns=("video",)),
        split((5, PROMPT)),
        split((None, PROMPT)),
        split((["AAAA"], PROMPT)),
        {"instances": []},
        {},
        b"no JSON",
    ],
    ids=lambda body: str(body)[:60],
)
def test_mlflows_server_refuses_what_is_no_table_of_videos_and_goes_on(server, clip, body):
    status, text = ask(f"{server}/invocations", body)
    assert status == 400, text
    assert ask(f"{server}/ping")[0] == 200

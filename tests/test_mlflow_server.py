"""Register, promote, challenge, refuse, roll back: by the command line, on MLflow's own server and its databases."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import mlflow
import pytest
import yaml
from servers import browser, mlflow_server, postgresql
from small_models import write_checkpoint, write_evaluation, write_rated_videos

from qualivision import cli, tracking
from qualivision.scoring import Scorer
from qualivision.stages import places

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request, tmp_path_factory):
    """The address of a server, in a working folder with rated clips. Clients know nothing of its database."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        patch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
        patch.setattr(tracking, "STATE", folder / "state")
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        params["promote"] |= {"resamples": 200, "min_gain_over_no_video": -2.0}
        Path("params.yaml").write_text(yaml.safe_dump(params))
        write_rated_videos(Path("data"), write_checkpoint(Path("good")), clips={"train": 10, "val": 2, "test": 12})
        if request.param == "sqlite":
            with mlflow_server(folder, f"sqlite:///{folder / 'server.db'}") as address:
                yield from served(address, patch)
        else:
            with postgresql(folder) as store, mlflow_server(folder, store) as address:
                yield from served(address, patch)


def served(address: str, patch: pytest.MonkeyPatch):
    patch.setenv("MLFLOW_TRACKING_URI", address)
    mlflow.set_tracking_uri(address)
    yield address
    mlflow.set_tracking_uri(None)


def trained(folder: Path) -> None:
    """As if `dvc repro` had made this checkpoint, and its evaluation."""
    target = places.checkpoint_dir("lite")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)
    write_evaluation(places.report_dir("lite"), target)


@pytest.fixture
def call(monkeypatch, capsys):
    def run(*arguments: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["qualivision", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr()
        return left.value.code or 0, said.out + said.err

    return run


def champion(call) -> dict:
    return next(
        found
        for line in call("models", "--json")[1].splitlines()
        if "champion" in (found := json.loads(line))["aliases"]
    )


def test_a_champion_is_challenged_beaten_and_given_back(server, call, tmp_path):
    assert call("models")[1] == "models: qualivision has no version yet; `qualivision register` makes one\n"
    # The first model: held against the baseline alone.
    trained(write_checkpoint(tmp_path / "fair", seed=1))
    code, said = call("register", "--promote")
    assert code == 0 and "against the no-video baseline alone" in said and said.endswith("/1 is the champion\n")
    # A deliberately worse one: refused, with the table.
    trained(write_checkpoint(tmp_path / "bad", seed=2))
    good_first = Scorer("good").score("data/test/videos/A_test0.mp4", prompt="test prompt 0")
    assert call("register") == (0, "register: models:/qualivision/2\n")
    # A better one: promoted.
    trained(Path("good"))
    code, said = call("register", "--promote")
    assert code == 0 and "models:/qualivision/3 passes the gate, against models:/qualivision/1" in said
    assert champion(call)["version"] == 3
    code, said = call("gate", "2")
    assert code == 1
    assert "models:/qualivision/2 does not pass the gate, against models:/qualivision/3" in said
    assert "significantly worse" in said and "Traditional" in said and "200" not in said
    code, said = call("promote", "2")
    assert code == 1 and said.count("\n") == 1 and "--override" in said
    assert champion(call)["version"] == 3
    # What is at work is the good one, whose files came through the server.
    assert Scorer().score("data/test/videos/A_test0.mp4", prompt="test prompt 0").values == good_first.values
    code, said = call("promote", "2", "--override", "to see it fail")
    assert (code, said) == (0, "promote: models:/qualivision/2 is the champion\n")
    code, said = call("rollback", "--why", "it failed")
    assert (code, said) == (0, "rollback: models:/qualivision/3 is the champion again; 2 is not any more\n")
    assert [event["what"] for event in champion(call)["history"]][-2:] == ["approved", "champion again, for 2"]
    table = call("models")[1]
    assert "rolled back" in table and "champion" in table and "previous" in table


def test_the_pages_show_champion_card_and_verdict(server, tmp_path):
    with browser(tmp_path) as driver:
        driver.get(f"{server}/#/models/qualivision/versions/3")
        text = ""
        for _ in range(100):
            text = driver.find_element("tag name", "body").text
            if "The gate" in text and "champion" in text:
                break
            time.sleep(0.2)
        assert "champion" in text
        assert "judges a video against its prompt" in text
        assert "passes the gate, against models:/qualivision/1" in text
        assert "qualivision.verdict" in text and "passed" in text

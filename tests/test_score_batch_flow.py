"""The flow `score-batch`, without Prefect: the command's table, what is shown of it, and what is refused."""

from __future__ import annotations

import csv
import logging
import shutil
import sys
from pathlib import Path

import pytest
from small_models import write_checkpoint, write_clip

from flows import score_batch as flow
from qualivision import cli, score_run, scoring
from qualivision.errors import QualiVisionError
from qualivision.labels import LabelError
from qualivision.score_run import default_table
from qualivision.score_summary import summarise
from qualivision.score_table import ScoreTableError, read_table

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A checkpoint and four clips, one of them broken, with prompts; to be copied."""
    folder = tmp_path_factory.mktemp("made")
    write_checkpoint(folder / "checkpoint")
    (folder / "clips").mkdir()
    for seed, name in enumerate("abc"):
        write_clip(folder / "clips" / f"{name}.mp4", seed=seed)
    (folder / "clips" / "broken.mp4").write_bytes(b"no video")
    shutil.copy(ROOT / "params.yaml", folder)
    write_prompts(folder, {f"{name}.mp4": f"a cat {name}" for name in ("a", "b", "c", "broken")})
    return folder


def write_prompts(folder: Path, prompts: dict[str, str]) -> None:
    with (folder / "prompts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("video_name", "Prompt"), *prompts.items()])


class Shown(list):
    """What Prefect was shown: (kind, values)."""

    def of(self, kind: str) -> list[dict]:
        return [values for shown, values in self if shown == kind]


@pytest.fixture
def shown(made, tmp_path, monkeypatch, caplog) -> Shown:
    """A working folder of one's own, and no Prefect."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(flow, "get_run_logger", logging.getLogger)
    found = Shown()
    monkeypatch.setattr(flow, "create_markdown_artifact", lambda **values: found.append(("markdown", values)))
    monkeypatch.setattr(
        flow,
        "create_progress_artifact",
        lambda percent, **values: found.append(("bar", {"percent": percent} | values)) or 1,
    )
    monkeypatch.setattr(
        flow, "update_progress_artifact", lambda bar, percent, **_: found.append(("moved", {"percent": percent}))
    )
    return found


def score(**more):
    return flow.score_batch.fn(Path("clips"), Path("prompts.csv"), model="checkpoint", **more)


def test_the_table_is_the_command_s_and_the_run_says_what_came_of_it(shown, monkeypatch, caplog):
    state = score()
    table = Path("scores/clips.parquet")
    call = ["score", "clips", "--prompts", "prompts.csv", "--model", "checkpoint", "--out", "command.parquet"]
    monkeypatch.setattr(sys, "argv", ["qualivision", *call])
    with pytest.raises(SystemExit):
        cli.main()
    assert table.read_bytes() == Path("command.parquet").read_bytes()
    label = scoring.locate("checkpoint").label
    assert state.is_completed()
    assert state.message.startswith(f"{table}: 4 rows, 3 scored, 1 can't be scored, 3 unlike what this model was ")
    assert state.message.endswith(f", by {label}")
    assert "clips/broken.mp4: can't be decoded" in caplog.text
    [artifact] = shown.of("markdown")
    assert artifact["key"] == "score-batch"
    assert f"4 rows, 1 without scores, by {label}" in artifact["markdown"]
    assert "| can't be decoded: invalid data found when processing input" in artifact["markdown"]
    assert [bar["percent"] for bar in shown.of("bar")] == [0.0]
    assert shown.of("moved")[-1] == {"percent": 100.0}


def test_with_nothing_new_no_model_is_loaded_and_the_run_says_so(shown, monkeypatch):
    write_prompts(Path(), {"a.mp4": "a cat", "b.mp4": "a dog"})
    score()
    before = Path("scores/clips.parquet").stat()
    shown.clear()
    monkeypatch.setattr(scoring, "Scorer", None)
    state = score()
    label = scoring.locate("checkpoint").label
    assert state.message == f"nothing to do: all 2 rows of scores/clips.parquet are there, by {label}"
    assert Path("scores/clips.parquet").stat().st_ino == before.st_ino
    assert len(shown.of("markdown")) == 1 and not shown.of("bar")


def test_rows_that_can_t_be_scored_cost_no_model_when_that_is_known_without_reading(shown, monkeypatch):
    write_prompts(Path(), {"a.mp4": " ", "gone.mp4": "a dog"})
    monkeypatch.setattr(scoring, "Scorer", None)
    state = score(out=Path("scores.csv"))
    assert state.is_completed() and "2 rows, 0 scored, 2 can't be scored" in state.message
    assert [row["error"] for row in read_table(Path("scores.csv"))] == [
        "has no prompt in prompts.csv",
        "no such file in clips",
    ]


def test_a_table_without_rows_is_nothing_to_do(shown):
    write_prompts(Path(), {})
    assert score().message == "nothing to do: prompts.csv has no rows"
    assert not Path("scores").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"videos": Path("nowhere")}, flow.InputNotFoundError, "nowhere: no such folder; give one with videos"),
        ({"videos": Path("clips/a.mp4")}, flow.InputNotFoundError, "a.mp4: no such folder"),
        ({"prompts": Path("nothing.csv")}, flow.InputNotFoundError, "nothing.csv: no such file; give a CSV file"),
        ({"prompts": Path("clips/broken.mp4")}, LabelError, "clips/broken.mp4: "),
        ({"out": Path("scores.xlsx")}, ScoreTableError, "a table of scores is one of .parquet, .csv, .jsonl"),
        ({"model": "nobody"}, scoring.ModelNotFoundError, "nobody: no such checkpoint folder"),
        ({"cluster": "many"}, QualiVisionError, "cluster: 'many' is neither local:N nor a scheduler's address"),
    ],
)
def test_what_is_not_there_is_one_line_with_a_way_out(shown, arguments, error, message):
    call = {"videos": Path("clips"), "prompts": Path("prompts.csv"), "model": "checkpoint"} | arguments
    with pytest.raises(error) as refused:
        flow.score_batch.fn(**call)
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not Path("scores").exists()


def test_the_table_of_another_model_is_refused_until_it_may_be_overwritten(shown):
    write_prompts(Path(), {"a.mp4": "a cat"})
    score()
    write_checkpoint(Path("other"), seed=1)
    call = {"videos": Path("clips"), "prompts": Path("prompts.csv"), "model": "other"}
    with pytest.raises(ScoreTableError, match=r"was made by checkpoint@.*, and this is other@.*--overwrite"):
        flow.score_batch.fn(**call)
    assert "1 scored" in flow.score_batch.fn(**call, overwrite=True).message


def test_parameters_are_explained_where_people_enter_them():
    from prefect.utilities.callables import parameter_schema

    for name, schema in parameter_schema(flow.score_batch).properties.items():
        assert len(schema.get("description", "")) > 15, name


@pytest.mark.parametrize(
    ("folder", "table"),
    [
        ("clips", "clips"),
        ("./clips/", "clips"),
        ("data/test/videos", "data__test__videos"),  # every split has its `videos`
        ("/mnt/big/clips", "mnt__big__clips"),
    ],
)
def test_a_folder_has_a_table_of_its_own(tmp_path, monkeypatch, folder, table):
    monkeypatch.chdir(tmp_path)
    assert default_table(Path(folder)) == Path(f"scores/{table}.parquet")
    assert default_table(tmp_path / "clips") == Path("scores/clips.parquet")


# The summary


def row(name: str, score: float | None = None, error: str = "", warning: str = "") -> dict:
    values = dict.fromkeys(score_run.NUMBERS, score)
    return {
        "video_name": name,
        "Prompt": "p",
        **values,
        "warning": warning,
        "model": "m",
        "error": error,
        "size": 1,
        "mtime_ns": 1,
    }


def test_a_summary_has_distributions_and_causes_with_the_most_frequent_first(monkeypatch):
    rows = [row(f"{number:02}", 1 + number / 10) for number in range(41)]
    rows += [row(f"x{number}", error="is | damaged") for number in range(5)] + [row("y", error="too long")]
    monkeypatch.setattr("qualivision.score_summary.read_table", lambda path: iter(rows))
    found = summarise(Path("scores.csv"))
    assert (found.rows, found.failed, found.models) == (47, 6, ("m",))
    expected = {"mean": 3.0, "least": 1.0, "5 %": 1.2, "median": 3.0, "95 %": 4.8, "most": 5.0}
    assert found.dimensions["Overall"] == pytest.approx(expected)
    lines = found.as_markdown("scores.csv").splitlines()
    assert "| Overall | 3.00 | 1.00 | 1.20 | 3.00 | 4.80 | 5.00 |" in lines
    assert lines[-2:] == [r"| is \| damaged | 5 | x0, x1, x2 |", "| too long | 1 | y |"]


def test_a_summary_counts_the_clips_that_are_unlike_those_of_training(monkeypatch):
    rows = [
        row("a", 3.0),
        row("b", 3.0, warning="unlike"),
        row("c", error="is damaged"),
        row("d", 3.0, warning="unlike"),
    ]
    monkeypatch.setattr("qualivision.score_summary.read_table", lambda path: iter(rows))
    found = summarise(Path("scores.csv"))
    assert found.unfamiliar == 2
    said = "2 clips are unlike what this model was trained on: their absolute scores are not to be trusted."
    assert said in found.as_markdown("scores.csv").splitlines()
    monkeypatch.setattr("qualivision.score_summary.read_table", lambda path: iter(rows[:1]))
    assert "unlike" not in summarise(Path("scores.csv")).as_markdown("scores.csv")


def test_many_causes_are_counted_and_not_all_named(monkeypatch):
    rows = [row(f"{number:02}", error=f"cause {number}") for number in range(30)]
    monkeypatch.setattr("qualivision.score_summary.read_table", lambda path: iter(rows))
    lines = summarise(Path("scores.csv")).as_markdown("scores.csv").splitlines()
    assert lines[-1] == "| 10 other causes | 10 | |" and not any("MOS" in line for line in lines)

"""The command line without a trained model: help, exit codes, and one line for what can't be done."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from qualivision import cli
from qualivision.errors import QualiVisionError
from qualivision.labels import MOS_COLUMNS, SPLITS, labels_path, videos_dir
from qualivision.video import VideoError

ROOT = Path(__file__).parents[1]
HEAVY = {
    "torch",
    "fastapi",
    "uvicorn",
    "mlflow",
    "prefect",
    "great_expectations",
    "pandas",
    "matplotlib",
    "av",
    "decord",
    "transformers",
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project: params.yaml and nothing else."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(monkeypatch, capsys):
    """`call("score", ...)` runs the entry point here; returns exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["qualivision", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code or 0, *capsys.readouterr()

    return run


def commands() -> set[str]:
    return set(typer.main.get_command(cli.app).commands)


def test_help_names_every_command(call):
    code, out, _ = call("--help")
    assert code == 0
    listed = {line.split()[0] for line in out.partition("Commands:")[2].splitlines() if line.strip()}
    assert commands() <= listed


def test_every_stage_of_the_pipeline_has_its_command():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert {stage["cmd"].split()[1] for stage in stages.values()} <= commands()


@pytest.mark.parametrize("module", ["qualivision", "qualivision.cli"])
def test_importing_loads_nothing_heavy(module):
    program = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "clip.mp4"], "give either --prompt TEXT or --prompts FILE.csv"),
        (["score", "clip.mp4", "--prompt", "a cat", "--prompts", "p.csv"], "give either --prompt TEXT or --prompts"),
        (["score", "clip.mp4", "--prompt", " \t"], "the prompt is blank"),
        (["score", "--prompt", "a cat"], "Missing argument 'VIDEO...'"),
        (["frames"], "Missing argument 'MODEL'"),
        (["frames", "lite", "--workers", "0"], "'--workers': Input should be greater than or equal to 1"),
        (["sample-data", "--prompts", "2"], "'--prompts': Input should be greater than or equal to 6"),
        (["serve", "--port", "99999"], "'--port': Input should be less than or equal to 65535"),
        (["serve", "--queue", "0"], "'--queue': Input should be greater than or equal to 1"),
        (["promote", "latest"], "Input should be a valid integer"),
        (["promote", "0"], "Input should be greater than or equal to 1"),
        (["promote", "1", "--override", " "], "say why; it is recorded on the version"),
        (["gate", "latest"], "Input should be a valid integer"),
        (["rollback"], "Missing option '--why'"),
        (["scores"], "No such command 'scores'"),
    ],
)
def test_a_wrong_call_exits_2_and_says_what_is_wrong(project, call, arguments, message):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert [path.name for path in project.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize("stage", ["frames", "prompts", "encode", "train", "evaluate", "register"])
def test_an_unknown_model_exits_1_with_one_line(project, call, stage):
    code, out, err = call(stage, "nope")
    assert (code, out) == (1, "")
    assert err == "no model named 'nope'; params.yaml lists models: lite\n"


@pytest.mark.parametrize(
    "arguments", [["frames", "lite"], ["validate"], ["register"], ["gate"], ["promote", "1"], ["models"]]
)
def test_without_params_yaml_one_line_says_so_and_it_exits_1(project, call, arguments):
    (project / "params.yaml").unlink()
    code, out, err = call(*arguments)
    assert (code, out) == (1, "")
    assert err == "params.yaml: no such file; run this in the folder that holds params.yaml\n"


def test_a_stage_whose_input_is_missing_exits_1_and_names_the_stage_before(project, call):
    code, out, err = call("encode", "lite")
    assert (code, out) == (1, "")
    assert err == "cache/frames/lite/index.json: no such file; run `qualivision frames lite` first\n"


def test_a_bad_data_set_fails_validation_by_name_and_writes_the_report(project, call, make_clip):
    for split in SPLITS:
        videos_dir(project / "data", split).mkdir(parents=True)
        labels_path(project / "data", split).parent.mkdir(parents=True, exist_ok=True)
        rows = f"A_{split}.mp4,prompt of {split},1,2,3,4,{9 if split == 'val' else 5}\n"
        labels_path(project / "data", split).write_text(",".join(("video_name", "Prompt", *MOS_COLUMNS)) + "\n" + rows)
        make_clip(videos_dir(project / "data", split) / f"A_{split}.mp4", width=64, height=64)
    code, out, err = call("validate")
    assert (code, err) == (1, "")
    assert "data/val/labels/val_labels.csv:2" in out
    assert out.splitlines()[-1].startswith("1 error, ")
    assert sorted(path.name for path in (project / "reports").iterdir()) == [
        "data-docs",
        "validation.html",
        "validation.json",
    ]


@pytest.mark.parametrize(
    ("raised", "lines"),
    [
        (QualiVisionError("nothing to do"), ["nothing to do"]),
        (OSError(28, "No space left on device", "cache/x"), ["[Errno 28] No space left on device: 'cache/x'"]),
        (
            ExceptionGroup("two", [VideoError(Path("a.mp4"), "is cut off"), VideoError(Path("b.mp4"), "is empty")]),
            ["a.mp4: is cut off", "b.mp4: is empty"],
        ),
        (ExceptionGroup("the same of many jobs", [QualiVisionError("no"), QualiVisionError("no")]), ["no"]),
        (ExceptionGroup("one", [ExceptionGroup("deep", [QualiVisionError("deep down")])]), ["deep down"]),
    ],
)
def test_an_error_that_a_user_can_mend_is_one_line_and_exit_1(call, monkeypatch, raised, lines):
    def fails() -> None:
        raise raised

    monkeypatch.setattr(cli, "app", fails)
    code, out, err = call()
    assert (code, out, err.splitlines()) == (1, "", lines)


@pytest.mark.parametrize(
    ("arguments", "prompts"),
    [
        ((), 200),
        (("--preset", "small"), 16),
        (("--preset", "large"), 800),
        (("--preset", "large", "--prompts", "7"), 7),
    ],
)
def test_a_preset_says_how_many_prompts_the_sample_data_has(call, monkeypatch, arguments, prompts):
    asked = []
    monkeypatch.setattr("qualivision.sample_data.make_sample_data", lambda out, **how: asked.append(how["prompts"]))
    assert call("sample-data", *arguments)[0] == 0
    assert asked == [prompts]


def test_a_preset_that_there_is_not_is_refused_with_those_there_are(call):
    code, _, err = call("sample-data", "--preset", "huge")
    assert code == 2
    assert all(name in err for name in ("small", "demo", "large"))


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch):
    def fails() -> None:
        raise KeyError("ours")

    monkeypatch.setattr(cli, "app", fails)
    monkeypatch.setattr(sys, "argv", ["qualivision"])
    with pytest.raises(KeyError, match="ours"):
        cli.main()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("video_name,Prompt\nother.mp4,a cat\n", "clip.mp4: has no prompt in prompts.csv"),
        ("video_name,Prompt\nclip.mp4,  \n", "clip.mp4: has no prompt in prompts.csv"),
        ("video_name,text\nclip.mp4,a cat\n", "prompts.csv: column Prompt is missing; the table has video_name, text"),
        (None, "prompts.csv: no such label table"),
    ],
)
def test_a_video_without_a_prompt_in_the_table_is_named_and_it_exits_1(project, call, table, message):
    if table is not None:
        (project / "prompts.csv").write_text(table)
    assert call("score", "folder/clip.mp4", "--prompts", "prompts.csv")[0] == 1
    code, out, err = call("score", "clip.mp4", "--prompts", "prompts.csv")
    assert (code, out, err) == (1, "", f"{message}\n")


@pytest.mark.parametrize("arguments", [["score", "clip.mp4", "--prompt", "a cat"], ["serve", "--port", "0"]])
def test_without_any_champion_it_exits_1_and_says_how_to_get_one(project, arguments):
    command = [sys.executable, "-m", "qualivision.cli", *arguments]
    known = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(command, capture_output=True, text=True, env={**known, "PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("models:/qualivision@champion: there is no champion yet: `make demo` trains")
    assert len(done.stderr.splitlines()) == 1

"""The report: what it writes, that equal input gives equal bytes, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from qualivision.evaluation.metrics import METRICS, agreement
from qualivision.evaluation.pictures import generator_styles
from qualivision.evaluation.report import TrainSide, table, write_report
from qualivision.labels import DIMENSIONS, MOS_COLUMNS

FILES = ["comparison.png", "metrics.json", "predictions.csv", "scatter.png"]


def judged(clips: int = 60) -> dict[str, Any]:
    """Arguments of `write_report`: five clips a prompt, three raters, a model that is right but for noise."""
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(clips // 5 + 20, 8))
    truth = random.uniform(1, 5, (clips, 5))
    names = [f"{'ABCDE'[i % 5]}_{i // 5:03d}.mp4" for i in range(clips)]
    predictions = pd.DataFrame({"video_name": names, "Prompt": [f"prompt {i // 5}" for i in range(clips)]})
    ratings = pd.DataFrame({"video_name": names})
    for i, dimension in enumerate(DIMENSIONS):
        single = np.clip(np.round(truth[:, i, None] + random.normal(0, 0.5, (clips, 3))), 1, 5)
        predictions[f"{dimension}_MOS"] = single.mean(axis=1).round(3)
        predictions[f"{dimension}_predicted"] = (truth[:, i] + random.normal(0, 1, clips)).astype(np.float32)
        ratings[f"{dimension}_truth"] = truth[:, i]
        ratings[[f"{dimension}_{rater}" for rater in (1, 2, 3)]] = single
    train = TrainSide(
        train_embeddings=np.repeat(embeddings[:20], 2, axis=0),
        train_mos=random.uniform(1, 5, (40, 5)),
        train_prompts=[f"train {i // 2}" for i in range(40)],
        test_embeddings=np.repeat(embeddings[20:], 5, axis=0),
    )
    return {
        "checkpoint": "0123",
        "predictions": predictions,
        "train": train,
        "ratings": ratings,
        "resamples": 100,
        "seed": 0,
        "model": "lite",
    }


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("report") / "reports" / "lite"
    return folder, write_report(folder, **judged())


def test_the_share_of_clips_unlike_those_of_training_is_reported_where_distances_are_known(
    report, tmp_path, no_pictures
):
    assert report[1]["unfamiliar"] is None and "Unlike" not in table(report[1])
    given = judged()
    given["predictions"]["distance"] = [1.0] * 45 + [1.2] * 14 + [float("nan")]
    metrics = write_report(tmp_path, **given)
    assert metrics["unfamiliar"] == 0.25
    assert "Unlike what the model was trained on: 25 % of these clips." in table(metrics).splitlines()
    assert pd.read_csv(tmp_path / "predictions.csv")["distance"].iloc[50] == 1.2


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests about numbers: drawing takes most of a report's time."""
    for picture in ("scatter", "comparison"):
        monkeypatch.setattr(f"qualivision.evaluation.pictures.{picture}", lambda *_: b"")


def test_report_writes_its_four_files_and_leaves_nothing_else(report):
    folder, _ = report
    assert sorted(path.name for path in folder.iterdir()) == FILES


def test_metrics_are_those_of_the_predictions(report):
    folder, metrics = report
    predictions = judged()["predictions"]
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    for dimension in DIMENSIONS:
        expected = agreement(predictions[f"{dimension}_predicted"], predictions[f"{dimension}_MOS"]).named()
        assert metrics[dimension] == pytest.approx(expected, abs=5.1e-5)
        low, high = metrics["intervals"][dimension]["SROCC"]
        assert low < metrics[dimension]["SROCC"] < high
        assert set(metrics["no_video"][dimension]) == {"SROCC", "PLCC", "VQualA"}
    for metric in METRICS:
        mean = np.mean([metrics[dimension][metric] for dimension in DIMENSIONS])
        assert metrics["mean"][metric] == pytest.approx(mean, abs=1e-4)
    assert metrics["counts"] == {"rows": 60, "prompts": 12, "prompts_also_in_training": 0, "resamples": 100}


def test_numbers_are_rounded_to_four_decimals(report):
    text = (report[0] / "metrics.json").read_text()
    numbers: list[str] = []
    json.loads(text, parse_float=lambda number: numbers.append(number) or 0.0)
    assert len(numbers) > 100
    assert max(len(number.partition(".")[2]) for number in numbers) == 4


def test_equal_input_gives_equal_bytes(report, tmp_path):
    write_report(tmp_path, **judged())
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (report[0] / name).read_bytes(), name


def test_predictions_can_be_read_back(report):
    table_read, given = pd.read_csv(report[0] / "predictions.csv"), judged()["predictions"]
    assert list(table_read.columns) == list(given.columns)
    np.testing.assert_array_equal(table_read[list(MOS_COLUMNS)], given[list(MOS_COLUMNS)])
    np.testing.assert_allclose(table_read["Overall_predicted"], given["Overall_predicted"], atol=5.1e-5)


def test_table_tells_it_all_within_110_columns(report):
    metrics = report[1]
    lines = table(metrics).splitlines()
    assert max(map(len, lines)) <= 110
    row = next(line for line in lines if line.startswith("Overall"))
    low, high = metrics["intervals"]["Overall"]["SROCC"]
    shown = f"{metrics['Overall']['SROCC']:.3f} [{low:.3f}, {high:.3f}]"
    assert shown in row
    assert row.endswith(f"{metrics['ceiling']['Overall']['truth']['SROCC']:.3f}")
    assert [line.split()[0] for line in lines[3:9]] == [*DIMENSIONS, "mean"]


def test_a_constant_prediction_is_null_and_a_dash_never_a_number(tmp_path):
    given = judged()
    given["predictions"]["Temporal_predicted"] = 3.0
    metrics = write_report(tmp_path, **given)
    assert "NaN" not in (tmp_path / "metrics.json").read_text()
    assert metrics["Temporal"]["SROCC"] is metrics["mean"]["SROCC"] is metrics["intervals"]["Temporal"]["SROCC"] is None
    assert metrics["Temporal"]["RMSE"] > 0
    text = table(metrics)
    row = next(line for line in text.splitlines() if line.startswith("Temporal"))
    assert row.split()[1:4] == ["-", "-", "-"]
    assert "100 resamples in which a column is constant" in text


@pytest.mark.usefixtures("no_pictures")
def test_no_ratings_no_ceiling_and_the_table_says_so(tmp_path):
    metrics = write_report(tmp_path, **{**judged(), "ratings": None})
    assert metrics["ceiling"] is None
    assert "Ceiling: not known" in table(metrics)
    strangers = judged()["ratings"].assign(video_name="another.mp4")
    metrics = write_report(tmp_path, **{**judged(), "ratings": strangers})
    assert metrics["ceiling"]["Overall"]["rows"] == 0
    assert "Ceiling: not known" in table(metrics)


@pytest.mark.usefixtures("no_pictures")
def test_without_truth_the_ceiling_is_the_raters_estimate(tmp_path):
    ratings = judged()["ratings"].drop(columns=[f"{dimension}_truth" for dimension in DIMENSIONS])
    metrics = write_report(tmp_path, **{**judged(), "ratings": ratings})
    text = table(metrics)
    row = next(line for line in text.splitlines() if line.startswith("Overall"))
    assert row.endswith(f"{metrics['ceiling']['Overall']['raters']['bound_SROCC']:.3f}")
    assert "estimated from single ratings" in text


@pytest.mark.usefixtures("no_pictures")
def test_prompts_that_training_has_seen_are_counted_and_told(tmp_path):
    given = judged()
    given["predictions"].loc[:4, "Prompt"] = "train 3"
    metrics = write_report(tmp_path, **given)
    assert metrics["counts"]["prompts_also_in_training"] == 1
    assert "Leak: 1" in table(metrics)


def test_a_split_without_mos_can_be_scored_but_not_evaluated(tmp_path):
    given = judged()
    given["predictions"] = given["predictions"].drop(columns="Overall_MOS")
    with pytest.raises(ValueError, match="scored but not evaluated: column Overall_MOS is missing"):
        write_report(tmp_path / "new", **given)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("column", "message"),
    [("Prompt", "lack column Prompt"), ("Temporal_predicted", "lack column Temporal_pre")],
)
def test_a_missing_column_is_named(tmp_path, column, message):
    given = judged()
    given["predictions"] = given["predictions"].drop(columns=column)
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path, **given)


def test_embeddings_that_are_not_row_aligned_are_refused(tmp_path):
    given = judged()
    given["predictions"] = given["predictions"].iloc[:-1]
    with pytest.raises(ValueError, match="60 test embeddings, 59 predictions"):
        write_report(tmp_path, **given)


def test_a_failed_picture_leaves_the_old_report_as_it_was(tmp_path, monkeypatch):
    write_report(tmp_path, **judged())
    before = {name: (tmp_path / name).read_bytes() for name in ("metrics.json", "scatter.png")}

    def fails(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("qualivision.evaluation.pictures.comparison", fails)
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path, **{**judged(), "model": "another"})
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_pictures_are_pngs_without_a_date(report):
    for name in ("scatter.png", "comparison.png"):
        content = (report[0] / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert b"tEXt" not in content
        assert b"tIME" not in content


def test_generators_have_colours_of_their_own_and_the_rarest_share_one():
    rows = pd.DataFrame({"video_name": ["A_1.mp4", "B_1.mp4", "A_2.mp4"]})
    generators, styles = generator_styles(rows)
    assert generators.tolist() == ["A", "B", "A"]
    assert len(set(styles.values())) == 2

    many = [f"g{i % 9}" for i in range(12)] + [None]
    generators, styles = generator_styles(pd.DataFrame({"video_name": ["x"] * 13, "generator": many}))
    assert list(styles) == ["g0", "g1", "g2", "g3", "g4", "others", ""]
    assert len(set(styles.values())) == 7
    assert generators.tolist()[5:9] == ["others"] * 4

    generators, styles = generator_styles(pd.DataFrame({"video_name": ["clip.mp4", "A_1.mp4"]}))
    assert set(generators) == {""} == set(styles)


def test_importing_the_report_loads_nothing_heavy():
    heavy = {"scipy", "sklearn", "matplotlib", "pandas", "torch"}
    program = f"import sys, qualivision.evaluation.report; print({heavy!r} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.stdout.strip() == "set()"


def test_the_look_of_the_calling_program_stays(tmp_path):
    import matplotlib

    with matplotlib.rc_context({"font.size": 23.0}):
        write_report(tmp_path, **judged())
        assert matplotlib.rcParams["font.size"] == 23.0

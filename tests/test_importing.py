"""Bringing a release's tables in: columns by other names, bad rows dropped with a reason, prompts never torn apart."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ks_2samp
from typer.testing import CliRunner

from qualivision.cli import app
from qualivision.importing import TablesError, import_labels
from qualivision.labels import MOS_COLUMNS, SPLITS, LabelError, labels_path, prompt_key, read_labels, videos_dir
from qualivision.settings import ValidateSettings
from qualivision.validation import validate


def silent(done, total):
    pass


def table_of(prompts=100, generators="ABCDE", seed=0):
    rng = np.random.default_rng(seed)
    mos = np.round(rng.uniform(1, 5, (prompts * len(generators), 5)) * 3) / 3
    names = [(f"{letter}_{p:03}.mp4", f"a prompt, number {p}") for p in range(prompts) for letter in generators]
    return pd.DataFrame([[*pair, *row] for pair, row in zip(names, mos.round(3), strict=True)], columns=COLUMNS)


COLUMNS = ["video_name", "Prompt", *MOS_COLUMNS]


@pytest.fixture
def bring(tmp_path):
    def run(*tables, out="data", **how):
        paths = []
        for number, table in enumerate(tables):
            paths.append(tmp_path / f"table{number}.csv")
            table.to_csv(paths[-1], index=False)
        return import_labels(paths, tmp_path / out, advance=silent, **how)

    return run


def written(folder):
    return {split: read_labels(labels_path(folder, split)) for split in SPLITS}


def test_every_clip_of_a_prompt_goes_to_one_split(bring, tmp_path):
    table = table_of()
    table.loc[3, "Prompt"] = "  A Prompt,  number 0 "  # the same prompt for all that matters
    done = bring(table)
    splits = written(tmp_path / "data")
    assert {split: len(part) for split, part in splits.items()} == done.rows == {"train": 400, "val": 50, "test": 50}
    keys = [set(part["Prompt"].map(prompt_key)) for part in splits.values()]
    assert sum(map(len, keys)) == len(set().union(*keys)) == 100
    assert done.dropped == ()


def test_a_split_is_alike_in_overall_and_generators_and_more_so_than_by_chance(bring, tmp_path):
    ours, chance = [], []
    for seed in range(20):
        table = table_of(seed=seed)
        done = bring(table, out=f"data{seed}", seed=seed)
        ours.append(done.balance)
        prompts = np.random.default_rng(seed).permutation(100)
        parts = [table[(table.index // 5).isin(chosen)] for chosen in (prompts[:80], prompts[80:90], prompts[90:])]
        chance.append(
            max(ks_2samp(parts[i]["Overall_MOS"], parts[j]["Overall_MOS"])[0] for i, j in ((0, 1), (0, 2), (1, 2)))
        )
        for part in written(tmp_path / f"data{seed}").values():
            assert part["video_name"].str[0].value_counts().nunique() == 1
    assert np.mean(ours) < 0.8 * np.mean(chance)


def test_the_split_follows_from_table_and_seed_alone(bring, tmp_path):
    table = table_of()
    bring(table, out="one")
    bring(table.sample(frac=1, random_state=1), out="two")
    bring(table, out="three", seed=1)
    one, two, three = (
        {s: set(t["video_name"]) for s, t in written(tmp_path / n).items()} for n in ("one", "two", "three")
    )
    assert one == two != three


def test_columns_by_other_names_are_found_and_more_columns_kept(bring, tmp_path):
    table = table_of(30)
    table.columns = ["Video Name", "caption", "traditional", "Alignment", "aesthetic_score", "Temporal MOS", "q5"]
    table["raters"] = "3"
    bring(table, columns={"Overall_MOS": "q5"})
    train = written(tmp_path / "data")["train"]
    assert list(train.columns) == [*COLUMNS, "raters"]


def test_a_column_that_is_missing_is_named(bring):
    says = r"has no column for Overall_MOS; it has .*q5; say which by --column Overall_MOS=NAME"
    with pytest.raises(LabelError, match=says):
        bring(table_of(30).rename(columns={"Overall_MOS": "q5"}))


def test_two_columns_that_may_be_the_same_are_both_named(bring):
    table = table_of(30).rename(columns={"Temporal_MOS": "temporal"})
    table["Temporal score"] = 3
    with pytest.raises(LabelError, match=r"temporal and Temporal score may both be Temporal_MOS; say which"):
        bring(table)


def test_bad_rows_are_dropped_each_with_its_reason(bring, tmp_path):
    table = table_of(30).astype(object)
    table.loc[0, "video_name"] = ""
    table.loc[1, "Prompt"] = " "
    table.loc[2, "Overall_MOS"] = ""
    table.loc[3, "Temporal_MOS"] = "good"
    table.loc[4, "Aesthetic_MOS"] = 7
    table.loc[6] = table.loc[5]
    table.loc[8, "video_name"] = table.loc[7, "video_name"]
    done = bring(table)
    assert [(row.table, row.line, row.reason) for row in done.dropped] == [
        ("table0.csv", 2, "no video is named"),
        ("table0.csv", 3, "no prompt"),
        ("table0.csv", 4, "Overall_MOS is missing"),
        ("table0.csv", 5, "Temporal_MOS is no number"),
        ("table0.csv", 6, "Aesthetic_MOS is not within 1 and 5"),
        ("table0.csv", 8, "the same row came before"),
        ("table0.csv", 10, "its video came before, with another prompt or MOS"),
    ]
    assert sum(done.rows.values()) == 143
    assert "dropped 1, no prompt: table0.csv:3 A_000.mp4" in done.as_text().replace("B_000", "A_000")
    assert len(json.loads(done.as_json())["dropped"]) == 7


def test_a_random_row_split_says_why_it_leaks(bring):
    table = table_of()
    table["Overall_MOS"] = (table.index // 5 % 13 / 3 + 1).round(3)  # the prompt alone decides
    done = bring(table, random_rows=True)
    assert done.leak is not None
    assert "prompts stand in more than one split" in done.leak
    assert "scores 1.00" in done.leak
    assert max(done.prompts.values()) > 80
    assert bring(table, out="other").leak is None


def test_videos_are_found_at_any_depth_linked_and_the_result_is_valid(bring, tmp_path, make_clip):
    table = table_of(12, "AB")
    table["video_name"] = [name.removesuffix(".mp4") for name in table["video_name"]]
    source = tmp_path / "release"
    for number, name in enumerate(table["video_name"][:-1]):
        folder = source / name[0]
        folder.mkdir(parents=True, exist_ok=True)
        make_clip(folder / f"{name}.mp4", width=64, height=64, frames=4, shade=number)
    done = bring(table, videos=source, shares=(0.6, 0.2, 0.2))
    assert [row.reason for row in done.dropped] == ["its video is not in the folder"]
    for split, part in written(tmp_path / "data").items():
        for name in part["video_name"]:
            assert (videos_dir(tmp_path / "data", split) / name).samefile(source / name[0] / name)
    bounds = ValidateSettings(min_frames=2, min_side_px=16, max_side_px=100, max_seconds=9, max_prompt_characters=99)
    assert validate(tmp_path / "data", bounds).errors == ()


def test_two_videos_of_one_name_are_both_named(bring, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / "release" / folder).mkdir(parents=True)
        (tmp_path / "release" / folder / "A_000.mp4").touch()
    with pytest.raises(TablesError, match=r"one/A_000\.mp4 and .*two/A_000\.mp4 have one name"):
        bring(table_of(30), videos=tmp_path / "release")


def test_nothing_is_written_over_or_left_half_done(bring, tmp_path, monkeypatch):
    bring(table_of(30))
    with pytest.raises(TablesError, match="is there and not empty"):
        bring(table_of(30))
    monkeypatch.setattr("qualivision.importing.videos_dir", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bring(table_of(30), out="other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "table0.csv"]


def test_too_few_prompts_for_three_splits_are_an_error(bring):
    with pytest.raises(TablesError, match="rows are too few: nothing is left for"):
        bring(table_of(2))


def test_the_command_reports_and_refuses_wrong_calls(tmp_path):
    table_of(30).to_csv(tmp_path / "t.csv", index=False)
    call = ["import-labels", str(tmp_path / "t.csv"), "--out", str(tmp_path / "d"), "--report", str(tmp_path / "r")]
    assert CliRunner().invoke(app, [*call, "--shares", "1:2"]).exit_code == 2
    assert CliRunner().invoke(app, [*call, "--column", "Quality=x"]).exit_code == 2
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    assert "train: 120 clips of 24 prompts" in done.output
    assert json.loads((tmp_path / "r/import.json").read_text())["rows"]["train"] == 120

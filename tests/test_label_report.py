"""The label report on made tables whose answers are known."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from qualivision.cli import app
from qualivision.label_report import as_text, label_figures
from qualivision.label_report.figures import BASELINES, LARGEST_SVR, granularity
from qualivision.label_report.page import as_html
from qualivision.labels import DIMENSIONS, MOS_COLUMNS, LabelError


def table_of(prompts=30, generators="ABCDE", *, prompt=1.0, generator=0.5, noise=0.3, seed=0):
    """A balanced table whose MOS are a sum of effects with the given standard deviations."""
    rng = np.random.default_rng(seed)
    of_prompt = prompt * rng.normal(size=(prompts, 5))
    of_generator = generator * rng.normal(size=(len(generators), 5))
    rows = []
    for p in range(prompts):
        for g, letter in enumerate(generators):
            mos = np.clip(3 + of_prompt[p] + of_generator[g] + noise * rng.normal(size=5), 1, 5)
            rows.append([f"{letter}_{p:03}.mp4", f"prompt {p}", *mos])
    return pd.DataFrame(rows, columns=["video_name", "Prompt", *MOS_COLUMNS])


def encode(prompts):
    """Embeddings that tell nothing of a prompt but which it is."""
    return np.random.default_rng(len(prompts)).normal(size=(len(prompts), 8)).astype(np.float32)


def figures_of(table):
    return label_figures(table, encode=encode, advance=lambda done, total: None, name="t.csv")


def test_what_explains_the_labels_is_found():
    by_prompt = figures_of(table_of(generator=0.0, noise=0.01))["variance"]
    assert min(by_prompt["prompt"]) > 0.95
    assert max(map(abs, by_prompt["generator"])) < 0.1
    by_generator = figures_of(table_of(prompt=0.0, noise=0.01))["variance"]
    assert min(by_generator["generator"]) > 0.95
    assert max(map(abs, by_generator["prompt"])) < 0.3
    both = figures_of(table_of(prompt=0.3, generator=0.3, noise=0.001))["variance"]["both"]
    assert min(both) > 0.99


def test_noise_is_explained_by_nothing_however_many_prompts_there_are():
    variance = figures_of(table_of(200, prompt=0.0, generator=0.0, noise=0.5))["variance"]
    assert max(abs(value) for values in variance.values() for value in values) < 0.12


def test_siblings_leak_a_prompt_and_the_baseline_over_prompts_does_not():
    figures = figures_of(table_of(60, prompt=0.8, generator=0.0, noise=0.1))
    assert min(figures["leaks"]["siblings"]) > 0.9
    assert max(figures["no_video"]["scores"]["prompt"]) < 0.45  # an embedding that tells nothing
    assert list(figures["no_video"]["scores"]) == list(BASELINES)


def test_a_generator_that_matters_is_seen_by_every_baseline_that_knows_it():
    scores = figures_of(table_of(60, prompt=0.0, generator=0.8, noise=0.1))["no_video"]["scores"]
    for name in ("generator", "both", "both, SVR"):
        assert min(scores[name]) > 0.7


def test_a_clip_without_siblings_is_left_out_of_the_leak():
    table = table_of(20, generators="A")
    figures = figures_of(table)
    assert figures["leaks"] == {"siblings": [None] * 5}
    assert figures["variance"] == {"prompt": [None] * 5}


def test_a_table_without_generators_says_so():
    table = table_of()
    table["video_name"] = [f"clip{number}.mp4" for number in range(len(table))]
    figures = figures_of(table)
    assert figures["generators"] == figures["by_generator"] == []
    assert list(figures["no_video"]["scores"]) == ["prompt", "prompt, by row"]
    assert "names no generators" in as_text(figures)
    table["generator"] = ["x", "y", "z"] * (len(table) // 3)
    assert figures_of(table)["generators"] == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("values", "steps"), [([1, 2, 5], 1), ([1, 2.33, 4.667], 3), ([1, 2.25], 4), ([1.01, 3], None)]
)
def test_the_number_of_raters_shows_in_the_steps(values, steps):
    assert granularity(np.array(values)[:, None]) == steps


def test_ties_are_counted_in_pairs():
    table = table_of(prompts=10, generators="AB")
    table["Overall_MOS"] = [3.0] * 10 + [4.0] * 5 + [1.0, 2.0, 5.0, 4.5, 1.5]
    found = figures_of(table)["dimensions"]["Overall"]
    assert found["distinct"] == 7
    assert found["tied_pairs"] == pytest.approx((10 * 9 + 5 * 4) / (20 * 19))
    assert sum(found["histogram"]["counts"]) == 20


def test_rows_without_a_mos_are_left_out_and_counted():
    table = table_of()
    table.loc[:2, "Temporal_MOS"] = np.nan
    figures = figures_of(table)
    assert (figures["rows"], figures["left_out"]) == (147, 3)
    assert "3 more rows have a MOS missing" in as_text(figures)


def test_too_few_prompts_are_refused_by_name():
    with pytest.raises(LabelError, match=r"t\.csv: 9 prompts with all five MOS; at least 10 are needed"):
        figures_of(table_of(9))


def test_an_svr_on_very_many_rows_learns_from_a_part_and_says_so(monkeypatch):
    monkeypatch.setattr("qualivision.label_report.figures.LARGEST_SVR", 50)
    figures = figures_of(table_of(40))
    assert figures["no_video"]["svr_rows"] == 50 < LARGEST_SVR
    assert "The SVR learned from 50 rows of each fold." in as_text(figures)


def test_the_page_is_one_file_with_pictures_and_escapes_what_the_table_says():
    table = table_of(generators=("<b>A", "C"))
    figures = figures_of(table)
    page = as_html(figures)
    assert page == as_html(figures_of(table))
    assert "<b>" not in page
    assert "&lt;b&gt;A" in page
    assert page.count('src="data:image/png;base64,') == 3
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")


def test_the_command_writes_the_page_and_the_figures(tmp_path):
    table = tmp_path / "labels.csv"
    table_of(12).to_csv(table, index=False)
    done = CliRunner().invoke(app, ["labels", "report", str(table), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "labels.csv: 60 rated clips of 12 prompts" in done.output
    figures = json.loads((tmp_path / "out/labels.json").read_text())
    assert [len(figures["dimensions"]), figures["rows"]] == [len(DIMENSIONS), 60]
    assert (tmp_path / "out/labels.html").stat().st_size > 50_000


def test_a_table_without_mos_is_refused_by_name(tmp_path):
    table = tmp_path / "labels.csv"
    table_of(12)[["video_name", "Prompt"]].to_csv(table, index=False)
    done = CliRunner().invoke(app, ["labels", "report", str(table), "--out", str(tmp_path)])
    assert isinstance(done.exception, LabelError)
    assert "Traditional_MOS" in str(done.exception)

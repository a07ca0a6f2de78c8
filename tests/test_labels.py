"""Label tables: what reading keeps, what it refuses, and where the tables of a split lie."""

from __future__ import annotations

import math

import pytest

from qualivision.labels import (
    ASPECT_OF_PROMPT,
    DIMENSIONS,
    FAULTS,
    MOS_COLUMNS,
    LabelError,
    fault_losses,
    generator_of,
    graded_alignment,
    has_mos,
    labels_path,
    ratings_path,
    read_labels,
    videos_dir,
)

HEADER = ",".join(("video_name", "Prompt", *MOS_COLUMNS))


@pytest.fixture
def table(tmp_path):
    """`table(lines...)` writes them to a CSV file and returns its path."""

    def write(*lines: str):
        path = tmp_path / "labels.csv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


def test_names_and_prompts_are_text_and_mos_are_numbers(table):
    read = read_labels(table(HEADER, '007,"A cat, running",1,2.333,3,4,5'))
    assert read.loc[0, ["video_name", "Prompt"]].tolist() == ["007", "A cat, running"]
    assert read.loc[0, list(MOS_COLUMNS)].tolist() == [1, 2.333, 3, 4, 5]
    assert {str(kind) for kind in read[list(MOS_COLUMNS)].dtypes} == {"float64"}


@pytest.mark.parametrize("prompt", ["None", "null", "NA", "nan", "N/A", "123", "True"])
def test_a_prompt_that_looks_like_no_value_stays_text(table, prompt):
    assert read_labels(table(HEADER, f"a.mp4,{prompt},1,1,1,1,1"))["Prompt"].tolist() == [prompt]


@pytest.mark.parametrize("cell", ["", "NA", "NaN", "nan"])
def test_a_missing_mos_is_nan_and_never_a_number(table, cell):
    read = read_labels(table(HEADER, f"a.mp4,p,{cell},1,1,1,1", "b.mp4,p,2,1,1,1,1"))
    assert math.isnan(read.loc[0, "Traditional_MOS"])
    assert read.loc[1, "Traditional_MOS"] == 2


@pytest.mark.parametrize("cell", ["abc", '"3,5"', "4 of 5", " "])
def test_a_mos_that_is_no_number_is_refused_and_its_column_named(table, cell):
    with pytest.raises(LabelError, match="Aesthetic_MOS holds a value that is no number"):
        read_labels(table(HEADER, f"a.mp4,p,1,1,{cell},1,1"))


def test_a_missing_column_is_named_with_those_that_are_there(table):
    path = table("video_name,prompt,Overall_MOS", "a.mp4,p,3")
    with pytest.raises(LabelError, match=r"column Prompt, Traditional_MOS.* is missing; the table has video_name, pro"):
        read_labels(path)
    with pytest.raises(LabelError, match="column Prompt is missing"):
        read_labels(path, require_mos=False)


def test_a_test_table_may_lack_mos(table):
    path = table("video_name,Prompt", "a.mp4,p")
    assert not has_mos(read_labels(path, require_mos=False))
    with pytest.raises(LabelError, match="Overall_MOS is missing"):
        read_labels(path)
    assert has_mos(read_labels(table(HEADER, "a.mp4,p,1,1,1,1,1"), require_mos=False))


def test_more_columns_are_kept(table):
    read = read_labels(table(f"{HEADER},generator,raters", "a.mp4,p,1,1,1,1,1,B,12"))
    assert read.loc[0, ["generator", "raters"]].tolist() == ["B", 12]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a UTF-8 CSV table"),
        (b"video_name,Prompt\na.mp4,caf\xe9\n", "not a UTF-8 CSV table: 'utf-8' codec"),
        (b'video_name,Prompt\na.mp4,"open\n', "not a UTF-8 CSV table"),
        # a comma without quotes: in a later row, in the first one, and in all of them
        (b"video_name,Prompt\na.mp4,cat\nb.mp4,a cat, running\n", "Expected 2 fields in line 3, saw 3"),
        (b"video_name,Prompt\nb.mp4,a cat, running\na.mp4,cat\n", "more cells than the header"),
        (b"video_name,Prompt\nb.mp4,a cat, running\n", "more cells than the header"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line_that_names_the_file(tmp_path, content, message):
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    with pytest.raises(LabelError, match=message) as refused:
        read_labels(path, require_mos=False)
    assert str(refused.value).startswith(f"{path}: ")
    assert len(f"{refused.value}.".splitlines()) == 1


def test_a_missing_table_is_named(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(LabelError, match=f"{path}: no such label table"):
            read_labels(path)


def test_the_test_split_is_found_in_both_layouts(tmp_path):
    flat, nested = tmp_path / "test/test_labels.csv", tmp_path / "test/labels/test_labels.csv"
    assert labels_path(tmp_path, "test") == flat
    nested.parent.mkdir(parents=True)
    nested.touch()
    assert labels_path(tmp_path, "test") == nested
    assert ratings_path(tmp_path, "test") == nested.with_name("test_ratings.csv")
    flat.touch()
    assert labels_path(tmp_path, "test") == flat


def test_train_and_val_have_one_layout(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / split / f"{split}_labels.csv").touch()
        assert labels_path(tmp_path, split) == tmp_path / split / "labels" / f"{split}_labels.csv"
        assert videos_dir(tmp_path, split) == tmp_path / split / "videos"


@pytest.mark.parametrize("place", [labels_path, ratings_path, videos_dir])
def test_an_unknown_split_is_refused(tmp_path, place):
    with pytest.raises(LabelError, match="no split named 'dev'; there are train, val, test"):
        place(tmp_path, "dev")


@pytest.mark.parametrize(
    ("name", "generator"),
    [("A_0001.mp4", "A"), ("kling_v2_7.mp4", "kling"), ("clip.mp4", ""), ("_x.mp4", ""), ("", "")],
)
def test_a_generator_is_what_stands_before_the_first_underscore(name, generator):
    assert generator_of(name) == generator


ASKS = {"subject": "cat", "scene": "meadow", "colour": "red", "motion": "runs"}


@pytest.mark.parametrize(
    ("asks", "shows", "alignment"),
    [
        (ASKS, ASKS, 5.0),
        (ASKS, dict.fromkeys(ASKS, "another"), 1.0),
        (ASKS, {}, 1.0),
        # by weight: 0.4, 0.25, 0.2, 0.15
        (ASKS, {"subject": "cat"}, 2.6),
        (ASKS, {**ASKS, "motion": "sits"}, 4.4),
        ({"subject": "cat", "colour": "red"}, {"subject": "cat", "colour": "blue"}, 1 + 4 * 0.4 / 0.6),
        # what is not asked for does not count
        ({"scene": "meadow"}, {**ASKS, "subject": "dog"}, 5.0),
    ],
)
def test_graded_alignment_counts_what_is_met_by_its_weight(asks, shows, alignment):
    assert graded_alignment(asks, shows) == pytest.approx(alignment)


def test_the_weights_of_all_aspects_are_one_prompt():
    assert sum(ASPECT_OF_PROMPT.values()) == pytest.approx(1.0)


def test_each_fault_has_its_loss_and_the_others_none():
    losses = dict(
        zip(FAULTS, fault_losses({"blur": {"loss": 1.5, "effect": 7}, "freeze": {"loss": "0.25"}}), strict=True)
    )
    assert losses == dict.fromkeys(FAULTS, 0.0) | {"blur": 1.5, "freeze": 0.25}
    assert fault_losses({}) == [0.0] * len(FAULTS)
    assert set(FAULTS.values()) < set(DIMENSIONS)


@pytest.mark.parametrize(
    ("degradations", "error"),
    [
        ({"smell": {"loss": 1.0}}, LookupError),
        ({"blur": {"severity": 1.0}}, LookupError),
        ({"blur": 1.0}, TypeError),
        ({"blur": {"loss": "much"}}, ValueError),
        ({"blur": {"loss": -0.1}}, ValueError),
        ({"blur": {"loss": 4.1}}, ValueError),
        ({"blur": {"loss": math.nan}}, ValueError),
        (["smell"], LookupError),
    ],
)
def test_what_is_no_fault_is_refused(degradations, error):
    with pytest.raises(error):
        fault_losses(degradations)

"""Prompts without a clip: read or refused by name, and held against every clip as far as it is known what fits."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from small_models import DataSet, write_data_set

from qualivision.cache import CacheError
from qualivision.labels import (
    ASPECT_OF_PROMPT,
    LabelError,
    graded_alignment,
    other_prompts_path,
    ratings_path,
    read_other_prompts,
)
from qualivision.models.bridge import class_phrases

BALL = {"subject": "ball", "colour": "red", "scene": "sea"}


def write(path, rows: list[tuple[str, object]]) -> None:
    cells = [(prompt, asks if isinstance(asks, str) else json.dumps(asks)) for prompt, asks in rows]
    pd.DataFrame(cells, columns=["Prompt", "asks"]).to_csv(path, index=False)


# The table


def test_a_data_set_may_have_none(tmp_path):
    assert read_other_prompts(tmp_path / "train_other_prompts.csv") == {}


def test_prompts_come_with_what_they_ask_for(tmp_path):
    write(tmp_path / "t.csv", [("A red ball, above the sea", BALL), ("None", {"motion": "spin"}), ("null", BALL)])
    assert read_other_prompts(tmp_path / "t.csv") == {
        "A red ball, above the sea": BALL,
        "None": {"motion": "spin"},
        "null": BALL,
    }


@pytest.mark.parametrize(
    "asks",
    [
        *("{", "", "null", "3", '"subject"', '["subject"]', '[["subject", "ball"]]', "{}", '{"smell": "rose"}'),
        *('{"subject": 3}', '{"subject": null}', '{"subject": ["ball"]}', '{"subject": "ball", "smell": "rose"}'),
    ],
)
def test_what_is_no_aspects_is_named_with_its_prompt(tmp_path, asks):
    write(tmp_path / "t.csv", [("A ball", BALL), ("A rose", asks)])
    with pytest.raises(LabelError, match=r"t\.csv: 'A rose' asks .*, which are not aspects of a prompt"):
        read_other_prompts(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"Prompt,wants\nA ball,{}\n", "column asks is missing"),
        (b"text\nA ball\n", "column Prompt, asks is missing"),
        (b"", "not a UTF-8 CSV table"),
        (b"Prompt,asks\n\xff\xfe,{}\n", "not a UTF-8 CSV table"),
        (b'Prompt,asks\n"A ball,{}\n', "not a UTF-8 CSV table"),
    ],
)
def test_what_is_no_such_table_is_named(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(LabelError, match=rf"t\.csv: {message}"):
        read_other_prompts(tmp_path / "t.csv")


# Held against clips


@pytest.fixture
def data(tmp_path) -> DataSet:
    return write_data_set(tmp_path, train=12, val=4)


def drawn_aspects(random: np.random.Generator, *, all_of_them: bool) -> dict[str, str]:
    """Values of which two name the same thing in different aspects: what counts is the aspect's own."""
    return {
        aspect: str(random.choice(["orange", "ball", "spin"]))
        for aspect in ASPECT_OF_PROMPT
        if all_of_them or random.random() < 0.6
    }


def test_pairs_are_what_a_plain_loop_over_graded_alignment_gives(data):
    random = np.random.default_rng(0)
    clips = data.clips("train")
    names, prompts = list(clips.table["video_name"]), clips.prompts
    content = {
        name: (drawn_aspects(random, all_of_them=False), drawn_aspects(random, all_of_them=True)) for name in names[:9]
    }
    content[names[2]] = ({}, content[names[2]][1])
    content[names[3]] = (content[names[3]][0], {})
    rows = [(name, json.dumps(asks), json.dumps(shows)) for name, (asks, shows) in content.items()]
    pd.DataFrame(rows, columns=["video_name", "asks", "shows"]).to_csv(
        ratings_path(data.root / "data", "train"), index=False
    )
    others = {phrase: drawn_aspects(random, all_of_them=False) | {"subject": "ball"} for phrase in class_phrases()[:7]}
    write(other_prompts_path(data.root / "data", "train"), list(others.items()))

    clips = data.clips("train")
    chosen, held_against = [3, 0, 8, 11, 2], [1, 8, 9, 2, 0, 3, 0]
    known, own = clips.pairs(chosen, held_against)
    assert known.shape == own.shape == (5, 7 + len(others))
    for place, row in enumerate(chosen):
        shows = content.get(names[row], ({}, {}))[1]
        for column, other in enumerate(held_against):
            asks = content.get(names[other], ({}, {}))[0]
            wanted = graded_alignment(asks, shows) if asks and shows else math.nan
            assert known[place, column].item() == pytest.approx(wanted, abs=1e-5, nan_ok=True)
            assert own[place, column].item() == (prompts[row] == prompts[other])
        for column, asks in enumerate(others.values(), start=7):
            wanted = graded_alignment(asks, shows) if shows else math.nan
            assert known[place, column].item() == pytest.approx(wanted, abs=1e-5, nan_ok=True)
            assert not own[place, column]
    assert 0 < known.isnan().float().mean() < 0.8 and known.nan_to_num(1).std() > 0.3, "else nothing was compared"


def test_every_batch_carries_their_embeddings(data):
    phrases = class_phrases()[:3]
    write(other_prompts_path(data.root / "data", "train"), [(phrase, BALL) for phrase in phrases])
    batch = data.clips("train").collate([4, 1])
    assert np.array_equal(batch.others, np.stack([data.embeddings[phrase] for phrase in phrases]))
    assert batch.own.shape == batch.known.shape == (2, 5)
    assert not batch.own[:, 2:].any()
    moved = batch.to(torch.device("meta"))
    assert {value.device.type for value in (moved.others, moved.own, moved.known, moved.text)} == {"meta"}
    assert len(data.clips("val").others) == 0, "they are those of one split"


def test_one_that_lacks_an_embedding_is_named(data):
    write(other_prompts_path(data.root / "data", "train"), [("A ball nobody embedded", BALL)])
    with pytest.raises(CacheError, match=r"'A ball nobody embedded': is not in the prompt cache; run `qualivision pro"):
        data.clips("train")


@pytest.mark.parametrize("shows", [{"subject": ["ball"]}, {"subject": {"a": "b"}}])
def test_ratings_whose_aspects_hold_no_text_are_named(data, shows):
    rows = [("A_train00.mp4", "{}", json.dumps(shows))]
    pd.DataFrame(rows, columns=["video_name", "asks", "shows"]).to_csv(
        ratings_path(data.root / "data", "train"), index=False
    )
    with pytest.raises(LabelError, match=r"train_ratings\.csv: A_train00\.mp4: asks .* are not aspects of a prompt"):
        data.clips("train")

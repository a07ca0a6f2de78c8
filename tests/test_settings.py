"""params.yaml: what is accepted, and that everything else is refused in one line that names the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from qualivision.settings import FrameSpec, ServeSettings, SettingsError, load_settings, serving

PARAMS = Path(__file__).parents[1] / "params.yaml"
GONE = object()


def changed(path: Path, key: str, value: Any) -> Path:
    """The repository's params.yaml with one key set, or removed."""
    values = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
    *sections, last = key.split(".")
    section = values
    for name in sections:
        section = section[name]
    if value is GONE:
        del section[last]
    else:
        section[last] = value
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def test_the_params_of_this_repository_load_and_every_model_has_its_section():
    settings = load_settings(PARAMS)
    assert settings.deploy in settings.models
    for name in settings.models:
        assert settings.model(name).frames.count >= 2


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        # unknown keys, at any depth
        ("lite.train.warmup", 3, "lite.train.warmup: Extra inputs are not permitted, got 3"),
        ("dataset", "x", "dataset: Extra inputs"),
        # missing keys
        ("lite.frames.count", GONE, "lite.frames.count: Field required"),
        ("registry", GONE, "registry: Field required"),
        # wrong types
        ("lite.train.epochs", "many", "lite.train.epochs: Input should be a valid integer.*'many'"),
        ("lite.train.epochs", 1.5, "lite.train.epochs: Input should be a valid integer"),
        ("lite.train.precision", False, "lite.train.precision: Input should be 'no'.*got False"),  # YAML's bare `no`
        ("models", "lite", "models: Input should be a valid list"),
        # out of range
        ("lite.network.dropout", 1.0, "lite.network.dropout: Input should be less than 1"),
        ("lite.network.judges", 0, "lite.network.judges: Input should be greater than or equal to 1, got 0"),
        ("lite.network.judges", 17, "lite.network.judges: Input should be less than or equal to 16"),
        ("lite.frames.height", 8, "lite.frames.height: Input should be greater than or equal to 32, got 8"),
        ("lite.train.learning_rate", float("nan"), "lite.train.learning_rate: Input should be greater than 0"),
        ("lite.text.encoder", "", "lite.text.encoder: String should have at least 1 character"),
        ("models", [], "models: List should have at least 1 item"),
        ("registry.name", "a/b", "registry.name: String should match pattern"),
        # what the server may be told to read
        ("serve.allow_urls", ["https://cdn.example.com/videos"], "serve.allow_urls: .*is no origin"),
        ("serve.allow_urls", ["https://user@cdn.example.com"], "serve.allow_urls: .*is no origin"),
        ("serve.allow_urls", ["*"], "serve.allow_urls: .*is no origin"),
        ("serve.allow_urls", ["file://"], "serve.allow_urls: .*is no origin"),
        ("serve.allow_folders", ["videos"], "serve.allow_folders: .*'videos' is not absolute"),
        ("serve.queue", 0, "serve.queue: Input should be greater than or equal to 1, got 0"),
        # a model that is not there
        ("deploy", "dover9", "deploy: .*got 'dover9'"),
        (
            "deploy",
            "ensemble",
            r"deploy: ensemble is not in ensembles, which lists none; write `ensembles: \[ensemble\]`",
        ),
        # an ensemble without members
        ("ensembles", ["ensemble"], "ensemble.members: none; an ensemble has two models or more"),
        ("ensembles", ["both"], "ensembles.0: Input should be 'ensemble', got 'both'"),
        ("ensemble.members", ["lite", "tiny"], "ensemble.members.1: Input should be 'lite', .*got 'tiny'"),
    ],
)
def test_a_wrong_value_is_refused_and_its_key_named(tmp_path, key, value, message):
    with pytest.raises(SettingsError, match=message) as refused:
        load_settings(changed(tmp_path / "params.yaml", key, value))
    assert len(str(refused.value).splitlines()) == 1


def test_all_wrong_values_are_named_at_once(tmp_path):
    changed(tmp_path / "params.yaml", "lite.train.epochs", 0)
    text = (tmp_path / "params.yaml").read_text().replace("patience: 12", "patience: -1")
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(SettingsError, match=r"lite\.train\.epochs.*lite\.train\.patience"):
        load_settings(tmp_path / "params.yaml")


def test_a_model_that_is_deployed_but_not_built_is_refused():
    settings = load_settings(PARAMS)
    with pytest.raises(ValueError, match=f"deploy: {settings.deploy} is not in models"):
        settings.model_copy(update={"models": ["another"]})._deployed_model_is_built()


def test_a_params_file_from_before_the_server_loads_with_its_defaults(tmp_path):
    assert load_settings(changed(tmp_path / "params.yaml", "serve", GONE)).serve == ServeSettings()


def test_the_servers_defaults_are_those_of_this_repository_and_need_no_params_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    repository = load_settings(PARAMS)
    assert serving({}) == (repository.serve, repository.decode)


def test_options_go_before_the_params_file_and_are_checked_like_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changed(tmp_path / "params.yaml", "serve.queue", 7)
    assert (serving({})[0].queue, serving({"queue": 9})[0].queue) == (7, 9)
    with pytest.raises(SettingsError, match=r"serve: allow_urls: .*'ftp://x' is no origin"):
        serving({"allow_urls": ["ftp://x"]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; run this in the folder that holds params.yaml"),
        (b"models: [lite\ndeploy: lite\n", "not valid YAML: .*line 2"),
        (b"models: \xff\n", "not valid YAML"),
        (b"", "the file: Input should be a valid dictionary.*got None"),
        (b"- lite\n", "the file: Input should be a valid dictionary"),
    ],
)
def test_a_file_that_is_no_params_file_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "params.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=message) as refused:
        load_settings(path)
    assert len(str(refused.value).splitlines()) == 1


def test_an_unknown_model_is_refused_with_the_known_ones():
    with pytest.raises(SettingsError, match=r"no model named 'nope'; params\.yaml lists models: lite"):
        load_settings(PARAMS).model("nope")


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_settings(PARAMS).evaluate.seed = 1  # type: ignore[misc]


def test_a_frame_spec_knows_its_size_and_name():
    spec = FrameSpec(count=2, height=32, width=64)
    assert spec.bytes == 2 * 32 * 64 * 3
    assert str(spec) == "2x32x64"

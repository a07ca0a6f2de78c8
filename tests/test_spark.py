"""The registered model over a table of videos in Spark: the scores of the scorer, and a broken video is a row."""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec

import mlflow
import pytest
from servers import needed
from small_models import own_store, write_checkpoint, write_clip, write_evaluation

from qualivision.labels import DIMENSIONS
from qualivision.registry import register
from qualivision.scoring import Scorer
from qualivision.settings import RegistrySettings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning"),
]
NUMBERS = (*DIMENSIONS, "distance")
RESULT = ", ".join([*(f"{name} double" for name in NUMBERS), "warning string", "error string"])


@pytest.fixture
def place(tmp_path):
    """A working folder with an MLflow store of its own, and everything that Spark writes."""
    with own_store(tmp_path) as folder:
        yield folder


@pytest.fixture
def spark(place, monkeypatch):
    """Spark in this machine alone: on the loopback address, without its pages, all it writes in the test's folder."""
    needed(shutil.which("java"), "Java (Debian's package default-jre-headless)")
    needed(find_spec("pyspark"), "Spark (requirements-test.lock)")
    from pyspark import sql

    scratch = place / "spark"
    scratch.mkdir()
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    monkeypatch.setenv("SPARK_LOCAL_DIRS", str(scratch))
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("TMPDIR", str(scratch))
    settings = {
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.local.dir": str(scratch),
        "spark.sql.warehouse.dir": str(scratch / "warehouse"),
        "spark.driver.extraJavaOptions": f"-XX:-UsePerfData -Djava.io.tmpdir={scratch} -Dderby.system.home={scratch}",
        "spark.sql.shuffle.partitions": "2",
        "spark.default.parallelism": "2",
        "spark.log.level": "ERROR",
    }
    builder = sql.SparkSession.builder.master("local[2]").appName("qualivision")
    for name, value in settings.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    yield session
    session.stop()


def test_spark_scores_a_folder_of_videos_and_a_broken_one_is_a_row(place, spark):
    checkpoint = write_checkpoint(place / "checkpoint")
    report = write_evaluation(place / "report", checkpoint)
    uri = register(checkpoint, report, RegistrySettings(name="spark")).uri
    clips = place / "clips"
    clips.mkdir()
    prompts = {f"{number}.mp4": f"A cat, number {number}" for number in range(4)}
    for number, name in enumerate(prompts):
        write_clip(clips / name, seed=number)
    (clips / "2.mp4").write_bytes(b"no video")

    score = mlflow.pyfunc.spark_udf(spark, uri, env_manager="local", result_type=RESULT)
    videos = (
        spark.read.format("binaryFile").load(str(clips)).selectExpr("content", "element_at(split(path, '/'), -1) name")
    )
    asked = spark.createDataFrame(list(prompts.items()), "name string, prompt string")
    rows = (
        videos.join(asked, "name").withColumn("found", score("content", "prompt")).select("name", "found.*").collect()
    )

    assert sorted(row["name"] for row in rows) == sorted(prompts)
    scorer = Scorer(checkpoint)
    for row in (row.asDict() for row in rows):
        name, error, warning = row.pop("name"), row.pop("error"), row.pop("warning")
        if name == "2.mp4":
            assert error.startswith("the video can't be decoded")
            assert (row, warning) == (dict.fromkeys(NUMBERS), "")
        else:
            assert error == ""
            found = scorer.score(clips / name, prompt=prompts[name])
            assert row == pytest.approx({**found.values, "distance": found.distance}, abs=1e-4)
            assert warning == found.warning

"""Training that is killed, runs out of memory or runs on several processes: the same weights, and nothing lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from small_models import train_settings, write_data_set
from test_training import run, trainer

from qualivision.cache import CacheError
from qualivision.labels import other_prompts_path
from qualivision.models.bridge import class_phrases
from qualivision.training import loop
from qualivision.training.data import ClipSet
from qualivision.training.loop import STATE, TrainingError

TESTS = Path(__file__).parent
pytestmark = pytest.mark.usefixtures("few_trees")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data_set(tmp_path_factory.mktemp("data"))


class Killed(Exception):
    pass


def kill_at(step: int):
    def log_step(number: int, metrics: dict[str, float]) -> None:
        if number == step:
            raise Killed

    return log_step


def run_steps(going, *, resume: bool = False, log_step=lambda step, metrics: None):
    return going.run(resume=resume, log=lambda *_: None, advance=lambda *_: None, log_step=log_step)


# Resuming in the middle of an epoch


@pytest.mark.parametrize(("accumulate", "killed_after"), [(1, 1), (1, 7), (1, 13), (2, 4)])
def test_a_run_that_is_stopped_within_an_epoch_ends_with_the_same_weights(data, tmp_path, accumulate, killed_after):
    settings = train_settings(epochs=3, save_steps=1, average=0.9, accumulate=accumulate)
    whole = run_steps(trainer(data, tmp_path / "whole", settings))
    with pytest.raises(Killed):
        run_steps(trainer(data, tmp_path / "cut", settings), log_step=kill_at(killed_after))
    resumed_at = []
    going = trainer(data, tmp_path / "cut", settings)
    rest = run_steps(going, resume=True, log_step=lambda step, _: resumed_at.append(step))
    assert resumed_at[0] in (killed_after, killed_after + 1), "the step before the kill may not have been saved"
    assert all(torch.equal(rest.tensors[name], value) for name, value in whole.tensors.items())
    assert rest.history == whole.history


CHILD = """
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from small_models import DataSet, made_up_embeddings, train_settings
    from test_training import trainer
    import torch
    torch.set_num_threads(1)
    root, state = Path(sys.argv[2]), Path(sys.argv[3])
    data = DataSet(root, made_up_embeddings())
    going = trainer(data, state, train_settings(epochs=3, save_steps=1, average=0.9))
    quiet = lambda *_: None
    out = going.run(resume=True, log=quiet, advance=quiet, log_step=lambda *_: print("step", flush=True))
    from safetensors.torch import save_file
    save_file(out.tensors, str(state / "out.safetensors"))
"""


def child(data, state: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(TESTS), str(data.root), str(state)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_a_run_that_is_killed_at_three_moments_ends_bit_for_bit_as_one_that_was_not(data, tmp_path):
    from safetensors.torch import load_file

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    assert child(data, whole).wait(timeout=120) == 0
    # After a step, in the middle of writing a state (they are written after every step), and between epochs.
    for steps, delay in ((2, 0.0), (3, 0.004), (4, 0.02)):
        running = child(data, cut)
        for _ in range(steps):
            assert running.stdout is not None and running.stdout.readline() == "step\n"
        time.sleep(delay)
        running.send_signal(signal.SIGKILL)
        assert running.wait(timeout=30) == -signal.SIGKILL
    assert child(data, cut).wait(timeout=120) == 0
    expected, found = load_file(whole / "out.safetensors"), load_file(cut / "out.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


# What goes wrong in a batch


def test_out_of_memory_says_which_settings_to_change_and_keeps_what_was_saved(data, tmp_path, monkeypatch):
    settings = train_settings(epochs=2, save_steps=1, batch_size=8, accumulate=2)
    going = trainer(data, tmp_path, settings)
    forward, calls = loop.Objective.forward, []

    def exhausted(self, batch, window):
        calls.append(batch)
        if len(calls) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, batch, window)

    monkeypatch.setattr(loop.Objective, "forward", exhausted)
    with pytest.raises(TrainingError, match=r"(?s)at step 2 with 8 clips.*batch_size: 4 and train.accumulate: 4"):
        run_steps(going)
    assert (tmp_path / STATE).exists()
    monkeypatch.setattr(loop.Objective, "forward", forward)
    steps = []
    run_steps(trainer(data, tmp_path, settings), resume=True, log_step=lambda step, _: steps.append(step))
    assert steps[0] == 3


def test_a_batch_that_fails_is_named_and_not_skipped(data, tmp_path, monkeypatch):
    def broken(self, batch, window):
        raise RuntimeError("the shapes are wrong\nmore")

    monkeypatch.setattr(loop.Objective, "forward", broken)
    with pytest.raises(TrainingError, match=r"step 0 failed on clips [ABC]_train\d\d.mp4, .*: the shapes are wrong;"):
        run(trainer(data, tmp_path, train_settings()))


def test_a_clip_that_vanishes_from_the_cache_stops_the_run(tmp_path, monkeypatch):
    own = write_data_set(tmp_path, train=12, val=4)
    going = trainer(own, tmp_path / "state", train_settings())
    monkeypatch.setattr(
        ClipSet, "collate", lambda self, rows: (_ for _ in ()).throw(CacheError("train/videos/A.mp4: gone"))
    )
    with pytest.raises(CacheError, match=r"A\.mp4: gone"):
        run(going)


# Each optimizer step is logged


def test_every_step_logs_losses_rates_norm_speed_and_memory(data, tmp_path):
    found = {}
    settings = train_settings(epochs=2, accumulate=2, rates={"head": 2.0})
    going = trainer(data, tmp_path, settings)
    run_steps(going, log_step=found.__setitem__)
    assert list(found) == list(range(1, len(found) + 1)) and len(found) == 2 * -(-len(going.loader) // 2)
    wanted = {"loss_total", "loss_ranking", "rate_head", "gradient_norm", "clips_per_second", "memory_mb"}
    assert all(wanted <= set(metrics) for metrics in found.values())
    assert max(metrics["rate_head"] for metrics in found.values()) <= 2 * settings.learning_rate


# Several processes


RANK = """
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    import torch
    torch.set_num_threads(1)
    from accelerate import Accelerator
    Accelerator(cpu=True)
    from small_models import DataSet, made_up_embeddings, train_settings
    from qualivision.training.sharding import whole
    from test_training import trainer
    root, out, size, sharded = Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "sharded"
    data = DataSet(root, made_up_embeddings())
    settings = train_settings(epochs=2, batch_size=size, gradient_norm=1e9, average=0.9, sharded=sharded)
    going = trainer(data, out / "state", settings, dropout=0.0, judges=2)
    first = {}
    step = going.optimizer.step
    def recorded(*args, **kwargs):
        if not first:
            every = going.model.named_parameters()
            first.update({name: whole(p.grad).clone() for name, p in every if p.grad is not None})
        return step(*args, **kwargs)
    going.optimizer.step = recorded
    trained = going.run(resume=False, log=lambda *_: None, advance=lambda *_: None)
    if going.accelerator.is_main_process:
        from safetensors.torch import save_file
        save_file(first, str(out / "gradients.safetensors"))
        save_file(trained.tensors, str(out / "trained.safetensors"))
        (out / "processes").write_text(f"{going.accelerator.num_processes} {trained.score:.6f}")
"""


def ranks(data, out: Path, *, processes: int, batch_size: int, sharded: bool = False) -> None:
    out.mkdir()
    script = out / "rank.py"
    script.write_text(textwrap.dedent(RANK))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--standalone"]
    command = [*launcher, str(script), str(TESTS), str(data.root), str(out), str(batch_size)]
    command.append("sharded" if sharded else "whole")
    found = subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert found.returncode == 0, found.stderr[-3000:]


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """The same training of two judges by one process, by two, and by two that share the parameters."""
    root = tmp_path_factory.mktemp("several")
    data = write_data_set(root)
    others = pd.DataFrame({"Prompt": class_phrases()[:5], "asks": '{"subject": "ball"}'})  # whatever has an embedding
    others.to_csv(other_prompts_path(data.root / "data", "train"), index=False)
    ranks(data, root / "one", processes=1, batch_size=16)
    ranks(data, root / "two", processes=2, batch_size=8)
    ranks(data, root / "sharded", processes=2, batch_size=8, sharded=True)
    return root


@pytest.mark.parametrize("name", ["two", "sharded"])
def test_gradients_of_two_processes_equal_those_of_one_with_the_same_clips(several, name):
    from safetensors.torch import load_file

    assert (several / name / "processes").read_text().startswith("2 ")
    one, two = (load_file(several / each / "gradients.safetensors") for each in ("one", name))
    assert one.keys() == two.keys() and len(one) > 20
    largest = max(value.abs().max().item() for value in one.values())
    for parameter, value in one.items():
        assert torch.allclose(two[parameter], value, rtol=1e-3, atol=1e-5 * largest), parameter
    assert largest > 1e-3, "else anything would be close"


def test_shared_parameters_end_as_those_that_each_process_holds_whole(several):
    from safetensors.torch import load_file

    two, shared = (load_file(several / name / "trained.safetensors") for name in ("two", "sharded"))
    assert two.keys() == shared.keys()
    for name, value in two.items():
        assert torch.allclose(shared[name], value, rtol=1e-3, atol=1e-4), name


def test_sharing_with_nobody_is_refused(data, tmp_path):
    with pytest.raises(TrainingError, match=r"train\.sharded needs several processes"):
        trainer(data, tmp_path, train_settings(sharded=True))


# Mixed precision


@pytest.fixture
def fresh_accelerator():
    """accelerate keeps its precision for a whole process."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


@pytest.mark.usefixtures("fresh_accelerator")
def test_bfloat16_learns_what_full_precision_learns(data, tmp_path):
    rough = run_steps(trainer(data, tmp_path / "bf16", train_settings(epochs=3, precision="bf16")))
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    exact = run_steps(trainer(data, tmp_path / "full", train_settings(epochs=3)))
    curves = [[epoch["loss_total"] for epoch in trained.history] for trained in (rough, exact)]
    assert curves[0] == pytest.approx(curves[1], rel=0.05)
    assert curves[0] != curves[1], "else nothing ran in bfloat16"
    assert all(value.dtype == torch.float32 for name, value in rough.tensors.items() if ".head." in name)

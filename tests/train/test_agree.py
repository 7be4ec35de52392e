"""Processes compare their configs, checkpoints and corpora before they train; some fields may differ."""

import dataclasses

import pytest
from saved import save_text
from tiny import FAMILIES

from xlstm_hydra.configs import (
    CheckpointConfig,
    ConfigError,
    DistributedConfig,
    LoggerConfig,
    RunConfig,
    StdlibDataConfig,
    TextDataConfig,
    TrainerConfig,
    resolve_classes,
)
from xlstm_hydra.devices import runtime
from xlstm_hydra.train import agree_on_corpus, agree_on_run

RUN = RunConfig(model=FAMILIES["v1"](vocab_size=256))


OF_FIRST = "xlstm_hydra.train._agree.broadcast_text"


@pytest.fixture
def other(monkeypatch):
    """Function that returns the problems of process 1 of 2 if its groups or its checkpoint differ from process 0."""
    monkeypatch.setattr(runtime, "num_processes", lambda: 2)

    def find(run=RUN, checkpoints=(None, None), **groups):
        said = []
        monkeypatch.setattr(OF_FIRST, lambda key, text: said.append(text) or text)
        agree_on_run(run, checkpoints[1])
        monkeypatch.setattr(OF_FIRST, lambda key, text: said[0])
        try:
            agree_on_run(dataclasses.replace(run, **groups), checkpoints[0])
        except ConfigError as error:
            return [*map(str, error.problems)]
        return []

    return find


def process(number):
    return DistributedConfig(
        name="explicit",
        coordinator_address=f"host{number}:1234",
        num_processes=2,
        process_id=number,
        local_device_ids=[number],
    )


def test_process_ids_paths_and_logger_options_may_differ(other):
    run = dataclasses.replace(RUN, distributed=process(0), data=TextDataConfig(path="here"))
    assert other(run, distributed=process(1), data=TextDataConfig(path="there")) == []
    assert other(logger=LoggerConfig(progress=False)) == []


def test_a_class_equals_its_dotted_path(other):
    assert other(model=resolve_classes(RUN.model)) == []


def test_every_key_that_differs_is_reported_with_both_values(other):
    model = FAMILIES["v1"](vocab_size=300)
    model.parallel.fsdp_axis_size = 2
    told = "\n".join(other(model=model, trainer=TrainerConfig(seed=3)))
    assert "model.vocab_size=300: process 0 has 256. Start all processes with the same command." in told
    assert "parallel.fsdp_axis_size=2: process 0 has 1." in told
    assert "trainer.seed=3: process 0 has 0." in told
    assert len(told.splitlines()) == 3


def test_another_model_is_a_difference(other):
    told = "\n".join(other(model=FAMILIES["llama"](vocab_size=256)))
    assert "model.model_class='xlstm_hydra.models.Llama': process 0 has 'xlstm_hydra.models.mLSTMv1'." in told
    assert "model.config_class='xlstm_hydra.configs.LlamaConfig': process 0 has" in told


@pytest.fixture
def as_process_1(monkeypatch):
    """This process acts as process 1 of 2. Values in the list are broadcast by process 0."""
    said = []
    monkeypatch.setattr(runtime, "num_processes", lambda: 2)
    monkeypatch.setattr(OF_FIRST, lambda key, text: said.pop() if said else text)
    return said


def test_processes_with_the_same_run_and_corpus_continue(as_process_1):
    agree_on_run(RUN, None)
    agree_on_corpus(RUN.data, "abc")


def test_another_corpus_is_refused(as_process_1):
    as_process_1.append("xyz")
    with pytest.raises(ConfigError, match=r"data.path='b': the corpus differs from that of process 0: .* same files"):
        agree_on_corpus(TextDataConfig(path="b"), "abc")
    as_process_1.append("xyz")
    with pytest.raises(ConfigError, match=r"data.name='stdlib': the corpus differs from that of process 0"):
        agree_on_corpus(StdlibDataConfig(), "abc")


CHECKPOINTS = {
    "none": (None, ("x", 4), "reads no checkpoint, but process 0 reads the checkpoint of step 4"),
    "another step": (("x", 2), ("x", 4), "of step 2, but process 0 reads the check"),
    "another run": (("x", 4), ("y", 4), "and process 0 read the checkpoint of step 4, but from different runs"),
}


@pytest.mark.parametrize(("mine", "theirs", "words"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_another_checkpoint_is_refused(mine, theirs, words, other, tmp_path):
    def made(checkpoint):
        if checkpoint is None:
            return None
        text, step = checkpoint
        return save_text(tmp_path / text, text, step) / "checkpoints" / str(step)

    run = dataclasses.replace(RUN, checkpoint=CheckpointConfig(restore="run@4"))
    mine, theirs = made(mine), made(theirs)
    [problem] = other(run, (mine, theirs))
    assert words in problem and problem.startswith("checkpoint.restore='run@4': ")
    assert other(run, (theirs, theirs)) == []

"""What processes compare before they train: what must be the same, and what may differ."""

import dataclasses

import pytest
from tiny import FAMILIES

from xlstm_hydra.configs import (
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
from xlstm_hydra.train import _agree
from xlstm_hydra.train._agree import agree_on_corpus, agree_on_run, as_typed, differences

RUN = RunConfig(model=FAMILIES["v1"](vocab_size=256))


def other(run=RUN, **groups):
    return list(differences(as_typed(dataclasses.replace(run, **groups)), as_typed(run)))


def process(number):
    return DistributedConfig(
        name="explicit",
        coordinator_address=f"host{number}:1234",
        num_processes=2,
        process_id=number,
        local_device_ids=[number],
    )


def test_who_and_where_a_process_is_and_what_it_shows_may_differ():
    run = dataclasses.replace(RUN, distributed=process(0), data=TextDataConfig(path="here"))
    assert other(run, distributed=process(1), data=TextDataConfig(path="there")) == []
    assert other(logger=LoggerConfig(progress=False)) == []


def test_a_class_is_its_dotted_path():
    assert other(model=resolve_classes(RUN.model)) == []


def test_every_key_that_differs_is_told_as_it_is_typed_with_both_values():
    model = FAMILIES["v1"](vocab_size=300)
    model.parallel.fsdp_axis_size = 2
    told = "\n".join(map(str, other(model=model, trainer=TrainerConfig(seed=3))))
    assert "model.vocab_size=300: process 0 has 256. Start all processes with the same command." in told
    assert "parallel.fsdp_axis_size=2: process 0 has 1." in told
    assert "trainer.seed=3: process 0 has 0." in told
    assert len(told.splitlines()) == 3


def test_another_model_is_a_difference():
    told = "\n".join(map(str, other(model=FAMILIES["llama"](vocab_size=256))))
    assert "model.model_class='xlstm_hydra.models.Llama': process 0 has 'xlstm_hydra.models.mLSTMv1'." in told
    assert "model.config_class='xlstm_hydra.configs.LlamaConfig': process 0 has" in told


@pytest.fixture
def as_process_1(monkeypatch):
    """As if this were process 1 of 2, and process 0 had said what the list holds."""
    said = []
    monkeypatch.setattr(runtime, "num_processes", lambda: 2)
    monkeypatch.setattr(_agree, "of_first", lambda key, text: said.pop() if said else text)
    return said


def test_processes_with_the_same_run_and_corpus_go_on(as_process_1):
    agree_on_run(RUN, None)
    agree_on_corpus(RUN.data, "abc")


def test_another_corpus_is_refused(as_process_1):
    as_process_1.append("xyz")
    with pytest.raises(ConfigError, match=r"data.path='b': the corpus is not the one of process 0: .* same files"):
        agree_on_corpus(TextDataConfig(path="b"), "abc")
    as_process_1.append("xyz")
    with pytest.raises(ConfigError, match=r"data.name='stdlib': the corpus is not the one of process 0"):
        agree_on_corpus(StdlibDataConfig(), "abc")


CHECKPOINTS = {
    "none": (None, {"step": 4, "metadata": "x"}, "reads none, process 0 the checkpoint of step 4"),
    "another step": (
        {"step": 2, "metadata": "x"},
        {"step": 4, "metadata": "x"},
        "of step 2, process 0 the check",
    ),
    "another run": ({"step": 4, "metadata": "x"}, {"step": 4, "metadata": "y"}, "step 4 of another run than process 0"),
}


@pytest.mark.parametrize(("mine", "theirs", "words"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_another_checkpoint_is_refused(mine, theirs, words):
    place = {"checkpoint.restore": "run@4"}
    [problem] = _agree._other_checkpoint(place, mine, theirs)
    assert words in str(problem) and str(problem).startswith("checkpoint.restore='run@4': ")
    assert list(_agree._other_checkpoint(place, theirs, theirs)) == []

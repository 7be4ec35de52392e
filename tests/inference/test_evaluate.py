"""Evaluation gives the loss of the saved parameters on every layout, and counts each target once."""

import json
import math

import jax
import numpy as np
import pytest
from tiny import LAYOUTS, tiny_run
from untrained import save_untrained

from xlstm_hydra.configs import ConfigError, EvaluateTaskConfig, LoggerConfig, StdlibDataConfig, TextDataConfig
from xlstm_hydra.data import open_corpus
from xlstm_hydra.inference import evaluate
from xlstm_hydra.models import apply_model, build_model

MODEL = {"vocab_size": 256}
DATA = StdlibDataConfig(validation_fraction=1e-5)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run folder and the parameters saved in it."""
    folder = tmp_path_factory.mktemp("saved")
    return folder, save_untrained(tiny_run(model=MODEL, data=DATA), folder)


@pytest.fixture
def evaluated(saved, tmp_path):
    """Function that evaluates the saved run, with changes, and returns the written result."""

    def run(layout="dp8", model=MODEL, data=DATA, batch_size=8, **task):
        logger = LoggerConfig(progress=False, csv=False, tensorboard=False)
        task = EvaluateTaskConfig(**{"checkpoint": str(saved[0])} | task)
        trainer = {"batch_size": batch_size}
        run = tiny_run(parallel=LAYOUTS[layout], model=model, data=data, task=task, logger=logger, trainer=trainer)
        loss = evaluate(run, tmp_path)
        result = json.loads((tmp_path / "evaluation.json").read_text())
        assert result["loss"] == loss
        return result

    return run


@pytest.mark.parametrize("layout", ["dp8", "tp2_fsdp4"])
def test_each_target_of_the_split_counts_once(saved, evaluated, layout):
    result = evaluated(layout, batch_size=40)
    corpus = open_corpus(DATA, 16, 256)[1]
    assert len(corpus) % 40, "a batch should be padded"
    rows = {key: np.stack([corpus[index][key] for index in range(len(corpus))]) for key in corpus[0]}
    module = build_model(tiny_run(model=MODEL).model)
    logits = jax.jit(lambda *batch: apply_model(module, saved[1], *batch))(rows["inputs"], rows["document_borders"])
    log_probabilities = np.asarray(jax.nn.log_softmax(logits), float)
    losses = -np.take_along_axis(log_probabilities, rows["targets"][..., None], axis=-1)[..., 0]
    assert result["targets"] == rows["loss_mask"].sum()
    assert result["loss"] == pytest.approx(losses[rows["loss_mask"]].mean(), rel=1e-6)


def test_the_result_is_logged_as_aligned_facts(saved, evaluated, caplog):
    caplog.set_level("INFO", "xlstm_hydra")
    result = evaluated()
    facts = [text for text in caplog.messages if " of " not in text or "split" in text]
    assert facts[0] == "mesh     8 cpu devices: dp=8 fsdp=1 pp=1 tp=1"
    assert facts[-4:] == [
        f"data     {result['targets']:,} targets of the validation split",
        f"         unigram entropy {result['unigram_bits_per_byte']:.3f} bits/byte",
        f"loss     {result['loss']:.4f} ({result['bits_per_byte']:.3f} bits/byte)",
        f"         perplexity {result['perplexity']:.2f}",
    ]


def test_the_whole_text_is_evaluated_however_short_it_is(evaluated, tmp_path):
    (tmp_path / "note.txt").write_text("to be or not to be")
    data = TextDataConfig(path=str(tmp_path / "note.txt"))
    assert evaluated(data=data, split="all")["targets"] == 18
    (tmp_path / "note.txt").write_text("")
    with pytest.raises(ConfigError, match="the corpus has 1 bytes, too few for an example"):
        evaluated(data=data, split="all")


def test_bits_and_perplexity_follow_from_the_loss(evaluated):
    result = evaluated(num_batches=2, split="train")
    assert result["batches"] == 2 and result["split"] == "train" and result["step"] == 2
    assert result["bits_per_byte"] == pytest.approx(result["loss"] / math.log(2))
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))


REFUSED = {
    "no run": ({"checkpoint": "nope"}, r"task\.checkpoint='nope': no checkpoints in"),
    "another model": (
        {"model": MODEL | {"embedding_dim": 64}},
        r"task\.checkpoint=.*do not match the model: blocks",
    ),
}


@pytest.mark.parametrize(("changes", "words"), REFUSED.values(), ids=REFUSED)
def test_a_checkpoint_that_does_not_fit_is_reported_under_the_key_of_the_task(evaluated, changes, words):
    with pytest.raises(ConfigError, match=words):
        evaluated(**changes)

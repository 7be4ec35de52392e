"""What is generated, shown and written."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny import LAYOUTS, tiny_run
from untrained import save_untrained

from xlstm_hydra.configs import ConfigError, GenerateTaskConfig, StdlibDataConfig
from xlstm_hydra.inference import generate
from xlstm_hydra.models import apply_model, build_model

MODEL = {"vocab_size": 256, "num_blocks": 1}

SAMPLER = "xlstm_hydra.inference._generate.sample_tokens"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model of bytes and one of synthetic tokens: their run folders, and the parameters of the first."""
    folder = tmp_path_factory.mktemp("saved")
    params = save_untrained(tiny_run(model=MODEL, data=StdlibDataConfig()), folder / "bytes")
    save_untrained(tiny_run(), folder / "tokens")
    return folder, params


@pytest.fixture
def generated(saved, tmp_path, capsys):
    """Generates, and gives what was written and shown."""

    def run(of="bytes", layout=None, **task):
        task = GenerateTaskConfig(**{"checkpoint": str(saved[0] / of), "max_new_tokens": 12} | task)
        parallel = LAYOUTS[layout] if layout else {"data_axis_size": 8}
        generate(tiny_run(model=MODEL if of == "bytes" else {}, parallel=parallel, task=task), tmp_path)
        return json.loads((tmp_path / "generated.json").read_text()), capsys.readouterr().out

    return run


def test_the_likeliest_tokens_are_those_of_the_whole_forward_pass(saved, generated):
    [sample] = generated(prompt="ab", temperature=0.0)[0]["samples"]
    tokens = [0, 97, 98, *sample["tokens"]]
    module = build_model(tiny_run(model=MODEL, parallel={}).model)
    padded = jnp.asarray([tokens + [0] * (16 - len(tokens))])
    likeliest = jax.jit(lambda tokens: apply_model(module, saved[1], tokens))(padded).argmax(-1)[0, 2:]
    np.testing.assert_array_equal(likeliest[: len(sample["tokens"])], sample["tokens"])


def test_a_sample_depends_on_the_seed_and_its_number_only(generated):
    many, one, other = (generated(num_samples=n, seed=seed)[0]["samples"] for n, seed in ((3, 5), (1, 5), (1, 6)))
    assert one[0] == many[0] and one[0] != other[0]
    assert len({str(sample["tokens"]) for sample in many}) == 3


def test_a_sharded_model_generates_the_same(generated):
    assert generated(layout="tp2_fsdp4", seed=3)[0]["samples"] == generated(seed=3)[0]["samples"]


def test_the_prompt_and_the_first_sample_are_shown_as_they_come_then_the_others(generated):
    written, shown = generated(prompt="Größe ", num_samples=2)
    texts = ["".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in s["text"]) for s in written["samples"]]
    assert shown == f"--- sample 1/2\nGröße {texts[0]}\n--- sample 2/2\nGröße {texts[1]}\n"


def steps(*rows):
    """In the place of the model: these tokens, then Ctrl-C."""

    def sample_tokens(*args):
        yield from (np.asarray(row) for row in rows)
        raise KeyboardInterrupt

    return sample_tokens


def test_a_sample_ends_before_the_next_document(generated, monkeypatch):
    monkeypatch.setattr(SAMPLER, steps([104, 97], [105, 0], [0, 98]))
    written, shown = generated(num_samples=2)
    assert [sample["text"] for sample in written["samples"]] == ["hi", "a"]
    assert all(sample["stopped"] for sample in written["samples"]) and shown.count("hi\n") == 1


def test_a_character_is_shown_when_it_is_complete_and_controls_never(generated, monkeypatch):
    monkeypatch.setattr(
        "xlstm_hydra.inference._generate.sample_tokens", steps([0xC3], [0xA9], [0x1B], [0xFF], [33], [0])
    )
    assert generated()[1] == "é\ufffd\ufffd!\n"


def test_after_ctrl_c_what_there_is_has_been_written(generated, monkeypatch, tmp_path):
    monkeypatch.setattr(SAMPLER, steps([104], [105]))
    with pytest.raises(KeyboardInterrupt, match=r"what was generated so far is in .*generated\.json"):
        generated()
    assert json.loads((tmp_path / "generated.json").read_text())["samples"][0]["text"] == "hi"


def test_token_ids_go_in_and_come_out_for_other_vocabularies(generated):
    written, shown = generated(of="tokens", prompt_tokens=[3, 1, 4])
    [sample] = written["samples"]
    assert len(sample["tokens"]) == 12 and max(sample["tokens"]) < 32 and "text" not in sample
    assert shown == "".join(f"{token} " for token in [3, 1, 4, *sample["tokens"]]) + "\n"


def test_text_is_refused_where_tokens_are_not_known_to_be_bytes(saved, tmp_path):
    save_untrained(tiny_run(model=MODEL), tmp_path / "run")  # of synthetic data
    task = GenerateTaskConfig(checkpoint=str(tmp_path / "run"), prompt="Once")
    run = tiny_run(model=MODEL, parallel={"data_axis_size": 8}, task=task)
    with pytest.raises(ConfigError, match=r"task\.prompt='Once': .* not say that its tokens are bytes.*prompt_tokens"):
        generate(run, tmp_path)


def test_a_class_that_keeps_nothing_is_refused_with_what_it_would_need(saved):
    class Forgetful(nn.Module):
        def __call__(self, tokens): ...

    run = tiny_run(task=GenerateTaskConfig(checkpoint=str(saved[0] / "tokens"), prompt_tokens=[1]))
    run.model.model_class = Forgetful
    with pytest.raises(ConfigError, match=r"Forgetful'.* takes no `capacity`.*Build it on .*LanguageModel"):
        generate(run)

"""Generated tokens, as printed and as written."""

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
    """Folder with a run on bytes and a run on synthetic tokens, and the parameters of the first."""
    folder = tmp_path_factory.mktemp("saved")
    params = save_untrained(tiny_run(model=MODEL, data=StdlibDataConfig()), folder / "bytes")
    save_untrained(tiny_run(), folder / "tokens")
    return folder, params


@pytest.fixture
def generated(saved, tmp_path, capsys):
    """Function that generates, and returns the written result and the printed text."""

    def run(of="bytes", layout=None, **task):
        task = GenerateTaskConfig(**{"checkpoint": str(saved[0] / of), "max_new_tokens": 12} | task)
        parallel = LAYOUTS[layout] if layout else {"data_axis_size": 8}
        generate(tiny_run(model=MODEL if of == "bytes" else {}, parallel=parallel, task=task), tmp_path)
        return json.loads((tmp_path / "generated.json").read_text()), capsys.readouterr().out

    return run


def test_greedy_tokens_equal_those_of_the_full_forward_pass(saved, generated):
    [sample] = generated(prompt="ab", temperature=0.0)[0]["samples"]
    tokens = [0, 97, 98, *sample["tokens"]]
    module = build_model(tiny_run(model=MODEL, parallel={}).model)
    padded = jnp.asarray([tokens + [0] * (16 - len(tokens))])
    likeliest = jax.jit(lambda tokens: apply_model(module, saved[1], tokens))(padded).argmax(-1)[0, 2:]
    np.testing.assert_array_equal(likeliest[: len(sample["tokens"])], sample["tokens"])


def test_a_sample_depends_only_on_the_seed_and_its_number(generated):
    many, one, other = (generated(num_samples=n, seed=seed)[0]["samples"] for n, seed in ((3, 5), (1, 5), (1, 6)))
    assert one[0] == many[0] and one[0] != other[0]
    assert len({str(sample["tokens"]) for sample in many}) == 3


def test_a_sharded_model_generates_the_same(generated):
    assert generated(layout="tp2_fsdp4", seed=3)[0]["samples"] == generated(seed=3)[0]["samples"]


def test_the_first_sample_is_printed_token_by_token_then_the_others(generated):
    written, shown = generated(prompt="Größe ", num_samples=2)
    texts = ["".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in s["text"]) for s in written["samples"]]
    assert shown == f"--- sample 1/2\nGröße {texts[0]}\n--- sample 2/2\nGröße {texts[1]}\n"


def steps(*rows):
    """Replacement for the model: yields these tokens, then raises as Ctrl-C does."""

    def sample_tokens(*args):
        yield from (np.asarray(row) for row in rows)
        raise KeyboardInterrupt

    return sample_tokens


def test_a_sample_ends_before_the_next_document(generated, monkeypatch):
    monkeypatch.setattr(SAMPLER, steps([104, 97], [105, 0], [0, 98]))
    written, shown = generated(num_samples=2)
    assert [sample["text"] for sample in written["samples"]] == ["hi", "a"]
    assert all(sample["stopped"] for sample in written["samples"]) and shown.count("hi\n") == 1


def test_only_complete_characters_and_no_control_characters_are_printed(generated, monkeypatch):
    monkeypatch.setattr(
        "xlstm_hydra.inference._generate.sample_tokens", steps([0xC3], [0xA9], [0x1B], [0xFF], [33], [0])
    )
    assert generated()[1] == "é\ufffd\ufffd!\n"


def test_after_ctrl_c_the_tokens_generated_so_far_are_written(generated, monkeypatch, tmp_path):
    monkeypatch.setattr(SAMPLER, steps([104], [105]))
    with pytest.raises(KeyboardInterrupt, match=r"the text generated so far is in .*generated\.json"):
        generated()
    assert json.loads((tmp_path / "generated.json").read_text())["samples"][0]["text"] == "hi"


def test_other_vocabularies_use_token_ids_for_prompt_and_output(generated):
    written, shown = generated(of="tokens", prompt_tokens=[3, 1, 4])
    [sample] = written["samples"]
    assert len(sample["tokens"]) == 12 and max(sample["tokens"]) < 32 and "text" not in sample
    assert shown == "".join(f"{token} " for token in [3, 1, 4, *sample["tokens"]]) + "\n"


def test_a_text_prompt_is_refused_unless_tokens_are_known_to_be_bytes(saved, tmp_path):
    save_untrained(tiny_run(model=MODEL), tmp_path / "run")  # of synthetic data
    task = GenerateTaskConfig(checkpoint=str(tmp_path / "run"), prompt="Once")
    run = tiny_run(model=MODEL, parallel={"data_axis_size": 8}, task=task)
    with pytest.raises(
        ConfigError, match=r"task\.prompt='Once': .* not record that its tokens are bytes.*prompt_tokens"
    ):
        generate(run, tmp_path)


def test_a_class_without_a_cache_is_refused_with_a_way_out(saved):
    class Forgetful(nn.Module):
        def __call__(self, tokens): ...

    run = tiny_run(task=GenerateTaskConfig(checkpoint=str(saved[0] / "tokens"), prompt_tokens=[1]))
    run.model.model_class = Forgetful
    with pytest.raises(ConfigError, match=r"Forgetful'.* has no `capacity`.*Derive the class from .*LanguageModel"):
        generate(run)

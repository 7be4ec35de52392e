"""Messages about invalid command lines: one line per mistake, with the key and the fix."""

import os

import pytest
from command import run_command
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from xlstm_hydra.errors import first_line
from xlstm_hydra.hydra import SweepLoader, check_points, expand_home, explain, quote_texts, unreadable

LINES = [
    # unknown options, keys and groups
    (
        "parallel=fsdpp",
        "parallel='fsdpp': no such option. Did you mean 'fsdp'? Known: auto, dp, fsdp, fsdp_tp, pp, tp.",
    ),
    ("debug=slow", "debug='slow': no such option. Known: fast, nans."),
    ("-m hydra/launcher=foo", "hydra/launcher='foo': no such option. Known: basic, joblib, local, "),
    ("model.num_head=4", "model.num_head: no such key. Did you mean model.num_heads?"),
    ("optimzer.lr=3", "optimzer: no such key. Did you mean optimizer.lr?"),
    ("lr=3", "lr: no such key. Did you mean optimizer.lr?"),
    ("trainer.lr=3", "trainer.lr: no such key. Did you mean optimizer.lr?"),
    ("seed=3", "seed: no such key. Did you mean data.seed or trainer.seed?"),
    ("zzz=3", "zzz: no such key. Known: task, model, parallel, data, optimizer, scheduler, trainer, checkpoint, "),
    ("optimizer=sgd optimizer.beta1=0.9", "optimizer.beta1: no such key. It is only available with optimizer=adamw"),
    ("data.path=x", "data.path: no such key. It is only available with data=text."),
    ("data.pth=x", "data.pth: no such key. Did you mean data.path? It is only available with data=text."),
    ("parallel.headroom=0.2", "parallel.headroom: no such key. It is only available with parallel=auto."),
    ("model.head_dim=64", "model.head_dim: no such key. It is only available with model=llama_165m, "),
    ("optimizer.zzz=1", "optimizer.zzz: no such key. Known: name, lr, grad_clip_norm, "),
    ("model.zzz=1", "model.zzz: no such key. Known: vocab_size, "),
    ("model.num_layers=3", "model.num_layers: no such key. Did you mean model.num_blocks?"),
    ("model.hidden_size=64", "model.hidden_size: no such key. Did you mean model.embedding_dim?"),
    ("model=llama_165m model.num_heads=4", "model.num_heads: no such key. Did you mean model.head_dim?"),
    ("optimizer.learning_rate=1", "optimizer.learning_rate: no such key. Did you mean optimizer.lr?"),
    ("trainer.learning_rate=1", "trainer.learning_rate: no such key. Did you mean optimizer.lr?"),
    ("learning_rate=1", "learning_rate: no such key. Did you mean optimizer.lr?"),
    ("optimizer.num_layers=1", "optimizer.num_layers: no such key. Did you mean model.num_blocks?"),
    ("+trainer.lr=1", "trainer.lr: no such field in TrainerConfig. Did you mean optimizer.lr?"),
    ("+data.path=x", "data.path: no such field in StdlibDataConfig. name=text has this field."),
    ("+learning_rate=1", "learning_rate: no such group. Did you mean optimizer.lr?"),
    ("hydra.run.dirr=x", "hydra.run.dirr: no such key. Did you mean hydra.run.dir?"),
    ("optimizer.lr.x=3", "optimizer.lr.x: optimizer.lr is a single value and has no fields"),
    ("model.parallel.remat=[]", "model.parallel: its fields cannot be set, because its value is an interpolation. "
                                "Did you mean parallel.remat?"),
    # environment variables
    ("hydra.job.env_copy=[NOPE]", "hydra.job.env_copy: the environment variable NOPE is not set. Set it, or remove it"),
    ("-m hydra.job.env_copy=[NOPE]", "hydra.job.env_copy: the environment variable NOPE is not set."),
    ("hydra.job.env_copy=[NOPE] lr=3", "hydra.job.env_copy: the environment variable NOPE is not set."),
    ("trainer={sed:3}", "trainer.sed: no such key. Did you mean trainer.seed?"),
    ("++model=nope", "model='nope': no such option. Known: custom, "),
    ("++model=tiny", "++model=tiny: ++ cannot select an option. Write model=tiny."),
    # wrong types
    ("trainer={seed:x}", "trainer.seed: expected int, got 'x'"),
    ("model.embedding_dim=abc", "model.embedding_dim: expected int, got 'abc'"),
    ("trainer.max_steps=1.5", "trainer.max_steps: expected int, got 1.5"),
    ("trainer.max_steps=null", "trainer.max_steps: expected int, got null"),
    ("optimizer.lr=", "optimizer.lr: expected float, got ''"),
    ("parallel.remat=mLSTMBlock", "parallel.remat: expected list[str], got 'mLSTMBlock'"),
    ("checkpoint.save_last=maybe", "checkpoint.save_last: expected bool, got 'maybe'"),
    ("optimizer.grad_clip_norm=x", "optimizer.grad_clip_norm: expected float or null, got 'x'"),
    ("-m hydra.sweeper.max_batch_size=x", "hydra.sweeper.max_batch_size: expected int or null, got 'x'"),
    # syntax
    ("optimizer.lr", "optimizer.lr: expected key=value or a flag. Write optimizer.lr=VALUE."),
    ("optimizer.lr=[1,2", "optimizer.lr=[1,2: the [ is not closed. Add ]. Quote the value if it contains spaces."),
    ("parallel={fsdp_axis_size:2", "parallel={fsdp_axis_size:2: the { is not closed."),
    ("trainer.seed=int(3", "trainer.seed=int(3: the ( is not closed."),
    ("optimizer.lr='1", "optimizer.lr='1: the quote ' is not closed."),
    ("parallel.remat=A]", "parallel.remat=A]: unmatched ]. Remove it, or add the opening bracket."),
    ("-m optimizer.lr=1e-3, 3e-4", "optimizer.lr=1e-3, 3e-4: the shell splits arguments at spaces, so 3e-4 is "
                                   "a separate argument. Write optimizer.lr=1e-3,3e-4 without spaces, or quote"),
    ("optimizer.lr=1e-3 ,3e-4", "Write optimizer.lr=1e-3,3e-4 without spaces"),
    ("parallel.remat=[A, B]", "Write parallel.remat=[A,B] without spaces"),
    ("parallel={fsdp_axis_size: 2", "parallel={fsdp_axis_size:2: the { is not closed."),
    ("trainer.max_steps = 3", "trainer.max_steps = 3: the shell splits arguments at spaces, so 3 is a separate "
                              "argument. Write trainer.max_steps=3 without spaces"),
    ("-m optimizer.lr=1e-3, parallel=dp", "optimizer.lr=1e-3,: the value ends with a comma."),
    ("parallel.remat=[A,,B]", "parallel.remat=[A,,B]: a value is missing next to a comma."),
    ("trainer.max_steps==3", "trainer.max_steps==3: there are two = signs after the key. Write trainer.max_steps=3."),
    ("trainer.max_steps:3", "trainer.max_steps:3: expected key=value or a flag. Write trainer.max_steps=3."),
    ("=3", "=3: no key before the =. Write key=value, for example trainer.max_steps=3."),
    ("trainer..max_steps=3", "'trainer..max_steps' is not a valid key. A key consists of names joined"),
    ("parallel.remat[0]=A", "single elements of a list cannot be set. Write the whole list: parallel.remat=[...]."),
    ("optimizer.lr=1=2", """the value contains =, which must be quoted. Write 'optimizer.lr="1=2"'."""),
    ("trainer.seed=ü", """the value contains 'ü', which must be quoted. Write 'trainer.seed="ü"'."""),
    ("optimizer.lr=(1,2)", "a value cannot start with (. For a list, write optimizer.lr=[...]"),
    ("parallel={a=1}", "inside braces, use a colon between a key and its value. Write parallel={a:1}."),
    ("trainer.seed=${data.seed", "trainer.seed=${data.seed: ${ is not closed. Write ${key}, or ${resolver:argument}."),
    ("trainer.seed=$data.seed}", "trainer.seed=$data.seed}: unmatched }."),
    ("trainer.seed=${${a}}", "trainer.seed=${${a}}: nested interpolations must be quoted."),
    ("trainer.seed=${a:[}", "trainer.seed=${a:[}: the value is not a valid interpolation. Write ${key}, or ${resolver"),
    ('trainer.seed=${oc.decode:"[1"}', ": the interpolation resolves to text that cannot be parsed"),
    ("hydra.searchpath=[nope]", "hydra.searchpath='nope': the folder does not exist. The current folder is /"),
    ("--trainer.max_steps=3", "--trainer.max_steps=3: no such flag. Write trainer.max_steps=3, without dashes."),
    ("--trainer.max_steps 3", "--trainer.max_steps: no such flag. Write trainer.max_steps=..., without dashes."),
    ("--mulirun parallel=dp,tp", "--mulirun: no such flag. Did you mean --multirun?"),
    ("--cfg nope", "--cfg='nope': must be job, hydra or all"),
    ("--config-dir --resolve", "--config-dir: requires a value. Write --config-dir=..."),
    ("--config-dir=", "--config-dir: requires a value. Write --config-dir=..."),
    ("--run=3", "--run='3': does not take a value. Write --run."),
    ("--c job", "ambiguous option: --c could match --cfg, --config-path, --config-name, --config-dir"),
    ("parallel=dp,fsdp", "parallel=dp,fsdp: several values for a single run. Add -m to run one job for each value."),
    ("trainer.seed=1,2", "Add -m to run one job for each value.\n"),
    ("data.path=a,b", """for each value, or write 'data.path="a,b"' for text that contains commas.\n"""),
    ("parallel.remat=A,B", "parallel.remat=A,B: several values for a single run. Add -m to run one job for each "
                           "value, or write parallel.remat=[A,B] for a list."),
    ("parallel=null", "parallel=null: must be the name of an option"),
    ("trainer=[1]", "trainer=[1]: must be the name of an option. Known: default."),
    ("model=[null]", "model=[null]: must be the name of an option. Known: custom, "),
    ("-m trainer=[1],default", "trainer=[1]: must be the name of an option. Known: default."),
    ("model._target_=os.system", "model._target_='os.system': must be xlstm_hydra.hydra.make_model_config. Remove it,"),
    ("+parallel=fsdp", "+parallel=fsdp: parallel already exists. Write parallel=fsdp, without the +."),
    ("+experiment=copying", "experiment already exists. Write experiment=copying, without the +."),
    ("+optimizer.lr=1", "+optimizer.lr=1: optimizer.lr already exists. Write optimizer.lr=1, without the +."),
    ("~optimizer.lr", "~optimizer.lr: a field cannot be removed. Set it to another value."),
    ("~optimizer.foo", "~optimizer.foo: the key to remove does not exist"),
    # functions and their values
    ("-m trainer.seed=range(3,1)", "trainer.seed=range(3,1): has no values. The stop of a range is excluded"),
    ("-m parallel=glob(zzz*)", "parallel=glob(zzz*): does not match any of auto, dp, fsdp, fsdp_tp, pp, tp"),
    ("-m parallel=glob(zzz*) data=nope", "parallel=glob(zzz*): does not match any of auto, dp, fsdp, fsdp_tp, pp, tp"),
    ("-m trainer.seed=glob(*)", "trainer.seed=glob(*): glob only applies to config groups, and trainer.seed "),
    ("-m optimizer.lr=choice()", "choice() has invalid arguments. choice takes values: choice(1,2,3)."),
    ("-m trainer.seed=range(a,b)", "range(a,b) has invalid arguments. range takes numbers: range(stop), range("),
    ("-m optimizer.lr=tag(log,1e-3,1e-2)", "tag takes tag names, followed by choice(...), range(...) or "),
    ("-m trainer.seed=rnge(1,2)", "trainer.seed=rnge(1,2): there is no function rnge. Did you mean 'range'? Text "),
    ("trainer.seed=int(a)", "trainer.seed=int(a): int(a) has invalid arguments. int takes an integer: int(3.0), "),
    # interpolations
    ("trainer.seed=${trainer.sed}", "trainer.seed='${trainer.sed}': refers to a key that does not exist: trainer.sed. "
                                    "Did you mean trainer.seed?"),
    ("trainer.seed=${trainer}", "trainer.seed='${trainer}': refers to a group that contains it. Refer to a single"),
    ("trainer.seed=${trainer.seed}", "trainer.seed='${trainer.seed}': refers to itself"),
    ("trainer.seed=${noww:3}", "trainer.seed='${noww:3}': there is no resolver noww. Did you mean 'now'?"),
    ("trainer.seed=${oc.env:NOPE}", "trainer.seed='${oc.env:NOPE}': the environment variable NOPE is not set"),
    ("trainer.seed=${now:}", "trainer.seed='${now:}': the resolver does not accept these arguments"),
    ("optimizer.lr=${model.dtype}", "optimizer.lr='${model.dtype}': expected float, got 'float32'"),
    ("hydra.run.dir=${nope}", "hydra.run.dir='${nope}': refers to a key that does not exist: nope"),
    ("hydra.run.dir=${hydra.run.dirr}", "refers to a key that does not exist: hydra.run.dirr. Did you mean hydra.run."),
    ("hydra.run.dir=${now:}", "hydra.run.dir='${now:}': the resolver does not accept these arguments"),
    ("-m hydra.sweep.dir=${nope:3} trainer.seed=1,2", "hydra.sweep.dir='${nope:3}': there is no resolver nope. Known"),
    ("hydra.verbose=3", "hydra.verbose: expected true, false, a logger name or a list of logger names, got 3"),
    ("-m hydra.verbose=3", "hydra.verbose: expected true, false, a logger name or a list of logger names, got 3"),
    ("-m trainer.seed=[range(0,2e9)]", "trainer.seed=[range(0,2e9)]: a sweep cannot be an element of a list. "),
    ("trainer.seed=[range(0,3)]", "trainer.seed=[range(0,3)]: a sweep cannot be an element of a list. Write"),
    # sweeps that are too large
    ("-m trainer.seed=range(0,2000000000)", "hydra.sweeper.max_jobs=10000: the sweep has 2,000,000,000 jobs, one for "
                                            "each value of trainer.seed. Sweep fewer values, or increase hydra.sweep"),
    ("-m trainer.seed=range(0,1000) data.seed=range(0,1000) optimizer.lr=range(1,1001)",
     "the sweep has 1,000,000,000 jobs = 1,000 (trainer.seed) * 1,000 (data.seed) * 1,000 (optimizer.lr)."),
    ("-m trainer.seed=range(0,1e18)", "the sweep has 1.00e18 jobs"),
    ("-m trainer.seed=range(0,-2000000000,-1)", "the sweep has 2,000,000,000 jobs"),
    ("-m trainer.seed=shuffle(range(0,2000000000))", "the sweep has 2,000,000,000 jobs"),
    ("-m trainer.seed=tag(a,sort(range(0,2000000000),reverse=true))", "the sweep has 2,000,000,000 jobs"),
    ("-m hydra.sweeper.num_samples=2000000000 optimizer.lr=interval(0,1)", "jobs, as set by hydra.sweeper.num_samples"),
    ("-m hydra/sweeper=basic trainer.seed=range(0,2000000000)", "or use hydra/sweeper=xlstm, whose limit is set by "),
    ("-m hydra.sweeper.max_jobs=2 trainer.seed=1,2,3", "hydra.sweeper.max_jobs=2: the sweep has 3 jobs"),
    ("-m hydra.sweeper.max_jobs=0 trainer.seed=1,2,3", "hydra.sweeper.max_jobs=0: must be 1 or more"),
    ("-m trainer.seed=range(0,inf)", "start, stop and step of a range must be finite"),
    # what composes and breaks a rule
    ("~model", "~model: the group is required. To select another option, write model=OPTION."),
    ("data=text", "data.path: missing. Write data.path=..."),
    ("optimizer.lr=${nope.x}", "optimizer.lr='${nope.x}': refers to a key that does not exist: nope.x"),
    ("model.num_heads=3", "model.num_heads must divide the width 64 (set by model.qk_dim_factor) and the width 128 "
                          "(set by model.v_dim_factor). Set model.num_heads to 1, 2, 4, 8, 16, 32 or 64."),
]  # fmt: skip


PARSER_WORDS = ("mismatched input", "no viable alternative", "token recognition", "extraneous input", "LexerNoViable")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("line", "words"), LINES, ids=[line for line, _ in LINES])
def test_a_wrong_command_line_gives_one_line_and_status_2(line, words):
    done = run_command(*line.split(" "))
    assert done.status == 2
    assert done.err.startswith("xlstm-hydra: ") and done.err.count("\n") == 1
    assert words in done.err
    assert not any(word in done.err for word in PARSER_WORDS)


@settings(max_examples=60, deadline=None)
@given(
    st.text("ab1.,=[]{}()'\"$:~ \\-#é", max_size=8), st.sampled_from(["optimizer.lr=", "trainer.seed=", "model", ""])
)
def test_an_unreadable_argument_is_explained_without_parser_terms(value, start):
    parser = OverridesParser.create()
    try:
        parser.parse_override(start + value)
    except Exception as error:
        text = str(unreadable(start + value, error))
        assert not any(word in text for word in PARSER_WORDS)


TEXTS = [
    ("data.path=/tmp/a=b", "/tmp/a=b"),
    ("data.path=~/a", f"{os.path.expanduser('~')}/a"),
    ("data.path=/tmp/a (1)/é#", "/tmp/a (1)/é#"),
    ("data.path=/tmp/a,b=c", "/tmp/a,b=c"),
    ("data.path='a=b'", "a=b"),
    ("hydra.run.dir=~/runs/${now:%Y}", f"{os.path.expanduser('~')}/runs/${{now:%Y}}"),
    ("task.prompt=~/a", "~/a"),
]


@pytest.mark.parametrize(("text", "value"), TEXTS, ids=[text for text, _ in TEXTS])
def test_paths_and_other_text_need_no_quotes_for_hydra(text, value):
    [argument] = quote_texts(expand_home([text]))
    cfg = OmegaConf.create({"a": OverridesParser.create().parse_override(argument).value()})
    assert OmegaConf.to_container(cfg) == {"a": value}


def test_each_of_several_paths_in_a_sweep_is_text():
    [_, argument] = quote_texts(["-m", "data.path=a=b,c#d,/e"])
    assert list(OverridesParser.create().parse_override(argument).sweep_string_iterator()) == ["'a=b'", "'c#d'", "/e"]


def test_a_home_folder_is_also_expanded_in_flags_and_lists():
    home = os.path.expanduser("~")
    assert expand_home(["--config-dir=~/conf", "resume=~/run@3", "hydra.searchpath=[~/a, ~/b]", "~model"]) == [
        f"--config-dir={home}/conf", f"resume={home}/run@3", f"hydra.searchpath=[{home}/a, {home}/b]", "~model",
    ]  # fmt: skip


@pytest.mark.parametrize("value", ["'a", "[a", "${a", "=a", "[1]", "a,b"], ids=str)
def test_a_required_value_with_a_mistake_is_not_also_reported_as_missing(value):
    done = run_command("data=text", f"data.path={value}", "optimizer.lr=-1")
    assert "2 problems:" in done.err and "optimizer.lr=-1.0" in done.err and "missing" not in done.err


def test_a_required_value_with_a_mistake_is_not_also_reported_as_missing_in_a_sweep():
    done = run_command("-m", "data=text", "data.path=[a", "optimizer.lr=-1,-2")
    assert "3 problems:" in done.err and "optimizer.lr=-1.0" in done.err and "missing" not in done.err


def test_an_unreadable_value_in_one_point_does_not_hide_a_mistake_in_another(compose):
    loader = GlobalHydra.instance().config_loader()
    master = loader.load_configuration("config", [], RunMode.MULTIRUN)
    unread, wrong = check_points(SweepLoader(loader), master, [["optimizer.lr==3"], ["optimizer.lr=-1"]])
    assert "there are two = signs after the key" in str(unread.problems[0])
    [problem] = wrong.problems
    assert "optimizer.lr=-1.0: must be 0 or more" in str(problem)


def test_fields_of_a_group_with_an_unreadable_option_are_not_reported_as_unknown():
    done = run_command("optimizer=[sgd", "optimizer.momentum=0.9")
    assert done.err.count("optimizer") == 1 and "momentum" not in done.err


def test_a_folder_that_cannot_be_resolved_does_not_hide_other_mistakes():
    done = run_command("hydra.run.dir=${nope}/${trainer.seed}", "trainer.max_steps=-1")
    assert "2 problems:" in done.err and "does not exist: nope" in done.err and "trainer.max_steps=-1" in done.err


def test_a_value_in_the_node_hydra_may_refer_to_the_run():
    done = run_command("hydra.run.dir=a/${trainer.seed}/${hydra:job.name}/${now:%Y}", "trainer.max_steps=-1")
    assert done.err == "xlstm-hydra: trainer.max_steps=-1: must be 1 or more\n"


@pytest.mark.parametrize("error", [AssertionError(), ValueError(" ")], ids=repr)
def test_no_error_gives_an_empty_message(compose, error):
    [problem] = explain(error, GlobalHydra.instance().config_loader(), "config", [], sweep=False)
    assert str(problem) == first_line(error) == type(error).__name__


def test_mistakes_of_all_kinds_are_reported_at_once():
    done = run_command("parallel=fsdpp", "optimzer.lr=3", "trainer.max_steps=x", "model.dtype=bf16", "data", "a=1,2")
    assert "6 problems:" in done.err
    for words in (
        "fsdpp",
        "optimzer",
        "got 'x'",
        "model.dtype='bf16'",
        "data: expected key=value or a flag",
        "a=1,2: several values",
    ):
        assert words in done.err


def test_a_sweep_that_is_too_large_does_not_hide_other_mistakes():
    done = run_command("-m", "trainer.seed=range(0,2000000000)", "optimizer.lr=-1", "trainer.max_steps=x")
    assert "3 problems:" in done.err and "got 'x'" in done.err and "optimizer.lr=-1.0: must be 0 or more" in done.err


def test_a_new_key_of_a_model_of_the_user_is_added_with_a_plus():
    done = run_command("model=custom", "model.width=3")
    assert "model.width: no such key. To add it, write +model.width=..." in done.err


def test_the_order_of_overrides_does_not_change_the_problems():
    done = run_command("optimizer.momentum=0.9", "optimizer=sgd", "trainer.max_steps=x")
    assert done.err == "xlstm-hydra: trainer.max_steps: expected int, got 'x'\n"


def test_fields_of_an_unknown_option_are_not_reported():
    done = run_command("optimizer=sdg", "optimizer.momentum=0.9", "model=tinny", "model.num_heads=3", "trainer.seed=x")
    assert "3 problems:" in done.err
    assert "momentum" not in done.err and "num_heads" not in done.err


def test_keys_of_a_misspelled_experiment_are_not_reported_as_unknown():
    done = run_command("experiment=copyng", "data.num_examples=5", "optimizer.lr=-1")
    assert "2 problems:" in done.err and "num_examples" not in done.err


def test_a_rejected_override_does_not_change_the_config():
    done = run_command("model.parallel.nonsense=1")
    assert done.err.count("model.parallel") == 1


@pytest.mark.parametrize("key", ["model._target_x", "model.zzz", "model.checkpoint", "zzz"])
def test_internal_keys_are_not_listed(key):
    done = run_command(f"{key}=1")
    assert done.status == 2 and "_target_," not in done.err and "_checkpoint_" not in done.err
    assert "model_class" not in done.err


def test_options_of_the_user_with_a_key_are_listed_even_if_another_option_is_broken(tmp_path):
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "mine.yaml").write_text("defaults: [adamw, _self_]\nlr: 1.0\n")
    (tmp_path / "optimizer" / "torn.yaml").write_text("defaults: [adamw, _self_\n")
    done = run_command(f"--config-dir={tmp_path}", "optimizer=sgd", "optimizer.beta1=0.9")
    assert "It is only available with optimizer=adamw, optimizer=lion or optimizer=mine." in done.err


@pytest.mark.parametrize(
    ("key", "others"),
    [
        ("trainer.batch_size", ["parallel.data_axis_size=3", "trainer.simulated_devices=3"]),
        ("parallel.model_axis_size", ["trainer.batch_size=12", "trainer.simulated_devices=8"]),
        ("parallel.model_axis_size", ["parallel.data_axis_size=4", "trainer.simulated_devices=8"]),
        ("model.embedding_dim", ["model=mlstm_165m", "model.qkv_proj_blocksize=5"]),
        ("trainer.max_steps", ["scheduler.warmup_steps=500"]),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_rule_is_not_reported_if_it_depends_on_an_unreadable_value(key, others):
    done = run_command(f"{key}=x", *others)
    assert done.err == f"xlstm-hydra: {key}: expected int, got 'x'\n"


def test_messages_list_options_in_a_folder_of_the_user(tmp_path):
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "mine.yaml").write_text("defaults: [adamw, _self_]\nlr: 1.0\n")
    done = run_command(f"--config-dir={tmp_path}", "optimizer=mime")
    assert "Did you mean 'mine'? Known: adamw, lion, mine, sgd." in done.err

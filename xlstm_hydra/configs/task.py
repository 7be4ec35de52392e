"""What the command does with a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field

from xlstm_hydra.problems import Problem

from ._config_dict import ConfigDict, config_dataclass
from ._fields import BOOKKEEPING, affects
from ._process import ProcessInfo
from ._rules import at_least, below, one_of, own_name, unused
from .distributed import DistributedConfig
from .model import SubModelConfig
from .trainer import TrainerConfig

PARAMETER_ROWS = ("modules", "all", "none")
"""What the table of parameters of a plan has lines for."""

SPLITS = ("validation", "train", "all")
"""Parts of a corpus."""


@config_dataclass
class TaskConfig(ConfigDict):
    """What is done with the run that the other groups describe."""

    name: str = field(metadata=affects(BOOKKEEPING))
    """Which task this is."""

    def rules(self) -> Iterator[Problem]:
        """The name is the class's own."""
        yield from own_name(self)

    def model_rules(self, model: SubModelConfig) -> Iterator[Problem]:
        """Every broken rule between the task and the model; keys are those of the task."""
        del model
        yield from ()

    def reads_data(self) -> bool:
        """Whether examples of the group `data` are read, `trainer.batch_size` at a time."""
        return True


@config_dataclass
class TrainTaskConfig(TaskConfig):
    """Train the model and save it."""

    name: str = "train"
    """Which task this is."""


@config_dataclass
class _CheckpointTaskConfig(TaskConfig):
    """A task that uses the parameters of a checkpoint."""

    checkpoint: str = field(metadata=affects(BOOKKEEPING))
    """Run folder whose parameters are used, those of its latest step, or of step N with `@N` behind it. The config
    must have the same model; `--from RUN` takes both from there. The layout may differ."""

    def rules(self) -> Iterator[Problem]:
        """There must be a checkpoint."""
        yield from super().rules()
        if not self.checkpoint.partition("@")[0].strip():
            rule = "must name a run folder, such as outputs/my_run or outputs/my_run@200"
            yield Problem({"checkpoint": self.checkpoint}, rule)


@config_dataclass
class EvaluateTaskConfig(_CheckpointTaskConfig):
    """The loss of a checkpoint on the data of the group `data`, with the batches of `trainer.batch_size`. Every target
    counts the same."""

    name: str = "evaluate"
    """Which task this is."""

    split: str = field(default="validation", metadata=affects(BOOKKEEPING))
    """Part of the corpus: validation or train, as `data.validation_fraction` cuts it, or all of it."""

    num_batches: int | None = field(default=None, metadata=affects(BOOKKEEPING))
    """Batches, evenly spread over the part. null: all of it."""

    def rules(self) -> Iterator[Problem]:
        """Ranges and names."""
        yield from super().rules()
        yield from one_of(self, "split", SPLITS)
        yield from at_least(self, 1, "num_batches")


@config_dataclass
class GenerateTaskConfig(_CheckpointTaskConfig):
    """Continue a prompt, token by token, with the parameters of a checkpoint.

    The layout says where the parameters live, and the compiler makes the exchanges; all data-parallel devices compute
    the same. A model trained on bytes is given `prompt`, any other `prompt_tokens`.
    """

    name: str = "generate"
    """Which task this is."""

    prompt: str = field(default="", metadata=affects(BOOKKEEPING))
    """Beginning of a document, which the model continues. Empty: the model begins it too."""

    prompt_tokens: list[int] | None = field(default=None, metadata=affects(BOOKKEEPING))
    """Token ids to continue, for a model that was not trained on bytes. null: `prompt`."""

    max_new_tokens: int = field(default=256, metadata=affects(BOOKKEEPING))
    """Tokens after which a sample ends."""

    stop_token: int | None = field(default=None, metadata=affects(BOOKKEEPING))
    """Token that ends a sample before; it is no part of it. null: in text the byte 0, with which the next document
    begins, and none after `prompt_tokens`."""

    num_samples: int = field(default=1, metadata=affects(BOOKKEEPING))
    """Continuations of the same prompt, computed side by side."""

    temperature: float = field(default=1.0, metadata=affects(BOOKKEEPING))
    """The logits are divided by this before a token is drawn. 0: take the likeliest token."""

    top_k: int | None = field(default=None, metadata=affects(BOOKKEEPING))
    """Draw among this many of the likeliest tokens. null: among all."""

    top_p: float = field(default=1.0, metadata=affects(BOOKKEEPING))
    """Draw among the fewest tokens whose probabilities sum to this, after `top_k`. 1: among all."""

    seed: int = field(default=0, metadata=affects(BOOKKEEPING))
    """Seed of what is drawn. The samples differ from each other, and each depends on the seed and its number only."""

    def rules(self) -> Iterator[Problem]:
        """Ranges, one prompt, and nothing that greedy sampling leaves without effect."""
        yield from super().rules()
        yield from at_least(self, 1, "max_new_tokens", "num_samples", "top_k")
        yield from at_least(self, 0, "temperature", "seed", "stop_token")
        yield from below(self, 2**32, "seed")
        yield from at_least(self, 0, "top_p", above=True)
        yield from below(self, 1, "top_p", inclusive=True)
        yield from self._prompt_rules()
        if self.temperature == 0:
            fix = "With {temperature}=0 the likeliest token is taken: set {temperature} above 0, or leave this away."
            for key in ("top_k", "top_p", "seed", "num_samples"):
                yield from unused(self, key, "temperature", 0, fix)

    def _prompt_rules(self) -> Iterator[Problem]:
        if self.prompt_tokens is None:
            return
        if self.prompt:
            given = {"prompt": self.prompt, "prompt_tokens": self.prompt_tokens}
            yield Problem(given, "there can be one prompt only", "Leave one of them away.")
        if not self.prompt_tokens or min(self.prompt_tokens) < 0:
            rule = "needs one token id or more, each 0 or more"
            yield Problem({"prompt_tokens": self.prompt_tokens}, rule, "For example [464,2068].")

    def tokens(self) -> list[int]:
        """The prompt as the model reads it. Text is a document of bytes, which begins with a 0."""
        if self.prompt_tokens is not None:
            return self.prompt_tokens
        return [0, *self.prompt.encode("utf-8", errors="surrogateescape")]

    def model_rules(self, model: SubModelConfig) -> Iterator[Problem]:
        """Token ids are below the size of the vocabulary, and the model can read so many of them."""
        size = model.get("vocab_size")
        if not isinstance(size, int) or size < 1:
            return
        given = {"prompt_tokens": max(self.prompt_tokens or [0]), "stop_token": self.stop_token}
        for key, token in given.items():
            if token is not None and token >= size:
                yield Problem({key: token, "/model.vocab_size": size}, "token ids must be below {/model.vocab_size}")
        if self.prompt_tokens is None and size < 256:
            fix = "Give token ids in {prompt_tokens}."
            yield Problem({"prompt": self.prompt, "/model.vocab_size": size}, "text needs 256 token ids", fix)
        if self.top_k is not None and self.top_k > size:
            fix = "Leave {top_k} away to draw among all."
            yield Problem({"top_k": self.top_k, "/model.vocab_size": size}, "there are fewer token ids", fix)
        yield from model.generation_rules(len(self.tokens()), self.max_new_tokens)

    def reads_data(self) -> bool:
        """There is the prompt instead."""
        return False


@config_dataclass
class PlanTaskConfig(TaskConfig):
    """Say what training would cost on devices that need not be there: memory, work, communication and time of a
    step."""

    name: str = "plan"
    """Which task this is."""

    num_devices: int | None = field(default=None, metadata=affects(BOOKKEEPING))
    """Devices of the planned run, over all hosts. null: as many as one host of the device has."""

    device: str | None = field(default=None, metadata=affects(BOOKKEEPING))
    """Name of an option of the group `device`: the kind of the devices. null: what that group is set to."""

    parameters: str = field(default="modules", metadata=affects(BOOKKEEPING))
    """Lines of the table of parameters: one for each of the modules, or all of them, or none."""

    compile: bool = field(default=False, metadata=affects(BOOKKEEPING))
    """Compile the step for as many simulated CPU devices as well, and show what the compiler says beside the plan."""

    search: bool = field(default=False, metadata=affects(BOOKKEEPING))
    """Compare the layouts that so many devices allow, and show the best ones. The exit status is then that of the best
    one."""

    def rules(self) -> Iterator[Problem]:
        """Ranges."""
        yield from super().rules()
        yield from at_least(self, 1, "num_devices")
        yield from below(self, 2**31, "num_devices")
        yield from one_of(self, "parameters", PARAMETER_ROWS)

    def place_rules(self, distributed: DistributedConfig, trainer: TrainerConfig) -> Iterator[Problem]:
        """What says where a run is started has no effect on its plan. Keys are whole."""
        placed = ("coordinator_address", "num_processes", "process_id", "local_device_ids")
        values = {f"distributed.{key}": distributed.get(key) for key in placed}
        values["trainer.simulated_devices"] = trainer.simulated_devices
        if given := {key: value for key, value in values.items() if value is not None}:
            rule = "a plan uses no device, and task.num_devices says how many the run has"
            yield Problem(given, rule, "Leave this away.", unused=dict.fromkeys(given))

    def launch_rules(self, process: ProcessInfo | None) -> Iterator[Problem]:
        """A plan is made once, wherever the run will have its processes."""
        if process is not None:
            rule = f"a plan is made by one process, and this is process {process.process_id} of {process.num_processes}"
            yield Problem({"name": self.name}, rule, "Leave out srun.")

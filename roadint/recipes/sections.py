"""The sections of a recipe, without its edit: model, data, optimisation, task.

Defaults are the paper's where it names them (section 4.3).
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from roadint.data.prompts import Template
from roadint.errors import RoadError
from roadint.grammar.composition import ALL
from roadint.model.pretrained import Dtype
from roadint.recipes.section import (
    Count,
    Epochs,
    Finite,
    Index,
    NameList,
    NotNegative,
    Positive,
    Section,
    Seed,
    Share,
    Warmup,
)

# Those of transformers that need no setting of their own.
Schedule = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
]

_CPU_ROWS = 4  # a larger micro-batch leaves the caches of a CPU


class ModelSection(Section):
    """The base model.

    Attributes:
        name: As `roadint.load` takes it: a hub id, a folder or a short name.
        dtype: The dtype of the base model; rotations are float32 always.
    """

    short_names: ClassVar = {"name": "model"}

    name: str = "gemma-3-270m"
    dtype: Dtype = "auto"


class DataSection(Section):
    """The data of a training.

    Attributes:
        sources: Composition → source, see `roadint.data.sources`. Of a task: "train" and "dev", or
            "validation" and "test".
        rows: The number of rows to take of a source, from the first; all by default.
        rows_seed: Draws the rows of a source at random instead.
        template: How a prompt is written.
        max_length: Tokens of prompt and completion together.
        max_completion: Tokens of a completion; half of max_length by default.
        max_completions: Composition → tokens of its own completions.
        companions: Composition → compositions that act beside it in training, one at a time.
        companion_rate: The share of a composition's examples that run with a companion.
        preserve: Composition → data sets whose answers it leaves as they are, once begun: it also
            trains on their rows, scored on `preserve_tokens` alone. So it learns how an answer
            begins, in which language for example, but not what its own rows are about.
        preserve_rate: The number of such rows, as a share of the composition's own.
        preserve_tokens: The first and the end of the tokens that are scored in such rows.
        eos: The compositions whose completions end with the end-of-sequence token; "all" is all.
        images: Whether rows have images (`roadint.data.image_text`), which the model's own
            processor reads.
    """

    short_names: ClassVar = {"sources": "data"}

    sources: dict[str, str] = Field(default_factory=dict)
    rows: Count | None = None
    rows_seed: Seed | None = None
    template: Template = "alpaca"
    max_length: Annotated[int, Field(ge=2, le=2**31 - 1)] = 512
    max_completion: Count | None = None
    max_completions: dict[str, Count] = Field(default_factory=dict)
    companions: dict[str, NameList] = Field(default_factory=dict)
    companion_rate: Share = 0.5
    preserve: dict[str, NameList] = Field(default_factory=dict)
    preserve_rate: NotNegative = 0.5
    preserve_tokens: list[Index] = Field(
        default_factory=lambda: [2, 12], min_length=2, max_length=2
    )
    eos: NameList = Field(default_factory=list)
    images: bool = False

    def ends(self, composition: str) -> bool:
        """Whether completions of a composition end with the end-of-sequence token."""
        return composition in self.eos or ALL in self.eos

    def model_post_init(self, context: Any) -> None:
        """Check settings that depend on each other."""
        del context
        first, end = self.preserve_tokens
        if first >= end:
            raise RoadError(
                f"recipe setting preserve_tokens={self.preserve_tokens}: expected a first token "
                "and an end after it, such as [2, 12]"
            )
        if self.preserve and self.images:
            raise RoadError(
                "recipe setting preserve is for rows of text: expected none beside images=true"
            )


class OptimisationSection(Section):
    """The optimisation: AdamW without weight decay.

    Attributes:
        lr: The learning rate.
        lrs: Subspace → its learning rate.
        decay: How much every step shrinks edits toward the identity, times the learning rate.
        max_log_scale: Bound of |log α|; 0 for pure rotations.
        strengths: Subspace → the strength that becomes the new 1 after training.
        epochs: Passes through the data.
        batch_size: Rows of a step, all compositions in proportion; under torchrun, of each process.
        micro_batch: Rows that run at once, of like length. By default a whole step, or on a GPU as
            much of it as its memory takes; "auto" is the same on a GPU, and up to 4 elsewhere,
            which CPUs run quickest. No gradient depends on it.
        mixed_precision: "bf16" or "fp16": automatic mixed precision, as Trainer has it; for a base
            model in float32.
        compile: Compile the layers above the lowest edit, see `roadint.training.compiled`.
        schedule: How the rate goes over the steps.
        warmup_steps: A count, or below 1 a share of all steps.
        max_grad_norm: Longer gradients are cut to it.
        seed: The seed of the order of rows and of random draws.
        save_steps: Steps between two checkpoints while it runs.
        prefix_reuse: Compute once what the edit can't change.
        prefix_memory: The GB that prefix reuse may store on the model's device, a quarter of what
            is free by default. Beyond them it uses the host's memory, stores less, or in files.
    """

    lr: Positive = 5e-3
    lrs: dict[str, NotNegative] = Field(default_factory=dict)
    decay: NotNegative = 0.0
    max_log_scale: NotNegative | None = None
    strengths: dict[str, Finite] = Field(default_factory=dict)
    epochs: Epochs = 5.0
    batch_size: Count = 8
    micro_batch: Count | Literal["auto"] | None = None
    mixed_precision: Literal["bf16", "fp16"] | None = None
    compile: bool = False
    schedule: Schedule = "linear"
    warmup_steps: Warmup = 0.0
    max_grad_norm: NotNegative = 1.0
    seed: Seed = 42
    save_steps: Count = 50
    prefix_reuse: bool = True
    prefix_memory: NotNegative | None = None

    def model_post_init(self, context: Any) -> None:
        """Check settings that depend on each other."""
        del context
        if isinstance(self.micro_batch, int) and self.batch_size % self.micro_batch:
            raise RoadError(
                f"recipe setting micro_batch={self.micro_batch} does not divide "
                f"batch_size={self.batch_size}"
            )

    def rows_at_once(self, *, on_gpu: bool) -> int:
        """The rows of a micro-batch, where memory is no matter.

        Args:
            on_gpu: Whether a GPU trains.
        """
        if isinstance(self.micro_batch, int):
            return self.micro_batch
        if on_gpu or self.micro_batch is None:
            return self.batch_size
        return max(rows for rows in range(1, _CPU_ROWS + 1) if self.batch_size % rows == 0)


class TaskSection(Section):
    """A task with a metric of its own, in place of data sets.

    Attributes:
        name: One of `roadint.tasks`: "rte", …, "commonsense", "arithmetic", "cloze".
        scored_rows: The largest number of validation rows, and of test rows of each set.
        max_new_tokens: The largest length of an answer that is scored, in tokens.
        dropout: Whether the base model drops out in training as its configuration says.
        split_seed: Of GLUE's tasks: draws the rows of the dev set that validate, the rest tests; by
            default the run's seed, as in the paper (appendix C.1).
    """

    short_names: ClassVar = {"name": "task"}

    name: str | None = None
    scored_rows: Count | None = None
    max_new_tokens: Count = 32
    dropout: bool = False
    split_seed: Seed | None = None

    def model_post_init(self, context: Any) -> None:
        """Check settings that depend on each other."""
        del context
        if self.dropout and self.name is None:
            raise RoadError(
                "recipe setting dropout=true without a task: what data sets train runs the base "
                "model without dropout; expected a task, or dropout=false"
            )

"""Define every hyperparameter of the built-in training function: meaning, default, range, and effect on training.

The defaults of the model and the usual ranges are those of a small Mixture-of-Experts model trained with Muon.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hpopt.errors import ConfigError, did_you_mean

Scalar = bool | int | float | str

# The largest integer of TOML 1.0, which has 64 bits.
LARGEST_INT = 2**63 - 1

TYPE_NAMES: dict[type[Scalar], str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
}


@dataclass(frozen=True, kw_only=True)
class Hyperparameter:
    """A hyperparameter of the built-in training function.

    `low` and `high` bound the allowed values (inclusive unless `low_open` or `high_open`); `usual_low` and `usual_high`
    bound the range to search first, on a logarithmic scale if `log`.
    `unused_if` names another hyperparameter and the value of it with which this one has no effect; `unused_unless` the
    only value with which this one has an effect.
    `raising` and `lowering` describe the effect of a larger and a smaller value, or `changing` that of another value
    for a hyperparameter whose values have no order.
    """

    name: str
    meaning: str
    default: Scalar
    unit: str = ""
    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False
    choices: tuple[str, ...] = ()
    usual_low: float | None = None
    usual_high: float | None = None
    log: bool = False
    unused_if: tuple[str, Scalar] | None = None
    unused_unless: tuple[str, Scalar] | None = None
    raising: str = ""
    lowering: str = ""
    changing: str = ""

    @property
    def switch(self) -> str | None:
        """The hyperparameter that decides whether this one has an effect, or None."""
        rule = self.unused_if or self.unused_unless
        return rule[0] if rule else None

    def is_unused(self, params: Mapping[str, Scalar]) -> bool:
        """Return whether this one has no effect given other hyperparameters."""
        off, on = self.unused_if, self.unused_unless
        return (off is not None and params.get(off[0]) == off[1]) or (
            on is not None and on[0] in params and params[on[0]] != on[1]
        )

    @property
    def type(self) -> type[Scalar]:
        """The type of the default: bool, int, float or str."""
        return type(self.default)


def default_of(name: str) -> Any:  # noqa: ANN401 - the type is the entry's.
    """Return the default of a hyperparameter."""
    return HYPERPARAMETERS[name].default


def check_value(name: str, value: object) -> Scalar:
    """Return the value in the type of the hyperparameter; an int is converted where a float is expected.

    Raises ConfigError for an unknown name, another type, or a value that is not allowed.
    """
    if name not in HYPERPARAMETERS:
        raise ConfigError(name, f"no such hyperparameter{did_you_mean(name, HYPERPARAMETERS)}")
    entry = HYPERPARAMETERS[name]
    checked = check_type(name, value, entry.type)
    problem = _word_problem(entry, checked) if isinstance(checked, str) else _number_problem(entry, checked)
    if problem:
        raise ConfigError(name, problem)
    return checked


def check_type(name: str, value: object, expected: type[Scalar]) -> Scalar:
    """Return the value in the expected type; an int is converted where a float is expected.

    Raises ConfigError for another type and for an int of more than 64 bits.
    """
    if type(value) is int and abs(value) > LARGEST_INT:
        raise ConfigError(name, f"{value} does not fit into 64 bits")
    if expected is float and type(value) is int:
        return float(value)
    # An exact comparison, because True is an int to isinstance.
    if isinstance(value, bool | int | float | str) and type(value) is expected:
        return value
    raise ConfigError(name, f"{value!r} is not {TYPE_NAMES[expected]}")


def not_one_of(value: object, allowed: Iterable[object]) -> str:
    """Return a message that lists the allowed values, in their order, and names the nearest one."""
    names = [str(name) for name in allowed]
    # did_you_mean lists all names where none is near; they are in the message already.
    near = did_you_mean(value, names) if isinstance(value, str) else ""
    hint = near if near.startswith("; did you mean") else ""
    return f"{value!r} is not one of {', '.join(names)}{hint}"


def _number_problem(entry: Hyperparameter, value: float) -> str | None:
    if not math.isfinite(value):
        return f"{value} is not a finite number"
    if entry.low is not None and entry.low_open and value <= entry.low:
        return f"{value} is not above {entry.low}"
    if entry.low is not None and value < entry.low:
        return f"{value} is below {entry.low}"
    if entry.high is not None and entry.high_open and value >= entry.high:
        return f"{value} is not below {entry.high}"
    if entry.high is not None and value > entry.high:
        return f"{value} is above {entry.high}"
    return None


def _word_problem(entry: Hyperparameter, value: str) -> str | None:
    if entry.choices and value not in entry.choices:
        return not_one_of(value, entry.choices)
    return None if value else "'' is empty"


_ENTRIES: tuple[Hyperparameter, ...] = (
    # Architecture
    Hyperparameter(
        name="d_model",
        meaning="width of the residual stream, divided among the attention heads",
        default=384,
        unit="dimensions",
        low=1,
        usual_low=256,
        usual_high=1024,
        log=True,
        raising="Grows attention weights quadratically and each expert linearly, so a step costs more; at a fixed"
        " compute budget a wider model sees fewer tokens and can end up worse.",
        lowering="Makes steps cheaper and the model less capable; below about 256 the embedding table of a usual"
        " vocabulary outweighs the blocks, and results transfer poorly to larger models.",
    ),
    Hyperparameter(
        name="n_layers",
        meaning="number of transformer blocks, each attention followed by a layer of experts",
        default=6,
        unit="blocks",
        low=1,
        usual_low=4,
        usual_high=24,
        log=True,
        raising="Adds parameters, memory and time in proportion and usually lowers the loss per token; deeper stacks"
        " lean more on warmup and on a moderate learning rate.",
        lowering="Speeds every step up in proportion and is easier to train, at the price of a higher loss once the"
        " budget is long enough to use the depth.",
    ),
    Hyperparameter(
        name="n_heads",
        meaning="number of attention heads; each is d_model / n_heads wide",
        default=8,
        unit="heads",
        low=1,
        usual_low=4,
        usual_high=16,
        log=True,
        raising="Lets a token attend in more ways at once, with narrower heads and the same parameter count; heads"
        " under about 32 dimensions tell keys apart poorly.",
        lowering="Makes heads fewer and wider at the same parameter count; a small effect unless very few are left.",
    ),
    Hyperparameter(
        name="d_ff",
        meaning="hidden width of each expert",
        default=1536,
        unit="dimensions",
        low=1,
        usual_low=256,
        usual_high=4096,
        log=True,
        raising="Grows all n_experts experts in memory, but only the top_k that a token visits in compute; it is"
        " the largest lever on the parameter count.",
        lowering="Saves memory and optimizer time (Newton-Schulz works on every expert, visited or not) and"
        " limits what an expert can store.",
    ),
    Hyperparameter(
        name="n_experts",
        meaning="number of experts in each block; at least top_k",
        default=8,
        unit="experts",
        low=1,
        usual_low=4,
        usual_high=64,
        log=True,
        raising="Adds parameters at nearly constant compute per token, but each expert sees fewer tokens, so short"
        " runs may not train them, and memory and optimizer time grow in proportion.",
        lowering="Gives each expert more tokens and brings the model closer to a dense one; with n_experts equal to"
        " top_k every token visits all of them and the router only weights.",
    ),
    Hyperparameter(
        name="top_k",
        meaning="number of experts that each token visits; at most n_experts",
        default=2,
        unit="experts",
        low=1,
        usual_low=1,
        usual_high=4,
        raising="Increases the compute of the expert layers in proportion and makes routing smoother; the gain per"
        " expert shrinks quickly after the second.",
        lowering="Makes steps cheaper; at 1 the only expert's weight is always one, so nothing but the load balancing"
        " loss trains the router.",
    ),
    Hyperparameter(
        name="dropout",
        meaning="probability that an activation is set to zero in training",
        default=0.0,
        low=0,
        high=1,
        high_open=True,
        usual_low=0.0,
        usual_high=0.2,
        raising="Works against memorizing when the data is repeated over many epochs; when each token is seen about"
        " once it only slows learning down.",
        lowering="Fits the training text faster; on many epochs the validation loss may turn up while the training"
        " loss still falls.",
    ),
    Hyperparameter(
        name="load_balancing_weight",
        meaning="weight of the auxiliary loss that makes the router spread tokens over the experts",
        default=0.01,
        low=0,
        usual_low=0.001,
        usual_high=0.1,
        log=True,
        unused_if=("n_experts", 1),
        raising="Evens out expert_load_cv; too much makes the router choose for balance rather than for the token"
        " and raises the language-model loss.",
        lowering="Leaves the router freer, at the risk that a few experts take all tokens and the rest stay"
        " untrained; watch expert_load_cv.",
    ),
    # Optimizer
    Hyperparameter(
        name="optimizer",
        meaning="optimizer of the matrices of attention and experts, at learning_rate; AdamW always trains the rest",
        default="muon",
        choices=("muon", "adamw"),
        changing="Muon gives every direction of a matrix an update of about the same size and usually needs fewer"
        " steps; its good learning rates are about ten times AdamW's, so compare the two only after tuning each.",
    ),
    Hyperparameter(
        name="learning_rate",
        meaning="peak learning rate of the matrices of attention and experts, whichever optimizer trains them",
        default=0.02,
        low=0,
        low_open=True,
        usual_low=0.003,
        usual_high=0.1,
        log=True,
        raising="Moves faster, which a short run needs; past the optimum the loss plateaus or spikes early, and more"
        " warmup, a larger batch or lower momentum raises that limit a little.",
        lowering="Trains more smoothly and may reach a lower loss when there are many steps; in a small budget the"
        " model remains undertrained, so an optimum holds for its max_steps and batch size only.",
    ),
    Hyperparameter(
        name="adamw_learning_rate",
        meaning="peak learning rate of embedding, router and gains, which AdamW trains on the same schedule",
        default=0.002,
        low=0,
        low_open=True,
        usual_low=0.0003,
        usual_high=0.01,
        log=True,
        raising="Lets embeddings and router move faster, which matters most early and for rare tokens; too much makes"
        " the logits swing and the loss spike.",
        lowering="Makes the embeddings more stable but slow to learn: for a good part of a short run the blocks then"
        " train on nearly random embeddings.",
    ),
    Hyperparameter(
        name="momentum",
        meaning="decay of Muon's running average of gradients, over about 1 / (1 - momentum) steps",
        default=0.95,
        low=0,
        high=1,
        high_open=True,
        usual_low=0.8,
        usual_high=0.99,
        unused_if=("optimizer", "adamw"),
        raising="Averages more steps (20 at 0.95, 100 at 0.99), which helps with noisy small batches; it reacts later,"
        " and an average over more steps than the warmup has wastes much of a short run.",
        lowering="Follows the current gradient more closely; with small batches the orthogonalized update then"
        " amplifies noise, so the best learning rate gets lower.",
    ),
    Hyperparameter(
        name="ns_steps",
        meaning="iterations of Newton-Schulz with which Muon orthogonalizes its update",
        default=5,
        unit="iterations",
        low=1,
        high=20,
        usual_low=3,
        usual_high=7,
        unused_if=("optimizer", "adamw"),
        raising="Brings smaller singular values up to about one too, for an optimizer that is slower in proportion;"
        " beyond 5 or so the usual coefficients only oscillate around one, and the loss hardly changes.",
        lowering="Makes the optimizer cheaper and leaves weak directions of the gradient weak; the update also gets"
        " smaller, which a higher learning rate partly makes up for.",
    ),
    Hyperparameter(
        name="weight_decay",
        meaning="decoupled weight decay: each step shrinks the weights by the learning rate times this factor",
        default=0.0,
        low=0,
        usual_low=0.0,
        usual_high=0.2,
        raising="Keeps weights small, which helps long runs and repeated data; its effect scales with the learning"
        " rate, so the two are best tuned together.",
        lowering="Lets weights grow freely; in a run of a few hundred steps there is seldom a difference to see.",
    ),
    Hyperparameter(
        name="adam_beta1",
        meaning="decay of AdamW's running average of gradients",
        default=0.9,
        low=0,
        high=1,
        high_open=True,
        usual_low=0.8,
        usual_high=0.95,
        raising="Smooths noisy gradients over more steps and reacts later to change.",
        lowering="Reacts at once and passes more gradient noise on to embeddings and router; usually a small effect.",
    ),
    Hyperparameter(
        name="adam_beta2",
        meaning="decay of AdamW's running average of squared gradients, which sets each weight's step size",
        default=0.95,
        low=0,
        high=1,
        high_open=True,
        usual_low=0.9,
        usual_high=0.999,
        raising="Steadies the step sizes over about 1 / (1 - adam_beta2) steps; 0.999 is too slow to follow in a run"
        " of a few hundred steps and can overshoot after a sudden large gradient.",
        lowering="Adapts faster after loss spikes, with noisier step sizes, above all for rare tokens.",
    ),
    Hyperparameter(
        name="max_grad_norm",
        meaning="norm to which the whole gradient is clipped before the optimizer sees it; 0 turns clipping off",
        default=1.0,
        low=0,
        usual_low=0.3,
        usual_high=3.0,
        log=True,
        raising="Clips less often, so that an unusual batch weighs more in the running averages; 0 never clips.",
        lowering="Clips more often, down to every step; neither Muon nor AdamW then moves less in the long run,"
        " since both rescale the gradient: clipping only evens out the weight of the batches.",
    ),
    # Schedule
    Hyperparameter(
        name="max_steps",
        meaning="length of the run and of the learning rate schedule, in optimizer steps",
        default=250,
        unit="optimizer steps",
        low=1,
        usual_low=100,
        usual_high=10_000,
        log=True,
        raising="Trains on more tokens in proportionally more time; the best learning rate usually falls, so tune it"
        " again rather than reuse that of a short run.",
        lowering="Is cheaper and favors high learning rates; rankings found at very few steps may not hold for"
        " the full run.",
        unused_unless=("max_tokens", 0),
    ),
    Hyperparameter(
        name="max_tokens",
        meaning="length of the run and of the learning rate schedule in tokens, rounded down to whole steps; with 0,"
        " max_steps is the length",
        default=0,
        unit="tokens",
        low=0,
        usual_low=1_000_000,
        usual_high=10_000_000_000,
        log=True,
        raising="Trains longer in proportion. At a fixed number of tokens, batch sizes are compared at the"
        " same cost; at a fixed number of steps the larger batch sees more text.",
        lowering="Is cheaper and favors small batches, which take more steps for the same tokens, and high learning"
        " rates.",
    ),
    Hyperparameter(
        name="lr_scheduler_type",
        meaning="shape of the learning rate schedule after warmup",
        default="cosine",
        choices=("cosine", "linear", "wsd", "constant"),
        changing="Cosine and linear fall from the end of warmup to min_lr_ratio at the last step; wsd stays at its"
        " peak and falls only near the end; constant never falls, so its loss is noisier and usually higher.",
    ),
    Hyperparameter(
        name="warmup_ratio",
        meaning="fraction of max_steps over which the learning rate rises linearly to its peak",
        default=0.05,
        unit="fraction of max_steps",
        low=0,
        high=1,
        usual_low=0.0,
        usual_high=0.2,
        raising="Allows a higher peak learning rate, because the first, most erratic updates stay small; it takes"
        " steps from the rest of the schedule, which costs most in a short run.",
        lowering="Spends more steps near the peak; with a high learning rate the loss may spike or diverge in the"
        " first steps, so the two are best searched together.",
    ),
    Hyperparameter(
        name="min_lr_ratio",
        meaning="learning rate at the last step as a fraction of the peak",
        default=0.0,
        unit="fraction of the peak",
        low=0,
        high=1,
        usual_low=0.0,
        usual_high=0.2,
        unused_if=("lr_scheduler_type", "constant"),
        raising="Keeps the last steps moving, and noisier: most of the drop in loss from decay is lost as it nears 1.",
        lowering="Settles into a lower loss at the end of this run; at 0 the last steps change almost nothing, which"
        " is a poor start for further training.",
    ),
    # Batch
    Hyperparameter(
        name="batch_size",
        meaning="sequences in a micro-batch, which are on the device at once",
        default=24,
        unit="sequences",
        low=1,
        usual_low=8,
        usual_high=64,
        log=True,
        raising="Uses the device better, takes more memory, and makes gradients less noisy, so a higher learning"
        " rate is stable; at a fixed number of steps it also trains on more tokens, which is not a fair comparison.",
        lowering="Saves memory and gives noisier gradients from fewer tokens per step; to keep the global batch,"
        " raise gradient_accumulation_steps by the same factor.",
    ),
    Hyperparameter(
        name="gradient_accumulation_steps",
        meaning="micro-batches whose gradients are averaged for one optimizer step",
        default=1,
        unit="micro-batches",
        low=1,
        usual_low=1,
        usual_high=16,
        log=True,
        raising="Makes the global batch larger without more memory, and each step slower in proportion; the averaged"
        " gradient is that of one large batch, so the best learning rate tends to rise.",
        lowering="Takes more optimizer steps for the same tokens, each on a noisier gradient, and spends a larger"
        " share of the time in the optimizer, which for Muon is noticeable.",
    ),
    Hyperparameter(
        name="sequence_length",
        meaning="tokens in a training sequence, and thus the longest context of a prediction",
        default=512,
        unit="tokens",
        low=2,
        usual_low=128,
        usual_high=2048,
        log=True,
        raising="Gives later tokens more context and lower loss, with attention cost growing quadratically; losses at"
        " different lengths are not comparable.",
        lowering="Is faster per token and makes more, shorter sequences of the same text; what depends on distant"
        " text can no longer be learned.",
    ),
    # Data
    Hyperparameter(
        name="dataset",
        meaning="the text to train on: python-stdlib, a folder, a .txt, .jsonl or .parquet file, or a Hugging Face"
        " dataset (owner/name, or owner/name@revision)",
        default="python-stdlib",
        changing="Makes it another problem with another scale of the loss: values are comparable within one dataset"
        " only, and good learning rates transfer roughly at best.",
    ),
    Hyperparameter(
        name="dataset_config",
        meaning="configuration of a Hugging Face dataset; default is the dataset's own default",
        default="default",
        changing="Selects another text under the same name, often of another kind or language; as with dataset, it is"
        " another problem.",
    ),
    Hyperparameter(
        name="text_field",
        meaning="field of the text in the rows of a .jsonl or .parquet file or a Hugging Face dataset",
        default="text",
        changing="Reads another column of the same rows: a title or a prompt is shorter and easier to predict than a"
        " body, so losses do not compare.",
    ),
    Hyperparameter(
        name="max_documents",
        meaning="number of documents to read, from the first on, before near-duplicates are dropped; 0 reads all",
        default=0,
        unit="documents",
        low=0,
        usual_low=1000,
        usual_high=10_000_000,
        log=True,
        raising="Adds text to train on, enlarges the validation split with it, and takes longer to prepare; the"
        " validation text differs, so losses with different values are not comparable.",
        lowering="Prepares sooner, from the beginning of the source, which may not be typical of it; the splits shrink"
        " in proportion, and a small validation split ranks trials by chance.",
    ),
    Hyperparameter(
        name="split",
        meaning="how text is held out: whole documents, or windows that overlap those trained on (a leak, to study it)",
        default="documents",
        choices=("documents", "overlapping_windows"),
        changing="documents measures the loss on new text; overlapping_windows puts nearly every validation token"
        " into training, so that the setting that memorizes best has the lowest loss.",
    ),
    Hyperparameter(
        name="tokenizer",
        meaning="tokenizer of the text: bpe (trained on the training documents), bytes, a folder with a tokenizer, or a"
        " Hugging Face name (owner/name, or owner/name@revision)",
        default="bpe",
        changing="Changes how many bytes a token represents, and with it the loss per token and how much text fits"
        " into a sequence; compare val_bits_per_byte, which does not depend on it.",
    ),
    Hyperparameter(
        name="vocab_size",
        meaning="size of the vocabulary and of the embedding: bpe learns this many tokens, others must fit into it",
        default=4096,
        unit="tokens",
        low=257,
        usual_low=2048,
        usual_high=65_536,
        log=True,
        raising="Represents more text by a token, at the cost of a larger embedding with rows that are used and trained"
        " less; the loss per token rises, so compare val_bits_per_byte.",
        lowering="Makes the output layer cheap and each token well trained, while the same text needs more tokens and"
        " less of it fits into a sequence.",
    ),
    Hyperparameter(
        name="max_train_tokens",
        meaning="training tokens to keep, from the first on; 0 keeps all",
        default=0,
        unit="tokens",
        low=0,
        usual_low=1_000_000,
        usual_high=1_000_000_000,
        log=True,
        raising="Adds distinct text: fewer epochs at the same number of steps, and thus less memorization.",
        lowering="Repeats the same text more often; after a few epochs the model memorizes it, and the validation loss"
        " stops following the training loss.",
    ),
    # Evaluation
    Hyperparameter(
        name="eval_steps",
        meaning="optimizer steps from one evaluation to the next; also how often a pruner or a budget can act",
        default=25,
        unit="optimizer steps",
        low=1,
        usual_low=10,
        usual_high=500,
        log=True,
        raising="Spends less time on evaluation, and lets an unpromising trial run longer before it can be pruned.",
        lowering="Records finer curves and prunes unpromising trials earlier, at the cost of time for evaluation.",
    ),
    Hyperparameter(
        name="eval_tokens",
        meaning="validation tokens of each evaluation, always the same ones; 0 reads all",
        default=65_536,
        unit="tokens",
        low=0,
        usual_low=16_384,
        usual_high=1_048_576,
        log=True,
        raising="Measures the loss with less sampling error, so that smaller differences between trials are real, at"
        " the cost of a longer evaluation.",
        lowering="Evaluates faster; the winner may then be the one that suits these few tokens.",
    ),
    # Run
    Hyperparameter(
        name="precision",
        meaning="dtype of the matrix products; auto selects bf16 on devices with fast support for it",
        default="auto",
        choices=("auto", "fp32", "bf16"),
        changing="bf16 halves the memory of activations and is several times faster on recent GPUs, for a loss that is"
        " usually the same within the noise of a seed; fp32 is the reference to check against.",
    ),
    Hyperparameter(
        name="compile",
        meaning="compile the model's forward and backward pass with torch.compile",
        default=False,
        changing="Takes a minute at the first trial of each shape in a worker, needs a C++ compiler or Triton, and does"
        " the same training up to rounding. On a CPU it is slower; on a GPU it may be worthwhile if trials are longer"
        " than that.",
    ),
    Hyperparameter(
        name="seed",
        meaning="seed of the initial weights, the order of the data and dropout; a trial is a configuration and a seed",
        default=0,
        low=0,
        # NumPy accepts no larger seed.
        high=2**32 - 1,
        changing="Repeats the run with other random numbers: the spread over seeds is the noise below which two"
        " settings are a tie, so it is never searched.",
    ),
)

HYPERPARAMETERS: dict[str, Hyperparameter] = {entry.name: entry for entry in _ENTRIES}

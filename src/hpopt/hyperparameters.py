"""Owns the dictionary: every hyperparameter that hpopt knows, once. Leaves their combinations to the configs.

The defaults of the model and the usual ranges are those of a small Mixture-of-Experts model trained with Muon.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hpopt.errors import ConfigError, did_you_mean

Scalar = bool | int | float | str

# The largest integer that TOML extrapolated to carry.
LARGEST_INT = 2**63 - 1

TYPE_NAMES: dict[type[Scalar], str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
}


@dataclass(frozen=True, kw_only=True)
class Hyperparameter:
    """One entry of the dictionary.

    `low` and `high` are the values beyond which it means nothing (inclusive unless `low_open` or `high_open`);
    `usual_low` and `usual_high` are where a search looks first, on a logarithmic scale if `log`.
    It does nothing where another hyperparameter has the value of `unused_if`, or another than that of `unused_unless`.
    What has an order says what `raising` and `lowering` it does; what has none says what `changing` it does.
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
    def type(self) -> type[Scalar]:
        """bool, int, float or str: the type of the default."""
        return type(self.default)


def default_of(name: str) -> Any:  # noqa: ANN401 - the type is the entry's.
    """Give the default of a hyperparameter."""
    return HYPERPARAMETERS[name].default


def check_value(name: str, value: object) -> Scalar:
    """Give the value in the entry's type (an int passes as a float), or raise ConfigError saying what is allowed."""
    if name not in HYPERPARAMETERS:
        raise ConfigError(name, f"no such hyperparameter{did_you_mean(name, HYPERPARAMETERS)}")
    entry = HYPERPARAMETERS[name]
    checked = check_type(name, value, entry.type)
    problem = _word_problem(entry, checked) if isinstance(checked, str) else _number_problem(entry, checked)
    if problem:
        raise ConfigError(name, problem)
    return checked


def check_type(name: str, value: object, expected: type[Scalar]) -> Scalar:
    """Give the value in the expected type (an int passes as a float), or raise ConfigError."""
    if type(value) is int and abs(value) > LARGEST_INT:
        raise ConfigError(name, f"{value} does not fit into 64 bits")
    if expected is float and type(value) is int:
        return float(value)
    # An exact comparison, because True is an int to isinstance.
    if isinstance(value, bool | int | float | str) and type(value) is expected:
        return value
    raise ConfigError(name, f"{value!r} is not {TYPE_NAMES[expected]}")


def not_one_of(value: object, known: Iterable[object]) -> str:
    """Say that a value is none of the known ones, in their order, and which is the nearest."""
    names = [str(name) for name in known]
    # They are listed already, so only a misspelled word adds anything.
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
        lowering="Gives fewer, wider heads at the same parameter count; a small effect unless very few are left.",
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
        raising="Costs compute in the expert layers in proportion and makes routing smoother; the gain per expert"
        " shrinks quickly after the second.",
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
        meaning="weight of the auxiliary loss that asks the router to spread tokens over the experts",
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
        meaning="what trains the matrices of attention and experts, at learning_rate; the rest is always AdamW's",
        default="muon",
        choices=("muon", "adamw"),
        changing="Muon gives every direction of a matrix an update of about the same size and usually needs fewer"
        " steps; its good learning rates are about ten times AdamW's, so compare the two only after tuning each.",
    ),
    Hyperparameter(
        name="learning_rate",
        meaning="peak learning rate of the matrices of attention and experts, Muon's unless optimizer says adamw",
        default=0.02,
        low=0,
        low_open=True,
        usual_low=0.003,
        usual_high=0.1,
        log=True,
        raising="Moves faster, which a short run needs; past the optimum the loss plateaus or spikes early, and more"
        " warmup, a larger batch or lower momentum buys some room.",
        lowering="Trains more smoothly and may reach a lower loss when there are many steps; in a small budget the"
        " model simply does not get far, so an optimum holds for its max_steps and batch only.",
    ),
    Hyperparameter(
        name="adamw_learning_rate",
        meaning="peak learning rate of embedding, router and gains, which are AdamW's; on the same schedule",
        default=0.002,
        low=0,
        low_open=True,
        usual_low=0.0003,
        usual_high=0.01,
        log=True,
        raising="Lets embeddings and router move faster, which matters most early and for rare tokens; too much makes"
        " the logits swing and the loss spike.",
        lowering="Keeps the embeddings steady but late: the blocks then learn on top of a nearly random vocabulary"
        " for a good part of a short run.",
    ),
    Hyperparameter(
        name="momentum",
        meaning="decay of Muon's running average of gradients, which remembers about 1 / (1 - momentum) steps",
        default=0.95,
        low=0,
        high=1,
        high_open=True,
        usual_low=0.8,
        usual_high=0.99,
        unused_if=("optimizer", "adamw"),
        raising="Averages more steps (20 at 0.95, 100 at 0.99), which helps with noisy small batches; it reacts later,"
        " and an average longer than the warmup wastes a short run.",
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
        meaning="decoupled weight decay: each step shrinks the weights by learning rate times this",
        default=0.0,
        low=0,
        usual_low=0.0,
        usual_high=0.2,
        raising="Keeps weights small, which helps long runs and repeated data; its pull scales with the learning"
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
        raising="Clips more rarely, so that one odd batch weighs more in the running averages; 0 never clips at all.",
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
        raising="Trains on more tokens for time in proportion; the best learning rate usually falls, so retune it"
        " rather than carry it over from a short run.",
        lowering="Is cheaper and favors high learning rates; rankings found at very few steps may not hold for"
        " the full run.",
        unused_unless=("max_tokens", 0),
    ),
    Hyperparameter(
        name="max_tokens",
        meaning="length of the run and of the learning rate schedule in tokens, rounded down to whole steps; 0 leaves"
        " it to max_steps",
        default=0,
        unit="tokens",
        low=0,
        usual_low=1_000_000,
        usual_high=10_000_000_000,
        log=True,
        raising="Trains longer for time in proportion. At a fixed number of tokens, batch sizes are compared at the"
        " same cost; at a fixed number of steps the larger batch sees more text.",
        lowering="Is cheaper and favors small batches, which take more steps for the same tokens, and high learning"
        " rates.",
    ),
    Hyperparameter(
        name="lr_scheduler_type",
        meaning="course of the learning rate after warmup",
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
        " is a poor place to go on training from.",
    ),
    # Batch
    Hyperparameter(
        name="batch_size",
        meaning="sequences in a micro-batch: what is on the device at once",
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
        raising="Makes the global batch larger at no memory, for a step that is slower in proportion; the averaged"
        " gradient is that of one large batch, so the best learning rate tends to rise.",
        lowering="Takes more optimizer steps for the same tokens, each on a noisier gradient, and spends a larger"
        " share of the time in the optimizer, which for Muon is noticeable.",
    ),
    Hyperparameter(
        name="sequence_length",
        meaning="tokens in a training sequence: how far back a prediction can look",
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
        changing="Gives another problem with another loss scale: values are comparable within one dataset only, and"
        " good learning rates carry over roughly at best.",
    ),
    Hyperparameter(
        name="dataset_config",
        meaning="which configuration of a Hugging Face dataset; default takes the dataset's own",
        default="default",
        changing="Gives another text under the same name, often of another kind or language, so it is another problem"
        " as with dataset.",
    ),
    Hyperparameter(
        name="text_field",
        meaning="the field that holds the text in the rows of a .jsonl or .parquet file or a Hugging Face dataset",
        default="text",
        changing="Reads another column of the same rows: a title or a prompt is shorter and easier to predict than a"
        " body, so losses do not compare.",
    ),
    Hyperparameter(
        name="max_documents",
        meaning="documents to read, from the first on, before near-copies are dropped; 0 reads all",
        default=0,
        unit="documents",
        low=0,
        usual_low=1000,
        usual_high=10_000_000,
        log=True,
        raising="Gives more text to train on, a larger validation split with it, and longer preparation; the validation"
        " text is another one, so losses of different values do not compare.",
        lowering="Prepares sooner, from a start of the source that may not be typical of it; the splits shrink in"
        " proportion, and a small validation split ranks trials by chance.",
    ),
    Hyperparameter(
        name="split",
        meaning="how text is held out: whole documents, or windows that overlap those trained on (a mistake to study)",
        default="documents",
        choices=("documents", "overlapping_windows"),
        changing="documents measures what carries over to new text; overlapping_windows puts nearly every validation"
        " token into training, so that the lowest loss goes to the setting that memorizes best.",
    ),
    Hyperparameter(
        name="tokenizer",
        meaning="what cuts text into tokens: bpe (trained on the training documents), bytes, a folder with a tokenizer,"
        " or a Hugging Face name (owner/name, or owner/name@revision)",
        default="bpe",
        changing="Changes how many bytes a token stands for, and with it the loss per token and the text that fits"
        " into a sequence; compare val_bits_per_byte, which does not depend on it.",
    ),
    Hyperparameter(
        name="vocab_size",
        meaning="size of the vocabulary, and of the embedding: bpe learns that many tokens, others must fit into it",
        default=4096,
        unit="tokens",
        low=257,
        usual_low=2048,
        usual_high=65_536,
        log=True,
        raising="Packs more text into a token, for larger embedding and output layers with rarer, less trained rows;"
        " loss per token rises, so compare val_bits_per_byte.",
        lowering="Makes the output layer cheap and each token well trained, while the same text takes more tokens and"
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
        raising="Gives more distinct text and fewer epochs at the same number of steps, and thereby less to memorize.",
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
        raising="Spends less time on evaluation and lets a hopeless trial run longer before it can be stopped.",
        lowering="Draws finer curves and stops hopeless trials earlier, for time spent on evaluation.",
    ),
    Hyperparameter(
        name="eval_tokens",
        meaning="validation tokens that each evaluation reads, the same ones every time; 0 reads all",
        default=65_536,
        unit="tokens",
        low=0,
        usual_low=16_384,
        usual_high=1_048_576,
        log=True,
        raising="Measures the loss with less sampling error, so that smaller differences between trials count, for"
        " a longer evaluation.",
        lowering="Evaluates faster; the winner may then be the one that suits these few tokens.",
    ),
    # Run
    Hyperparameter(
        name="precision",
        meaning="arithmetic of the matrix products; auto takes bf16 where the device is fast at it",
        default="auto",
        choices=("auto", "fp32", "bf16"),
        changing="bf16 halves the memory of activations and is several times faster on recent GPUs, for a loss that is"
        " usually the same within the noise of a seed; fp32 is the reference to check that against.",
    ),
    Hyperparameter(
        name="compile",
        meaning="compile the model's forward and backward pass with torch.compile",
        default=False,
        changing="Costs a minute at the first trial of each shape in a worker and a C++ compiler or Triton, and gives"
        " the same training up to rounding. On a CPU it is slower; on a GPU it may pay where trials are longer than"
        " that.",
    ),
    Hyperparameter(
        name="seed",
        meaning="seed of the initial weights, the order of the data and dropout; a trial is params and a seed",
        default=0,
        low=0,
        # numpy takes no larger seed.
        high=2**32 - 1,
        changing="Repeats the run with other luck: the spread over seeds is the noise below which two settings"
        " are a tie, so it is never searched.",
    ),
)

HYPERPARAMETERS: dict[str, Hyperparameter] = {entry.name: entry for entry in _ENTRIES}

"""Flags of Megatron-LM's to those of this package, with a note on every one of them."""

from dataclasses import dataclass, field

from megatron_yuyuan import megatron_flags
from megatron_yuyuan.config import TrainingConfig, config_fields, flag_of
from megatron_yuyuan.config_toml import nearest
from megatron_yuyuan.train.schedule import batch_size
from megatron_yuyuan.translation import table
from megatron_yuyuan.translation.command import Flag, Parts

KEPT, CHANGED, ADDED = "kept as it is", "changed", "added, Megatron-LM's default"
NO_EFFECT, UNSUPPORTED = "no effect here", "not supported, left out"
GROUPS = (KEPT, CHANGED, ADDED, NO_EFFECT, UNSUPPORTED)


@dataclass(frozen=True)
class Note:
    """What became of a flag."""

    group: str
    was: str
    """As Megatron-LM has it; empty of what is added."""
    now: str
    """As it stands in the translated command; empty of what is not in it."""
    why: str = ""


@dataclass
class Translation:
    """A command on its way."""

    flags: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Of the translated command: name -> values, in their order. A later one wins, as in argparse."""
    notes: list[Note] = field(default_factory=list)

    @property
    def words(self) -> list[str]:
        """The flags as words."""
        return [word for name, values in self.flags.items() for word in (name, *values)]

    def keep(self, flag: Flag) -> None:
        self.flags[flag.name] = flag.values
        self.notes.append(Note(KEPT, str(flag), str(flag)))

    def change(self, was: Flag, *now: Flag, why: str) -> None:
        """Put other flags in the place of one; its own name may be among them."""
        self.flags.pop(was.name, None)
        self.flags |= {flag.name: flag.values for flag in now}
        self.notes = [n for n in self.notes if n.group != KEPT or n.was != str(was)]
        self.notes.append(Note(CHANGED, str(was), " ".join(map(str, now)), why))

    def add(self, flag: Flag, why: str = "") -> None:
        self.flags[flag.name] = flag.values
        self.notes.append(Note(ADDED, "", str(flag), why))

    def number(self, name: str) -> int:
        """The value of a flag; 0 where it is not given or no whole number."""
        value = "".join(self.flags.get(name, ("0",)))
        return int(value) if value.isdigit() else 0


def translate(parts: Parts) -> Translation:
    """Go through all flags of a command, then through what several of them say together."""
    translation = Translation()
    if parts.script != "pretrain_gpt.py":
        for flag in parts.flags:
            if flag.name in table.PREPROCESSING:
                translation.keep(flag)
            else:
                _without_counterpart(flag, translation, table.PREPROCESSING)
        translation.add(Flag("--keep-duplicates", ()), "Megatron-LM keeps texts that come again")
        return translation
    names = {flag.name for flag in parts.flags}
    for flag in parts.flags:
        if flag.name == "--no-bias-gelu-fusion" and "--openai-gelu" in names:
            why = "with --openai-gelu it is the tanh form all the same"
            translation.notes.append(Note(NO_EFFECT, str(flag), "", why))
        else:
            _translate_flag(flag, translation)
    _replace_loading(translation)
    _complete_recomputation(translation)
    _replace_virtual_stages(parts.flags, translation)
    _count_samples(translation)
    _add_defaults(translation)
    return translation


def _translate_flag(flag: Flag, translation: Translation) -> None:
    """What a flag says by itself."""
    name = flag.name
    if name in table.RENAMED:
        renamed = Flag(table.RENAMED[name], flag.values)
        translation.change(flag, renamed, why="the same under another name")
    elif name in table.REPLACED:
        first, *more = table.REPLACED[name].split()
        pairs = [(first, more[0]), *zip(more[1::2], more[2::2], strict=True)]
        replaced = [Flag(key, (value,)) for key, value in pairs]
        translation.change(flag, *replaced, why="the same in other words")
    elif name in _known():
        _keep_if_allowed(flag, translation)
    elif name in megatron_flags.NO_EFFECT | megatron_flags.NO_EFFECT_WITH_VALUE:
        why = "asks for what happens here anyway, or for nothing"
        translation.notes.append(Note(NO_EFFECT, str(flag), "", why))
    elif set(flag.values) & table.SAME_AS_HERE.get(name, set()):
        translation.notes.append(Note(NO_EFFECT, str(flag), "", "this is how it is here"))
    elif name != "--num-layers-per-virtual-pipeline-stage":
        _without_counterpart(flag, translation, _known())


def _known() -> set[str]:
    """The flags of pretrain_gpt.py, the negative form of switches too."""
    fields = config_fields()
    names = {flag_of(name) for name in fields}
    switches = {name for name, (_, declared) in fields.items() if declared.type is bool}
    return names | {flag_of(f"no_{name}") for name in switches}


def _keep_if_allowed(flag: Flag, translation: Translation) -> None:
    """A flag that is ours too; its value may be one that only Megatron-LM knows."""
    _, declared = config_fields().get(flag.name[2:].replace("-", "_"), ("", None))
    choices = declared.metadata.get("choices") if declared else None
    if flag.name == "--tokenizer-type" and flag.values == ("GPTSentencePieceTokenizer",):
        ours = Flag(flag.name, ("SentencePieceTokenizer",))
        translation.change(flag, ours, why="the end of text is the model's own")
    elif choices and not set(flag.values) <= set(choices):
        why = f"here it is one of {', '.join(choices)}"
        translation.notes.append(Note(UNSUPPORTED, str(flag), "", why))
    else:
        translation.keep(flag)


def _without_counterpart(flag: Flag, translation: Translation, known) -> None:
    """A flag that is in no way ours: what serves in its place, or the name that is nearest to it."""
    instead = table.INSTEAD | megatron_flags.INSTEAD
    if flag.name in table.OF_OTHER_MODELS:
        why = table.GPT2_ALONE
    elif flag.name in instead:
        why = f"instead: {instead[flag.name]}"
    elif flag.name in megatron_flags.NOT_YET or flag.name in table.SAME_AS_HERE:
        allowed = sorted(table.SAME_AS_HERE.get(flag.name, ()))
        why = f"not built{f'; {flag.name} {allowed[0]} is how it is here' if allowed else ''}"
    else:
        why = f"unknown; the nearest: {nearest(flag.name, sorted(known))}"
    translation.notes.append(Note(UNSUPPORTED, str(flag), "", why))


def _replace_loading(translation: Translation) -> None:
    """--load of the directory of --save, which Megatron-LM needs to go on: here --save alone does."""
    flags = translation.flags
    same = "--load" in flags and flags["--load"] == flags.get("--save")
    if same and "--finetune" not in flags:
        why = (
            "--save alone goes on with what it holds; --load of an empty directory is an error here"
        )
        translation.change(Flag("--load", flags["--load"]), why=why)


def _complete_recomputation(translation: Translation) -> None:
    """--recompute-method alone, as in 2021: whole blocks, one at a time."""
    flags = translation.flags
    method = flags.get("--recompute-method")
    needed = {"--recompute-granularity": ("full",), "--recompute-num-layers": ("1",)}
    missing = [Flag(name, value) for name, value in needed.items() if name not in flags]
    if method and missing:
        why = "in 2021 it stood for whole blocks, one at a time"
        translation.change(
            Flag("--recompute-method", method),
            Flag("--recompute-method", method),
            *missing,
            why=why,
        )


def _replace_virtual_stages(given: list[Flag], translation: Translation) -> None:
    """Layers of a stage to stages of a rank."""
    name = "--num-layers-per-virtual-pipeline-stage"
    flag = next((flag for flag in given if flag.name == name), None)
    if flag is None:
        asked = translation.number("--num-virtual-stages-per-pipeline-rank") > 1
        if asked and "--pipeline-schedule" not in translation.flags:
            schedule = Flag("--pipeline-schedule", ("Interleaved1F1B",))
            translation.add(schedule, "what Megatron-LM runs with several stages a rank")
        return
    layers = int(flag.values[0]) if flag.values and flag.values[0].isdigit() else 0
    pipeline = translation.number("--pipeline-model-parallel-size") or 1
    stages, left = divmod(translation.number("--num-layers"), max(1, layers * pipeline))
    if not layers or left or stages < 2:
        why = f"instead: {megatron_flags.INSTEAD[name]}"
        translation.notes.append(Note(UNSUPPORTED, str(flag), "", why))
        return
    schedule = Flag("--pipeline-schedule", ("Interleaved1F1B",))
    virtual = Flag("--num-virtual-stages-per-pipeline-rank", (str(stages),))
    translation.change(flag, schedule, virtual, why="stages of a rank, not layers of a stage")


def _count_samples(translation: Translation) -> None:
    """A batch that grows: Megatron-LM takes --train-iters with it, and counts the course of the
    learning rate in samples all the same (`get_optimizer_param_scheduler`: iterations times
    global_batch_size)."""
    flags, size = translation.flags, translation.number("--global-batch-size")
    ramp, steps = flags.get("--rampup-batch-size", ()), translation.number("--train-iters")
    if len(ramp) != 3 or not all(word.isdigit() and int(word) for word in ramp):
        return
    if not steps or not size:
        return
    growing = TrainingConfig(global_batch_size=size, rampup_batch_size=tuple(map(int, ramp)))
    why = "with a growing batch a run is counted in samples; this is where it ends there"
    samples = Flag("--train-samples", (str(_samples_of(steps, growing)),))
    course = {"--lr-decay-iters": "--lr-decay-samples", "--lr-warmup-iters": "--lr-warmup-samples"}
    translation.change(Flag("--train-iters", flags["--train-iters"]), samples, why=why)
    why = "Megatron-LM counts it as so many samples: iterations times --global-batch-size"
    for theirs, ours in course.items():
        if translation.number(theirs):
            counted = Flag(ours, (str(translation.number(theirs) * size),))
            translation.change(Flag(theirs, flags[theirs]), counted, why=why)
    if "--lr-decay-samples" not in flags:
        translation.add(Flag("--lr-decay-samples", (str(steps * size),)), why)


def _samples_of(steps: int, training: TrainingConfig) -> int:
    """Samples that so many steps read."""
    consumed = taken = 0
    while taken < steps and batch_size(consumed, training) < training.global_batch_size:
        consumed, taken = consumed + batch_size(consumed, training), taken + 1
    return consumed + (steps - taken) * training.global_batch_size


def _add_defaults(translation: Translation) -> None:
    """What Megatron-LM does without a flag, and this package does otherwise."""
    flags = translation.flags
    applies = {
        "--split": "--data-path" in flags,
        "--initial-loss-scale": "--fp16" in flags and "--loss-scale" not in flags,
    }
    for name, value in table.DEFAULTS.items():
        if name not in flags and applies.get(name, True):
            translation.add(Flag(name, (value,)))

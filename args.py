"""Every option, once: its name, default, range and help.

argparse, the config file and the README's table are all made from the dataclasses below. Nothing heavy is imported, so
`--help` answers at once. A default of None means that the program chooses; the help says how.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from .utils import UserError


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
    parse: Callable[[str], Any] | None = None,
    metavar: str | None = None,
) -> Any:
    """A dataclass field that is a command-line option; `low` and `high` are allowed values, `above` is not."""
    limits = {"low": low, "high": high, "above": above}
    metadata = {"help": help, "limits": limits, "choices": choices, "parse": parse, "metavar": metavar}
    return field(default=default, metadata=metadata)


def share(text: str) -> float:
    """A share of a whole, `0.03` or `3%`. A bare number of 1 or more is ambiguous and refused."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise ValueError("takes a share such as 0.03 or 3%") from None
    if not text.endswith("%") and value >= 1 and "." not in text:
        raise ValueError(f"would mean {100 * value:g}% of the images; write {text}% for a percentage")
    if not 0 <= value <= 1:
        raise ValueError("must lie between 0% and 100%")
    return value


def unfreeze_level(text: str) -> str:
    """`head`, `all`, or a number of last stages."""
    if text in ("head", "all") or (text.isdecimal() and int(text) > 0):
        return text
    raise ValueError("takes head, all, or a number of last stages such as 2")


def fold_count(text: str) -> int:
    """0, or at least 2."""
    if not text.isdecimal() or text == "1":
        raise ValueError("takes 0 or a whole number of folds, at least 2")
    return int(text)


def run_name(text: str) -> str:
    """A name that is one folder under results/."""
    if not text or text in (".", "..") or any(sign in text for sign in '/\\:*?"<>|\0\n') or text != text.strip():
        raise ValueError("must be a plain folder name, without slashes")
    return text


def view_name(text: str) -> str:
    """A view's name, or NAME=WEIGHTS."""
    name, sign, weights = text.partition("=")
    if not name.strip() or (sign and not weights):
        raise ValueError("takes NAME or NAME=FILE")
    return text


# fmt: off
@dataclass(frozen=True)
class Run:
    """Run"""

    name: str | None = option(None, "the run's name: all it leaves goes to results/NAME", parse=run_name)
    resume: bool = option(False, "go on with the run NAME where it stopped")
    overwrite: bool = option(False, "replace the run NAME instead of making NAME-2; also the file that --predict_dir or --export would write")
    config: str | None = option(None, "a JSON or TOML file of options; the command line goes before it", metavar="FILE")
    seed: int = option(0, "the seed of the split, the order, the weights and the pseudo-labels", low=0)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    precision: str = option("auto", "of the networks' passes; auto: bf16 on a GPU that has it, and for a frozen backbone on an x86 CPU that has it", choices=("auto", "fp32", "bf16"))
    compile: bool = option(False, "compile the networks that learn with torch.compile")
    num_workers: int = option(2, "processes that decode image files beside the training", low=0)
    tensorboard: bool = option(False, "also write curves, confusion matrices and sample images for TensorBoard (pip install tensorboard)")
    keep_pages: bool = option(True, "let the C library keep freed memory for the next pass (Linux: much faster on the CPU)")
    cache: bool = option(True, "keep a frozen backbone's features on disk and use them again")
    cache_dir: str = option("cache", "where the feature banks lie", metavar="DIR")
    cache_limit: float = option(20.0, "GB that all banks may take; whole old ones are removed", above=0)
    cache_dtype: str = option("float16", "of the numbers in a bank", choices=("float16", "float32"))


@dataclass(frozen=True)
class Data:
    """Data"""

    data_dir: str = option("digits", "a folder of images, or digits, moons, fake, cifar10, cifar100, svhn, stl10, flowers102, food101, fgvc_aircraft", metavar="DIR")
    data_root: str = option("datasets", "where torchvision's data sets lie", metavar="DIR")
    download: bool = option(False, "download a torchvision data set into --data_root when it is not there")
    labels_csv: str | None = option(None, "a table with the columns path,label under --data_dir; an empty label means unlabeled", metavar="FILE")
    num_labels_percent: float | None = option(None, "labeled share of the images that are left for training, 0.03 or 3%%; default 3%%, or all labels where the data set has unlabeled images of its own", parse=share, metavar="SHARE")
    num_labels: int | None = option(None, "the number of labeled images, instead of a share", low=1)
    val_percent: float = option(0.0, "share of the training images for validation; these are labels too and are counted as such", parse=share, metavar="SHARE")
    test_percent: float = option(0.2, "share of the images for the test, where the data set brings none", parse=share, metavar="SHARE")
    label_split: str = option("balanced", "how labeled images are drawn: the same number of each class, or as frequent as the class", choices=("balanced", "stratified"))
    include_labeled: bool = option(True, "labeled images are also used as unlabeled ones")
    augmentation_draws: int = option(8, "different strong views of an unlabeled image for a frozen backbone, and weak ones of a labeled image; an unlabeled one has a quarter as many weak ones", low=1, high=999)
    flip: bool | None = option(None, "mirror images left to right in augmentation; default: yes, except for digits and svhn")
    show_images: bool = option(False, "save a picture of raw, weakly and strongly augmented samples")


@dataclass(frozen=True)
class Model:
    """Model"""

    model_name: str | None = option(None, "resnet, alexnet, vgg, squeezenet, densenet, any torchvision classifier, timm:NAME, or from scratch cnn, wrn28_2, mlp; default: cnn for digits and fake, mlp for moons, wrn28_2 for cifar and svhn, else resnet", metavar="NAME")
    weights: str = option("default", "default (the library's pretrained ones), none, or a .pth or .safetensors file", metavar="WEIGHTS")
    unfreeze: str | None = option(None, "what learns: head, a number of last stages, or all; default: head when pretrained, else all", parse=unfreeze_level, metavar="WHAT")
    head: str = option("linear", "the layers on top of the backbone: one; with a hidden one of 256; or with three of 1,024, with skips. Hidden ones have batch norms, which take the classes to be as frequent in the pile as among the labels", choices=("linear", "hidden", "mlp"))
    head_prior: str = option("pile", "what a linear head on a frozen backbone takes for likely before it sees a label: what the unlabeled images' views tell (priors.py), or nothing", choices=("pile", "none"))
    head_ensemble: int = option(1, "heads that learn as one: the mean of their logits, less sure where they disagree", low=1, high=64)
    image_size: int | None = option(None, "side of the square that the network sees, in pixels; default: the backbone's own", low=8, high=2048)
    print_model: bool = option(False, "print the layers with their numbers of parameters, trainable and frozen")


@dataclass(frozen=True)
class Learning:
    """Learning"""

    num_epochs: int | None = option(None, "passes over the unlabeled images (over the labeled ones in --finetune_mode)", low=1)
    max_steps: int | None = option(None, "training steps, instead of epochs; default: 1000, or 10 epochs if that is more", low=1)
    warmup_epoch_num: int | None = option(None, "first epochs, in which only the teacher learns; default: those of the first tenth of the steps", low=0)
    batch_size: int = option(64, "labeled images a step (at most as many as there are)", low=1)
    unlabeled_batch_size: int = option(64, "unlabeled images a step", low=1)
    max_lr: float = option(0.00263, "the highest learning rate of the one-cycle schedule", above=0)
    optimizer: str = option("AdamW", "the optimizer of every model", choices=("AdamW", "SGD"))
    weight_decay: float = option(1.0, "of heads, decoupled (AdamW) or L2 (SGD); a backbone that learns has a tenth of it", low=0)
    layer_decay: float | None = option(None, "factor of the learning rate from each stage of a pretrained backbone that learns to the one before it; default: 0.75 with --finetune_views, else 1", above=0, high=1)
    grad_clip: float = option(0.0, "largest gradient norm of a model; 0: not clipped", low=0)
    grad_accumulation: int = option(1, "parts that a step is cut into, to need less memory", low=1)
    label_smoothing: float = option(0.0, "of the supervised loss", low=0, high=0.99)
    ema: float = option(0.0, "decay of an average of the weights, used for evaluation only; 0: off", low=0, high=0.99999)
    patience: int | None = option(None, "end after so many epochs without a better validation accuracy (needs validation images)", low=1)
    unsupervised: str = option("CE", "the consistency loss of the teacher: cross-entropy or cosine", choices=("CE", "cos"))
    threshold: float = option(0.9, "least confidence of a weak prediction to teach its strong view", low=0, high=1)
    temperature: float = option(1.0, "of the weak prediction", above=0)
    lambda_u: float = option(3.0, "weight of the consistency loss", low=0)
    uda_steps: int = option(80, "steps over which that weight rises from 0", low=0)
    mpl_weight: float = option(0.3, "weight of the student's feedback to the teacher; 0: off", low=0)
    feedback: str = option("difference", "the student's gain: by two exams, or to first order", choices=("difference", "first_order"))
    feedback_scale: str = option("rms", "divide the gain by its running root mean square, or not", choices=("none", "rms"))
    feedback_center: bool = option(False, "first subtract the running mean of the gain")
    pseudo_label: str = option("argmax", "the teacher's label for the student: the likeliest class, or one draw", choices=("argmax", "sample"))
    pseudo_label_view: str = option("strong", "the augmentation that the pseudo-label is made from", choices=("strong", "weak"))
    student_threshold: float = option(0.9, "least confidence of a pseudo-label that the student learns", low=0, high=1)
    distribution_alignment: float | None = option(None, "move the weak predictions towards the classes' shares of the unlabeled images: 0 not, 1 wholly; default: 1 with a frozen backbone, else 0", low=0, high=1)
    neighbours: int = option(0, "what an unlabeled image is taken for is read half off itself and half off so many unlabeled ones that are most like it by a frozen backbone's features; 0: off itself alone", low=0, high=99)
    class_shares: str = option("estimate", "where those shares come from: estimated from a frozen backbone's features, which costs nothing where they equal those of the labels; or taken to be those of the labels, as they are for a network that learns whole or has learned these labels and where a class has one label", choices=("estimate", "labels"))


@dataclass(frozen=True)
class Mode:
    """Mode (without one: Meta Pseudo Labels)"""

    switch_mode: bool = option(False, "teacher and student change roles every epoch")
    finetune_mode: bool = option(False, "supervised learning on the labeled images alone; without --load_best or --load_path the labels-only baseline")
    test_mode: bool = option(False, "only test a trained run, and write into it")
    load_path: str | None = option(None, "the run to load: its name, its folder or a checkpoint file", metavar="RUN")
    load_best: bool = option(False, "load the best checkpoint instead of the last")
    cotrain_mode: bool = option(False, "Meta Co-Training: a model on each of --views, which teach each other")
    optuna_mode: bool = option(False, "search for better options with Optuna")
    compare: bool = option(False, "train with every method on the same splits, and say which to use")
    inspect: bool = option(False, "look for what is wrong with the data before training")
    list_views: bool = option(False, "print the backbones that --views knows by a short name")
    view_report: bool = option(False, "measure how good each of --views is alone, and how far their errors overlap")
    predict_dir: str | None = option(None, "classify all images under DIR with the run of --load_path", metavar="DIR")
    export: str | None = option(None, "write the classifier of --load_path into one file", choices=("onnx", "torch_export"))


@dataclass(frozen=True)
class Cotraining:
    """Co-training (--cotrain_mode)"""

    views: tuple[str, ...] = option((), "two or more backbones: short names (--list_views), pixels, gradients, or what --model_name takes, each with =FILE for its weights", parse=view_name, metavar="NAME[=FILE]")
    algorithm: str = option("meta", "how the views learn: each from the labels alone, from the others' sure labels, or also by feedback of what was gained", choices=("labels_only", "cotraining", "meta"))
    finetune_views: bool = option(False, "first fine-tune each view's backbone on the labeled images; the views are saved under results/NAME/views, for --views NAME=FILE")
    finetune_steps: int = option(100, "steps of that fine-tuning, a view", low=1)


@dataclass(frozen=True)
class Search:
    """Search (--optuna_mode)"""

    n_trials: int = option(100, "trials of the whole search, all its workers and machines together", low=1)
    timeout: float | None = option(None, "seconds after which no new trial begins", above=0, metavar="SECONDS")
    search: tuple[str, ...] = option((), "KEY=LOW:HIGH, KEY=LOW:HIGH:log or KEY=A,B,C: search any option, or change its usual range; KEY=VALUE holds it fast", metavar="KEY=RANGE")
    folds: int = option(3, "parts of the labeled images, each held out once a trial, where there are no validation images", low=2)
    search_workers: int = option(1, "processes that run trials side by side on this machine", low=1)
    storage: str | None = option(None, "URL of a database that all machines of a search share (SQLite, PostgreSQL, MySQL); default: a journal file in results/NAME", metavar="URL")
    pruner: str = option("median", "gives up trials that lag behind after some of their folds", choices=("median", "hyperband", "none"))


@dataclass(frozen=True)
class Study:
    """Comparing and inspecting"""

    repeat: int | None = option(None, "runs that differ in their seed, counted up from --seed, and their mean with its interval; default: 5 with --compare, else 1", low=1)
    near_duplicate: float = option(0.65, "how alike two images must be to count as near-duplicates (--inspect): 1 is the same picture, mirrored, cropped or in another size", above=0, high=1)


@dataclass(frozen=True)
class Use:
    """Using a finished run (--predict_dir, --export), and how far its probabilities can be trusted"""

    calibration_folds: int | None = option(None, "folds of the labeled images on which a run is trained again at its end, to calibrate its probabilities where there are fewer than 50 validation images; 0: not calibrated; default: 3 with a frozen backbone, else 0", parse=fold_count, low=0)
    out: str | None = option(None, "the file to write; default: predictions.csv or the classifier in the run's folder", metavar="FILE")
    predict_copy: str | None = option(None, "also sort the images of --predict_dir into a folder for each class under DIR", metavar="DIR")
    copy_by: str = option("link", "how: by symbolic links, or as copies", choices=("link", "copy"))
    min_probability: float = option(0.0, "leave images whose class is less probable unnamed, and list them for a person to label", low=0, high=1)


# fmt: on

GROUPS: dict[str, type] = {"run": Run, "data": Data, "model": Model, "learning": Learning, "mode": Mode}
GROUPS |= {"cotraining": Cotraining, "search": Search, "study": Study, "use": Use}


@dataclass(frozen=True)
class Options:
    """All options, by group. `given` names those that the user set, on the command line or in the config file."""

    run: Run = field(default_factory=Run)
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    learning: Learning = field(default_factory=Learning)
    mode: Mode = field(default_factory=Mode)
    cotraining: Cotraining = field(default_factory=Cotraining)
    search: Search = field(default_factory=Search)
    study: Study = field(default_factory=Study)
    use: Use = field(default_factory=Use)
    given: frozenset[str] = frozenset()

    @property
    def mode_name(self) -> str:
        """How a run trains (`finetune`, `switch`, `cotrain` or `mpl`), or `test`."""
        named = (
            ("test", self.mode.test_mode),
            ("finetune", self.mode.finetune_mode),
            ("switch", self.mode.switch_mode),
            ("cotrain", self.mode.cotrain_mode),
        )
        return next((name for name, on in named if on), "mpl")

    def flat(self) -> dict[str, Any]:
        """Every option by its name, without the group."""
        return {name: getattr(getattr(self, group), name) for name, group in _GROUP_OF.items()}

    def changed(self, **values: Any) -> Options:
        """A copy with these options, named flat, set to these values (not counted as given)."""
        groups: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            groups.setdefault(_GROUP_OF[name], {})[name] = value
        return dataclasses.replace(self, **{g: dataclasses.replace(getattr(self, g), **v) for g, v in groups.items()})


_FIELDS = {f.name: f for group in GROUPS.values() for f in dataclasses.fields(group)}
_GROUP_OF = {f.name: name for name, group in GROUPS.items() for f in dataclasses.fields(group)}
_TYPES = {name: hint for group in GROUPS.values() for name, hint in typing.get_type_hints(group).items()}


def kind_of(name: str) -> tuple[str, type]:
    """The group and the type of an option; `tuple` where it takes several words. Raises UserError for no option."""
    if name not in _FIELDS:
        raise UserError(_unknown(name))
    return _GROUP_OF[name], tuple if _is_list(name) else _base_type(name)


# Not written into a run: they say what to do with the folder, not what the run is.
NOT_RECORDED = ("resume", "overwrite", "config")

# What the program does instead of training one run; at most one of them. The named ones need no --name.
COMMANDS = ("test_mode", "predict_dir", "export", "inspect", "compare", "optuna_mode", "list_views", "view_report")
NAMELESS = ("test_mode", "predict_dir", "export", "list_views")

# Options of a search that mean nothing without one.
SEARCHING = ("n_trials", "timeout", "search", "folds", "search_workers", "storage", "pruner")

# Who excludes whom, and who needs whom: (option, excluded beside it, at least one needed beside it).
RULES: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    *((name, COMMANDS[:index], ()) for index, name in enumerate(COMMANDS)),
    *((name, ("finetune_mode", "switch_mode", "cotrain_mode"), ()) for name in COMMANDS if name != "optuna_mode"),
    *((name, ("resume", "name"), ("load_path",)) for name in ("test_mode", "predict_dir", "export")),
    ("test_mode", ("overwrite",), ()),
    ("out", (), ("predict_dir", "export")),
    ("predict_copy", (), ("predict_dir",)),
    ("copy_by", (), ("predict_copy",)),
    ("min_probability", (), ("predict_dir",)),
    ("finetune_mode", ("switch_mode", "cotrain_mode"), ()),
    ("switch_mode", ("cotrain_mode",), ()),
    ("cotrain_mode", (), ("views",)),
    (
        "views",
        ("model_name", "weights", "unfreeze", "image_size", "compile"),
        ("cotrain_mode", "view_report", "compare"),
    ),
    ("view_report", ("resume",), ("views",)),
    ("algorithm", (), ("cotrain_mode",)),
    ("finetune_views", (), ("cotrain_mode",)),
    ("finetune_steps", (), ("finetune_views",)),
    ("optuna_mode", ("load_path", "tensorboard", "show_images", "print_model"), ()),
    ("storage", ("overwrite",), ()),
    *((name, (), ("optuna_mode",)) for name in SEARCHING),
    ("repeat", (*(name for name in COMMANDS if name != "compare"), "load_path"), ()),
    ("inspect", ("resume",), ()),
    ("load_path", (), ("finetune_mode", "test_mode", "predict_dir", "export")),
    ("load_best", (), ("load_path",)),
    ("resume", ("overwrite",), ("name",)),
    ("num_labels", ("num_labels_percent",), ()),
    ("max_steps", ("num_epochs",), ()),
    ("download", (), ("data_dir",)),
)


def parse(arguments: Sequence[str]) -> Options:
    """The options of a command line. Raises UserError with one line; `--help` prints and ends the program."""
    values = {k: v for k, v in vars(_parser().parse_args(arguments)).items() if v is not None}
    if "config" in values:
        values = _overruled(read_config(Path(values["config"])), values) | values
    return make(values)


def make(values: Mapping[str, Any]) -> Options:
    """Options from flat names and values (numbers, strings or booleans); all are checked. Raises UserError."""
    unknown = [name for name in values if name not in _FIELDS]
    if unknown:
        raise UserError(_unknown(unknown[0]))
    converted = {name: _convert(name, value) for name, value in values.items() if value is not None}
    options = Options().changed(**converted)
    options = dataclasses.replace(options, given=frozenset(converted) - set(NOT_RECORDED))
    _check_rules(options, converted)
    return options


def read_config(path: Path) -> dict[str, Any]:
    """The values of a JSON or TOML file (by its suffix). Raises UserError."""
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix.lower() == ".toml" else json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--config {path} can't be read: {error}; give a JSON or TOML file") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {path} must hold names and values, not a {type(values).__name__}")
    for name in values:
        if name not in _FIELDS:
            raise UserError(f"--config {path}: {_unknown(name)}")
    return values


def _overruled(of_file: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The file's values without those that an option of the command line excludes: the line goes before the file."""
    pairs = {frozenset((name, other)) for name, excluded, _ in RULES for other in excluded}
    return {name: v for name, v in of_file.items() if not any(frozenset((name, other)) in pairs for other in given)}


def recorded(options: Options) -> dict[str, Any]:
    """What `commandline_args.txt` holds, and `--config` takes back."""
    return {name: value for name, value in options.flat().items() if name not in NOT_RECORDED}


def command_line(options: Options) -> list[str]:
    """The words that make these options again, without those that do so by themselves.

    Beside a loaded run, which brings values of its own, what the user gave is said even where it is the default.
    """
    words, plain = [], Options().flat()
    for name, value in recorded(options).items():
        said = options.mode.load_path is not None and name in options.given
        if value is None or value == () or (value == plain[name] and not said):
            continue
        if _is_switch(name):
            words.append(f"--{name}" if value else f"--no_{name}")
        elif _is_list(name):
            words += [f"--{name}", *value]
        else:
            words += [f"--{name}={value}"] if str(value).startswith("-") else [f"--{name}", str(value)]
    return words


def readme_table() -> str:
    """The README's tables of options, in Markdown."""
    lines = []
    for group in filter(dataclasses.fields, GROUPS.values()):
        lines += [f"\n**{group.__doc__}**\n", "| option | default | what it does |", "| --- | --- | --- |"]
        for f in dataclasses.fields(group):
            lines.append(f"| `{_usage(f)}` | {_show_default(f)} | {f.metadata['help'].replace('%%', '%')} |")
    return "\n".join(lines).strip() + "\n"


def _usage(f: dataclasses.Field[Any]) -> str:
    if _is_switch(f.name):
        return f"--no_{f.name}" if f.default is True else f"--{f.name}"
    return f"--{f.name} {_metavar(f)}" + (" ..." if _is_list(f.name) else "")


def _show_default(f: dataclasses.Field[Any]) -> str:
    if f.default in (None, ()):
        return ""
    if _is_switch(f.name):
        return "on" if f.default else "off"
    return f"`{f.default}`"


def _metavar(f: dataclasses.Field[Any]) -> str:
    if f.metadata["choices"]:
        return "{" + ",".join(f.metadata["choices"]) + "}"
    return f.metadata["metavar"] or {int: "N", float: "X"}.get(_base_type(f.name), f.name.upper())


def _base_type(name: str) -> type:
    hint = _TYPES[name]
    if isinstance(hint, types.UnionType):
        return next(t for t in typing.get_args(hint) if t is not types.NoneType)
    return hint


def _is_list(name: str) -> bool:
    return typing.get_origin(_TYPES[name]) is tuple


def _is_switch(name: str) -> bool:
    return _base_type(name) is bool


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: --"):
            message = _unknown(message.split()[2].split("=")[0].removeprefix("--"))
        raise UserError(message.replace("argument --", "--"))


def _parser() -> argparse.ArgumentParser:
    about = "From a folder of images with few labels to a tested classifier, by Meta Pseudo Labels."
    parser = _Parser(prog="MPL.py", description=about, allow_abbrev=False)
    for group in GROUPS.values():
        section = parser.add_argument_group(group.__doc__)
        for f in dataclasses.fields(group):
            text = f.metadata["help"]
            if _is_switch(f.name):
                section.add_argument(f"--{f.name}", action="store_true", default=None, help=text)
                help_off = argparse.SUPPRESS if not f.default else f"not: {text}"
                section.add_argument(f"--no_{f.name}", dest=f.name, action="store_false", default=None, help=help_off)
            else:
                default = "" if f.default in (None, ()) else f" (default: {str(f.default).replace('%', '%%')})"
                count = "+" if _is_list(f.name) else None
                section.add_argument(f"--{f.name}", default=None, metavar=_metavar(f), nargs=count, help=text + default)
    return parser


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, _FIELDS, n=1)
    return f"there is no option --{name}" + (f"; did you mean --{near[0]}?" if near else "; see --help")


def _convert(name: str, value: Any) -> Any:
    """A value from the command line or a file, as its option's type and within its limits."""
    meta, kind = _FIELDS[name].metadata, _base_type(name)
    if _is_list(name):
        return _converted_list(name, value)
    if kind is bool:
        if not isinstance(value, bool):
            raise UserError(f"--{name} is on or off: write true or false, not {value!r}")
        return value
    if isinstance(value, (bool, dict, list)):
        raise UserError(f"--{name} takes a {kind.__name__}, not {value!r}")
    if value == "":
        raise UserError(f"--{name} is empty; give it a value or leave it out")
    if meta["parse"]:
        try:
            return meta["parse"](str(value))
        except ValueError as error:
            raise UserError(f"--{name} {value}: {error}") from None
    try:
        converted = kind(str(value))
    except ValueError:
        wanted = {int: "a whole number", float: "a number"}[kind]
        raise UserError(f"--{name} takes {wanted}, not {value!r}") from None
    if meta["choices"] and converted not in meta["choices"]:
        raise UserError(f"--{name} {value} is unknown; choose from {', '.join(meta['choices'])}")
    _check_limits(name, converted, meta["limits"])
    return converted


def _converted_list(name: str, value: Any) -> tuple[Any, ...]:
    """The words of an option that takes several, each as its `parse` makes it."""
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) and word for word in words):
        raise UserError(f"--{name} takes a list of words, not {value!r}")
    parse = _FIELDS[name].metadata["parse"] or str
    try:
        return tuple(parse(word) for word in words)
    except ValueError as error:
        raise UserError(f"--{name} {' '.join(words)}: {error}") from None


def _check_limits(name: str, value: Any, limits: Mapping[str, float | None]) -> None:
    low, high, above = limits["low"], limits["high"], limits["above"]
    # Written so that NaN fails as well.
    right = (low is None or value >= low) and (high is None or value <= high) and (above is None or value > above)
    if not right or (isinstance(value, float) and not abs(value) < float("inf")):
        parts = [("at least", low), ("above", above), ("at most", high)]
        wanted = " and ".join(f"{word} {limit:g}" for word, limit in parts if limit is not None)
        raise UserError(f"--{name} {value} is out of range: it must be {wanted or 'finite'}")


def _check_rules(options: Options, converted: Mapping[str, Any]) -> None:
    """Apply RULES to what the user turned on; the option left at its default is not meant."""
    off = (False, 0, 0.0, ())
    on = {name for name, value in converted.items() if value not in off and value != _FIELDS[name].default}
    for name, excluded, needed in RULES:
        if name not in on:
            continue
        for other in excluded:
            if other in on:
                raise UserError(f"--{name} and --{other} exclude each other; leave one out")
        if needed and not on & set(needed):
            raise UserError(f"--{name} needs {' or '.join('--' + other for other in needed)} beside it")
    together = options.mode.cotrain_mode or (options.mode.compare and options.cotraining.views)
    if together and len(options.cotraining.views) < 2:
        raise UserError("co-training needs two or more --views: one alone has nobody to learn from; name another")
    if options.run.name is None and not on & set(NAMELESS):
        raise UserError("--name is missing: give the run a name, e.g. --name exp")

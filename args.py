"""Every option once: its default, its range, what it does, and which commands read it.

`--help`, config files, docs/options.md and every list of option names in the program are made from the dataclasses
below; how, is in base/options.py. Nothing heavy is imported, so `--help` answers at once. A default of None means that
the program chooses; `default_text` says how. `python -m transfermpl.args > docs/options.md` writes that page.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from . import __version__
from .base.options import (
    OptionTable,
    Rule,
    as_page,
    check_rules,
    folder_name,
    option,
    parser_of,
    read_config,
    share,
    with_config,
    words_of,
)
from .utils import UserError, program, warn, without_password

# Which commands read an option. `train` is what is done where no other is asked for.
TRAINING = ("train", "compare", "search")
ALL = (*TRAINING, "inspect", "view_report", "list_views", "list_runs", "test", "predict", "explain", "export")
WITH_DATA = (*TRAINING, "inspect", "view_report")  # that make a results folder from a data set
WITH_TEST = (*WITH_DATA, "test")
LOADING = ("train", "test", "predict", "explain", "export")


def unfreeze_level(text: str) -> str:
    """`head`, `all`, or a number of last stages; ValueError for anything else."""
    if text in ("head", "all") or (text.isdecimal() and int(text) > 0):
        return text
    raise ValueError("takes head, all, or a number of last stages such as 2")


def fold_count(text: str) -> int:
    """0, or at least 2; ValueError for anything else."""
    if not text.isdecimal() or text == "1":
        raise ValueError("takes 0 or a whole number of folds, at least 2")
    return int(text)


def backbone_name(text: str) -> str | None:
    """A backbone's name; None for `auto`: the program chooses."""
    return None if text == "auto" else text


def view_name(text: str) -> str:
    """A view's name, or NAME=WEIGHTS; ValueError for anything else."""
    name, sign, weights = text.partition("=")
    if not name.strip() or (sign and not weights):
        raise ValueError("takes NAME or NAME=FILE")
    return text


def class_recall(text: str) -> str:
    """CLASS=X with X above 0 and at most 1; ValueError for anything else."""
    name, _, value = text.rpartition("=")
    try:
        right = bool(name) and 0 < float(value) <= 1
    except ValueError:
        right = False
    if not right:
        raise ValueError("takes a class and a recall above 0 and at most 1, such as defect=0.95")
    return text


# The docstring of a group is its title in --help and in docs/options.md.
# fmt: off
@dataclass(frozen=True)
class Run:
    """Run"""

    DEFAULTS: ClassVar[dict[str, Any]] = {"commands": TRAINING}

    name: str | None = option(
        None, "Write everything that belongs to the run to results/NAME.",
        parse=folder_name, commands=WITH_DATA, on_resume=True, per_machine=True)
    resume: bool = option(False, "Continue the run NAME from its last checkpoint.", recorded=False)
    overwrite: bool = option(
        False, "Replace the earlier run NAME, or what --predict_dir or --export writes, instead of writing beside it under "
        "another name.",
        commands=(*WITH_DATA, "predict", "export"), recorded=False)
    config: str | None = option(
        None, "Read options from a JSON or TOML file; an option on the command line overrides the file.",
        metavar="FILE", commands=ALL, recorded=False)
    debug: bool = option(
        False, "Show the traceback of an unexpected error, instead of one line.", commands=ALL, recorded=False)
    seed: int = option(
        0, "Set the random seed of the split, the order of the images, the initial weights and the pseudo-labels.",
        low=0, commands=WITH_DATA, inherited="default")
    device: str = option(
        "auto", "Compute on this device: auto, cpu, cuda, cuda:1 or mps.",
        commands=(*WITH_TEST, "predict", "explain"), on_resume=True, per_machine=True)
    precision: str = option(
        "auto", "Compute forward passes in this precision; auto takes bf16 on a GPU that supports it, and for a frozen "
        "backbone also on an x86 CPU that supports it.",
        choices=("auto", "fp32", "bf16"), commands=(*WITH_TEST, "predict", "explain"), per_machine=True, searchable=True)
    compile: bool = option(False, "Use torch.compile for the networks that are trained.", per_machine=True)
    num_workers: int = option(
        2, "Decode image files with this many parallel workers.",
        low=0, commands=(*WITH_TEST, "predict", "explain", "export"), on_resume=True, per_machine=True)
    tensorboard: bool = option(
        False, "Also write curves, confusion matrices and sample images for TensorBoard (pip install tensorboard).",
        commands=("train", "compare"), on_resume=True)
    keep_pages: bool = option(
        True, "Let the C library keep freed memory for later use, which is much faster on the CPU (Linux only).",
        commands=ALL, on_resume=True, per_machine=True)
    cache: bool = option(
        True, "Store the features of a frozen backbone on disk and reuse them.", commands=WITH_TEST, per_machine=True)
    cache_dir: str = option(
        "cache", "Store the feature banks in this folder.",
        metavar="DIR", commands=WITH_TEST, on_resume=True, per_machine=True)
    cache_limit: float = option(
        20.0, "Remove the feature banks that were unused for longest when all banks together take more than X GB.",
        above=0, commands=WITH_TEST, on_resume=True, per_machine=True)
    cache_dtype: str = option(
        "float16", "Store features as numbers of this type.", choices=("float16", "float32"), commands=WITH_DATA)


@dataclass(frozen=True)
class Data:
    """Data"""

    DEFAULTS: ClassVar[dict[str, Any]] = {"commands": TRAINING}

    data_dir: str = option(
        "digits", "Read images from this folder, or use a built-in data set: digits, moons, fake, cifar10, cifar100, "
        "svhn, stl10, flowers102, food101 or fgvc_aircraft.",
        metavar="DIR", commands=(*WITH_TEST, "export"), per_machine=True, inherited="default")
    data_root: str = option(
        "datasets", "Look for torchvision's data sets in this folder.",
        metavar="DIR", commands=WITH_TEST, per_machine=True, inherited="default")
    download: bool = option(
        False, "Download the torchvision data set into --data_root if it is not there.",
        commands=WITH_DATA, per_machine=True)
    labels_csv: tuple[str, ...] = option(
        (), "Read labels from tables with the columns path,label, where a path starts below --data_dir and an empty label "
        "means unlabeled, or from exports of Label Studio, CVAT and Roboflow; the later one counts.",
        metavar="FILE", commands=WITH_TEST, per_machine=True, inherited="default")
    num_labels_percent: float | None = option(
        None, "Use the labels of this share of the training images (0.03 or 3%), equally many a class, and treat the others "
        "as unlabeled.",
        default_text="all labels; 3% for built-in sets, and where every image has a label and 3% are 10 or more a class",
        parse=share, metavar="SHARE", commands=(*TRAINING, "view_report"), inherited="default")
    num_labels: int | None = option(
        None, "Use the labels of this many training images, instead of a share.",
        low=1, commands=(*TRAINING, "view_report"), inherited="default")
    val_percent: float = option(
        0.0, "Hold out this share of the training images for validation; their labels are counted as used.",
        parse=share, metavar="SHARE", commands=WITH_DATA, inherited="default")
    test_percent: float = option(
        0.2, "Hold out this share of the images for the test if the data set has no test images of its own; with few "
        "labels 0 is natural: cross-validation says how good a frozen backbone's heads are.",
        parse=share, metavar="SHARE", commands=WITH_DATA, inherited="default")
    label_split: str = option(
        "balanced", "Choose equally many labeled images from each class (balanced), or in proportion to the class "
        "frequencies (stratified).",
        choices=("balanced", "stratified"), commands=(*TRAINING, "view_report"), inherited="default")
    include_labeled: bool = option(True, "Use the labeled images as unlabeled images too.", searchable=True)
    augmentation_draws: int = option(
        8, "With a frozen backbone, prepare N strong augmentations of each unlabeled image, a quarter as many weak "
        "ones, and N weak ones of each labeled image.",
        low=1, high=999, searchable=True)
    flip: bool | None = option(
        None, "Mirror images left to right at random as part of the augmentation.",
        default_text="on, except for digits and svhn", inherited="default", searchable=True)
    show_images: bool = option(
        False, "Save a picture of some images: raw, weakly augmented and strongly augmented.",
        commands=("train", "compare"))


@dataclass(frozen=True)
class Model:
    """Model"""

    DEFAULTS: ClassVar[dict[str, Any]] = {"commands": TRAINING, "searchable": True}

    model_name: str | None = option(
        None, "Use this backbone: lite0, resnet, alexnet, vgg, squeezenet, densenet, any torchvision classifier, "
        "timm:NAME, one that is trained from scratch (cnn, wrn28_2 or mlp), or the one that suits (auto).",
        default_text="auto: cnn for digits and fake, mlp for moons, wrn28_2 for cifar and svhn; else DINOv2 ViT-S/14 "
        "if its weights can be had and there is a GPU or there are few images, else lite0, which is installed",
        parse=backbone_name, metavar="NAME", commands=(*TRAINING, "inspect"), inherited="fixed")
    weights: str = option(
        "default", "Start from these backbone weights: default (the library's pretrained ones), none (random ones), or "
        "a .pth or .safetensors file.",
        metavar="WEIGHTS", commands=(*TRAINING, "inspect"), per_machine=True)
    unfreeze: str | None = option(
        None, "Train only the head (head), also the last N stages of the backbone (N), or the whole network (all).",
        default_text="head if the backbone is pretrained, else all",
        parse=unfreeze_level, metavar="WHAT", inherited="default")
    head_prior: str = option(
        "unlabeled", "Let the head on a frozen backbone learn fastest along the feature directions that tell "
        "unlabeled images apart but not the augmentations of one image (unlabeled), or equally fast along all "
        "directions (none).",
        choices=("unlabeled", "none"))
    image_size: int | None = option(
        None, "Show images to the network as squares of this many pixels a side.",
        default_text="the backbone's own size", low=8, high=2048, commands=(*TRAINING, "inspect"), inherited="fixed")
    print_model: bool = option(
        False, "Print the layers with their numbers of trainable and frozen parameters.",
        commands=("train", "compare"), per_machine=True)


@dataclass(frozen=True)
class Learning:
    """Learning"""

    DEFAULTS: ClassVar[dict[str, Any]] = {"commands": TRAINING, "searchable": True}

    num_epochs: int | None = option(
        None, "Train for this many passes over the unlabeled images (with --finetune_mode: over the labeled ones).",
        low=1)
    max_steps: int | None = option(
        None, "Train for this many steps, instead of epochs.",
        default_text="1000, or 10 epochs if that is more", low=1)
    warmup_epoch_num: int | None = option(
        None, "Train only the teacher during the first N epochs.",
        default_text="the epochs of the first tenth of the steps", low=0)
    batch_size: int = option(64, "Use this many labeled images per step, or all if there are fewer.", low=1)
    unlabeled_batch_size: int = option(64, "Use this many unlabeled images per step, or all if there are fewer.", low=1)
    max_lr: float = option(0.00263, "Set the highest learning rate of the one-cycle schedule.", above=0)
    optimizer: str = option("AdamW", "Train every model with this optimizer.", choices=("AdamW", "SGD"))
    weight_decay: float = option(
        1.0, "Set the weight decay of the heads (decoupled with AdamW, L2 with SGD); a backbone that is trained gets a "
        "tenth of it.",
        low=0)
    layer_decay: float | None = option(
        None, "In a pretrained backbone, multiply the learning rate by X for every stage further from the head.",
        default_text="0.75 with --finetune_views, else 1", above=0, high=1)
    grad_clip: float = option(0.0, "Limit the gradient norm of each model to X; 0 sets no limit.", low=0)
    grad_accumulation: int = option(1, "Compute each step in N parts, one after another, to save memory.", low=1)
    label_smoothing: float = option(0.0, "Smooth the labels of the supervised loss by X.", low=0, high=0.99)
    ema: float = option(
        0.0, "Evaluate an exponential moving average of the weights with decay X; 0 evaluates the weights themselves.",
        low=0, high=0.99999)
    patience: int | None = option(
        None, "Stop after N epochs without a better validation accuracy (needs validation images).", low=1)
    threshold: float = option(
        0.9, "Learn the prediction on a weak augmentation, as teacher and as student, only if its confidence is at least "
        "X.",
        low=0, high=1)
    temperature: float = option(
        1.0, "Divide the logits of the weak augmentation by X before they become a target.", above=0)
    lambda_u: float = option(3.0, "Multiply the consistency loss by X.", low=0)
    uda_steps: int = option(80, "Raise the weight of the consistency loss from 0 over the first N steps.", low=0)
    mpl_weight: float = option(
        0.3, "Multiply the student's feedback to the teacher by X; 0 turns the feedback off.", low=0)
    distribution_alignment: float | None = option(
        None, "Align the predictions on weak augmentations with the class prior of the unlabeled images: not at all "
        "(0), fully (1) or in between.",
        default_text="1 with a frozen backbone, else 0", low=0, high=1)
    class_prior: str = option(
        "estimate", "Estimate the class prior of the unlabeled images from the features of a frozen backbone "
        "(estimate), or assume the label frequencies (labels), as is also done where no estimate is possible.",
        choices=("estimate", "labels"))


@dataclass(frozen=True)
class Mode:
    """Mode (without one: Meta Pseudo Labels)"""

    DEFAULTS: ClassVar[dict[str, Any]] = {"commands": TRAINING}

    switch_mode: bool = option(
        False, "Let teacher and student exchange roles after every epoch.",
        commands=("train", "search"), searchable=True)
    finetune_mode: bool = option(
        False, "Train on the labeled images alone, as a baseline or to fine-tune the run of --load_path.",
        commands=("train", "search"), searchable=True)
    test_mode: bool = option(
        False, "Test the run of --load_path and write the result into its folder.",
        commands=("test",), command="test", needs_name=False)
    load_path: str | None = option(
        None, "Load this run: its name, its folder or a checkpoint file.", metavar="RUN", commands=LOADING)
    load_best: bool = option(
        False, "Go on from the models of the best epochs, which were tested, instead of those of the last epoch; "
        "--test_mode, --predict_dir, --explain and --export always take these.", commands=("train", "test"))
    cotrain_mode: bool = option(
        False, "Train by Meta Co-Training: a model on each of --views teaches the others.",
        commands=("train", "search"))
    optuna_mode: bool = option(
        False, "Search for better options with Optuna.", commands=("search",), command="search")
    compare: bool = option(
        False, "Train with every method on the same splits and report which one to use.",
        commands=("compare",), command="compare")
    inspect: bool = option(
        False, "Check the data for problems before training.", commands=("inspect",), command="inspect")
    list_views: bool = option(
        False, "List the backbones that have a short name for --views.",
        commands=("list_views",), command="list_views", needs_name=False)
    list_runs: bool = option(
        False, "List the runs in the results folder, the newest first, with what they reached.",
        commands=("list_runs",), command="list_runs", needs_name=False)
    view_report: bool = option(
        False, "Measure how accurate each of --views is alone, and how far their errors overlap.",
        commands=("view_report",), command="view_report")
    predict_dir: tuple[str, ...] = option(
        (), "Classify these images, and all below these folders, with the run of --load_path; - reads a list of them "
        "from standard input, one a line or each ended by a NUL.",
        metavar="PATH", commands=("predict",), command="predict", needs_name=False)
    explain: str | None = option(
        None, "Draw for each image below this folder what its class rests on, by the run of --load_path.",
        metavar="DIR", commands=("explain",), command="explain", needs_name=False)
    export: str | None = option(
        None, "Write the classifier of --load_path to one file.",
        choices=("onnx", "torch_export"), commands=("export",), command="export", needs_name=False)

    @property
    def name(self) -> str:
        """How a run trains (`finetune`, `switch`, `cotrain` or `mpl`), or `test`."""
        named = ("test", "finetune", "switch", "cotrain")
        return next((name for name in named if getattr(self, f"{name}_mode")), "mpl")


@dataclass(frozen=True)
class Cotraining:
    """Co-training (--cotrain_mode)"""

    DEFAULTS: ClassVar[dict[str, Any]] = {"commands": ("train", "search")}

    views: tuple[str, ...] = option(
        (), "Use these backbones, two or more: short names (see --list_views), pixels, gradients, or any "
        "value of --model_name, each with =FILE for its weights.",
        parse=view_name, metavar="NAME[=FILE]", commands=(*TRAINING, "view_report"))
    algorithm: str = option(
        "meta", "Train each view on the labels alone (labels_only), also on the confident predictions of the other "
        "views (cotraining), or also with the feedback of the views that it teaches (meta).",
        choices=("labels_only", "cotraining", "meta"), searchable=True)
    finetune_views: bool = option(
        False, "First fine-tune the backbone of each view on the labeled images, and save it under results/NAME/views "
        "for later use as --views NAME=FILE.")
    finetune_steps: int = option(100, "Fine-tune each view for this many steps.", low=1)


@dataclass(frozen=True)
class Search:
    """Search (--optuna_mode)"""

    DEFAULTS: ClassVar[dict[str, Any]] = {"commands": ("search",)}

    n_trials: int = option(
        100, "Run this many trials in all, over all workers and machines.", low=1, on_resume=True, per_machine=True)
    timeout: float | None = option(
        None, "Start no trial after this many seconds.",
        above=0, metavar="SECONDS", on_resume=True, per_machine=True)
    search: tuple[str, ...] = option(
        (), "Search the option KEY over the range LOW:HIGH or LOW:HIGH:log or over the values A,B,C, or fix it by "
        "KEY=VALUE.",
        metavar="KEY=RANGE")
    folds: int = option(
        3, "Without validation images, measure each trial by cross-validation with N folds of the labeled images.",
        low=2)
    search_workers: int = option(
        1, "Run trials in this many processes side by side on this machine.",
        low=1, on_resume=True, per_machine=True)
    storage: str | None = option(
        None, "Keep the search in the database with this URL (SQLite, PostgreSQL or MySQL), which several machines can "
        "share.",
        default_text="a journal file in results/NAME", metavar="URL", on_resume=True, per_machine=True, secret=True)
    pruner: str = option(
        "median", "Stop trials that fall behind the others by this rule, or run all to their end (none).",
        choices=("median", "hyperband", "none"), per_machine=True)


@dataclass(frozen=True)
class Study:
    """Comparing and inspecting"""

    DEFAULTS: ClassVar[dict[str, Any]] = {"commands": ("train", "compare")}

    repeat: int | None = option(
        None, "Train with this many seeds, counted up from --seed, and report the mean with its interval.",
        default_text="5 with --compare, else 1", low=1, on_resume=True)
    near_duplicate: float = option(
        0.65, "Report two images as near-duplicates if their similarity is at least X; 1 is the same picture, also "
        "mirrored, cropped or resized.",
        above=0, high=1, commands=("inspect",))


@dataclass(frozen=True)
class Use:
    """Calibrating a run, and using a finished one (--predict_dir, --export)"""

    DEFAULTS: ClassVar[dict[str, Any]] = {"commands": ("predict",)}

    calibration_folds: int | None = option(
        None, "If there are fewer than 50 validation images, calibrate the probabilities at the end of the run by "
        "training again on N folds of the labeled images; 0 leaves them uncalibrated.",
        default_text="3 with a frozen backbone, else 0", parse=fold_count, low=0, commands=("train",))
    balance: str = option(
        "auto", "Let rare classes weigh more when the probabilities become classes: on, off, or (auto) where one class "
        "has more than three times as many labels as another and the balanced accuracy of held-out images is not lower.",
        choices=("auto", "on", "off"), commands=("train",))
    recall: tuple[str, ...] = option(
        (), "Find at least this share of the images of a class (defect=0.95), however many others are taken for it.",
        parse=class_recall, metavar="CLASS=X", commands=("train",))
    out: str | None = option(
        None, "Write the predictions or the exported classifier to this file; - writes predictions to standard output.",
        default_text="predictions.csv or classifier.* in the run's folder",
        metavar="FILE", commands=("predict", "export"))
    predict_copy: str | None = option(
        None, "Also sort the images of --predict_dir into a folder for each class below this folder.", metavar="DIR")
    copy_by: str = option(
        "link", "Sort the images as symbolic links (link) or as copies (copy).", choices=("link", "copy"))
    min_probability: float = option(
        0.0, "Give no class to an image whose best class is less probable than X, and list it for a person to label.",
        low=0, high=1)
    only_new: bool = option(
        False, "Keep the rows that the earlier table of the same classifier has for files which did not change, and "
        "classify the others.")
    strict: bool = option(False, "End with exit code 3 where files could not be read.")
    reject: float = option(
        1.0, "Give no class to an image that is farther from the training images than this share of them is from the "
        "others; 0.99 leaves out one in a hundred images of the kinds that were learned.", low=0, high=1)
# fmt: on


GROUPS: dict[str, type] = {"run": Run, "data": Data, "model": Model, "learning": Learning, "mode": Mode}
GROUPS |= {"cotraining": Cotraining, "search": Search, "study": Study, "use": Use}
TABLE = OptionTable(GROUPS)


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

    def flat(self) -> dict[str, Any]:
        """Every option by its name, without the group."""
        return {option.name: getattr(getattr(self, option.group), option.name) for option in TABLE}

    def given_values(self, names: Collection[str]) -> dict[str, Any]:
        """The values of those of these options that the user set."""
        return {name: value for name, value in self.flat().items() if name in names and name in self.given}

    def changed(self, **values: Any) -> Options:
        """A copy with these options, named flat, set to these values (not counted as given)."""
        groups: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            groups.setdefault(TABLE[name].group, {})[name] = value
        return dataclasses.replace(self, **{g: dataclasses.replace(getattr(self, g), **v) for g, v in groups.items()})

    def recorded(self, name: str | None = None) -> dict[str, Any]:
        """What `commandline_args.txt` holds, and `--config` takes back: no password. With `name`, of a run so called."""
        if name is not None:
            return self.changed(name=name).recorded()
        values = {name: value for name, value in self.flat().items() if name not in NOT_RECORDED}
        return values | {name: without_password(values[name]) for name in values if TABLE[name].secret and values[name]}

    def command_line(self) -> list[str]:
        """The words that make these options again, without those that do so by themselves.

        Beside a loaded run, which brings values of its own, what the user gave is said even where it is the default.
        """
        said = self.given if self.mode.load_path is not None else frozenset()
        return words_of(TABLE, self.recorded(), said)

    def warn_of_unused(self, command: str, *, but: str = "", also_defaults: bool = True) -> None:
        """Name the given options that the command does not read, in one warning.

        but: what the command reads instead; also_defaults: whether to name those with their default value too.
        """
        asking = next(name for name, asked_for in COMMANDS.items() if asked_for == command)
        usual, unused = Options().flat(), self.given_values(self.given - read_by(command))
        names = sorted(name for name, value in unused.items() if also_defaults or value != usual[name])
        if names:
            warn(f"--{', --'.join(names)}: not used by --{asking}" + (f"; {but}" if but else ""))

    def check(self, on: set[str]) -> None:
        """Whether the options that are turned on can stand together. Raises UserError."""
        check_rules(RULES, on)
        together = self.mode.cotrain_mode or (self.mode.compare and self.cotraining.views)
        if together and len(self.cotraining.views) < 2:
            raise UserError("co-training needs two or more --views: one view has no other to learn from; name another")
        if self.run.name is None and not on & NAMELESS:
            raise UserError("--name is missing: give the run a name, e.g. --name exp")


# --- which options ----------------------------------------------------------------------------------------------------

# By the option that asks for it, what the program does instead of training a run; at most one of them.
COMMANDS: dict[str, str] = {option.name: option.command for option in TABLE if option.command}
NAMELESS = TABLE.names(lambda option: not option.needs_name)
# Not written into a run: they say what to do with the folder, not what the run is.
NOT_RECORDED = TABLE.names(lambda option: not option.recorded)


def kind_of(name: str) -> tuple[str, type]:
    """The group and the type of an option; `tuple` where it takes several words. Raises UserError for no option."""
    found = TABLE[name]
    return found.group, tuple if found.several else found.kind


def read_by(command: str, group: str | None = None) -> frozenset[str]:
    """The options that a command (one of ALL) reads: all of them, or those of a group."""
    assert command in ALL, command
    return TABLE.names(lambda option: command in option.commands and group in (None, option.group))


def read_only_by(command: str) -> frozenset[str]:
    """The options that mean nothing without this command; the option that asks for it is one of them."""
    return TABLE.names(lambda option: option.commands == (command,))


def changeable_on_resume() -> frozenset[str]:
    """The options that may differ from those with which the run began that goes on."""
    return TABLE.names(lambda option: option.on_resume)


def inherited(how: str) -> frozenset[str]:
    """The options that a loaded run brings: "fixed", or "default" where the user may give others."""
    return TABLE.names(lambda option: option.inherited == how)


def searchable() -> frozenset[str]:
    """The options that a search may vary."""
    return TABLE.names(lambda option: option.searchable)


def per_machine() -> frozenset[str]:
    """The options that may differ between the machines of one search."""
    return TABLE.names(lambda option: option.per_machine)


# Who excludes whom, and who needs whom.
RULES: tuple[Rule, ...] = (
    *(Rule(name, excludes=tuple(COMMANDS)[:index]) for index, name in enumerate(COMMANDS)),
    *(Rule(name, ("finetune_mode", "switch_mode", "cotrain_mode")) for name in COMMANDS if name != "optuna_mode"),
    *(Rule(name, ("resume", "name"), ("load_path",)) for name in ("test_mode", "predict_dir", "explain", "export")),
    Rule("test_mode", excludes=("overwrite",)),
    Rule("out", needs=("predict_dir", "export")),
    Rule("predict_copy", needs=("predict_dir",)),
    Rule("copy_by", needs=("predict_copy",)),
    Rule("min_probability", needs=("predict_dir",)),
    Rule("only_new", needs=("predict_dir",)),
    Rule("strict", needs=("predict_dir",)),
    Rule("reject", needs=("predict_dir",)),
    Rule("finetune_mode", excludes=("switch_mode", "cotrain_mode")),
    Rule("switch_mode", excludes=("cotrain_mode",)),
    Rule("cotrain_mode", needs=("views",)),
    Rule(
        "views",
        excludes=("model_name", "weights", "unfreeze", "image_size", "compile"),
        needs=("cotrain_mode", "view_report", "compare"),
    ),
    Rule("view_report", excludes=("resume",), needs=("views",)),
    Rule("algorithm", needs=("cotrain_mode",)),
    Rule("finetune_views", needs=("cotrain_mode",)),
    Rule("finetune_steps", needs=("finetune_views",)),
    Rule("optuna_mode", excludes=("load_path", "tensorboard", "show_images", "print_model")),
    Rule("storage", excludes=("overwrite",)),
    *(Rule(name, needs=("optuna_mode",)) for name in sorted(read_only_by("search") - set(COMMANDS))),
    Rule("repeat", excludes=(*(name for name in COMMANDS if name != "compare"), "load_path")),
    Rule("inspect", excludes=("resume",)),
    Rule("load_path", needs=("finetune_mode", "test_mode", "predict_dir", "explain", "export")),
    Rule("load_best", needs=("load_path",)),
    Rule("resume", excludes=("overwrite",), needs=("name",)),
    Rule("num_labels", excludes=("num_labels_percent",)),
    Rule("max_steps", excludes=("num_epochs",)),
    Rule("download", needs=("data_dir",)),
)


# --- from and to words ------------------------------------------------------------------------------------------------

USAGE = "{program} --name NAME [options]"
ABOUT = """\
Train a classifier on a folder of images of which few are labeled, and test it: by Meta Pseudo Labels or Meta
Co-Training.

Examples:
  {program} --name exp --data_dir DIR                        train on the images below DIR
  {program} --name look --inspect --data_dir DIR             check the images before training
  {program} --name cmp --compare --data_dir DIR              find the best method for these images
  {program} --predict_dir NEW_IMAGES --load_path exp         classify new images with the run exp
"""


def parse(arguments: Sequence[str]) -> Options:
    """The options of a command line. Raises UserError with one line; `--help` prints and ends the program."""
    usage = USAGE.format(program=program().split()[-1])
    parser = parser_of(TABLE, usage=usage, about=ABOUT.format(program=program()), version=f"transfermpl {__version__}")
    values = {k: v for k, v in vars(parser.parse_args(arguments)).items() if v is not None}
    if "config" in values:
        values = with_config(values, read_config(Path(values["config"]), TABLE), RULES)
    return make(values)


def make(values: Mapping[str, Any]) -> Options:
    """Options from flat names and values (numbers, strings or booleans); all are checked. Raises UserError."""
    converted = TABLE.converted(values)
    options = Options().changed(**converted)
    given = frozenset(name for name, value in converted.items() if value is not None)
    options = dataclasses.replace(options, given=given - NOT_RECORDED)
    options.check(TABLE.turned_on(converted))
    return options


# --- docs/options.md --------------------------------------------------------------------------------------------------

INTRODUCTION = """
# Options

This page is made from [args.py](../args.py): `python -m transfermpl.args > docs/options.md`.

An option on the command line overrides the same option in a `--config` file (JSON or TOML, the names below without
dashes), and both override the default. `--no_NAME` turns off what is on.

## Commands

Without one of these options the program trains a run and tests it: the command `train`.

{commands}

The program ends with 0 when it is done, 1 when it broke off (what was reached is kept), 2 when the input is wrong, 3
when `--predict_dir --strict` met files that could not be read (the others are classified), 130 after Ctrl-C and 143 after SIGTERM; a training that is stopped so finishes its step and writes a checkpoint first.

- A run that is resumed may change {resume}; the other options stay as they were.
- A run that starts from another one (`--load_path`) takes over its {fixed} for good,
  and its {inherited} unless you give others.
- A search (`--search`) can vary {searchable}, and all options of the groups Model and Learning.
- The machines that share a search may differ in {per_machine}.
"""


def options_page() -> str:
    """docs/options.md: every option with its default, what it does, and the commands that read it."""

    def listed(names: Collection[str]) -> str:
        return ", ".join(f"`--{option.name}`" for option in TABLE if option.name in names)

    rows = [f"| `--{name}` | {command} | {TABLE[name].help} |" for name, command in COMMANDS.items()]
    introduction = INTRODUCTION.format(
        commands="\n".join(["| option | command | what it does |", "| --- | --- | --- |", *rows]),
        resume=listed(changeable_on_resume() - {"name"}),
        fixed=listed(inherited("fixed")),
        inherited=listed(inherited("default")),
        searchable=listed({name for name in searchable() if kind_of(name)[0] not in ("model", "learning")}),
        per_machine=listed(per_machine() - {"name"}),
    )
    return as_page(TABLE, introduction, ALL)


if __name__ == "__main__":
    print(options_page(), end="")

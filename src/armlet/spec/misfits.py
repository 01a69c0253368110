"""What of a recipe is right by itself and wrong beside another section."""

from __future__ import annotations

from collections.abc import Iterator

from armlet.scores import METRICS, TASK_METRICS
from armlet.spec.base import Spec
from armlet.spec.model import Autoencoder, Cnn, Gan, Lstm, Transformer
from armlet.spec.passes.distill import Distill, Teaching
from armlet.spec.passes.quantize import QuantizeAware
from armlet.spec.recipe import Recipe
from armlet.spec.train import TrainSpec

Misfit = tuple[tuple[str, ...], str]
"""Where it stands, and what is wrong."""

_FORMS = {
    "row": "rows of numbers",
    "picture": "pictures",
    "sequence": "sequences",
    "text": "text",
    "latent": "random numbers",
}


def misfits(recipe: Recipe) -> list[Misfit]:
    """Return everything that is right by itself and wrong beside another section."""
    data, model = recipe.data, recipe.model
    found = list(_limits(recipe))
    if data.form not in model.takes:
        takes = " or ".join(_FORMS[form] for form in model.takes)
        found.append(
            (("model", "kind"), f"a {model.kind} takes {takes}, and {data.kind} has {_FORMS[data.form]}")
        )
    elif data.asks not in model.tasks:
        message = f"a {model.kind} is not made for {data.asks}, which {data.kind} asks for"
        found.append((("model", "kind"), message))
    else:
        found += _of_the_model(recipe)
    return [
        *found, *_sections(recipe), *_training(recipe), *_judging(recipe), *_teaching(recipe), *_budgets(recipe)
    ]  # fmt: skip


def _limits(recipe: Recipe) -> Iterator[Misfit]:
    data = recipe.data
    for key, limit in (("limit", data.limit), ("test_limit", data.test_limit)):
        if limit is not None and limit < data.n_classes:
            yield ("data", key), f"{limit} samples are less than one for each of {data.n_classes} classes"


def _of_the_model(recipe: Recipe) -> Iterator[Misfit]:
    data = recipe.data
    match recipe.model:
        case Cnn() as model:
            yield from _cnn(model, data.picture)
        case Lstm() as model if model.projection and model.projection >= min(model.hidden):
            yield ("model", "projection"), f"is not narrower than the {min(model.hidden)} units of a layer"
        case Transformer() as model:
            yield from _transformer(model, data.picture)
        case Autoencoder() as model:
            if data.form == "row" and not model.code:
                yield ("model", "code"), "rows need a code: only pictures can go without"
            if model.variational and not model.code:
                yield ("model", "variational"), "draws the code: use a code above 0"
            if data.form == "picture" and model.shortcuts and model.code:
                yield ("model", "shortcuts"), "would go past the code: use code: 0"
        case Gan() as model:
            yield from _gan(model, data.picture)


def _cnn(model: Cnn, picture: tuple[int, int] | None) -> Iterator[Misfit]:
    halvings = len(model.channels) - 1
    if picture is not None and min(picture) < 2**halvings:
        message = f"pictures of {picture[0]}×{picture[1]} can't be halved {halvings} times"
        yield ("model", "channels"), f"{message}: use fewer stages"
    if not isinstance(model.depth, int) and len(model.depth) != len(model.channels):
        yield ("model", "depth"), f"has {len(model.depth)} numbers for {len(model.channels)} stages"


def _transformer(model: Transformer, picture: tuple[int, int] | None) -> Iterator[Misfit]:
    if model.width % model.heads:
        yield ("model", "width"), f"{model.width} does not divide among {model.heads} heads"
    if picture is not None and any(extent % model.patch for extent in picture):
        yield ("model", "patch"), f"pictures of {picture[0]}×{picture[1]} have no whole patches"


def _gan(model: Gan, picture: tuple[int, int] | None) -> Iterator[Misfit]:
    height, width = picture or (0, 0)
    for key, stages in (("channels", model.channels), ("critic_channels", model.critic_channels)):
        if height % 2 ** len(stages) or width % 2 ** len(stages):
            yield ("model", key), f"pictures of {height}×{width} can't be halved {len(stages)} times"


def _sections(recipe: Recipe) -> Iterator[Misfit]:
    """Sections that the task or the model needs or has no use for."""
    data, model = recipe.data, recipe.model
    if data.asks == "generation" and recipe.judge is None:
        yield ("judge",), "generated samples are scored by a judge: this section is missing"
    if data.asks != "generation" and recipe.judge is not None:
        yield ("judge",), f"only generated samples need a judge, and {data.kind} asks for {data.asks}"
    yield from _stream(recipe)
    for number, options in enumerate(recipe.passes):
        if recipe.precision == "float16" and options.kind.startswith("quantize_"):
            message = f"passes.{number} quantises, and float16 is for networks of real numbers: use float32"
            yield ("precision",), message
    if recipe.pretrain is not None and not model.encodes:
        yield ("pretrain",), f"a {model.kind} has no encoder of parts: leave this section out"


def _stream(recipe: Recipe) -> Iterator[Misfit]:
    """A program for streams of a network that takes none, or that takes other steps."""
    stream, data, model = recipe.stream, recipe.data, recipe.model
    if stream is None:
        if recipe.budgets.step_latency is not None:
            yield ("budgets", "step_latency"), "is of a program for streams: add the section stream"
        return
    if model.why_not_streamed or data.form not in ("sequence", "text"):
        reason = model.why_not_streamed or f"{data.kind} has {_FORMS[data.form]}"
        yield ("stream",), f"this {model.kind} can't be streamed: {reason}"
        return
    token = model.patch if isinstance(model, Transformer) and data.form == "sequence" else 1
    if stream.frames % token:
        yield ("stream", "frames"), f"{stream.frames} frames are not whole tokens of {token} (model.patch)"
    elif stream.frames > data.n_frames or (not data.varies_in_length and data.n_frames % stream.frames):
        yield (
            ("stream", "frames"),
            f"{data.kind}'s {data.n_frames} frames can't be taken {stream.frames} at a time",
        )


_NUMBER_LOSSES = ("mse", "mae", "huber", "bce")
_LOSSES: dict[str, tuple[str, ...]] = {
    "classification": ("cross_entropy", "focal", "bce", "kl", "hinge"),
    "generation": ("hinge", "non_saturating", "wasserstein"),
}
_AUGMENTATIONS: dict[str, tuple[str, ...]] = {
    "picture": ("flip", "shift", "erase", "contrast"),
    "sequence": ("noise", "scale", "time_mask", "channel_mask", "rotate", "speed"),
    "row": ("noise", "scale"),
    "text": ("token_drop",),
}


def _training(recipe: Recipe) -> Iterator[Misfit]:
    """Losses and changes of the inputs that are not for the task or the data."""
    data = recipe.data
    sections: list[tuple[tuple[str, ...], TrainSpec | None]] = [(("train",), recipe.train)]
    if recipe.pretrain is not None:
        yield from _pretraining(recipe.pretrain.train)
    sections += [
        (("passes", str(position), key), getattr(options, key, None))
        for position, options in enumerate(recipe.passes)
        for key in ("train", "group_lasso", "finetune")
    ]
    losses = _LOSSES.get(data.asks, _NUMBER_LOSSES)
    changes = _AUGMENTATIONS.get(data.form, ()) if data.asks in ("classification", "forecast") else ()
    for where, train in sections:
        if train is None:
            continue
        if train.loss == "bce" and data.asks != "classification" and not _from_0_to_1(recipe):
            yield (
                (*where, "loss"),
                "bce is of answers from 0 to 1: a denoising autoencoder with output: sigmoid",
            )
        if train.loss not in ("auto", *losses):
            yield (*where, "loss"), f"{train.loss} is not for {data.asks}; that takes {', '.join(losses)}"
        for name in train.augment:
            if name not in changes:
                fits = ", ".join(changes) or "nothing"
                yield (
                    (*where, "augment"),
                    f"{name} does not fit {_FORMS[data.form]} to {data.asks}; that takes {fits}",
                )
            elif name in ("speed", "time_mask") and data.varies_in_length:
                yield (*where, "augment"), f"{name} is for sequences of one length, and {data.kind}'s differ"
        for key in _idle(train, data.asks):
            yield (*where, key), f"does nothing for {data.asks}: leave it out"
        if train.cutmix and (data.form, data.asks) != ("picture", "classification"):
            yield (*where, "cutmix"), "is for the classification of pictures"
        if train.mixup and (data.form in ("text", "latent") or data.varies_in_length):
            yield (*where, "mixup"), "is for rows, pictures and sequences of one length"


_OF_CRITICS = ("critic_learning_rate", "critic_steps", "gradient_penalty")


def _idle(train: TrainSpec, asks: str) -> Iterator[str]:
    """Give the options of training that are set and that the task has no use for."""
    names = () if asks == "generation" else _OF_CRITICS
    for name in (*names, *(() if asks == "classification" else ("label_smoothing",))):
        if _is_set(train, name):
            yield name


def _is_set(options: Spec, name: str) -> bool:
    """Whether an option has another value than its default."""
    return bool(getattr(options, name) != type(options).model_fields[name].default)


def _judging(recipe: Recipe) -> Iterator[Misfit]:
    """What is wrong of a judge: it is a classifier of the same pictures, and checked as a recipe of one would be."""
    judge, data = recipe.judge, recipe.data
    if judge is None or data.asks != "generation":
        return
    alone = {"data": data.judged, "model": judge.model, "train": judge.train, "pretrain": None, "passes": ()}
    classifier = recipe.model_copy(update=alone)
    for where, what in (*_of_the_model(classifier), *_training(classifier)):
        yield ("judge", *where), what


def _pretraining(train: TrainSpec) -> Iterator[Misfit]:
    """What has no effect where the network fills in hidden parts of its inputs."""
    for key, default in (
        ("loss", "auto"),
        ("label_smoothing", 0.0),
        ("augment", ()),
        ("mixup", 0.0),
        ("cutmix", 0.0),
    ):
        if getattr(train, key) != default:
            yield ("pretrain", "train", key), "does nothing where hidden parts are filled in: leave it out"


def _from_0_to_1(recipe: Recipe) -> bool:
    model = recipe.model
    return recipe.data.asks == "denoising" and isinstance(model, Autoencoder) and model.output == "sigmoid"


_OF_CLASSES = ("logits", "decoupled", "own_depth")


def _teachings(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], Teaching, TrainSpec | None]]:
    """Give what is learned from teachers: where it stands, what, and in which training."""
    for position, options in enumerate(recipe.passes):
        where: tuple[str, ...] = ("passes", str(position))
        teaching = options if isinstance(options, Teaching) else None
        if (finetune := getattr(options, "finetune", None)) is not None:
            teaching, where = finetune.distill, (*where, "finetune", "distill")
        if teaching is not None:
            yield where, teaching, options.train if isinstance(options, Distill | QuantizeAware) else finetune


def _teaching(recipe: Recipe) -> Iterator[Misfit]:
    """Terms of a distillation that are not for the task or the model."""
    data, model = recipe.data, recipe.model
    for where, teaching, train in _teachings(recipe):
        if teaching.unlabeled and train is not None and (train.mixup or train.cutmix):
            yield (*where, "unlabeled"), "samples without labels can't be mixed: leave mixup and cutmix out"
        if teaching.unlabeled and not (data.has_unlabeled or data.fraction < 1 or data.per_class):
            yield (*where, "unlabeled"), "every sample keeps its label: set data.fraction or data.per_class"
        if teaching.teachers > 1 and data.asks == "generation":
            yield (*where, "teachers"), "several generators make different pictures of the same numbers"
        if not teaching.terms and data.asks != "classification" and _is_set(teaching, "temperature"):
            yield (*where, "temperature"), f"softens answers of classes, and {data.kind} asks for {data.asks}"
        for number, term in enumerate(teaching.terms):
            at = (*where, "terms", str(number), "kind")
            if term.kind in _OF_CLASSES and data.asks != "classification":
                yield at, f"{term.kind} is of classes, and {data.kind} asks for {data.asks}: use outputs"
            if term.kind == "hidden_states" and not model.encodes:
                yield at, f"a {model.kind} has no states of frames or tokens: use features"
            if term.kind == "attention" and model.kind == "fnn":
                yield at, "a fnn has no places to attend to: use features"
            if term.kind == "decoupled" and teaching.unlabeled:
                yield at, "decoupled needs the class of every sample: set unlabeled to false"


def _budgets(recipe: Recipe) -> Iterator[Misfit]:
    data, budgets, known = recipe.data, recipe.budgets, TASK_METRICS[recipe.data.asks]
    for name in METRICS:
        if name not in known and getattr(budgets, name, None) is not None:
            yield ("budgets", name), f"{data.kind} is scored by {', '.join(known)}, not by {name}"
    if data.asks != "classification":
        for name in ("accuracy_drop", "worst_class_accuracy_drop"):
            if getattr(budgets, name) is not None:
                yield ("budgets", name), "only classification has an accuracy: use score_drop"

"""The `model:` section of a recipe, one closed model per family."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from armlet.artifacts import TaskKind
from armlet.spec.base import ListOf, Spec
from armlet.spec.data import Form

Width = Annotated[int, Field(gt=0, le=65536)]
"""Units of a layer or channels of a stage; more is a slip of the pen."""

Depth = Annotated[int, Field(gt=0, le=256)]
"""Blocks of a stage."""

Activation = Literal[
    "relu", "relu6", "leaky_relu", "prelu", "elu", "gelu", "silu", "mish", "hard_swish",
    "tanh", "sigmoid", "hard_sigmoid",
]  # fmt: skip


class _Family(Spec):
    takes: ClassVar[tuple[Form, ...]]
    """What samples may be."""
    tasks: ClassVar[tuple[TaskKind, ...]] = ("classification",)
    encodes: ClassVar[bool] = False
    """Whether it can be pre-trained to fill in hidden parts."""

    @property
    def why_not_streamed(self) -> str:
        """Why it can't take frames as they come, empty if it can."""
        return "it takes its input as a whole"


class Fnn(_Family):
    """A multilayer perceptron; input and output widths come from the data."""

    takes: ClassVar[tuple[Form, ...]] = ("row", "picture")
    tasks: ClassVar[tuple[TaskKind, ...]] = ("classification", "forecast")

    kind: Literal["fnn"] = Field(description="The model family.")
    hidden: ListOf[Width] = Field((128, 128), min_length=1, description="Units of each hidden layer.")
    activation: Activation = Field("relu", description="After each hidden layer.")
    norm: Literal["none", "batch", "layer"] = Field(
        "batch", description="Normalisation after each hidden layer."
    )
    dropout: NonNegativeFloat = Field(0.0, lt=1.0, description="After each hidden layer.")


class Cnn(_Family):
    """A small convolutional network: stages of 3×3 blocks, global average pooling, one linear classifier."""

    takes: ClassVar[tuple[Form, ...]] = ("picture",)

    kind: Literal["cnn"] = Field(description="The model family.")
    channels: ListOf[Width] = Field((16, 32, 64), min_length=1, description="Channels of each stage.")
    block: Literal["plain", "residual", "separable"] = Field(
        "plain", description="plain: conv; residual: two convs and an add; separable: depthwise and 1×1 conv."
    )
    depth: Depth | Annotated[ListOf[Depth], Field(min_length=1)] = Field(
        1, description="Blocks in each stage: one number for all, or a list with one for each."
    )
    downsample: Literal["stride", "max_pool"] = Field(
        "max_pool", description="How each stage after the first halves the picture."
    )
    activation: Activation = Field("relu", description="After each convolution.")
    dropout: NonNegativeFloat = Field(0.0, lt=1.0, description="Before the classifier.")


_STEM = "Stride of the first layer; 0 is 1 for pictures below 64 pixels, else 2."
_SKIP = "Share of samples that the last block is skipped for in training; earlier ones less."


class Resnet(_Family):
    """A residual network of basic blocks; 18 and 34 begin as for ImageNet's pictures, with a 7×7 convolution."""

    takes: ClassVar[tuple[Form, ...]] = ("picture",)

    kind: Literal["resnet"] = Field(description="The model family.")
    depth: Literal[8, 18, 20, 32, 34, 44, 56] = Field(
        8, description="Layers with weights, shortcuts not counted."
    )
    width: PositiveFloat = Field(1.0, le=16, description="Multiplies all channels.")
    activation: Activation = Field("relu", description="After each convolution.")
    stochastic_depth: NonNegativeFloat = Field(0.0, lt=1.0, description=_SKIP)
    dropout: NonNegativeFloat = Field(0.0, lt=1.0, description="Before the classifier.")


class Mobilenet(_Family):
    """A MobileNet: separable blocks (v1), inverted residuals (v2), with squeeze and excitation (v3_small)."""

    takes: ClassVar[tuple[Form, ...]] = ("picture",)

    kind: Literal["mobilenet"] = Field(description="The model family.")
    version: Literal["v1", "v2", "v3_small"] = Field("v2", description="The generation.")
    width: PositiveFloat = Field(1.0, le=4, description="Multiplies all channels.")
    stem_stride: Literal[0, 1, 2] = Field(0, description=_STEM)
    stochastic_depth: NonNegativeFloat = Field(0.0, lt=1.0, description=f"{_SKIP} Not of v1.")
    dropout: NonNegativeFloat = Field(0.0, lt=1.0, description="Before the classifier.")


class EfficientnetLite(_Family):
    """EfficientNet-Lite0: inverted residuals with 3×3 and 5×5 kernels."""

    takes: ClassVar[tuple[Form, ...]] = ("picture",)

    kind: Literal["efficientnet_lite"] = Field(description="The model family.")
    stem_stride: Literal[0, 1, 2] = Field(0, description=_STEM)
    stochastic_depth: NonNegativeFloat = Field(0.0, lt=1.0, description=_SKIP)
    dropout: NonNegativeFloat = Field(0.0, lt=1.0, description="Before the classifier.")


class DsCnn(_Family):
    """A depthwise separable network as for keyword spotting: a large first kernel, then blocks of one width."""

    takes: ClassVar[tuple[Form, ...]] = ("picture",)

    kind: Literal["ds_cnn"] = Field(description="The model family.")
    channels: Width = Field(64, description="Of all layers.")
    depth: PositiveInt = Field(4, le=64, description="Separable blocks.")
    stem_kernel: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)] = Field(
        (10, 4), description="Height and width of the first kernel."
    )
    stem_stride: Literal[1, 2] = Field(2, description="Stride of the first layer.")
    activation: Activation = Field("relu", description="After each convolution.")
    dropout: NonNegativeFloat = Field(0.0, lt=1.0, description="Before the classifier.")


class Rnn(_Family):
    """A recurrent network of simple cells; sequences may differ in length."""

    takes: ClassVar[tuple[Form, ...]] = ("sequence",)
    tasks: ClassVar[tuple[TaskKind, ...]] = ("classification", "forecast")
    encodes: ClassVar[bool] = True

    kind: Literal["rnn"] = Field(description="The model family.")
    cell: Literal["elman", "elman_relu", "gru"] = Field("gru", description="elman: tanh; gru: gated.")
    hidden: ListOf[Width] = Field((64,), min_length=1, description="Units of each layer, for each direction.")
    bidirectional: bool = Field(False, description="Whether each layer reads both ways.")
    dropout: NonNegativeFloat = Field(0.0, lt=1.0, description="Between layers and before the last one.")
    readout: Literal["last", "mean"] = Field(
        "last", description="The last state, or the mean over the valid frames."
    )

    @property
    def why_not_streamed(self) -> str:
        """Why it can't take frames as they come, empty if it can."""
        return "it reads backwards, too: use bidirectional: false" if self.bidirectional else ""


class Lstm(_Family):
    """A network of long short-term memory; sequences may differ in length."""

    takes: ClassVar[tuple[Form, ...]] = ("sequence",)
    tasks: ClassVar[tuple[TaskKind, ...]] = ("classification", "forecast")
    encodes: ClassVar[bool] = True

    kind: Literal["lstm"] = Field(description="The model family.")
    hidden: ListOf[Width] = Field((64,), min_length=1, description="Units of each layer, for each direction.")
    bidirectional: bool = Field(False, description="Whether each layer reads both ways.")
    projection: NonNegativeInt = Field(
        0, description="Width that the hidden state is projected to before it is fed back; 0 for none."
    )
    dropout: NonNegativeFloat = Field(0.0, lt=1.0, description="Between layers and before the last one.")
    readout: Literal["last", "mean"] = Field(
        "last", description="The last state, or the mean over the valid frames."
    )

    @property
    def why_not_streamed(self) -> str:
        """Why it can't take frames as they come, empty if it can."""
        return "it reads backwards, too: use bidirectional: false" if self.bidirectional else ""


class Transformer(_Family):
    """A transformer encoder over patches of pictures, frames of sequences, or tokens of text."""

    takes: ClassVar[tuple[Form, ...]] = ("picture", "sequence", "text")
    tasks: ClassVar[tuple[TaskKind, ...]] = ("classification", "forecast")
    encodes: ClassVar[bool] = True

    kind: Literal["transformer"] = Field(description="The model family.")
    width: Width = Field(64, description="Of a token; a multiple of the heads.")
    depth: PositiveInt = Field(2, le=128, description="Blocks.")
    heads: PositiveInt = Field(4, description="Of the attention.")
    expansion: PositiveFloat = Field(
        2.0, description="Hidden width of each feed-forward part, over the width."
    )
    patch: PositiveInt = Field(
        4, description="Pixels of a square patch's side, or frames of a token; not for text."
    )
    activation: Activation = Field("gelu", description="In the feed-forward parts.")
    positions: Literal["learned", "sinusoidal", "none"] = Field("learned", description="Added to the tokens.")
    dropout: NonNegativeFloat = Field(
        0.1, lt=1.0, description="Of embeddings, attention and both parts' results."
    )
    token_dropout: NonNegativeFloat = Field(
        0.0, lt=1.0, description="Share of whole patches, frames or tokens hidden in training."
    )
    stochastic_depth: NonNegativeFloat = Field(
        0.0,
        lt=1.0,
        description="Share of samples that the last block is skipped for in training; earlier ones less.",
    )
    causal: bool = Field(False, description="Whether a token sees only those before it.")

    @property
    def why_not_streamed(self) -> str:
        """Why it can't take frames as they come, empty if it can."""
        return "" if self.causal else "its tokens see those behind them: use causal: true"


class Autoencoder(_Family):
    """An autoencoder: dense for rows of numbers, convolutional for pictures."""

    takes: ClassVar[tuple[Form, ...]] = ("row", "picture")
    tasks: ClassVar[tuple[TaskKind, ...]] = ("anomaly", "denoising")

    kind: Literal["autoencoder"] = Field(description="The model family.")
    hidden: ListOf[Width] = Field((32,), min_length=1, description="Units of the encoder's layers; rows.")
    channels: ListOf[Width] = Field(
        (16, 32), min_length=1, description="Channels of the encoder's stages; pictures."
    )
    code: NonNegativeInt = Field(
        3, le=65536, description="Width of the code; 0 leaves pictures as feature maps."
    )
    activation: Activation = Field("relu", description="After each layer but the last.")
    norm: Literal["none", "batch"] = Field("none", description="Normalisation after each layer.")
    shortcuts: bool = Field(False, description="Add what the encoder had at each size; needs code: 0.")
    variational: bool = Field(False, description="Draw the code from a normal distribution in training.")
    beta: NonNegativeFloat = Field(1.0, description="Weight of that distribution's divergence.")
    output: Literal["linear", "sigmoid"] = Field("linear", description="What limits the answer.")


class Gan(_Family):
    """A generator of pictures from random numbers, and the critic that trains it (DCGAN)."""

    takes: ClassVar[tuple[Form, ...]] = ("latent",)
    tasks: ClassVar[tuple[TaskKind, ...]] = ("generation",)

    kind: Literal["gan"] = Field(description="The model family.")
    channels: ListOf[Width] = Field(
        (128, 64), min_length=1, description="Channels of the generator's stages; each doubles the picture."
    )
    activation: Activation = Field("relu", description="After each layer of the generator but the last.")
    critic_channels: ListOf[Width] = Field(
        (64, 128), min_length=1, description="Channels of the critic's stages; each halves the picture."
    )
    critic_depth: PositiveInt = Field(
        1, description="Convolutions of each of the critic's stages; the first halves the picture.", le=8
    )
    spectral_norm: bool = Field(True, description="Whether the critic's layers are kept from stretching.")
    minibatch_std: bool = Field(
        False,
        description="Whether the critic sees how much pictures differ, so that the generator varies them.",
    )


Argument = bool | int | float | str | None


class Module(_Family):
    """A torch module of your own, made by a function or class in a Python file."""

    takes: ClassVar[tuple[Form, ...]] = ("row", "picture", "sequence", "text")
    tasks: ClassVar[tuple[TaskKind, ...]] = ("classification", "forecast", "anomaly", "denoising")

    kind: Literal["module"] = Field(description="The model family.")
    file: str = Field(
        min_length=1,
        description="The Python file; its path begins at the recipe's folder. What it imports must be installed.",
    )
    factory: str = Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Function or class in the file; what it gives takes [N, ...] for each input.",
    )
    arguments: dict[str, Argument | ListOf[Argument]] = Field(
        default_factory=dict, description="What the factory is called with, by name."
    )
    code: str = Field("", description="The file's text; left out, it is read from the file.")


ModelSpec = Annotated[
    Fnn
    | Cnn
    | Resnet
    | Mobilenet
    | EfficientnetLite
    | DsCnn
    | Rnn
    | Lstm
    | Transformer
    | Autoencoder
    | Gan
    | Module,
    Field(discriminator="kind"),
]

JudgeModel = Annotated[Fnn | Cnn | Resnet | Mobilenet | EfficientnetLite | DsCnn, Field(discriminator="kind")]
"""What may judge pictures: a classifier whose last layer is named `classifier`."""

"""The Recipe: everything that defines a training run, as one frozen value (no torch here)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from vivace.config import check_choice, check_range
from vivace.data.config import AugmentConfig, DataConfig
from vivace.errors import ConfigError
from vivace.models.config import ModelConfig
from vivace.optim.config import OptimizerConfig, ScheduleConfig
from vivace.training.execution import PRECISIONS, switches
from vivace.training.recipes.attack import AttackConfig
from vivace.training.recipes.privacy import PrivacyConfig, check_private

__all__ = ["DistillConfig", "FinetuneConfig", "HardExamplesConfig", "LossConfig", "Recipe"]

MAX_CLASS_WEIGHT = 1e6
LOSSES = ("cross_entropy", "symmetric", "generalized")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Cross-entropy and its variations."""

    name: Literal["cross_entropy", "symmetric", "generalized"] = "cross_entropy"
    """symmetric (arXiv:1908.06112) and generalized (arXiv:1805.07836) cross-entropy fit wrong labels less: the loss of
    an image whose label contradicts what the network has learnt is bounded. They need one class an image."""
    alpha: float = 0.1
    """symmetric: weight of the cross-entropy, [0, 100]."""
    beta: float = 1.0
    """symmetric: weight of the reverse cross-entropy, in which log 0 counts as -6, [0, 100]."""
    q: float = 0.7
    """generalized: (1 - p^q) / q for the probability p of the label, (0, 1]: near 0 it is cross-entropy, 1 is the mean
    absolute error."""
    label_smoothing: float = 0.0
    """Fraction of the target that is spread over all classes, [0, 1) (arXiv:1512.00567)."""
    class_weights: Literal["none", "balanced"] | Mapping[str, float] = "none"
    """balanced: the weight of a class is inversely proportional to its number of training images. Or weights of your
    own by class name, such as {daisy: 2.0}, each in [0, 10^6]; the others are 1. Only their ratios matter: they are
    scaled to a mean of 1 over the training images, so that the learning rate fits as before."""
    focal_gamma: float = 0.0
    """Exponent of focal loss, [0, 10]: the cross-entropy of an image is multiplied by (1 - p)^gamma, where p is the
    probability of its class (arXiv:1708.02002, which uses 2). 0: cross-entropy."""
    self_distillation: float = 0.0
    """Weight at the end of the run, [0, 1), of the loss towards the network's last prediction for the image; it grows
    linearly from 0 (arXiv:2006.12000)."""

    def __post_init__(self) -> None:
        check_choice("loss.name", self.name, LOSSES)
        check_range("loss.alpha", self.alpha, 0.0, 100.0)
        check_range("loss.beta", self.beta, 0.0, 100.0)
        check_range("loss.q", self.q, 0.0, 1.0, open_low=True)
        check_range("loss.label_smoothing", self.label_smoothing, 0.0, 1.0, open_high=True)
        check_range("loss.self_distillation", self.self_distillation, 0.0, 1.0, open_high=True)
        check_range("loss.focal_gamma", self.focal_gamma, 0.0, 10.0)
        if isinstance(self.class_weights, Mapping):
            _check_class_weights(self.class_weights)
        else:
            check_choice("loss.class_weights", self.class_weights, ("none", "balanced"))
        if self.focal_gamma and self.name != "cross_entropy":
            raise ConfigError(
                f"loss.focal_gamma can't go with loss.name={self.name} (focal loss stresses images that are hard to "
                f"fit, wrong labels first): got {self.focal_gamma:g}. Set one of them alone."
            )
        if self.focal_gamma and self.self_distillation:
            raise ConfigError(
                "loss.focal_gamma can't go with loss.self_distillation (its target is a mixture of the label and what "
                f"was answered before, whose parts focal loss weighs unequally): got {self.focal_gamma:g} and "
                f"{self.self_distillation:g}. Set one of them to 0."
            )


def _check_class_weights(weights: Mapping[str, float]) -> None:
    for name, weight in weights.items():
        if weight is None:
            raise ConfigError(f"loss.class_weights has no number for {name!r}: got None. Give one, or leave it out.")
        check_range(f"loss.class_weights.{name}", weight, 0.0, MAX_CLASS_WEIGHT)
    if not weights:
        raise ConfigError("loss.class_weights is empty: got {}. Give {class: weight}, balanced or none.")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Training on the predictions of a teacher in addition to the labels (arXiv:1503.02531)."""

    teacher: str | None = None
    """Folder of the teacher's bundle, trained on the same classes. None: labels only."""
    weight: float = 0.9
    """Weight of the teacher's loss, (0, 1]."""
    temperature: float = 2.0
    """By which the logits of both are divided, > 0: above 1 unlikely classes have more influence."""
    mirrored: bool = False
    """The teacher averages its predictions for an image and its mirror image; the student learns to match the mean."""

    def __post_init__(self) -> None:
        check_range("distill.weight", self.weight, 0.0, 1.0, open_low=True)
        check_range("distill.temperature", self.temperature, 0.0, 1000.0, open_low=True)


@dataclass(frozen=True, kw_only=True)
class HardExamplesConfig:
    """Hard-example sampling: which images the epochs in the middle of a run use."""

    share: float = 1.0
    """Fraction of the training images, those with the highest loss when last seen, that these epochs use, (0, 1]."""
    start: float = 0.25
    """Fraction of the run after which epochs use the hardest images only, [0, 1]."""
    end: float = 0.875
    """Fraction of the run after which they use all images again, [0, 1]; whole epochs only."""

    def __post_init__(self) -> None:
        check_range("focus.share", self.share, 0.0, 1.0, open_low=True)
        check_range("focus.start", self.start, 0.0, self.end)
        check_range("focus.end", self.end, self.start, 1.0)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """What comes before the epochs where the network starts from trained weights."""

    head: bool = False
    """Solve the head on features of the frozen network: logistic regression, its regularization chosen on images left
    out of each of four fits. The epochs that follow, if any, train what `trains` says."""
    trains: Literal["auto", "last", "whole"] = "auto"
    """What epochs train after that. last: the last stages of the network, on maps of its frozen front that are computed
    once for each view; whole: all of it. auto: the last stages, where the network can be cut and runs on a CPU; the
    whole one with a time budget that has room for it."""
    cut: str | None = None
    """Name of the module after which the last stages begin. None: chosen, so that they have at most 35 % of
    the operations."""
    views: int = 2
    """Views of each training image that the frozen network computes, 1 to 32: the image, its mirror image (the head is
    solved on these two), random crops (the last stages are trained on all)."""

    runtime: Literal["auto", "openvino", "torch"] = "auto"
    """What computes the frozen network. auto: OpenVINO, where it is installed and answers as torch does. A run keeps
    what it began with."""

    def __post_init__(self) -> None:
        check_choice("finetune.runtime", self.runtime, ("auto", "openvino", "torch"))
        check_choice("finetune.trains", self.trains, ("auto", "last", "whole"))
        check_range("finetune.views", self.views, 1, 32)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A complete description of a training run; it can be written as YAML and read back without loss."""

    name: str = "custom"
    """Its name in reports."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    focus: HardExamplesConfig = field(default_factory=HardExamplesConfig)
    """Hard-example sampling."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)
    """Adversarial training."""
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    """Training with differential privacy."""
    epochs: int = 10
    """Passes over the training images, >= 1; with finetune.head also 0, which leaves the body as it is; 0 in a private
    run, which has privacy.epochs. With a time
    budget, whether there are any depends on what is left of it."""
    batch_size: int = 64
    """Images per optimizer step, >= 2."""
    micro_batch_size: int | None = None
    """Images per forward pass; gradients are accumulated. None: the whole batch, halved when memory runs out."""
    ema_decay: float | None = None
    """Decay per step of the moving average of the weights, which is validated and bundled, (0, 1). None: no average."""
    clip_grad_norm: float | None = None
    """Maximum norm of the gradient of all parameters, > 0. None: not clipped."""
    early_stopping: int | None = None
    """Stop after this many validations without a better one, and save the weights of the best. None: never."""
    monitor: Literal["top1", "loss", "macro_f1", "balanced_accuracy", "robust"] = "top1"
    """Metric of the validation images that says which validation is better, for `early_stopping`; loss: the lower one.
    Others than top1 need `early_stopping`, but for robust: the accuracy that adversarial training (`attack.eps`)
    probes, whose best weights are always saved. With sets of labels top1 stands for mAP, and loss is the only other
    one."""
    calibrate: bool = False
    """Divide the bundle's logits by a temperature fitted on the validation images (arXiv:1706.04599); predicted classes
    do not change."""
    fake_quant: bool = False
    """Train with weights and activations rounded as in int8 (arXiv:1712.05877); requires compile off."""
    head_epochs: int = 0
    """With pretrained weights: number of epochs at the start in which only the head is trained."""
    freeze_after: tuple[float, ...] = ()
    """Fractions of the run after which the first, second … part of the network is frozen, each in (0, 1]."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of forward and backward passes; weights stay fp32. auto: whichever a short trial finds faster here."""
    channels_last: bool | Literal["auto"] = "auto"
    """Memory format of images and weights. auto: as for precision."""
    compile: bool | Literal["auto"] = "auto"
    """Use torch.compile. auto: when the run is long enough to earn back what compiling costs."""
    tile_gradients: bool | Literal["auto"] = "auto"
    """On a CPU, take weight gradients of 3×3 convolutions from tiles that hold many images. auto: as for precision."""
    winograd: bool | Literal["auto"] = "auto"
    """On a CPU in bf16, take 3×3 convolutions by Winograd's minimal filtering: fewer products, a little less exact.
    auto: as for precision, on CPUs with AVX-512 BF16 and no AMX."""
    fuse_norms: bool | Literal["auto"] = "auto"
    """On a CPU in bf16, run pooling, batch norm and activation as one kernel. auto: as for precision."""
    threads: int | Literal["auto"] = "auto"
    """CPU threads. auto: all processors of this process."""
    validate_every: float = 1.0
    """Epochs between validations, > 0, such as 0.5 or 2; the last step is always validated."""
    checkpoint_minutes: float = 5.0
    """Maximum time between two checkpoints, minutes, > 0; one is always written at the end of an epoch."""
    seed: int = 0
    """Seed of all random numbers, [0, 2^32)."""
    deterministic: bool = False
    """Refuse kernels with non-deterministic results (CUDA); a CPU with a fixed number of threads needs no check."""

    def __post_init__(self) -> None:
        if self.privacy.is_private:
            check_private(self)
        least = 0 if self.finetune.head or self.privacy.is_private else 1
        check_range("epochs", self.epochs, least, 100_000)
        check_range("batch_size", self.batch_size, 2, 1_000_000)
        check_range("micro_batch_size", self.micro_batch_size, 1, self.batch_size)
        check_range("ema_decay", self.ema_decay, 0.0, 1.0, open_low=True, open_high=True)
        check_range("clip_grad_norm", self.clip_grad_norm, 0.0, open_low=True)
        check_range("early_stopping", self.early_stopping, 1)
        check_choice("monitor", self.monitor, ("top1", "loss", "macro_f1", "balanced_accuracy", "robust"))
        if self.monitor not in ("top1", "robust") and self.early_stopping is None:
            raise ConfigError(
                f"monitor needs early_stopping: got {self.monitor!r} without it. Set early_stopping to a number of "
                "validations."
            )
        self._check_attack()
        check_range("head_epochs", self.head_epochs, 0, self.epochs)
        for share in self.freeze_after:
            check_range("freeze_after", share, 0.0, 1.0, open_low=True)
        check_choice("precision", self.precision, ("auto", *PRECISIONS))
        check_range("validate_every", self.validate_every, 0.0, open_low=True)
        check_range("checkpoint_minutes", self.checkpoint_minutes, 0.0, open_low=True)
        check_range("seed", self.seed, 0, 2**32, open_high=True)
        for name in switches():
            # made in Python, no YAML reader has looked at it: "on" would count as off in silence
            if getattr(self, name) not in (True, False, "auto"):
                raise ConfigError(f"{name} is unknown: got {getattr(self, name)!r}. Give True, False or 'auto'.")
        if self.fake_quant and self.compile is True:
            raise ConfigError("fake_quant can't be compiled: got compile true. Set compile=false or fake_quant=false.")
        if isinstance(self.threads, str):
            check_choice("threads", self.threads, ("auto",))
        else:
            check_range("threads", self.threads, 1, 4096)
        if self.data.balanced_sampling and self.loss.class_weights == "balanced":
            raise ConfigError(
                "classes would be balanced twice: data.balanced_sampling is true and loss.class_weights is 'balanced'. "
                "Set one of them."
            )
        if self.focus.share < 1 and (self.data.balanced_sampling or self.augment.mixup or self.augment.cutmix):
            other = "data.balanced_sampling" if self.data.balanced_sampling else "augment.mixup or augment.cutmix"
            raise ConfigError(
                f"focus.share can't go with {other}: got {self.focus.share}. Set focus.share=1, or leave the other out."
            )
        if self.loss.self_distillation and (self.augment.mixup or self.augment.cutmix):
            raise ConfigError(
                "loss.self_distillation can't go with augment.mixup or augment.cutmix (an answer to a mixed image is "
                f"no image's): got {self.loss.self_distillation}. Set it to 0, or leave the other out."
            )
        if self.finetune.head and not self.model.has_learnt:
            raise ConfigError(
                "finetune.head needs a network that has learnt something: got random weights. Give `pretrained` or "
                "`weights`, or set finetune.head=false."
            )
        if self.head_epochs and not self.model.has_learnt:
            raise ConfigError(
                f"head_epochs needs a network that has learnt something: got head_epochs {self.head_epochs} without "
                "pretrained weights. Give `model.pretrained` or `model.weights`, or set head_epochs=0."
            )

    def _check_attack(self) -> None:
        if self.monitor == "robust" and not self.attack.eps:
            raise ConfigError(
                "monitor=robust needs adversarial training: got attack.eps 0. Set attack.eps=8, or another monitor."
            )
        if self.attack.eps and self.finetune.head:
            raise ConfigError(
                f"attack.eps can't go with finetune.head (features of the frozen network are computed once, and no "
                f"attack moves them): got {self.attack.eps:g}. Set finetune.head=false."
            )

    @property
    def keeps_best(self) -> bool:
        """Whether the weights of the best validation are saved rather than the last ones."""
        return self.early_stopping is not None or self.monitor == "robust"

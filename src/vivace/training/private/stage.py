"""The one stage of a private run: DP-SGD on a linear head over features of the frozen network, or on all of it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vivace.bundle import load_bundle
from vivace.errors import ConfigError
from vivace.models.zoo import head_parameters
from vivace.owned import bundle_around
from vivace.training.finetuning.features import FrozenFeatures
from vivace.training.finetuning.solving import Stage
from vivace.training.loop.session import Session
from vivace.training.loop.validation import Trained, Validation
from vivace.training.private.accounting import Spent, epsilon_of, noise_for
from vivace.training.private.apart import Untrained, check_apart
from vivace.training.private.head import Features, fit_private_head, private_mean, secret_generator
from vivace.training.private.whole import check_whole, train_whole
from vivace.training.tuning.tune import plain_execution

__all__ = ["PrivateStage", "private_stage"]

# (network, split) → logits_NK and labels_N
Answering = Callable[[nn.Module, str], tuple[Tensor, Tensor]]

NAME = "private training"
# training images on which a network that was trained as a whole is looked at
NUM_TRIED = 1000
# features of more bytes are kept as bf16
MAX_FLOAT_BYTES = 2**30
# images that tell how long features are, made from nothing but noise
NUM_NOISE = 32
# px by which further views are moved at most
SHIFT = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrivateStage(Stage):
    """What a private training ended with, and what it spent."""

    spent: Spent


def private_stage(session: Session, *, cache_dir: Path, on_message: Callable[[str], None]) -> PrivateStage:
    """Train the session's network in place, its head or all of it, with the promise that the recipe names.

    Raises ConfigError for a network that can't be trained so, a delta that promises nothing, sets of labels, and images
    that are kept as they are, whose scale is taken from them; MissingExtra without Opacus.
    """
    began = time.monotonic()
    recipe, privacy = session.recipe, session.recipe.privacy
    count = len(session.data.train_indices)
    _check(session, count)
    if session.start.line:
        on_message(session.start.line)
    sample_rate = min(1.0, recipe.batch_size / count)
    steps = max(1, round(privacy.epochs / sample_rate))
    assert privacy.epsilon is not None
    noise, mean_noise = noise_for(
        privacy.epsilon,
        privacy.delta,
        sample_rate=sample_rate,
        steps=steps,
        center=privacy.center if privacy.trains == "head" else 0.0,
    )
    spent = _spent(session, noise, mean_noise, sample_rate, steps)
    on_message(
        f"differential privacy: epsilon {spent.epsilon:.4g} at delta {spent.delta:g}, by {steps:,} steps of "
        f"{sample_rate * count:,.0f} images on average with noise {noise:.3g}"
    )
    untrained = Untrained(session.model, _trained(session))
    if privacy.trains == "head":
        answers, loss, top1 = _head(session, spent, mean_noise, cache_dir, on_message)
    else:
        answers, loss, top1 = _whole(session, spent)
    untrained.check(session.model)
    validation = Validation.of(*answers(session.model, "val"), session.task)
    on_message(f"{100 * validation.score:.1f} % on validation")
    return PrivateStage(
        name=NAME,
        trained=Trained(
            validation=validation,
            loss=loss,
            score=top1,
            num_images=round(privacy.epochs * count),
            seconds=time.monotonic() - began,
        ),
        answers=answers,
        weights={name: tensor.clone() for name, tensor in session.model.state_dict().items()},
        spent=spent,
    )


def _head(
    session: Session, spent: Spent, mean_noise: float | None, cache_dir: Path, on_message: Callable[[str], None]
) -> tuple[Answering, float, float]:
    """(what answers by the features, loss and accuracy on the training images)."""
    recipe, count = session.recipe, len(session.data.train_indices)
    try:
        frozen = FrozenFeatures(
            session.model, session.normalize, session.data, session.device, cache_dir, runtime=recipe.finetune.runtime
        )
    except ValueError as error:
        raise ConfigError(
            f"privacy.trains=head needs one linear layer on a vector of features, and {recipe.model.name} has none: "
            f"{error}. Give another `model`."
        ) from None
    on_message(f"features of {count:,} training images by the frozen network ({frozen.runtime})")
    views = [_stored(frozen.once("train", name)) for name in _views(session, frozen)]
    secret = secret_generator()
    length = _length_of_noise(session, frozen)
    head = fit_private_head(
        Features(views=views, mean_D=private_mean(views, length, mean_noise, secret), scale=length),
        frozen.labels("train"),
        session.num_classes,
        optimizer=recipe.optimizer,
        schedule=recipe.schedule,
        clip_norm=spent.clip_norm,
        noise_multiplier=spent.noise_multiplier,
        sample_rate=spent.sample_rate,
        steps=spent.steps,
        generator=secret,
    )
    layer = session.model.get_submodule(frozen.head_name)
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.copy_(head.weight_KD)
        layer.bias.copy_(head.bias_K)
    session.answers = frozen.logits
    return (frozen.logits, *_on_training_images(views[0], frozen.labels("train"), layer))


def _whole(session: Session, spent: Spent) -> tuple[Answering, float, float]:
    """The same of all of the network; the training images are a part of them."""
    train_whole(session, noise_multiplier=spent.noise_multiplier, sample_rate=spent.sample_rate, steps=spent.steps)
    data, execution = session.data, plain_execution(session.recipe)
    split = data.cache.splits["train"]
    some = data.train_indices[np.linspace(0, len(data.train_indices) - 1, NUM_TRIED).astype(int)]
    logits_NK, labels_N = session.logits(session.model, execution, split.images_NHWC, split.labels_N, np.unique(some))
    top1 = float((logits_NK.argmax(1) == labels_N).float().mean())
    return (
        lambda model, name: session.logits_of_split(model, execution, name),
        float(nn.functional.cross_entropy(logits_NK, labels_N)),
        top1,
    )


def _check(session: Session, count: int) -> None:
    privacy = session.recipe.privacy
    if privacy.delta >= 1 / count:
        raise ConfigError(
            f"privacy.delta promises nothing of {count:,} training images: got {privacy.delta:g}, and publishing "
            f"one of them at random is private with {1 / count:.2g}. Set privacy.delta={0.1 / count:.0e} or less."
        )
    if session.task.label_sets_MK is not None:
        raise ConfigError("private training takes one class an image: got sets of labels. Leave `recipe` private out.")
    if session.data.preprocess.is_raw:
        raise ConfigError(
            "private training takes images of 8 bits: the scale of others is taken from them. Convert them before."
        )
    _check_start(session)
    seen, name = session.seen, session.recipe.model.name
    is_whole = privacy.trains == "whole"
    if is_whole:
        check_whole(session.model, name)
    check_apart(session.model, name, channels=seen.channels, size=seen.size, device=session.device, training=is_whole)


def _trained(session: Session) -> set[str]:
    """The names of the weights that get noise."""
    if session.recipe.privacy.trains == "head":
        return set(head_parameters(session.model))
    return {name for name, value in session.model.named_parameters() if value.requires_grad}


def _check_start(session: Session) -> None:
    """Raises ConfigError for weights of a bundle that has seen these images, or may have: of other files nobody knows.

    Its epsilon would not be what is stated.
    """
    place = session.recipe.model.weights
    if place is None:
        return
    # a file of a bundle has seen what the bundle has
    bundle = place if Path(place).is_dir() else bundle_around(Path(place).resolve())
    if bundle is None:
        return
    record = load_bundle(bundle).trained_on()
    digests_N = session.data.cache.splits["train"].digests_N[session.data.train_indices]
    seen = None if record is None else int(record.among(digests_N).sum())
    if seen == 0:
        return
    what = "has no record of the images that it saw" if seen is None else f"was trained on {seen:,} of these images"
    raise ConfigError(
        f"`weights` can't go with privacy.epsilon: {place} {what}, and tells of them without noise. Give weights of "
        "public images."
    )


def _spent(session: Session, noise: float, mean_noise: float | None, sample_rate: float, steps: int) -> Spent:
    privacy = session.recipe.privacy
    assert privacy.epsilon is not None
    before = [] if mean_noise is None else [(mean_noise, 1.0, 1)]
    releases = [*before, (noise, sample_rate, steps)]
    return Spent(
        epsilon=epsilon_of(releases, privacy.delta, error=0.002 * privacy.epsilon),
        delta=privacy.delta,
        noise_multiplier=noise,
        sample_rate=sample_rate,
        steps=steps,
        clip_norm=privacy.clip_norm,
    )


def _stored(features_ND: Tensor) -> Tensor:
    is_large = 4 * features_ND.numel() > MAX_FLOAT_BYTES
    return features_ND.bfloat16() if is_large else features_ND


def _views(session: Session, frozen: FrozenFeatures) -> list[str]:
    """The names of the views: the image, its mirror image where the recipe flips, then these moved at random."""
    privacy, mirrors = session.recipe.privacy, session.recipe.augment.flip != "none"
    names = ["plain", "mirrored"] if mirrors else ["plain"]
    preprocess = session.data.preprocess
    for number in range(len(names), privacy.views):

        def moved(stored_NHWC: np.ndarray, number: int = number) -> np.ndarray:
            images = preprocess.view(stored_NHWC)
            images = images[:, :, ::-1] if mirrors and number % 2 else images
            size = images.shape[1]
            padded = np.pad(images, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="reflect")
            # of a view, not of an image: each image is moved whatever the others are
            down, right = np.random.default_rng(number).integers(0, 2 * SHIFT + 1, 2)
            return padded[:, down : down + size, right : right + size]

        frozen.add_view(f"moved {number}", moved)
        names.append(f"moved {number}")
    return names[: privacy.views]


def _length_of_noise(session: Session, frozen: FrozenFeatures) -> float:
    """The median norm of the features of noise whose spectrum falls as that of photos does: it tells of no image."""
    preprocess, generator = session.data.preprocess, torch.Generator().manual_seed(0)
    size, channels = preprocess.size, preprocess.channels
    images_BCHW = torch.zeros(NUM_NOISE, channels, size, size)
    side = 2
    while side <= size:
        noise = torch.randn(NUM_NOISE, channels, side, side, generator=generator)
        images_BCHW += nn.functional.interpolate(noise, (size, size), mode="bilinear")
        side *= 2
    pixels = (127.5 + 40 * images_BCHW).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    norms = torch.linalg.vector_norm(frozen.of_pixels(np.ascontiguousarray(pixels)), dim=1)
    return max(float(norms.median()), 1e-6)


def _on_training_images(features_ND: Tensor, labels_N: Tensor, layer: nn.Linear) -> tuple[float, float]:
    """(loss, accuracy), which stay in the run's folder: they are of the training images themselves."""
    weight_KD, bias_K = layer.weight.detach().cpu(), layer.bias.detach().cpu()
    logits_NK = torch.cat([rows.float() @ weight_KD.t() + bias_K for rows in features_ND.split(4096)])
    top1 = float((logits_NK.argmax(1) == labels_N).float().mean())
    return float(nn.functional.cross_entropy(logits_NK, labels_N)), top1

"""The stage of the head: what a network is worth whose last layer alone is solved, on features of its frozen body."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from vivace.data.labelsets import class_counts
from vivace.training.finetuning.features import FrozenFeatures
from vivace.training.finetuning.head import fit_head
from vivace.training.loop.session import Session
from vivace.training.loop.validation import Trained, Validation
from vivace.training.techniques.losses import class_weights
from vivace.training.techniques.tasks import positive_weights

__all__ = ["HEAD_ALONE", "WHOLE_NETWORK", "Stage", "solve_head"]

HEAD_ALONE, WHOLE_NETWORK = "the head alone", "the whole network"
# what follows the features in a run: the head, its validation, the bundle
SECONDS_AFTER = 4.0
# the least of it, with a second for the head
LEAST_SECONDS_AFTER = 2.5
# a second view must fit into what is left this many times
MARGIN = 1.3
# the head is solved on so many training images however little time there is, or on all if there are fewer
MIN_IMAGES = 512
# with a target, of this many times as many first so many alone, which may be enough
FEW = 4


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a stage before the training loop ended with."""

    name: str
    trained: Trained
    answers: Callable[[nn.Module, str], tuple[Tensor, Tensor]]
    """As `Session.answers`."""
    weights: Mapping[str, Tensor]
    """A copy of the state dict."""

    def missed(self, target: float | None) -> str:
        """That it missed the target, and what comes next."""
        reached = self.trained.validation.score
        return f"{self.name} have {reached:.4g} on validation, the target is {target:g}: training {WHOLE_NETWORK}"


def solve_head(
    session: Session,
    features: FrozenFeatures,
    target: float | None,
    *,
    seconds_left: Callable[[], float],
    on_message: Callable[[str], None],
) -> Stage:
    """Solve the head of the session's network in place; afterwards the session validates by the frozen features.

    target: accuracy; of many images a head for some is tried first, then for all, then for their mirror images too.
    seconds_left: of the time budget; infinite without one.
    """
    began = time.monotonic()
    count = len(session.data.train_indices)
    on_message(f"features of {count:,} training images by the frozen network ({features.runtime})")
    if session.recipe.loss.focal_gamma:
        on_message("the head is solved by cross-entropy: focal loss is that of the epochs")
    # first what must be there, by which the rest is planned
    features.of("val")
    per_image = features.seconds / features.num_images

    def images_left(seconds_after: float) -> float:
        return (seconds_left() - seconds_after) / per_image - session.data.num_test

    labels_N, solve = features.labels("train"), partial(_with_head, session, features, began, on_message=on_message)

    def solve_on_some(number: int) -> Stage:
        rows = _of_each_class(labels_N, number, session.recipe.seed)
        return solve([features.of_some("train", rows)], labels_N[rows], seconds=1.0, is_quick=target is not None)

    def reached(stage: Stage) -> bool:
        return target is not None and stage.trained.validation.score >= target

    number = images_left(LEAST_SECONDS_AFTER)
    if MIN_IMAGES < count > number:
        number = max(MIN_IMAGES, int(number))
        on_message(f"time is left for {number:,} training images: the head is solved on these. Give a longer `within`")
        return solve_on_some(number)
    if target is not None and count > FEW * MIN_IMAGES:
        stage = solve_on_some(MIN_IMAGES)
        if reached(stage):
            return stage
        on_message(f"the target is {target:g}: all training images")
    views = [features.of("train")]
    # where mirrored images are other images, such as digits, the recipe does not flip them
    mirrors = session.recipe.finetune.views > 1 and session.recipe.augment.flip != "none"
    per_image = features.seconds / features.num_images
    if mirrors and images_left(SECONDS_AFTER) <= MARGIN * count:
        on_message(f"mirror images are left out: they take {per_image * count:,.1f} s, and too little time is left")
        mirrors = False
    seconds = max(1.0, seconds_left() - SECONDS_AFTER)
    if mirrors and target is not None and count > MIN_IMAGES:
        # a second view takes as long as the first, and its head longer
        stage = solve(views, labels_N, seconds=seconds, is_quick=True)
        if reached(stage):
            return stage
        on_message(f"the target is {target:g}: mirror images too")
    if mirrors:
        views.append(features.of("train", "mirrored"))
        seconds = max(1.0, seconds_left() - SECONDS_AFTER)
    return solve(views, labels_N, seconds=seconds)


def _with_head(
    session: Session,
    features: FrozenFeatures,
    began: float,
    views: Sequence[Tensor],
    labels_N: Tensor,
    *,
    seconds: float,
    is_quick: bool = False,
    on_message: Callable[[str], None],
) -> Stage:
    """Give the session's network a head that is solved on features [N, D] of one or several views of images.

    began: of the stage, by `time.monotonic`. seconds, is_quick: as for `fit_head`.
    """
    count = len(labels_N)
    head = fit_head(
        torch.cat(list(views)),
        labels_N.repeat(len(views)),
        session.num_classes,
        images_N=torch.arange(count).repeat(len(views)),
        class_weights_K=_class_weights(session),
        label_sets_MK=session.task.label_sets_MK,
        positive_weights_K=_positive_weights(session),
        seed=session.recipe.seed,
        seconds=seconds,
        is_quick=is_quick,
    )
    layer = session.model.get_submodule(features.head_name)
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.copy_(head.weight_KD)
        layer.bias.copy_(head.bias_K)
    session.answers = features.logits
    logits, labels = features.logits(session.model, "val")
    validation = Validation.of(logits, labels, session.task)
    regression = "logistic regression" if session.task.label_sets_MK is None else "a logistic regression for each label"
    score = f"{100 * validation.score:.1f} %" + ("" if validation.map is None else " mAP")
    images = "each image" if count == len(session.data.train_indices) else f"each of {count:,} images"
    on_message(
        f"the head: {regression} on {layer.in_features:,} features, {len(views)} "
        f"{'view' if len(views) == 1 else 'views'} of {images}, {features.images_per_second:,.0f} img/s; "
        f"{score} on validation"
    )
    return Stage(
        name=HEAD_ALONE,
        trained=Trained(
            validation=validation,
            loss=head.loss,
            score=head.top1,
            num_images=count * len(views),
            seconds=time.monotonic() - began,
        ),
        answers=features.logits,
        weights={name: tensor.clone() for name, tensor in session.model.state_dict().items()},
    )


def _of_each_class(labels_N: Tensor, count: int, seed: int) -> Tensor:
    """int64 rows, ascending: `count` at most, at random, of each class about the same fraction, and one at least."""
    generator = torch.Generator().manual_seed(seed)
    order_N = torch.randperm(len(labels_N), generator=generator)
    order_N = order_N[labels_N[order_N].argsort(stable=True)]
    sizes_K = labels_N.bincount()
    classes_N = labels_N[order_N]
    rank_N = torch.arange(len(labels_N)) - (sizes_K.cumsum(0) - sizes_K)[classes_N]
    first_N = (rank_N / sizes_K[classes_N]).argsort(stable=True)
    return order_N[first_N[: max(count, int((sizes_K > 0).sum()))]].sort().values


def _class_weights(session: Session) -> Tensor | None:
    """Those of the recipe; where it balances classes by sampling, weights do the same."""
    if not session.recipe.data.balanced_sampling or session.task.label_sets_MK is not None:
        return session.weights_K
    balanced_K = class_weights(session.data.train_labels_N, session.num_classes)
    return balanced_K if session.weights_K is None else balanced_K * session.weights_K.cpu()


def _positive_weights(session: Session) -> Tensor | None:
    """Those of the recipe for labels, where images have sets of them."""
    sets = session.data.cache.label_sets
    if sets is None or session.recipe.loss.class_weights != "balanced":
        return None
    labels_N = session.data.train_labels_N
    return positive_weights(class_counts(labels_N, session.num_classes, sets), len(labels_N))

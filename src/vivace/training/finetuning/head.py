"""The head of a frozen network: logistic regression, its regularization chosen by cross-validation.

It is multinomial where images have one class, and one against the rest for each label where they have sets of them.

The features are centred, divided by a deviation that is never far below that of all features (one that is constant in a
few images may be large in others), and rotated to their principal axes. There Böhning's bound on the curvature, ½ XᵀX
(Annals of the Institute of Statistical Mathematics 44, 1992), is diagonal for every strength of regularization at once,
so that all folds and all strengths are solved together, as columns of one matrix product, by Nesterov's accelerated
gradient with adaptive restarts (arXiv:1204.3982).

The curvature of a binary loss is half as large, ¼ XᵀX.

N images, D features, r principal axes, K classes, P problems (folds × strengths).
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Head", "fit_head"]

# strengths of the L2 penalty on the weights of standardized features
STRENGTHS = tuple(10.0 ** (exponent / 2) for exponent in range(-6, 2))
FOLDS = 4
MAX_STEPS_CHOOSING, MAX_STEPS = 60, 300
# the largest entry of the gradient at which a solution counts as found
TOLERANCE = 1e-4
# multiply-adds of a step of all problems; beyond it, fewer folds and images choose the strength
MAX_PRODUCTS = 4e9
# of the mean variance of the features, what is added to that of each: docs/log/2026-11-29.md has what it gains
COMMON = 1.0
# steps that are made however little time there is
MIN_STEPS = 10
# eigenvalues below this share of the largest are rounding errors
NEGLIGIBLE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Head:
    """A linear layer for the features as the network gives them."""

    weight_KD: Tensor
    """float32."""
    bias_K: Tensor
    strength: float
    """Of the L2 penalty, the one with the lowest loss on images that were left out."""
    left_out_top1: float
    """Accuracy on images that were left out of the fit, in [0, 1]; with sets of labels the fraction of right labels."""
    top1: float
    """The same on the images that it was fitted to."""
    loss: float
    """Cross-entropy on these; with sets of labels summed over the labels."""


def fit_head(
    features_ND: Tensor,
    labels_N: Tensor,
    num_classes: int,
    *,
    images_N: Tensor | None = None,
    class_weights_K: Tensor | None = None,
    label_sets_MK: Tensor | None = None,
    positive_weights_K: Tensor | None = None,
    seed: int = 0,
    seconds: float = math.inf,
    is_quick: bool = False,
) -> Head:
    """The head that minimizes cross-entropy plus an L2 penalty, whose strength is chosen on images left out.

    features_ND: float32, one row for each view of an image. labels_N: int64 in [0, K). images_N: int64, which image a
    row is a view of: views of an image are left out together; None: each row is an image. class_weights_K: weights of
    the classes in the loss. label_sets_MK: where labels_N are the numbers of its rows, the labels of each combination,
    1 or 0; then positive_weights_K weights the images that have a label against those that have not. seconds: after
    which the solution is taken as far as it is, at least a few steps. is_quick: fewer strengths, folds and steps.
    Deterministic for a seed and a number of threads, unless the time ends it.
    """
    features_ND = features_ND.float()
    images_N = torch.arange(len(labels_N)) if images_N is None else images_N
    weights_N = torch.ones(len(labels_N)) if class_weights_K is None else class_weights_K.cpu()[labels_N]
    sets_MK = None if label_sets_MK is None else label_sets_MK.cpu()
    positive_K = None if positive_weights_K is None else positive_weights_K.cpu()
    mean_D, variance_D = features_ND.mean(0), features_ND.var(0, correction=0)
    deviation_D = (variance_D + COMMON * variance_D.mean()).sqrt().clamp_min(1e-30)
    rotated_Nr, curvature_r, axes_Dr = _principal_axes((features_ND - mean_D) / deviation_D)
    problem = _Problem(rotated_Nr, curvature_r, labels_N, weights_N, num_classes, sets_MK, positive_K)
    # a third of the time for the choice
    began = time.monotonic()
    chosen, left_out_top1 = _chosen_strength(problem, images_N, seed, until=began + seconds / 3, is_quick=is_quick)
    max_steps = MAX_STEPS_CHOOSING if is_quick else MAX_STEPS
    solution = problem.solve(torch.tensor([chosen]), None, max_steps, until=began + seconds)
    logits_NK = problem.logits(solution)[:, 0]
    weight_DK = axes_Dr @ solution[0, :-1] / deviation_D[:, None]
    return Head(
        weight_KD=weight_DK.t().contiguous(),
        bias_K=solution[0, -1] - mean_D @ weight_DK,
        strength=chosen,
        left_out_top1=left_out_top1,
        top1=float(problem.right(logits_NK[:, None]).mean()),
        loss=problem.mean_loss(logits_NK),
    )


def _principal_axes(standardized_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(rotated_Nr, curvature_r, axes_Dr): the rows in the basis in which their second moments are diagonal."""
    count, width = standardized_ND.shape
    if count < width:
        values, vectors = torch.linalg.eigh(standardized_ND @ standardized_ND.t() / count)
        kept = values > NEGLIGIBLE * values.max().clamp_min(1e-30)
        values = values[kept]
        axes_Dr = standardized_ND.t() @ (vectors[:, kept] / (values * count).sqrt())
    else:
        values, vectors = torch.linalg.eigh(standardized_ND.t() @ standardized_ND / count)
        kept = values > NEGLIGIBLE * values.max().clamp_min(1e-30)
        values, axes_Dr = values[kept], vectors[:, kept]
    return standardized_ND @ axes_Dr, values, axes_Dr


class _Problem:
    """The penalized loss on rotated features, for several strengths and subsets of the rows at once."""

    def __init__(
        self,
        rotated_Nr: Tensor,
        curvature_r: Tensor,
        labels_N: Tensor,
        weights_N: Tensor,
        num_classes: int,
        sets_MK: Tensor | None = None,
        positive_K: Tensor | None = None,
    ) -> None:
        ones = torch.ones(len(rotated_Nr), 1)
        # the last column is the bias, which is not penalized
        self.rows_Nr = torch.cat([rotated_Nr, ones], 1)
        # weights of the classes change the second moments; their largest value keeps the bound
        self.curvature_r = torch.cat([curvature_r, ones[:1, 0]]) * weights_N.max() / weights_N.mean()
        self.labels_N, self.weights_N, self.num_classes = labels_N, weights_N, num_classes
        self.sets_MK, self.positive_K, self.factor = sets_MK, positive_K, 1.0
        if sets_MK is not None:
            # half the bound of the multinomial loss; a label's weight scales its own curvature
            self.factor = 0.5 * (1.0 if positive_K is None else max(1.0, float(positive_K.max())))
            self.curvature_r *= self.factor

    def subset(self, rows: Tensor) -> _Problem:
        """The same on some of the rows."""
        part = copy.copy(self)
        part.rows_Nr, part.labels_N, part.weights_N = self.rows_Nr[rows], self.labels_N[rows], self.weights_N[rows]
        # the subset's own moments may be larger along some axis
        part.curvature_r = torch.maximum(
            self.curvature_r, self.factor * 1.2 * (part.rows_Nr**2).mean(0) * self.weights_N.max()
        )
        return part

    def logits(self, weights_PrK: Tensor) -> Tensor:
        """logits_NPK."""
        count, width, classes = weights_PrK.shape
        columns = weights_PrK.permute(1, 0, 2).reshape(width, count * classes)
        return (self.rows_Nr @ columns).view(-1, count, classes)

    def solve(self, strengths_P: Tensor, used_PN: Tensor | None, max_steps: int, *, until: float = math.inf) -> Tensor:
        """weights_PrK, the last of r the bias. used_PN: bool, the rows that each problem is fitted to; None: all.

        until: of the clock `time.monotonic`, when no further step is made.
        """
        rows, width = self.rows_Nr.shape
        count = len(strengths_P)
        importance_PN = self.weights_N.expand(count, rows) if used_PN is None else self.weights_N * used_PN
        total_P = importance_PN.sum(1)
        penalized_r = torch.ones(width)
        penalized_r[-1] = 0
        penalty_Pr = strengths_P[:, None] * penalized_r
        bound_Pr = 0.5 * self.curvature_r * (self.weights_N.sum() / total_P)[:, None] + penalty_Pr
        importance_NP1 = (importance_PN / total_P[:, None]).t().unsqueeze(2)
        targets_N1K = self._targets()
        weights = torch.zeros(count, width, self.num_classes)
        ahead, momentum_P = weights.clone(), torch.ones(count)
        for step in range(max_steps):
            if step >= MIN_STEPS and time.monotonic() > until:
                break
            residual = self._residual(self.logits(ahead), targets_N1K) * importance_NP1
            gradient = (self.rows_Nr.t() @ residual.view(rows, -1)).view(width, count, -1).permute(1, 0, 2)
            gradient = gradient + penalty_Pr.unsqueeze(2) * ahead
            moved = ahead - gradient / bound_Pr.unsqueeze(2)
            # momentum that points uphill is dropped
            uphill_P = ((ahead - moved) * (moved - weights)).sum((1, 2)) > 0
            momentum_P = torch.where(uphill_P, 1.0, momentum_P)
            grown_P = (1 + (1 + 4 * momentum_P**2).sqrt()) / 2
            share_P = torch.where(uphill_P, 0.0, (momentum_P - 1) / grown_P)
            ahead = moved + share_P[:, None, None] * (moved - weights)
            weights, momentum_P = moved, grown_P
            if float(gradient.abs().max()) < TOLERANCE:
                break
        return weights

    def _targets(self) -> Tensor:
        if self.sets_MK is None:
            return functional.one_hot(self.labels_N, self.num_classes).float().unsqueeze(1)
        return self.sets_MK[self.labels_N].unsqueeze(1)

    def _residual(self, logits_NPK: Tensor, targets_N1K: Tensor) -> Tensor:
        """The gradient of the loss by the logits."""
        if self.sets_MK is None:
            return logits_NPK.softmax(2) - targets_N1K
        residual = logits_NPK.sigmoid() - targets_N1K
        return residual if self.positive_K is None else residual * (1 + targets_N1K * (self.positive_K - 1))

    def losses(self, logits_NPK: Tensor) -> Tensor:
        """The loss of each image, [N, P], without the weights of images."""
        if self.sets_MK is None:
            labels_NP = self.labels_N[:, None].expand(logits_NPK.shape[:2])
            return functional.cross_entropy(logits_NPK.permute(0, 2, 1), labels_NP, reduction="none")
        return functional.binary_cross_entropy_with_logits(
            logits_NPK, self._targets().expand_as(logits_NPK), pos_weight=self.positive_K, reduction="none"
        ).sum(2)

    def mean_loss(self, logits_NK: Tensor) -> float:
        """The mean of `losses`."""
        if self.sets_MK is None:
            return float(functional.cross_entropy(logits_NK, self.labels_N))
        return float(self.losses(logits_NK[:, None]).mean())

    def right(self, logits_NPK: Tensor) -> Tensor:
        """How right each answer is, float [N, P]: 0 or 1, with sets of labels the fraction of them."""
        if self.sets_MK is None:
            return (logits_NPK.argmax(2) == self.labels_N[:, None]).float()
        return ((logits_NPK > 0) == (self._targets() > 0)).float().mean(2)


def _chosen_strength(
    problem: _Problem, images_N: Tensor, seed: int, *, until: float, is_quick: bool
) -> tuple[float, float]:
    """(strength, accuracy): of the lowest loss on images that were left out, and the accuracy on these."""
    candidates, folds = STRENGTHS, FOLDS
    if is_quick or problem.rows_Nr.numel() * problem.num_classes * len(candidates) > MAX_PRODUCTS:
        # many images and classes: every third strength
        candidates = STRENGTHS[1::3]
    strengths = torch.tensor(candidates)
    products = problem.rows_Nr.numel() * problem.num_classes * len(strengths)
    if is_quick or products * folds > MAX_PRODUCTS:
        # many images: one part that is left out tells enough
        folds = 2
    fold_N = _folds(problem.labels_N, images_N, FOLDS, seed)
    if products * folds > MAX_PRODUCTS:
        images = images_N.unique()
        keep = max(problem.num_classes, int(len(images) * MAX_PRODUCTS / (products * folds)))
        generator = torch.Generator().manual_seed(seed)
        kept = images[torch.randperm(len(images), generator=generator)[:keep]]
        rows = torch.isin(images_N, kept).nonzero()[:, 0]
        problem, fold_N = problem.subset(rows), fold_N[rows]
    tested_FN = torch.stack([fold_N == fold for fold in range(folds if folds == FOLDS else 1)])
    used_PN = (~tested_FN).repeat_interleave(len(strengths), 0)
    weights = problem.solve(strengths.repeat(len(tested_FN)), used_PN, MAX_STEPS_CHOOSING, until=until)
    logits_NPK = problem.logits(weights)
    left_out_NP = ~used_PN.t()
    losses_NP = problem.losses(logits_NPK)
    importance_NP = left_out_NP * problem.weights_N[:, None]
    by_strength = (len(tested_FN), len(strengths))
    loss_S = (losses_NP * importance_NP).sum(0).view(by_strength).sum(0)
    right_S = (problem.right(logits_NPK) * left_out_NP).sum(0).view(by_strength).sum(0)
    best = int(loss_S.argmin())
    return candidates[best], float(right_S[best] / max(1, int(tested_FN.sum())))


def _folds(labels_N: Tensor, images_N: Tensor, folds: int, seed: int) -> Tensor:
    """int64 [N] in [0, folds): views of an image together, each class dealt out evenly, at random."""
    images, image_of_row = images_N.unique(return_inverse=True)
    label_of_image = torch.zeros(len(images), dtype=torch.int64)
    label_of_image[image_of_row] = labels_N
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    # by class, in random order within each
    order = order[label_of_image[order].argsort(stable=True)]
    fold_of_image = torch.empty(len(images), dtype=torch.int64)
    fold_of_image[order] = torch.arange(len(images)) % folds
    return fold_of_image[image_of_row]

"""Grad-CAM and gradient x input are those of captum, an independent implementation."""

from __future__ import annotations

import torch
from captum.attr import LayerGradCam, LayerGradientXActivation
from planted import gradients_of, planted, trained_net

from vivace.heatmaps.mapper import grad_cam, gradient_times_input


def test_grad_cam_of_a_convnet() -> None:
    model, (images, classes, _) = trained_net("convnet"), planted(6, seed=3)
    layer, values, gradients = gradients_of(model, images, classes)
    expected = LayerGradCam(model, model.get_submodule(layer.name)).attribute(
        images.requires_grad_(True), target=classes, relu_attributions=True
    )
    torch.testing.assert_close(grad_cam(values, gradients), expected[:, 0].detach())


def test_gradient_times_input_of_a_transformer() -> None:
    model, (images, classes, _) = trained_net("vit"), planted(6, seed=3)
    layer, values, gradients = gradients_of(model, images, classes)
    tokens_BTD = LayerGradientXActivation(model, model.get_submodule(layer.name)).attribute(
        images.requires_grad_(True), target=classes
    )
    expected = tokens_BTD.detach().sum(-1)[:, 1:].unflatten(1, (8, 8)).clamp(min=0)
    torch.testing.assert_close(gradient_times_input(values, gradients), expected)
    assert expected.amax() > 0

"""Networks over any encoder."""

import copy
import warnings

import pytest
import torch
import torchvision
from torch import nn

from ctseg.model import (
    STRIDES,
    check_encoder,
    find_feature_layers,
    make_model,
)

SMALL = {"width": 4, "depth": 2, "dropout": (0.3, 0.2)}
BACKBONES = {  # name: channels at strides 2 to 32; 32 where a small convolution stands in
    "resnet18": [64, 64, 128, 256, 512],
    "resnet34": [64, 64, 128, 256, 512],
    "resnet50": [64, 256, 512, 1024, 2048],
    "mobilenet_v2": [16, 24, 32, 96, 1280],
    "mobilenet_v3_small": [16, 16, 24, 48, 576],
    "mobilenet_v3_large": [16, 24, 40, 112, 960],
    "efficientnet_b0": [16, 24, 40, 112, 1280],
    "efficientnet_b4": [24, 32, 56, 160, 1792],
    "efficientnet_v2_s": [24, 48, 64, 160, 1280],
    "convnext_tiny": [32, 96, 192, 384, 768],
    "regnet_y_400mf": [32, 48, 104, 208, 440],
    "densenet121": [64, 256, 512, 1024, 1024],
    "vgg11_bn": [128, 256, 512, 512, 512],
}


def test_the_reference_network_has_31_million_parameters():
    n_parameters = sum(p.numel() for p in make_model(width=64).parameters())
    assert n_parameters == pytest.approx(31.04e6, rel=0.001)


@pytest.mark.parametrize("encoder", ["unet", "mobilenet_v2", "convnext_tiny"])
@pytest.mark.parametrize("size", [(17, 11), (1, 1), (64, 48), (33, 64)])
def test_logits_have_the_size_of_the_image_whatever_it_is(size, encoder):
    assert make_model(encoder, width=4).eval()(torch.rand(2, 3, *size)).shape == (2, 1, *size)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_has_maps_at_strides_2_to_32_and_learns_whole(name):
    model = make_model(name, width=4)
    assert model.encoder.channels == BACKBONES[name]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        features = copy.deepcopy(model.encoder).eval()(torch.rand(1, 3, 64, 64))
    expected = [(channels, 64 // stride, 64 // stride) for channels, stride in zip(BACKBONES[name], STRIDES)]
    assert [tuple(feature.shape[1:]) for feature in features] == expected
    model(torch.rand(2, 3, 64, 64)).mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_last_map_of_a_stride_is_taken_after_its_activation():
    layers = find_feature_layers(torchvision.models.resnet18())
    names = {stride: name for stride, (name, _) in layers.items()}
    assert names == {2: "relu", 4: "layer1", 8: "layer2", 16: "layer3", 32: "layer4"}


def test_a_backbone_keeps_its_mode_and_is_left_without_hooks():
    backbone = torchvision.models.mobilenet_v3_small()
    find_feature_layers(backbone)
    assert backbone.training and not any(module._forward_hooks for module in backbone.modules())


def test_a_backbone_sees_images_normalized_like_those_of_imagenet():
    encoder = make_model("mobilenet_v2", width=4).eval().encoder
    images = torch.rand(1, 3, 64, 64)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    normalized = torchvision.transforms.functional.normalize(images, mean, std)
    expected = encoder.features(normalized)
    assert all(torch.equal(seen, expected[str(stride)]) for seen, stride in zip(encoder(images), STRIDES))


def test_a_backbone_of_your_own_works():
    channels = [(3, 4), (4, 5), (5, 6), (6, 7), (7, 8)]
    layers = [nn.Sequential(nn.Conv2d(i, o, 3, stride=2, padding=1), nn.ReLU()) for i, o in channels]
    model = make_model(nn.Sequential(*layers), width=4)
    assert model.encoder.channels == [4, 5, 6, 7, 8]
    assert model(torch.rand(2, 3, 40, 70)).shape == (2, 1, 40, 70)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("swin_t", r"SwinTransformer has feature maps at the strides \[4, 32\]"),
        ("squeezenet1_0", r"at the strides \[\]"),
        ("vit_b_16", "VisionTransformer does not take images of 64 pixels"),
    ],
)
def test_a_backbone_without_such_maps_is_refused(name, message):
    with pytest.raises(ValueError, match=f"{message}.*take a backbone that halves"):
        make_model(name, width=4)


def test_dropout_is_at_the_bottleneck_and_the_first_decoder_block():
    model = make_model(width=4, dropout=(0.3, 0.2))
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout2d)] == [0.2, 0.3]
    assert isinstance(model.decoder[0][-1], nn.Dropout2d)


@pytest.mark.parametrize(("name", "mean"), [("efficientnet_v2_l", 0.5), ("resnet18", 0.485)])
def test_images_are_normalized_as_the_weights_expect(name, mean):
    assert make_model(name, width=4).encoder.mean[0].item() == pytest.approx(mean)


def test_an_unknown_encoder_is_refused():
    message = "unknown encoder 'resnet35'; expected one of unet, alexnet"
    with pytest.raises(ValueError, match=message):
        make_model("resnet35", **SMALL)
    with pytest.raises(ValueError, match=message):
        check_encoder("resnet35")

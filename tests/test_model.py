"""Networks over any encoder, and their weights files."""

import copy
import warnings

import pytest
import torch
import torchvision
from conftest import Program
from torch import nn

from ctseg.model import (
    STRIDES,
    check_encoder,
    find_feature_layers,
    find_pretrained,
    load_weights,
    make_model,
    write_torch,
)

SMALL = {"width": 4, "depth": 2, "dropout": (0.3, 0.2)}
BACKBONES = {  # name: channels at strides 2 to 32; 3 where the image takes the place of a map
    "resnet18": [64, 64, 128, 256, 512],
    "resnet34": [64, 64, 128, 256, 512],
    "resnet50": [64, 256, 512, 1024, 2048],
    "mobilenet_v2": [16, 24, 32, 96, 1280],
    "mobilenet_v3_small": [16, 16, 24, 48, 576],
    "mobilenet_v3_large": [16, 24, 40, 112, 960],
    "efficientnet_b0": [16, 24, 40, 112, 1280],
    "efficientnet_b4": [24, 32, 56, 160, 1792],
    "efficientnet_v2_s": [24, 48, 64, 160, 1280],
    "convnext_tiny": [3, 96, 192, 384, 768],
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


@pytest.mark.parametrize("encoder", ["unet", "mobilenet_v2"])
def test_weights_come_back_as_they_were(tmp_path, encoder):
    model = make_model(encoder, **SMALL)
    write_torch({"state_dict": model.state_dict()}, tmp_path / "w.pth")
    again = make_model(encoder, **SMALL, weights=tmp_path / "w.pth")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


@pytest.mark.parametrize("encoder", ["mobilenet_v2", "convnext_tiny"])
def test_a_backbone_file_fills_the_encoder_without_a_classifier(tmp_path, encoder):
    backbone = torchvision.models.get_model(encoder)
    torch.save(backbone.state_dict(), tmp_path / "w.pth")
    state = make_model(encoder, **SMALL, weights=tmp_path / "w.pth").encoder.features.state_dict()
    assert 0 < len(state) < len(backbone.state_dict())
    assert all(torch.equal(tensor, backbone.state_dict()[name]) for name, tensor in state.items())


def test_a_file_that_lacks_a_layer_of_the_backbone_is_refused(tmp_path):
    state = torchvision.models.mobilenet_v2().state_dict()
    del state["features.3.conv.0.0.weight"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="1 tensors differ, first features.3.conv.0.0.weight: got none"):
        make_model("mobilenet_v2", **SMALL, weights=tmp_path / "w.pth")


def test_weights_of_another_architecture_are_refused_by_name(tmp_path):
    write_torch({"state_dict": make_model(width=8, depth=2).state_dict()}, tmp_path / "w.pth")
    difference = r"decoder.0.0.weight: got \(16, 32, 3, 3\), expected \(8, 16, 3, 3\)"
    with pytest.raises(ValueError, match=f"another architecture: .*{difference}"):
        make_model(**SMALL, weights=tmp_path / "w.pth")


def test_a_damaged_or_missing_weights_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.pth"):
        load_weights(make_model(width=4), tmp_path / "none.pth")
    (tmp_path / "w.pth").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="cannot read .*w.pth: it is damaged, or holds more"):
        load_weights(make_model(width=4), tmp_path / "w.pth")


def test_a_weights_file_that_is_a_program_is_not_run(tmp_path):
    torch.save({"state_dict": Program(tmp_path / "it ran")}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="cannot read .*w.pth: it is damaged, or holds more"):
        load_weights(make_model(width=4), tmp_path / "w.pth")
    assert not (tmp_path / "it ran").exists()


def test_offline_default_weights_say_where_they_were_looked_for(hub, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        find_pretrained("resnet18", tmp_path / "input")
    places = ("resnet18-f37072fd.pth", str(hub), str(tmp_path / "input"))
    for text in (*places, "network is unreachable", "pass weights"):
        assert text in str(caught.value)


def test_default_weights_are_found_in_the_cache_or_attached(hub, tmp_path):
    for folder in (tmp_path / "input" / "models" / "mine", hub):
        folder.mkdir(parents=True)
        path = folder / "resnet18-f37072fd.pth"
        path.touch()
        assert find_pretrained("resnet18", tmp_path / "input") == path
        path.unlink()


def test_the_reference_network_has_no_default_weights(tmp_path):
    with pytest.raises(ValueError, match="weights 'default': torchvision has none"):
        find_pretrained("unet", tmp_path)


def test_an_unknown_encoder_is_refused():
    message = "unknown encoder 'resnet35'; expected one of unet, alexnet"
    with pytest.raises(ValueError, match=message):
        make_model("resnet35", **SMALL)
    with pytest.raises(ValueError, match=message):
        check_encoder("resnet35")

"""Weights files: torchvision's own, other people's, the kit's; and what is no weights file."""

import re
import sys
import warnings
from argparse import Namespace

import numpy as np
import pytest
import torch
import torchvision
from conftest import Program
from safetensors.torch import save_file
from torch import nn

from ctseg.model import make_model
from ctseg.weights import load_weights, make_pretrained, read_trained_on, write_torch

SMALL = {"width": 4, "depth": 2, "dropout": (0.3, 0.2)}


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


@pytest.fixture(scope="module")
def resnet() -> dict[str, torch.Tensor]:
    """The named tensors of a ResNet18 that has seen batches."""
    torch.manual_seed(0)
    backbone = torchvision.models.resnet18()
    backbone(torch.rand(2, 3, 64, 64))
    return backbone.state_dict()


def without_counters(state: dict) -> dict:
    """A state as PyTorch before 0.4.1 wrote it, and as torchvision still publishes some."""
    return {name: tensor for name, tensor in state.items() if "num_batches" not in name}


def add_prefix(prefix: str, state: dict) -> dict:
    """A state whose names have a prefix."""
    return {prefix + name: tensor for name, tensor in state.items()}


FILES = {  # as people have them
    "torchvision's": dict,
    "torchvision's before PyTorch 0.4.1": without_counters,
    "without a classifier": lambda b: {name: b[name] for name in b if not name.startswith("fc.")},
    "DataParallel's": lambda b: add_prefix("module.", b),
    "Lightning's": lambda b: {"state_dict": add_prefix("model.", b), "epoch": 3, "lr_schedulers": []},
    "PyTorch's example for ImageNet": lambda b: {"epoch": 3, "state_dict": add_prefix("module.", b)},
    "nested under model": lambda b: {"model": b, "optimizer": {"state": {0: {"exp_avg": b["fc.bias"]}}}},
    "nested under model_state_dict": lambda b: {"model_state_dict": b},
    "nested under net, below another": lambda b: {"checkpoint": {"net": add_prefix("backbone.", b)}},
    "an encoder": lambda b: add_prefix("encoder.", b),
    "an encoder with a decoder of another kit": lambda b: {
        **add_prefix("module.encoder.", b),
        "module.decoder.blocks.0.conv1.0.weight": torch.zeros(4, 4, 3, 3),
        "module.segmentation_head.0.weight": torch.zeros(1, 4, 3, 3),
    },
}


@pytest.mark.parametrize("kind", FILES)
def test_a_backbones_weights_are_read_as_people_have_them(kind, resnet, tmp_path):
    torch.save(FILES[kind](resnet), tmp_path / "w.pth")
    state = make_model("resnet18", width=4, weights=tmp_path / "w.pth").encoder.features.state_dict()
    assert all(torch.equal(tensor, resnet[name]) for name, tensor in state.items() if "num_b" not in name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_converted(dtype, resnet, tmp_path):
    torch.save(
        {name: t.to(dtype) if t.is_floating_point() else t for name, t in resnet.items()}, tmp_path / "w.pth"
    )
    loaded = make_model("resnet18", width=4, weights=tmp_path / "w.pth").encoder.features.conv1.weight
    assert loaded.dtype == torch.float32 and torch.equal(loaded, resnet["conv1.weight"].to(dtype).float())


def test_the_format_before_pytorch_1_6_is_read(resnet, tmp_path):
    torch.save(resnet, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    model = make_model("resnet18", width=4, weights=tmp_path / "w.pth")
    assert torch.equal(model.encoder.features.conv1.weight, resnet["conv1.weight"])


@pytest.mark.parametrize("wrap", [dict, lambda state: add_prefix("module.", state)])
def test_a_safetensors_file_is_read(wrap, resnet, tmp_path):
    save_file(wrap(resnet), tmp_path / "w.safetensors")
    model = make_model("resnet18", width=4, weights=tmp_path / "w.safetensors")
    assert torch.equal(model.encoder.features.conv1.weight, resnet["conv1.weight"])


def test_a_safetensors_file_asks_for_its_package(tmp_path, monkeypatch):
    (tmp_path / "w.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ValueError, match="w.safetensors: it needs the package safetensors; install it"):
        make_model("resnet18", width=4, weights=tmp_path / "w.safetensors")


def test_a_damaged_safetensors_file_is_named(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"12345678")
    with pytest.raises(ValueError, match="cannot read .*w.safetensors: it is damaged"):
        make_model("resnet18", width=4, weights=tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "wrap", [lambda state: add_prefix("module.", state), lambda state: {"learner": {"model": state}}]
)
def test_the_kits_own_weights_are_read_from_other_files_too(wrap, tmp_path):
    trained = make_model("resnet18", width=4).state_dict()
    write_torch({"state_dict": wrap(trained)}, tmp_path / "w.pth")
    loaded = make_model("resnet18", width=4, weights=tmp_path / "w.pth").state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in loaded.items())


def test_an_encoder_of_a_network_of_another_width_does_not_pass_for_the_network(tmp_path):
    write_torch({"state_dict": make_model("resnet18", width=8).state_dict()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="another architecture: .* first decoder.0.0.weight"):
        make_model("resnet18", width=4, weights=tmp_path / "w.pth")


@pytest.mark.parametrize("nested", [False, True])
def test_a_file_with_two_networks_is_refused(nested, resnet, tmp_path):
    content = add_prefix("student.", resnet) | add_prefix("teacher.", resnet)
    torch.save({"student": resnet, "teacher": resnet} if nested else content, tmp_path / "w.pth")
    with pytest.raises(
        ValueError, match="several networks that fit, at 'student.', 'teacher.'; save one of them"
    ):
        make_model("resnet18", width=4, weights=tmp_path / "w.pth")


LARGER = [
    ("resnet34", "resnet18"),
    ("convnext_small", "convnext_tiny"),
    ("efficientnet_b1", "efficientnet_b0"),
]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("larger", "smaller"), LARGER)
def test_a_larger_network_of_the_family_is_not_cut_to_fit(larger, smaller, own, tmp_path):
    network = make_model(larger, width=4) if own else torchvision.models.get_model(larger)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match="another architecture: .*expected none"):
        make_model(smaller, width=4, weights=tmp_path / "w.pth")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value, resnet, tmp_path, hub):
    broken = resnet | {"layer1.0.bn1.weight": torch.full((64,), value)}
    hub.mkdir()
    for path in (tmp_path / "w.pth", hub / "resnet18-f37072fd.pth"):
        torch.save(broken, path)
    for weights in (tmp_path / "w.pth", "default"):
        with pytest.raises(ValueError, match="NaN or infinite values in layer1.0.bn1.weight; use an earlier"):
            make_model("resnet18", width=4, weights=weights)


@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_tensors_without_ordinary_values_are_refused(resnet, tmp_path):
    for change in (torch.Tensor.to_sparse, lambda tensor: tensor.to("meta")):
        torch.save(resnet | {"conv1.weight": change(resnet["conv1.weight"])}, tmp_path / "w.pth")
        with pytest.raises(ValueError, match="1 tensors differ, first conv1.weight: got .*(as|without)"):
            make_model("resnet18", width=4, weights=tmp_path / "w.pth")


def test_a_file_that_contains_itself_ends(resnet, tmp_path):
    content = {"model": resnet}
    torch.save(content | {"again": content}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="several networks that fit, at 'model.', 'again.model.'"):
        make_model("resnet18", width=4, weights=tmp_path / "w.pth")
    content["itself"] = content
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="several networks that fit"):
        make_model("resnet18", width=4, weights=tmp_path / "w.pth")


def test_a_backbone_of_your_own_has_no_default_weights():
    with pytest.raises(ValueError, match="weights 'default': torchvision has none"):
        make_model(nn.Conv2d(3, 4, 1), width=4, weights="default")


def test_quantized_weights_are_refused(resnet, tmp_path):
    torch.save({name: tensor.to(torch.int8) for name, tensor in resnet.items()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="another architecture: .*torch.int8"):
        make_model("resnet18", width=4, weights=tmp_path / "w.pth")


def test_a_missing_weights_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.pth"):
        load_weights(make_model(width=4), tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not weights", "it is damaged, or not written by torch.save"),
        (b"", "it is damaged, or not written by torch.save"),
        (b"\n<!DOCTYPE html><html>", "it is a web page, not the file; download it again"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a pointer of Git LFS"),
    ],
)
def test_a_file_that_holds_no_weights_is_refused_by_what_it_is(content, reason, tmp_path):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(
        ValueError, match=f"cannot read .*w.pth: {reason}.*expected a file written by this kit"
    ):
        load_weights(make_model(width=4), tmp_path / "w.pth")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([torch.zeros(2)], "it holds a list, expected a dict of tensors"),
        (torch.zeros(2), "it holds a torch.Tensor, expected a dict of tensors"),
        ({"best": np.float64(0.5)}, "it holds numpy.* besides tensors and plain data"),
        ({"args": Namespace(lr=1)}, "it holds argparse.Namespace besides tensors"),
        (nn.Linear(2, 2), "it holds torch.nn.modules.linear.Linear besides tensors"),
    ],
)
def test_what_is_not_tensors_and_plain_data_is_refused_by_its_name(content, reason, zipped, tmp_path):
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=f"cannot read .*w.pth: {reason}"):
        load_weights(make_model(width=4), tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore:.*TorchScript")
def test_a_torchscript_program_is_refused_as_one(tmp_path):
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "w.pth")
    with pytest.raises(ValueError, match="w.pth: it is a TorchScript program; expected .* save that alone"):
        load_weights(make_model(width=4), tmp_path / "w.pth")


def test_a_file_without_tensors_is_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="w.pth hold no named tensors; expected a file written by this kit"):
        load_weights(make_model(width=4), tmp_path / "w.pth")


def test_a_weights_file_that_is_a_program_is_not_run(tmp_path):
    torch.save({"state_dict": Program(tmp_path / "it ran")}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="cannot read .*w.pth: it holds _?io.open besides tensors"):
        load_weights(make_model(width=4), tmp_path / "w.pth")
    assert not (tmp_path / "it ran").exists()


def test_a_file_says_what_it_was_trained_on(tmp_path):
    write_torch({"state_dict": {}, "trained_on": ["a 3x4 5"]}, tmp_path / "w.pth")
    assert read_trained_on(tmp_path / "w.pth") == {"a 3x4 5"}
    for content in ({}, {"trained_on": 1}, {"trained_on": [{"a": 1}]}):
        write_torch(content, tmp_path / "other.pth")
        assert read_trained_on(tmp_path / "other.pth") == set()


def rename_as_published(name: str, state: dict) -> dict:
    """A state as torchvision publishes it for that encoder; see the two rules below."""
    if name.startswith(("resnet18", "resnet34", "densenet", "vgg")):
        state = without_counters(state)
    if name.startswith("densenet"):
        state = {
            re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): t for key, t in state.items()
        }
    return state


# Every family that the README names; ResNet18 and 34, DenseNet and VGG-BN are published without counters,
# DenseNet with the names of 2017.
PUBLISHED = ["resnet18", "resnet34", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b3"]
PUBLISHED += ["efficientnet_v2_s", "convnext_tiny", "regnet_y_400mf", "densenet121", "vgg11_bn"]


@pytest.mark.parametrize("place", ["default", "a file"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_files_that_torchvision_publishes_are_read(name, place, hub):
    weights = torchvision.models.get_model_weights(name).DEFAULT
    path = hub / weights.url.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    backbone = torchvision.models.get_model(name)
    torch.save(rename_as_published(name, backbone.state_dict()), path)
    model = make_model(name, width=4, weights="default" if place == "default" else path)
    for key, tensor in model.encoder.features.state_dict().items():
        assert torch.equal(tensor, backbone.state_dict()[key]), key


def test_offline_default_weights_say_where_they_were_looked_for(hub, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        make_pretrained("resnet18", tmp_path / "input")
    places = ("resnet18-f37072fd.pth", str(hub), str(tmp_path / "input"))
    for text in (*places, "network is unreachable", "pass weights"):
        assert text in str(caught.value)


def test_default_weights_are_found_in_the_cache_or_attached(hub, tmp_path, resnet):
    for folder in (tmp_path / "input" / "models" / "mine", hub):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "resnet18-f37072fd.pth"
        torch.save(resnet, path)
        assert torch.equal(
            make_pretrained("resnet18", tmp_path / "input").conv1.weight, resnet["conv1.weight"]
        )
        (hub / path.name).unlink()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"conv1.weight": torch.zeros(3)}, "is not torchvision's file for resnet18: .*Missing key"),
        ("html", "it holds a str"),
    ],
)
def test_a_wrong_file_in_the_cache_is_named_with_the_way_out(content, reason, hub):
    hub.mkdir()
    torch.save(content, hub / "resnet18-f37072fd.pth")
    with pytest.raises(
        ValueError, match=f"resnet18-f37072fd.pth.*{reason}.*delete it, so that it is downloaded"
    ):
        make_pretrained("resnet18")


def test_a_damaged_attached_file_is_named_and_not_its_link(hub, tmp_path):
    (tmp_path / "input").mkdir()
    attached = tmp_path / "input" / "resnet18-f37072fd.pth"
    attached.write_bytes(b"half")
    with pytest.raises(ValueError, match=f"replace {attached}, or delete it"):
        make_pretrained("resnet18", tmp_path / "input")


def test_the_cache_is_looked_into_first(hub, tmp_path, resnet):
    for folder, state in ((hub, resnet), (tmp_path / "input", torchvision.models.resnet18().state_dict())):
        folder.mkdir()
        torch.save(state, folder / "resnet18-f37072fd.pth")
    assert torch.equal(make_pretrained("resnet18", tmp_path / "input").conv1.weight, resnet["conv1.weight"])


def test_a_program_in_the_cache_is_not_run(hub, tmp_path):
    hub.mkdir()
    torch.save({"conv1.weight": Program(tmp_path / "it ran")}, hub / "resnet18-f37072fd.pth")
    with pytest.raises(ValueError, match="besides tensors and plain data"):
        make_pretrained("resnet18")
    assert not (tmp_path / "it ran").exists()


def test_the_reference_network_has_no_default_weights():
    with pytest.raises(ValueError, match="weights 'default': torchvision has none"):
        make_model("unet", width=4, weights="default")

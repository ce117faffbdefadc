"""Networks: each one is a U-Net that maps an RGB batch of any size to one logit per pixel."""

from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from ctseg.weights import load_weights, make_pretrained

_ENCODERS = ("unet", *torchvision.models.list_models(module=torchvision.models))
STRIDES = (2, 4, 8, 16, 32)  # of the feature maps that a U-Net takes from a classification backbone
_STEM = 32  # channels of the map at stride 2 where a backbone has none
_GOOD_BACKBONES = (
    "take a backbone that halves images of any size step by step, such as resnet34 or convnext_tiny"
)
# Mean and standard deviation of channels in [0, 1], as most weights from ImageNet expect them.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def _conv_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two 3x3 convolutions with batch normalization and ReLU, size kept."""
    layers = []
    for channels in (in_channels, out_channels):
        # The normalization has an offset of its own, so the convolution needs no bias.
        convolution = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class PlainEncoder(nn.ModuleList):
    """The reference's encoder: blocks of two convolutions with max pooling between them.

    Its feature maps are at strides 1, 2, 4, …, 2**depth.
    """

    def __init__(self, width: int, depth: int):
        self.channels = [width * 2**level for level in range(depth + 1)]
        self.stride = 2**depth
        super().__init__(_conv_block(i, o) for i, o in zip([3, *self.channels], self.channels))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps, shallow to deep."""
        features = []
        for block in self:
            features.append(block(F.max_pool2d(features[-1], 2) if features else images))
        return features


class BackboneEncoder(nn.Module):
    """Feature maps at strides 2 to 32 of a classification network; the rest of it is cut off.

    Where a backbone has none at stride 2 (ConvNeXt), a small convolution of the image stands in.

    Args:
        backbone: torchvision's, or any module that `torch.fx` can trace and that halves an image (B, 3, H, W)
            step by step.
        mean, std: of the channels of the images that it was trained on, in [0, 1].

    Raises:
        ValueError: the backbone lacks a map at one of the strides 4 to 32.
    """

    def __init__(
        self,
        backbone: nn.Module,
        mean: tuple[float, float, float] = _IMAGENET[0],
        std: tuple[float, float, float] = _IMAGENET[1],
    ):
        super().__init__()
        self.stride = STRIDES[-1]
        layers = find_feature_layers(backbone)
        if not layers.keys() >= set(STRIDES[1:]):
            raise ValueError(
                f"{type(backbone).__name__} has feature maps at the strides {sorted(layers)}, expected "
                f"{STRIDES}; {_GOOD_BACKBONES}"
            )
        self.channels = [layers[stride][1] if stride in layers else _STEM for stride in STRIDES]
        if 2 not in layers:
            convolution = nn.Conv2d(3, _STEM, 3, stride=2, padding=1, bias=False)
            self.stem = nn.Sequential(convolution, nn.BatchNorm2d(_STEM), nn.ReLU(inplace=True))
        nodes = {name: str(stride) for stride, (name, _) in layers.items()}
        self.features = create_feature_extractor(backbone, nodes)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps, shallow to deep."""
        images = (images - self.mean) / self.std
        features = self.features(images)
        if "2" not in features:
            features["2"] = self.stem(images)
        return [features[str(stride)] for stride in STRIDES]


def find_feature_layers(backbone: nn.Module) -> dict[int, tuple[str, int]]:
    """Find the last layer whose output has each of the `STRIDES`: {stride: (name, channels)}.

    A small image is sent through. A module that at most halves it (a stage, a block, a layer) is taken whole;
    one that spans more (a container) is searched inside.
    """
    # The deepest map has 2 x 2 pixels, so that a classifier's pooled vector is not taken for one.
    size = 2 * STRIDES[-1]

    def stride_of(value) -> int:
        sizes = {(size // stride,) * 2 for stride in (1, *STRIDES)}
        is_map = isinstance(value, Tensor) and value.shape[2:] in sizes
        return size // value.shape[2] if is_map else 0

    calls = []  # (name, stride of the input, stride of the output, the output), as the modules finish

    def record(name: str):
        def hook(_, args: tuple, output) -> None:
            calls.append((name, stride_of(args[0] if args else None), stride_of(output), output))

        return hook

    hooks = [module.register_forward_hook(record(name)) for name, module in backbone.named_modules() if name]
    training = backbone.training
    try:
        with torch.no_grad():
            backbone.eval()(torch.zeros(1, 3, size, size))
    except Exception as error:
        raise ValueError(
            f"{type(backbone).__name__} does not take images of {size} pixels: {error}; {_GOOD_BACKBONES}"
        ) from error
    finally:
        backbone.train(training)
        for hook in hooks:
            hook.remove()
    whole = tuple(f"{name}." for name, before, after, _ in calls if 0 < after <= 2 * before)
    return {
        after: (name, output.shape[1])
        for name, _, after, output in calls
        if after in STRIDES and not name.startswith(whole)
    }


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015): transposed convolutions join an encoder's maps from the deepest up.

    Args:
        encoder: turns images into feature maps, each half the size of the one before, the last `stride`
            times smaller than the image; `channels` lists their channels. Where the first is smaller than the
            image, so are the logits, and they are interpolated.
        width: channels of the decoder's last level; each level down doubles them.
        dropout: probabilities that a channel is dropped, of the deepest map and in the first decoder block.
    """

    def __init__(self, encoder: nn.Module, width: int, dropout: tuple[float, float] = (0.0, 0.0)):
        super().__init__()
        self.encoder = encoder
        *skips, deepest = encoder.channels
        # Of the decoder's levels, deep to shallow.
        widths = [width * 2**level for level in reversed(range(len(skips)))]
        self.upsample = nn.ModuleList(
            nn.ConvTranspose2d(i, o, 2, stride=2) for i, o in zip([deepest, *widths], widths)
        )
        self.decoder = nn.ModuleList(_conv_block(skip + o, o) for skip, o in zip(reversed(skips), widths))
        self.decoder[0].append(nn.Dropout2d(dropout[1]))
        self.dropout = nn.Dropout2d(dropout[0])
        self.segmentation_head = nn.Conv2d(width, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, 1, H, W) for images (B, 3, H, W) of any size; odd ones are zero-padded inside."""
        height, width = images.shape[-2:]
        x = F.pad(images, (0, -width % self.encoder.stride, 0, -height % self.encoder.stride))
        *skips, y = self.encoder(x)
        y = self.dropout(y)
        for upsample, block in zip(self.upsample, self.decoder):
            y = block(torch.cat([skips.pop(), upsample(y)], dim=1))
        logits = self.segmentation_head(y)
        if logits.shape != x.shape:
            logits = F.interpolate(logits, x.shape[-2:], mode="bilinear", align_corners=False)
        return logits[..., :height, :width]


def check_encoder(encoder: str) -> None:
    """Raise ValueError unless `make_model` knows an encoder of that name."""
    if encoder not in _ENCODERS:
        raise ValueError(f"unknown encoder {encoder!r}; expected one of {', '.join(_ENCODERS)}")


def make_model(
    encoder: str | nn.Module = "unet",
    *,
    width: int,
    depth: int = 4,
    dropout: tuple[float, float] = (0.0, 0.0),
    weights: Path | str | None = None,
    attached: Path | None = None,
) -> UNet:
    """Build a U-Net.

    Args:
        encoder: "unet" for the reference's, the name of a torchvision classification network, or such a
            module of your own.
        width: channels of the decoder's last level, and of the first level of the reference's encoder.
        depth: how many times the reference's encoder halves the image; a backbone does it five times.
        dropout: see `UNet`.
        weights: a file that `load_weights` reads, "default" for torchvision's own, or None.
        attached: a folder in which torchvision's own file may be, see `make_pretrained`.

    Raises:
        ValueError: unknown encoder, or weights that do not fit.
        FileNotFoundError: no such weights file.
    """
    if isinstance(encoder, str):
        check_encoder(encoder)
    if weights == "default":
        network = _make_encoder(encoder, make_pretrained(encoder, attached))
    elif isinstance(encoder, nn.Module):
        network = BackboneEncoder(encoder)
    elif encoder == "unet":
        network = PlainEncoder(width, depth)
    else:
        network = _make_encoder(encoder, torchvision.models.get_model(encoder, weights=None))
    model = UNet(network, width, dropout)
    if weights and weights != "default":
        load_weights(model, Path(weights))
    return model


def _make_encoder(name: str, backbone: nn.Module) -> BackboneEncoder:
    """An encoder of torchvision's, normalizing images as torchvision's own weights for it expect."""
    transform = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    return BackboneEncoder(backbone, tuple(transform.mean), tuple(transform.std))

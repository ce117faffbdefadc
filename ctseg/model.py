"""Networks: every one is a U-Net that maps an RGB batch of any size to one logit a pixel."""

from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from ctseg.data import KAGGLE_INPUT
from ctseg.transforms import to_float

ENCODERS = ("unet", *torchvision.models.list_models(module=torchvision.models))
STRIDES = (2, 4, 8, 16, 32)  # of the feature maps that a U-Net takes from a classification backbone
GOOD_BACKBONES = "take a backbone that halves images of any size step by step, such as resnet34 or convnext_tiny"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of channels in [0, 1]; torchvision's weights expect them


def conv_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two 3x3 convolutions with batch normalisation and ReLU, size kept."""
    layers = []
    for channels in (in_channels, out_channels):
        # The normalisation brings its own offset, so the convolution needs no bias.
        layers += [nn.Conv2d(channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class PlainEncoder(nn.ModuleList):
    """The reference's encoder: blocks of two convolutions with max pooling between them; feature maps at strides 1, 2, 4, …"""

    def __init__(self, width: int, depth: int):
        self.channels = [width * 2**level for level in range(depth + 1)]
        self.stride = 2**depth
        super().__init__(conv_block(i, o) for i, o in zip([3, *self.channels], self.channels))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps, shallow to deep."""
        features = []
        for block in self:
            features.append(block(F.max_pool2d(features[-1], 2) if features else images))
        return features


class BackboneEncoder(nn.Module):
    """Feature maps at strides 2 to 32 of a classification network; the rest of it is cut off.

    Where a backbone has none at stride 2 (ConvNeXt), the image itself at that size stands in.

    Args:
        backbone: torchvision's, or any module that `torch.fx` can trace and that halves an image (B, 3, H, W) step by step.

    Raises:
        ValueError: the backbone lacks a map at one of the strides 4 to 32.
    """

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.stride = STRIDES[-1]
        taps = find_taps(backbone)
        if not taps.keys() >= set(STRIDES[1:]):
            raise ValueError(
                f"{type(backbone).__name__} has feature maps at the strides {sorted(taps)}, expected {STRIDES}; {GOOD_BACKBONES}"
            )
        self.channels = [taps[stride][1] if stride in taps else 3 for stride in STRIDES]
        self.features = create_feature_extractor(backbone, {name: str(stride) for stride, (name, _) in taps.items()})
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps, shallow to deep."""
        images = (images - self.mean) / self.std
        features = self.features(images)
        return [features[str(stride)] if str(stride) in features else F.avg_pool2d(images, stride) for stride in STRIDES]


def find_taps(backbone: nn.Module) -> dict[int, tuple[str, int]]:
    """Find where a backbone's feature maps come out: {stride: (name of the module, channels)}, of each stride in `STRIDES` the last.

    A small image is sent through. A module that at most halves it (a stage, a block, a layer) is taken whole; one that spans more (a
    container) is looked into.
    """
    size = 2 * STRIDES[-1]  # the deepest map has two pixels a side, so the pooled vector of the classifier is not taken for one

    def stride_of(value) -> int:
        is_map = isinstance(value, Tensor) and value.shape[2:] in {(size // stride,) * 2 for stride in (1, *STRIDES)}
        return size // value.shape[2] if is_map else 0

    calls = []  # (name, stride of the input, stride of the output, the output), in the order in which the modules finish

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
        raise ValueError(f"{type(backbone).__name__} does not take images of {size} pixels: {error}; {GOOD_BACKBONES}") from error
    finally:
        backbone.train(training)
        for hook in hooks:
            hook.remove()
    whole = tuple(f"{name}." for name, before, after, _ in calls if 0 < after <= 2 * before)
    return {after: (name, output.shape[1]) for name, _, after, output in calls if after in STRIDES and not name.startswith(whole)}


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015): an encoder's feature maps are joined again from the deepest up by transposed convolutions.

    Args:
        encoder: turns images into feature maps, each half the size of the one before, the last smaller than the image by `stride`;
            `channels` are theirs. Where the first is smaller than the image, so are the logits, and they are interpolated.
        width: channels of the decoder's last level; each level down doubles them.
        dropout: probabilities that a whole channel is dropped, of the deepest map and in the first decoder block.
    """

    def __init__(self, encoder: nn.Module, width: int, dropout: tuple[float, float] = (0.0, 0.0)):
        super().__init__()
        self.encoder = encoder
        *skips, deepest = encoder.channels
        widths = [width * 2**level for level in range(len(skips))]
        self.upsample = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, stride=2) for i, o in zip([deepest, *reversed(widths)], reversed(widths)))
        self.decoder = nn.ModuleList(conv_block(skip + o, o) for skip, o in zip(reversed(skips), reversed(widths)))
        self.decoder[0].append(nn.Dropout2d(dropout[1]))
        self.dropout = nn.Dropout2d(dropout[0])
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, 1, H, W) for images (B, 3, H, W) of any size; odd sizes are zero-padded inside."""
        height, width = images.shape[-2:]
        x = F.pad(images, (0, -width % self.encoder.stride, 0, -height % self.encoder.stride))
        *skips, y = self.encoder(x)
        y = self.dropout(y)
        for upsample, block in zip(self.upsample, self.decoder):
            y = block(torch.cat([skips.pop(), upsample(y)], dim=1))
        logits = self.head(y)
        if logits.shape != x.shape:
            logits = F.interpolate(logits, x.shape[-2:], mode="bilinear", align_corners=False)
        return logits[..., :height, :width]


def make_model(
    encoder: str | nn.Module = "unet", *, width: int, depth: int = 4, dropout: tuple[float, float] = (0.0, 0.0), weights: str = ""
) -> UNet:
    """Build a U-Net.

    Args:
        encoder: "unet" for the reference's, the name of a torchvision classification network, or such a module of one's own.
        width: channels of the decoder's last level, and of the reference's encoder's first.
        depth: number of times that the reference's encoder halves the image; a backbone does it five times.
        dropout: see `UNet`.
        weights: "" for none; "default" for torchvision's own; else a file that `load_weights` reads.

    Raises:
        ValueError: unknown encoder, or weights that do not fit.
        FileNotFoundError: no such weights file, or "default" weights that are neither at hand nor to be downloaded.
    """
    if isinstance(encoder, str) and encoder not in ENCODERS:
        raise ValueError(f"unknown encoder {encoder!r}; expected one of {', '.join(ENCODERS)}")
    if encoder == "unet":
        model = UNet(PlainEncoder(width, depth), width, dropout)
    else:
        backbone = torchvision.models.get_model(encoder, weights=None) if isinstance(encoder, str) else encoder
        model = UNet(BackboneEncoder(backbone), width, dropout)
    if weights:
        load_weights(model, find_pretrained(encoder) if weights == "default" else Path(weights))
    return model


def load_weights(model: UNet, path: Path) -> None:
    """Load a file into `model`: the whole network as training stored it, or its backbone as torchvision's files have it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or its tensors do not fit the model.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}; train first (03_train), or give the path of an existing file")
    content = read_torch(path, fix="expected a file written by this kit, such as best_unet_model.pth, or of a backbone")
    state = content.get("state_dict", content)
    got = find_shapes(state)
    part = model
    if isinstance(model.encoder, BackboneEncoder) and not any(name.startswith("decoder.") for name in got):
        part = model.encoder.features
        got = {name: shape for name, shape in got.items() if name in part.state_dict()}  # a classifier's head is of no use here
    expected = find_shapes(part.state_dict())
    differing = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
    if differing:
        first = differing[0]
        raise ValueError(
            f"weights {path} are of another architecture: {len(differing)} tensors differ, first {first}: got {got.get(first, 'none')}, "
            f"expected {expected.get(first, 'none')}; use the encoder, width and depth that the weights were trained with"
        )
    part.load_state_dict({name: state[name] for name in expected})


def read_torch(path: Path, *, fix: str) -> dict:
    """Read a dict of tensors and plain data, as `torch.save` writes it, onto the CPU.

    Raises:
        ValueError: the file is damaged, or holds anything else, which might run a program; the message ends with `fix`.
    """
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch's own message would advise to load such a file all the same
        what = f"it is damaged, or holds more than named tensors and plain data ({type(error).__name__})"
        raise ValueError(f"cannot read {path}: {what}; {fix}") from error


def find_shapes(state: dict) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a `state_dict`, () for what is no tensor."""
    return {name: tuple(getattr(tensor, "shape", ())) for name, tensor in state.items()}


def find_pretrained(encoder: str | nn.Module) -> Path:
    """Find the file of torchvision's own weights for an encoder: in torch's cache, in what is attached on Kaggle, else by a download.

    Raises:
        ValueError: torchvision has no weights for it.
        FileNotFoundError: the file is nowhere and cannot be downloaded.
    """
    if encoder not in ENCODERS[1:]:
        raise ValueError(f"weights 'default': torchvision has none for {encoder!r}; pass a file, or '' for scratch")
    url = torchvision.models.get_model_weights(encoder).DEFAULT.url
    cache, name = Path(torch.hub.get_dir()) / "checkpoints", url.rpartition("/")[2]
    for path in (cache / name, *KAGGLE_INPUT.glob(f"**/{name}")):
        if path.is_file():
            return path
    try:
        torch.hub.load_state_dict_from_url(url, check_hash=True, weights_only=True)
    except OSError as error:
        raise FileNotFoundError(
            f"no weights file {name} for {encoder}: looked in {cache} and below {KAGGLE_INPUT}, and it cannot be downloaded ({error}); "
            "pass weights as the path of the file; on Kaggle turn the internet on, or attach a data set or model that holds the file "
            "(dataset_sources or model_sources in kernel-metadata.json)"
        ) from error
    return cache / name


def find_device() -> torch.device:
    """The first GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_precision(device: torch.device) -> torch.dtype:
    """Choose the type to compute in from what the hardware says it has, never from a stopwatch.

    On a GPU bfloat16 where it is native, else float16, as on the T4 (`torch.cuda.is_bf16_supported` would not do: it counts emulation).
    On a CPU bfloat16 where it is faster than float32: with AMX, or with AVX-512's bf16 instructions where they run at full rate. On Intel's
    processors from Sapphire Rapids on, known by avx512_fp16, they do not: where the hypervisor hides AMX, a matrix product was measured at
    169 GFLOP/s in bfloat16 against 318 in float32. Without such instructions bfloat16 is many times slower.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    has = getattr(torch.cpu, "get_capabilities", dict)()
    fast = has.get("amx_bf16") or (has.get("avx512_bf16") and not has.get("avx512_fp16"))
    return torch.bfloat16 if fast else torch.float32


VIEWS = {  # the orientations of test-time augmentation, as (quarter turns, mirrored)
    "none": [(0, False)],
    "flips": [(0, False), (0, True), (2, False), (2, True)],
    "turns": [(turns, mirrored) for turns in range(4) for mirrored in (False, True)],
}


@torch.inference_mode()
def predict_squares(model: nn.Module, squares: Tensor, *, tta: str = "none", batch_size: int = 16) -> Tensor:
    """Return probabilities float32 (N, S, S) on the CPU for uint8 squares (N, 3, S, S); the model is put into evaluation mode.

    `tta` names the orientations whose probabilities are averaged: "none", "flips" (4) or "turns" (8).
    """
    device = next(model.parameters()).device
    dtype = choose_precision(device)
    model.eval()

    def predict(images: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return model(images.contiguous(memory_format=torch.channels_last)).float().sigmoid()[:, 0]

    probabilities = []
    for batch in squares.split(batch_size):
        images = to_float(batch.to(device))
        mean = torch.zeros((), device=device)
        for turns, mirrored in VIEWS[tta]:
            seen = images.rot90(turns, (2, 3))
            view = predict(seen.flip(3)).flip(2) if mirrored else predict(seen)
            mean = mean + view.rot90(-turns, (1, 2)) / len(VIEWS[tta])
        probabilities.append(mean.cpu())
    return torch.cat(probabilities)

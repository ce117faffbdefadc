"""Networks: every one is a U-Net that maps an RGB batch of any size to one logit a pixel."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctseg.transforms import to_float

ENCODERS = ("unet",)


def conv_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two 3x3 convolutions with batch normalisation and ReLU, size kept."""
    layers = []
    for channels in (in_channels, out_channels):
        # The normalisation brings its own offset, so the convolution needs no bias.
        layers += [nn.Conv2d(channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) with batch normalisation and transposed convolutions on the way up.

    Args:
        width: channels of the first level; each level down doubles them. 64 is the reference's (31 M parameters).
        depth: number of times the size is halved.
        dropout: probabilities that a whole channel is dropped, in the bottleneck and in the first decoder block.
    """

    def __init__(self, width: int = 64, depth: int = 4, dropout: tuple[float, float] = (0.3, 0.2)):
        super().__init__()
        channels = [width * 2**level for level in range(depth + 1)]
        self.encoder = nn.ModuleList(conv_block(i, o) for i, o in zip([3, *channels], channels))
        self.upsample = nn.ModuleList(nn.ConvTranspose2d(2 * c, c, 2, stride=2) for c in reversed(channels[:-1]))
        self.decoder = nn.ModuleList(conv_block(2 * c, c) for c in reversed(channels[:-1]))
        self.encoder[-1].append(nn.Dropout2d(dropout[0]))
        self.decoder[0].append(nn.Dropout2d(dropout[1]))
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, 1, H, W) for images (B, 3, H, W) of any size; odd sizes are zero-padded inside."""
        height, width = images.shape[-2:]
        factor = 2 ** len(self.decoder)
        x = F.pad(images, (0, -width % factor, 0, -height % factor))
        skips = []
        for block in self.encoder:
            x = block(F.max_pool2d(x, 2) if skips else x)  # (B, width * 2^level, H / 2^level, W / 2^level)
            skips.append(x)
        x = skips.pop()
        for upsample, block in zip(self.upsample, self.decoder):
            x = block(torch.cat([skips.pop(), upsample(x)], dim=1))
        return self.head(x)[..., :height, :width]


def make_model(encoder: str = "unet", *, width: int, depth: int, dropout: tuple[float, float], weights: str = "") -> nn.Module:
    """Build the network; `weights` is a file with a network of the same architecture to start from, or "" for none."""
    if encoder not in ENCODERS:
        raise ValueError(f"unknown encoder {encoder!r}; expected one of {', '.join(ENCODERS)}")
    model = UNet(width, depth, dropout)
    if weights:
        load_weights(model, Path(weights))
    return model


def load_weights(model: nn.Module, path: Path) -> None:
    """Load the `state_dict` that training stored in `path` into `model`, in place.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or its tensors do not fit the model.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}; train first (03_train), or give the path of an existing file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except Exception as error:
        raise ValueError(
            f"cannot read weights {path}: {error}; expected a file written by this kit, such as best_unet_model.pth"
        ) from error
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    got = {name: tuple(tensor.shape) for name, tensor in state.items()}
    differing = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
    if differing:
        first = differing[0]
        raise ValueError(
            f"weights {path} are of another architecture: {len(differing)} tensors differ, first {first}: got {got.get(first, 'none')}, "
            f"expected {expected.get(first, 'none')}; use the encoder, width and depth that the weights were trained with"
        )
    model.load_state_dict(state)


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


@torch.inference_mode()
def predict_squares(model: nn.Module, squares: Tensor, *, batch_size: int = 16) -> Tensor:
    """Return probabilities float32 (N, S, S) on the CPU for uint8 squares (N, 3, S, S); the model is put into evaluation mode."""
    device = next(model.parameters()).device
    dtype = choose_precision(device)
    model.eval()
    probabilities = []
    for batch in squares.split(batch_size):
        images = to_float(batch.to(device)).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = model(images)
        probabilities.append(logits.float().sigmoid()[:, 0].cpu())
    return torch.cat(probabilities)

"""Weights files: torchvision's own, other people's, and the kit's; read as tensors, never as programs."""

import pickle
import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from ctseg.files import atomic_path

_EXPECTED = (
    "expected a file written by this kit, such as best_unet_model.pth, or the state_dict of a backbone; save "
    "that alone"
)


def check_pretrained(encoder: str) -> None:
    """Raise ValueError unless torchvision has weights for that encoder."""
    if encoder not in torchvision.models.list_models(module=torchvision.models):
        raise ValueError(
            f"weights 'default': torchvision has none for {encoder!r}; pass a file, or '' for scratch"
        )


def make_pretrained(encoder: str, attached: Path | None = None) -> nn.Module:
    """Build torchvision's backbone with its own weights, by torchvision's own loader.

    The file is taken from torch's cache, else from anywhere below the folder `attached`, else downloaded.

    Raises:
        ValueError: torchvision has no weights for it, or the file is damaged.
        FileNotFoundError: the file is nowhere and cannot be downloaded.
    """
    check_pretrained(encoder)
    name = torchvision.models.get_model_weights(encoder).DEFAULT.url.rpartition("/")[2]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / name
    found = [path for path in sorted(attached.glob(f"**/{name}")) if path.is_file()] if attached else []
    if found and not cached.is_file():
        with atomic_path(cached) as partial:
            partial.symlink_to(found[0].resolve())
    source = cached.resolve()  # what is attached is only linked
    again = f"replace {source}, or delete it, so that it is downloaded again"
    if cached.is_file():
        read_torch(cached, fix=again)  # torchvision's loader would run what it holds
    try:
        backbone = torchvision.models.get_model(encoder, weights="DEFAULT")
    except OSError as error:
        raise FileNotFoundError(
            f"no weights file {name} for {encoder}: looked in {cached.parent} and below {attached}, and it "
            f"cannot be downloaded ({error}); pass weights as the path of the file"
        ) from error
    except Exception as error:  # torchvision's loader raises almost anything for a wrong file
        what = textwrap.shorten(str(error), 200, placeholder=" …")  # all of it would list every tensor
        raise ValueError(f"{source} is not torchvision's file for {encoder}: {what}; {again}") from error
    _refuse_not_finite(backbone.state_dict(), source)
    return backbone


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a file into a U-Net: a whole network as training saved it, or its encoder's backbone.

    A file may be torchvision's, old or new, or anyone's with the same tensors: their names may have a prefix
    ("module.", "encoder." …), they may be nested ("state_dict", "model" …), of half precision, and without
    the counters of batch normalization.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, its tensors do not fit the model, or fit more than once.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}; train first (03_train), or pass an existing file")
    tries = list(_try_to_fit(model, _read_weights(path)))
    if not tries:
        raise ValueError(f"weights {path} hold no named tensors; {_EXPECTED}")
    fits = [found for found in tries if not found.differing]
    if len(fits) > 1:
        places = ", ".join(repr(found.place) for found in fits)
        raise ValueError(
            f"weights {path} contain several networks that fit, at {places}; save one of them alone"
        )
    best = min(tries, key=lambda found: len(found.differing))
    if best.differing:
        name, n = best.differing[0], len(best.differing)
        got, expected = (_describe(tensors.get(name)) for tensors in (best.tensors, best.module.state_dict()))
        raise ValueError(
            f"weights {path} are of another architecture: {n} tensors differ, first {name}: got {got}, "
            f"expected {expected}; use the encoder, width and depth that the weights were trained with"
        )
    _refuse_not_finite(best.tensors, path)
    best.module.load_state_dict(best.tensors, strict=False)


def _refuse_not_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise a ValueError that names the first tensor with NaN or infinite values."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"weights {path} hold NaN or infinite values in {name}; use an earlier checkpoint"
            )


@dataclass(frozen=True)
class _Try:
    """Named tensors of a file, the module that they may be for, and in which names the two differ."""

    place: str
    module: nn.Module
    tensors: dict[str, Tensor]
    differing: list[str]


def _try_to_fit(model: nn.Module, content: Mapping) -> Iterator[_Try]:
    """Try the tensors at each place of a file.

    A larger network of a family has all tensors of a smaller one; so tensors that the module lacks count as
    well, but for those of parts that are cut off, such as a classifier.
    """
    for place, tensors in _find_tensors(content):
        module = model
        if hasattr(model.encoder, "features") and not _has(tensors, "segmentation_head.weight"):
            module = model.encoder.features
        # Files from before PyTorch 0.4.1 lack the counters of batch normalization; nothing here reads them.
        expected = {
            name: _describe(tensor)
            for name, tensor in module.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
        parts = {name.split(".")[0] for name in expected}
        for prefix, named in _remove_prefixes(_modernize_densenet(tensors), expected):
            named = {
                name: tensor
                for name, tensor in named.items()
                if name.split(".")[0] in parts and not name.endswith("num_batches_tracked")
            }
            differing = [
                name
                for name in sorted(expected.keys() | named.keys())
                if _describe(named.get(name)) != expected.get(name)
            ]
            yield _Try(place + prefix, module, named, differing)


def read_trained_on(path: Path) -> set[str]:
    """The cases that weights were trained on, as `TrainingSet.describe` names them, if their file says so."""
    cases = _read_weights(path).get("trained_on")
    return {case for case in cases if isinstance(case, str)} if isinstance(cases, list) else set()


def _read_weights(path: Path) -> dict:
    """Read the content of a weights file of any kind, as plain data and tensors on the CPU."""
    if path.suffix.lower() != ".safetensors":
        return read_torch(path, fix=_EXPECTED)
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ValueError(
            f"cannot read {path}: it needs the package safetensors; install it (pip install safetensors), "
            "or pass a file that torch.save wrote"
        ) from error
    try:
        return load_file(path)
    except Exception as error:  # the package has errors of its own
        raise ValueError(f"cannot read {path}: it is damaged ({error}); {_EXPECTED}") from error


def _find_tensors(
    content: Mapping, place: str = "", depth: int = 4
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield (place, named tensors): those on a file's top level, then those of each dict in it."""
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if tensors and all(isinstance(name, str) for name in tensors):
        yield place, tensors
    for name, value in content.items():
        if isinstance(value, Mapping) and depth:
            yield from _find_tensors(value, f"{place}{name}.", depth - 1)


def _has(tensors: Mapping[str, Tensor], name: str) -> bool:
    """Whether there is a tensor of that name, with or without a prefix."""
    return any(f".{key}".endswith(f".{name}") for key in tensors)


def _modernize_densenet(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of old DenseNet files today's names, as torchvision's loader does."""
    old = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
    return {old.sub(r"\1\2", name): tensor for name, tensor in tensors.items()}


def _remove_prefixes(
    tensors: Mapping[str, Tensor], expected: Mapping[str, str]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield (prefix, the tensors below it without it) for each prefix that gives most expected names."""
    prefixes = Counter()
    for name in tensors:
        for start in (0, *(match.end() for match in re.finditer(r"\.", name))):
            prefixes[name[:start]] += name[start:] in expected
    most = max(prefixes.values())
    best = sorted(prefix for prefix, count in prefixes.items() if count == most) if most else [""]
    for prefix in best:
        yield prefix, {name[len(prefix) :]: tensors[name] for name in tensors if name.startswith(prefix)}


def _describe(tensor: Tensor | None) -> str:
    """A tensor's shape, and what is unusual: numbers that are not floating-point, sparse or no storage."""
    if tensor is None:
        return "none"
    unusual = {
        f" of {tensor.dtype}": not tensor.is_floating_point(),
        f" as {tensor.layout}": tensor.layout != torch.strided,
        " without values": tensor.is_meta,
    }
    return f"{tuple(tensor.shape)}{''.join(text for text, applies in unusual.items() if applies)}"


def read_torch(path: Path, *, fix: str) -> dict:
    """Read a dict of tensors and plain data, as `write_torch` writes it, onto the CPU.

    Raises:
        ValueError: the file is damaged, or holds anything else, which might run a program; the message ends
            with `fix`.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's own message would advise to load such a file all the same
        raise ValueError(f"cannot read {path}: {_explain(path, error)}; {fix}") from error
    if not isinstance(content, Mapping):
        found = f"{type(content).__module__}.{type(content).__name__}".removeprefix("builtins.")
        raise ValueError(f"cannot read {path}: it holds a {found}, expected a dict of tensors; {fix}")
    return dict(content)


def _explain(path: Path, error: Exception) -> str:
    """Why `torch.load` refuses a file."""
    with open(path, "rb") as file:
        beginning = file.read(64).lstrip(b"\xef\xbb\xbf \r\n\t")
    if beginning.startswith(b"<"):
        return "it is a web page, not the file; download it again"
    if beginning.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, not the file; fetch the file itself"
    if "TorchScript" in str(error):
        return "it is a TorchScript program"
    if isinstance(error, pickle.UnpicklingError) and (found := re.search(r"GLOBAL (\S+)", str(error))):
        return (
            f"it holds {found[1]} besides tensors and plain data, which can only be unpickled, and that may "
            "run a program"
        )
    return f"it is damaged, or not written by torch.save ({type(error).__name__})"


def write_torch(content: dict, path: Path) -> None:
    """Write a dict of tensors and plain data atomically."""
    with atomic_path(path) as partial:
        torch.save(content, partial)

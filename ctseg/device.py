"""The device that computes: which one, in which precision, and whether it works."""

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor, nn

# The reference's network, float32, two CPU cores: 14.3 s per step, against 17.9 s in NCHW.
MEMORY_FORMAT = torch.channels_last
# How many threads libraries use; PyTorch listens to MKL's first. A Dask worker has 1 in all of them.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def find_device() -> torch.device:
    """The first GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_precision(device: torch.device) -> torch.dtype:
    """Choose the type to compute in by the capabilities that the hardware reports, never by a stopwatch.

    On a GPU: bfloat16 where it is native, else float16, as on the T4 (`torch.cuda.is_bf16_supported` would
    not do: it counts emulation).

    On a CPU: bfloat16 where it is faster than float32. It is with AMX, and with AVX-512's bf16 instructions
    where they run at full rate. On Intel's processors from Sapphire Rapids on, known by avx512_fp16, they do
    not: where the hypervisor hides AMX, a matrix product was measured at 169 GFLOP/s in bfloat16 against 318
    in float32. Without such instructions bfloat16 is many times slower.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    has = getattr(torch.cpu, "get_capabilities", dict)()
    fast = has.get("amx_bf16") or (has.get("avx512_bf16") and not has.get("avx512_fp16"))
    return torch.bfloat16 if fast else torch.float32


def count_cores(*, of_machine: bool = False) -> int:
    """The CPU cores that this process may use: those it may run on, or fewer if the environment says so.

    With `of_machine` what the environment says does not count.
    """
    # macOS has no affinity.
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    told = [] if of_machine else [os.environ.get(name, "") for name in THREAD_VARIABLES]
    return min([n, *(int(text) for text in told if text.isdigit() and int(text))])


@contextmanager
def use_threads(n: int | None) -> Iterator[None]:
    """Compute with n threads on the CPU, but not with more than it has cores; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(n, count_cores()) if n else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def find_free_memory() -> float:
    """The bytes of memory that are free on the CPU's side, in this container (cgroup version 2) if it is one.

    Infinity where the system, not being Linux, does not tell.
    """
    free = [math.inf]
    with suppress(OSError):
        found = re.search(r"MemAvailable: *(\d+)", Path("/proc/meminfo").read_text())
        free.append(1024 * int(found[1]))
    with suppress(OSError, ValueError):  # no limit is the word "max"
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        cached = re.search(r"^inactive_file (\d+)", Path("/sys/fs/cgroup/memory.stat").read_text(), re.M)
        free.append(limit - used + int(cached[1]))
    return min(free)


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor to a device without waiting for it; it is returned as it is where it is there already."""
    device = torch.device(device)
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()  # only from there a GPU fetches it by itself
    return tensor.to(device, non_blocking=True)


def keep_near(pixels: Tensor, device: torch.device) -> Tensor:
    """Copy pixels to a GPU if they take less than a quarter of its free memory, else return them."""
    is_small = device.type == "cuda" and pixels.nbytes < torch.cuda.mem_get_info(device)[0] / 4
    return pixels.to(device) if is_small else pixels


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """A context in which networks on `device` compute in `dtype`; float32 changes nothing."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def check_gpus() -> str:
    """Try a small convolution on every GPU; return a line that names them, or says that there is none.

    Raises:
        RuntimeError: a GPU that cannot run this PyTorch, for instance one that is too old for it.
    """
    n_gpus = torch.cuda.device_count()
    if not n_gpus:
        return (
            f"WARNING: no GPU, so {os.cpu_count()} CPU cores do the work, many times slower; on Kaggle "
            "choose the accelerator GPU T4 x2"
        )
    for gpu in range(n_gpus):
        try:
            images = torch.rand(2, 3, 32, 32, device=f"cuda:{gpu}")
            nn.Conv2d(3, 8, 3, device=images.device)(images).sum().backward()
            torch.cuda.synchronize(gpu)
        except RuntimeError as error:
            raise RuntimeError(
                f"{torch.cuda.get_device_name(gpu)}, compute capability "
                f"{torch.cuda.get_device_capability(gpu)}, cannot run PyTorch {torch.__version__}, built "
                f"for {' '.join(torch.cuda.get_arch_list())}: {error}; choose the accelerator GPU T4 x2"
            ) from error
    return f"{n_gpus} x {torch.cuda.get_device_name()}"

"""The precision that the hardware is good for, and GPUs that work or are named."""

import pytest
import torch

from ctseg.device import autocast, check_gpus, choose_precision, find_device

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("available", [False, True])
def test_the_device_is_a_gpu_where_there_is_one(monkeypatch, available):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert find_device() == (GPU if available else CPU)


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"amx_bf16"}, torch.bfloat16),
        ({"amx_bf16", "avx512_bf16", "avx512_fp16"}, torch.bfloat16),
        ({"avx512_bf16"}, torch.bfloat16),
        ({"avx512_bf16", "avx512_fp16"}, torch.float32),
        ({"avx512_fp16"}, torch.float32),
        (set(), torch.float32),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_that_is_faster(monkeypatch, capabilities, dtype):
    names = ("amx_bf16", "avx512_bf16", "avx512_fp16")
    reported = {name: name in capabilities for name in names}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: reported, raising=False)
    assert choose_precision(CPU) == dtype


def test_a_pytorch_that_reports_no_capabilities_gets_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert choose_precision(CPU) == torch.float32


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_a_gpu_computes_in_bfloat16_where_it_is_native(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert choose_precision(GPU) == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_the_precision_asked_for(dtype):
    with autocast(CPU, dtype):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_without_a_gpu_the_check_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert check_gpus().startswith("WARNING: no GPU, so ")


def test_gpus_that_work_are_counted_and_named(monkeypatch):
    rand = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *size, device: rand(*size))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda gpu: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    assert check_gpus() == "2 x Tesla T4"


def test_a_gpu_that_cannot_run_this_pytorch_is_named(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no kernel image is available for execution on the device")

    for name, value in {
        "device_count": 1,
        "get_device_name": "Tesla P100",
        "get_device_capability": (6, 0),
        "get_arch_list": ["sm_70"],
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch, "rand", fail)
    message = r"Tesla P100, compute capability \(6, 0\), cannot run PyTorch .* no kernel image"
    with pytest.raises(RuntimeError, match=message):
        check_gpus()

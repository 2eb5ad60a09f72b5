import pytest
import torch
from monai.inferers import SimpleInferer
from torch import nn

from custom.support.errors import UserError
from custom.support.precision import MixedPrecision, needs_loss_scale, working_dtype


class Product(nn.Module):
    """Notes the precision of its product, and gives it as a tensor or in a dictionary."""

    def __init__(self, named):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.named = named

    def forward(self, inputs):
        result = self.linear(inputs)
        self.computed = result.dtype
        return {"pred": result, "label": inputs} if self.named else result


@pytest.mark.parametrize(
    ("device", "precision", "dtype", "scaled"),
    [
        ("cuda:0", "auto", torch.bfloat16, False),
        ("cuda:1", "auto", torch.float16, True),
        ("cuda:0", "fp16", torch.float16, True),
        ("cuda:0", "fp32", torch.float32, False),
        ("cuda:1", "bf16", torch.bfloat16, False),
        ("cpu", "auto", torch.float32, False),
        (torch.device("cpu"), "bf16", torch.bfloat16, False),
    ],
)
def test_the_precision_follows_the_knob_and_the_device(monkeypatch, device, precision, dtype, scaled):
    capabilities = {"cuda:0": (9, 0), "cuda:1": (7, 5)}  # Hopper, and Turing, where bf16 is emulated
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
    assert working_dtype(precision, device) == dtype
    assert needs_loss_scale(precision, device) == scaled


def test_processes_whose_gpus_differ_are_refused(monkeypatch):
    monkeypatch.setattr("ignite.distributed.all_reduce", lambda own, op: {"MIN": 0, "MAX": 1}[op])
    with pytest.raises(UserError, match="some GPUs of this training compute in bf16 and some do not"):
        needs_loss_scale("auto", "cpu")


@pytest.mark.parametrize("precision", ["fp16", "half"])
def test_a_precision_that_the_device_has_not_is_refused_before_the_first_case(precision):
    with pytest.raises(UserError, match=rf"auto, fp32 or bf16, or on a GPU fp16; got '{precision}' on cpu"):
        MixedPrecision(SimpleInferer(), precision, "cpu")


@pytest.mark.parametrize(("precision", "dtype"), [("auto", torch.float32), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("named", [False, True])
def test_the_network_runs_in_the_precision_and_its_result_comes_in_fp32(precision, dtype, named):
    network = Product(named)
    result = MixedPrecision(SimpleInferer(), precision, "cpu")(torch.ones(1, 3), network)
    assert network.computed == dtype
    found = result if named else {"pred": result}
    assert all(value.dtype == torch.float32 for value in found.values())
    found["pred"].sum().backward()
    assert network.linear.weight.grad.tolist() == [[1.0] * 3] * 2

import importlib

import pytest
import torch
from bundle_configs import TASKS, WORKFLOWS
from bundle_configs import made as made_on_the_cpu
from ignite.engine import Events
from monai.inferers import SimpleInferer
from second_device import DEVICE, MixedDevicesError, second_device
from torch import nn

from custom.support.errors import UserError
from custom.support.precision import MixedPrecision

ON_DEVICE = {"device": f"$torch.device('{DEVICE}')"}
UNFUSED = {"optimizer::fused": False}  # which is for the kinds of device that torch knows
SHORT = {"max_epochs": 1, "val_interval": 1, "limit": 2}
OPTIONS = {
    "mirror_tta": True,
    "save_asymmetry": True,
    "save_probabilities": True,
}
LAYERS = {"train": ["train::trainer", "validate::evaluator"], "evaluate": ["validate::evaluator"]}
ROOTS = {**LAYERS, "inference": ["evaluator"]}
"""What a workflow runs."""


class Wrapper(nn.Module):
    """In the place of DistributedDataParallel, which needs processes."""

    def __init__(self, module, **options):
        super().__init__()
        self.module = module


def made(task, workflow, root, output, **changes):
    further = {} if workflow == "inference" else UNFUSED
    return made_on_the_cpu(task, workflow, root, output, **{**ON_DEVICE, **further, **changes})


def modules(bundle, names):
    """All modules that these parts of a bundle have made."""
    for name in names:
        bundle.parser.get_parsed_content(name)
    content = [*bundle.parser.ref_resolver.resolved_content.values()]
    return {module for value in content if isinstance(value, nn.Module) for module in value.modules()}


def places(modules):
    return {tensor.device for module in modules for tensor in (*module.parameters(), *module.buffers())}


@pytest.mark.parametrize("workflow", WORKFLOWS)
@pytest.mark.parametrize("task", TASKS)
def test_every_network_and_loss_lies_on_the_device(task, workflow, tiny_cohort, tmp_path):
    changes = {"class_weights": [1.0, 2.0]} if task == "classify" and workflow != "inference" else {}
    bundle = made(task, workflow, tiny_cohort, tmp_path, **changes)
    assert places(modules(bundle, ROOTS[workflow])) == {DEVICE}


@pytest.mark.parametrize("workflow", LAYERS)
@pytest.mark.parametrize("task", TASKS)
def test_with_several_processes_too(task, workflow, tiny_cohort, tmp_path, monkeypatch):
    layered = {**WORKFLOWS, workflow: (*WORKFLOWS[workflow], f"multi_gpu_{workflow}")}
    monkeypatch.setattr("bundle_configs.WORKFLOWS", layered)
    changes = {"network::_target_": "test_second_device.Wrapper", "validate::sampler": None}
    found = modules(made(task, workflow, tiny_cohort, tmp_path, **changes), LAYERS[workflow])
    assert any(type(module).__name__ == "Wrapper" for module in found) == (workflow == "train")
    assert places(found) == {DEVICE}


def test_a_network_elsewhere_than_its_input_is_refused_with_a_sentence():
    infer = MixedPrecision(SimpleInferer(), "fp32", "cpu")
    with pytest.raises(UserError, match="the network lies on meta and its input on cpu: in the config, move it"):
        infer(torch.ones(1, 3), nn.Linear(3, 2).to("meta"))


@pytest.fixture
def device(monkeypatch):
    with second_device(monkeypatch) as there:
        yield there


def test_what_lies_on_two_devices_does_not_mix(device):
    layer, inputs = nn.Linear(3, 2), torch.randn(4, 3)
    expected = layer(inputs)
    layer.to(DEVICE)
    with pytest.raises(MixedDevicesError):
        layer(inputs)
    result = layer(inputs.to(DEVICE))
    assert result.device == DEVICE
    assert torch.equal(result.cpu(), expected)


@pytest.mark.parametrize("task", TASKS)
def test_a_training_step_never_waits_for_the_device(task, device, tiny_cohort, tmp_path, monkeypatch):
    optimizers = importlib.import_module("torch.optim.optimizer")
    monkeypatch.setattr(optimizers, "_get_fused_kernels_supported_devices", lambda: ["cpu", DEVICE.type])
    changes = {**SHORT, "val_interval": 5, "optimizer::fused": True, "batch_size": 1}
    bundle = made(task, "train", tiny_cohort, tmp_path, **changes)
    trainer, waited, moved = bundle.parser.get_parsed_content("train::trainer"), [], []
    step = bundle.parser.get_parsed_content("train::trainer::iteration_update")
    gradients = step.step_of(trainer)

    def watched(*inputs):
        device.moved.clear()
        result = gradients(*inputs)
        moved.append([*device.moved])
        return result

    step.step = watched
    trainer.add_event_handler(Events.ITERATION_STARTED, device.waited.clear)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: waited.append([*device.waited]))
    trainer.run()
    assert (len(waited), len(moved)) == (2, 2)
    assert (waited[1], moved[1]) == ([], [])  # in the first step the encoder's indices are brought there, to stay


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_workflow_runs_on_the_device(task, device, tiny_cohort, tmp_path):
    for workflow in WORKFLOWS:
        changes = {"train": SHORT, "inference": OPTIONS if task == "segment" else {}}.get(workflow, {})
        bundle = made(task, workflow, tiny_cohort, tmp_path, **changes)
        bundle.initialize()
        bundle.run()
        bundle.finalize()

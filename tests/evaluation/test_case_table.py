import csv
import json
import logging
import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler
from monai.optimizers import WarmupCosineSchedule
from torch import nn

from custom.data.case import CohortError
from custom.evaluation.case_table import CaseTable, PredictionGuard, gathered, write_csv
from custom.evaluation.metrics import classification_row, classification_summary
from custom.losses import PretextLoss
from custom.support.errors import NumbersError
from custom.training.best_weights import BestWeights
from custom.training.checkpoints import Checkpoints, find_last
from custom.training.progress import LossParts, StopEarly
from custom.training.step_guard import StepGuard
from custom.weights.transfer import WeightsError

CPU = torch.device("cpu")


def cases(count=5):
    """Cases whose image is the number of the case, as read from a file."""
    return [
        {
            "image": MetaTensor(torch.full((1, 1, 1, 1), float(i)), meta={"filename_or_obj": f"/data/case{i}.nii.gz"}),
            "label": i % 2,
            "subject": f"sub-{i}",
        }
        for i in range(count)
    ]


class Guess(nn.Module):
    """Probabilities that follow from the number of the case."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, image):
        p = torch.sigmoid(image.flatten(1).mean(1) - 2 + self.weight)
        return torch.stack([1 - p, p], dim=1)


def evaluator(table, count=5, batch_size=2, **kwargs):
    loader = DataLoader(Dataset(cases(count)), batch_size=batch_size)
    return SupervisedEvaluator(CPU, loader, Guess(), key_val_metric={"auc": table}, **kwargs)


def test_every_case_of_a_ragged_last_batch_has_its_row_under_its_own_name(tmp_path):
    table = CaseTable(classification_row, classification_summary, tmp_path, context={"seed": 7, "late": lambda: 8})
    engine = evaluator(table)
    engine.run()
    with (tmp_path / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["subject"] for row in rows] == [f"sub-{i}" for i in range(5)]
    assert [row["image"] for row in rows] == [f"/data/case{i}.nii.gz" for i in range(5)]
    expected = [1 / (1 + math.exp(2 - i)) for i in range(5)]
    assert [float(row["probability_1"]) for row in rows] == pytest.approx(expected)
    assert [int(row["label"]) for row in rows] == [0, 1, 0, 1, 0]
    written = json.loads((tmp_path / "cases.json").read_text())
    assert (written["seed"], written["late"]) == (7, 8)
    assert written["metrics"]["n"] == 5
    assert written["metrics"]["auc"] == pytest.approx(0.5)
    assert len(engine.state.cases) == 5


def test_the_summary_becomes_the_evaluators_metrics_with_its_key_metric():
    engine = evaluator(CaseTable(classification_row, classification_summary))
    engine.run()
    assert engine.state.key_metric_name == "auc"
    assert engine.state.best_metric == engine.state.metrics["auc"] == pytest.approx(0.5)
    assert not [name for name in engine.state.metrics if name == "n" or name.startswith("n_")]


def test_a_second_epoch_starts_from_nothing():
    engine = evaluator(CaseTable(classification_row, classification_summary))
    engine.run()
    engine.run()
    assert len(engine.state.cases) == 5


def test_a_case_repeated_by_a_sampler_counts_once_and_another_session_of_a_subject_counts():
    rows = [
        {"subject": s, "image": i, "value": v}
        for s, i, v in [("b", "1", 3), ("a", "2", 2), ("b", "1", 3), ("a", "1", 1)]
    ]
    assert [row["value"] for row in gathered(rows)] == [1, 2, 3]


def test_a_subject_may_be_a_number_and_may_be_missing():
    data = cases(2)
    data[0]["subject"], data[1]["subject"] = 17, 3
    table = CaseTable(classification_row)
    engine = SupervisedEvaluator(CPU, DataLoader(Dataset(data), batch_size=2), Guess(), val_handlers=[table])
    engine.run()
    assert [row["subject"] for row in engine.state.cases] == ["17", "3"]
    for case in data:
        del case["subject"]
    engine = SupervisedEvaluator(CPU, DataLoader(Dataset(data), batch_size=2), Guess(), val_handlers=[table])
    engine.run()
    assert [row["subject"] for row in engine.state.cases] == ["case0", "case1"]


def test_missing_cases_are_named_when_the_results_of_the_others_are_written(tmp_path):
    expected = [{"image": f"/data/case{i}.nii.gz"} for i in range(3)] + [
        {"image": ["/data/gone.nii.gz", "/data/gone2.nii.gz"]}
    ]
    table = CaseTable(classification_row, output_dir=tmp_path, expected=expected)
    engine = SupervisedEvaluator(CPU, DataLoader(Dataset(cases(3))), Guess(), val_handlers=[table])
    with pytest.raises(CohortError, match=r"1 of 4 cases failed, .*:\n  /data/gone.nii.gz: the log says why$"):
        engine.run()
    assert len((tmp_path / "cases.csv").read_text().splitlines()) == 4


def test_a_figure_that_is_not_defined_is_empty_in_the_table_and_null_in_the_summary(tmp_path):
    write_csv(tmp_path / "t.csv", [{"a": float("nan"), "b": 1}, {"a": 0.0, "c": "x"}])
    assert (tmp_path / "t.csv").read_text().splitlines() == ["a,b,c", ",1,", "0.0,,x"]
    engine = evaluator(CaseTable(classification_row, classification_summary, tmp_path), count=1)
    engine.run()
    assert json.loads((tmp_path / "cases.json").read_text())["metrics"]["auc"] is None


def one_rank(rank, world, folder):
    """Evaluate a rank's share of five cases, the sampler repeating one of them, and write the table."""
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)
    share = [cases(5)[i] for i in ((0, 2, 4), (1, 3, 0))[rank]]
    table = CaseTable(classification_row, classification_summary, folder, "ranks")
    engine = SupervisedEvaluator(CPU, DataLoader(Dataset(share)), Guess(), key_val_metric={"auc": table})
    engine.run()
    torch.save(engine.state.metrics["auc"], f"{folder}/auc{rank}.pt")
    dist.destroy_process_group()


def test_over_ranks_the_auc_is_that_of_the_whole_table(tmp_path):
    mp.start_processes(one_rank, (2, str(tmp_path)), nprocs=2, start_method="fork")
    whole = evaluator(CaseTable(classification_row, classification_summary, tmp_path, "one"))
    whole.run()
    assert (tmp_path / "ranks.csv").read_text() == (tmp_path / "one.csv").read_text()
    assert [torch.load(tmp_path / f"auc{rank}.pt") for rank in (0, 1)] == [whole.state.metrics["auc"]] * 2


class Broken(Guess):
    """No number comes out for case 3."""

    def forward(self, image):
        return super().forward(image) * torch.where(image.flatten(1).mean(1, keepdim=True) == 3, float("nan"), 1.0)


def test_a_prediction_that_is_not_finite_is_refused_before_anything_is_made_of_it():
    done = []
    loader = DataLoader(Dataset(cases(5)), batch_size=2)
    engine = SupervisedEvaluator(
        CPU, loader, Broken(), val_handlers=[PredictionGuard()], postprocessing=lambda data: done.append(data) or data
    )
    with pytest.raises(
        NumbersError, match=r"not finite for sub-2 \(/data/case2.nii.gz\), sub-3 \(/data/case3.nii.gz\)"
    ):
        engine.run()
    assert [item["subject"] for item in done] == ["sub-0", "sub-1"]


def trainer(network, max_epochs=1, handlers=(), loss=None, steps=2, lr=0.1, optimizer=None, **kwargs):
    """A trainer on two batches that always come in the same order."""
    loader = DataLoader(
        Dataset([{"image": torch.full((1, 1), float(i + 1)), "label": torch.zeros(1, 1)} for i in range(steps)])
    )
    return SupervisedTrainer(
        CPU,
        max_epochs,
        loader,
        network,
        optimizer or torch.optim.SGD(network.parameters(), lr),
        loss or (lambda pred, label: pred.mean()),
        train_handlers=list(handlers),
        **{"decollate": False, **kwargs},
    )


def test_the_training_loss_is_the_mean_over_the_epoch():
    network = nn.Linear(1, 1, bias=False)
    nn.init.ones_(network.weight)
    engine = trainer(network, lr=0.0, key_train_metric={"train_loss": LossParts(nn.L1Loss())})
    engine.run()
    assert engine.state.metrics["train_loss"] == pytest.approx(1.5)  # images 1 and 2


def test_the_training_loss_is_the_same_where_outputs_are_taken_apart():
    network = nn.Linear(1, 1, bias=False)
    nn.init.ones_(network.weight)
    engine = trainer(network, lr=0.0, key_train_metric={"train_loss": LossParts(nn.L1Loss())}, decollate=True)
    engine.run()
    assert engine.state.metrics["train_loss"] == pytest.approx(1.5)


def test_each_part_of_the_loss_is_logged_as_its_mean():
    loss = PretextLoss("no_symmetry")
    engine = Engine(lambda engine, batch: {"loss": torch.tensor(0.0)})
    LossParts(loss).attach(engine)
    values = iter([{"loss": torch.tensor(a), "rotation": torch.tensor(b)} for a, b in ((3.0, 1.0), (5.0, 2.0))])
    engine.add_event_handler(Events.ITERATION_STARTED, lambda: setattr(loss, "parts", next(values)))
    engine.run([0, 1])
    assert engine.state.metrics == {"train_loss": 4.0, "train_rotation": 1.5}


def test_gradients_are_clipped_between_the_backward_pass_and_the_step():
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    trainer(
        network, handlers=[StepGuard(network, 0.5)], lr=1.0, steps=2, loss=lambda pred, label: 100 * pred.mean()
    ).run()
    assert network.weight.item() == pytest.approx(-1.0, abs=1e-4)  # two steps of length 0.5


def scripted(scores):
    """An evaluator whose key metric goes through a script."""
    values = iter(scores)

    class Script:
        def attach(self, engine, name=None):
            engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: e.state.metrics.update(auc=next(values)))

    loader = DataLoader(Dataset([{"image": torch.zeros(1, 1), "label": torch.zeros(1, 1)}]))
    return SupervisedEvaluator(CPU, loader, nn.Identity(), key_val_metric={"auc": Script()})


def training(tmp_path, scores, max_epochs, resume=False, network=None, extra=()):
    """A training with validation after every epoch, a warm-up and cosine schedule, and checkpoints."""
    network = network or nn.Linear(1, 1)
    judge = scripted(scores)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    schedule = WarmupCosineSchedule(optimizer, warmup_steps=1, t_total=2 * max_epochs)
    objects = {"optimizer": optimizer, "lr_scheduler": schedule}
    best = {"best_weights": BestWeights(tmp_path, network, judge)}
    handlers = [
        LrScheduleHandler(schedule, print_lr=False, epoch_level=False),
        ValidationHandler(1, judge, epoch_level=True),
        *(make(judge) for make in extra),
        Checkpoints(tmp_path, network, judge, objects, best, find_last(tmp_path, resume)),
    ]
    engine = trainer(network, max_epochs, handlers, optimizer=optimizer)
    return engine, judge, network, schedule


def test_the_best_weights_are_kept_and_the_last_state(tmp_path):
    engine, _, network, _ = training(tmp_path, [0.5, 0.9, 0.7], 3)
    weights = {}
    engine.add_event_handler(
        Events.EPOCH_COMPLETED, lambda e: weights.update({e.state.epoch: network.weight.detach().clone()})
    )
    engine.run()
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=True)["weight"], weights[2])
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert torch.equal(last["network"]["weight"], weights[3])
    assert (last["best_weights"], last["trainer"]["iteration"]) == ({"best": 0.9, "epoch": 2}, 6)
    assert not list(tmp_path.glob(".partial*"))


@pytest.mark.parametrize("scores", [[float("nan")] * 2, [float("-inf")] * 2])
def test_without_a_finite_metric_the_final_weights_are_kept_with_a_warning(tmp_path, scores, caplog):
    engine, _, network, _ = training(tmp_path, scores, 2)
    with caplog.at_level(logging.WARNING):
        engine.run()
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=True)["weight"], network.weight)
    assert "no validation gave a finite auc; model.pt holds the last weights" in caplog.text


def test_a_metric_that_is_not_finite_never_counts_as_best(tmp_path):
    engine, _, _, _ = training(tmp_path, [0.4, float("nan"), float("inf")], 3)
    engine.run()
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["best_weights"]["best"] == 0.4


def test_one_epoch_and_a_resumed_second_are_two_epochs(tmp_path):
    torch.manual_seed(1)
    whole, _, expected, schedule = training(tmp_path / "whole", [0.5, 0.4], 2)
    whole.run()
    torch.manual_seed(1)
    first, _, _, _ = training(tmp_path / "parts", [0.5], 2)
    first.add_event_handler(Events.EPOCH_COMPLETED, first.terminate)
    first.run()
    second, judge, network, resumed = training(tmp_path / "parts", [0.4], 2, resume=True, network=nn.Linear(1, 1))
    second.run()
    assert second.state.epoch == 2
    assert second.state.iteration == 4
    torch.testing.assert_close(network.state_dict(), expected.state_dict())
    assert resumed.last_epoch == schedule.last_epoch
    assert (judge.state.best_metric, judge.state.best_metric_epoch) == (0.5, 1)
    assert torch.load(tmp_path / "parts" / "last.ckpt", weights_only=True)["best_weights"]["best"] == 0.5


def test_going_on_beyond_the_first_plan_follows_the_schedule_of_the_new_one(tmp_path):
    training(tmp_path, [0.5], 1)[0].run()
    engine, _, _, schedule = training(tmp_path, [0.6] * 3, 4, resume=True)
    engine.run()
    assert engine.state.epoch == 4
    assert schedule.t_total == 8
    assert schedule.get_last_lr()[0] == pytest.approx(0, abs=1e-6)


def test_nothing_to_resume_from_is_said_so(tmp_path):
    with pytest.raises(WeightsError, match=r"nothing to resume from: no .*last.ckpt; train without --resume first"):
        training(tmp_path, [0.5], 1, resume=True)[0].run()


def test_a_finished_training_says_how_to_go_on_and_is_left_as_it_is(tmp_path, caplog):
    training(tmp_path, [0.5, 0.5], 2)[0].run()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with caplog.at_level(logging.WARNING):
        training(tmp_path, [0.5], 2, resume=True)[0].run()
    assert "has 2 epochs already; to go on, raise --max_epochs above 2" in caplog.text
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_resuming_into_another_network_is_refused(tmp_path):
    training(tmp_path, [0.5], 1)[0].run()
    with pytest.raises(WeightsError, match=r"last.ckpt does not fit"):
        training(tmp_path, [0.5], 2, resume=True, network=nn.Linear(1, 3))[0].run()


def test_an_unreadable_state_is_refused(tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"half a file")
    with pytest.raises(WeightsError, match=r"no sound checkpoint to resume from: .*last.ckpt is damaged"):
        training(tmp_path, [0.5], 1, resume=True)[0].run()


def test_training_stops_when_validation_makes_no_progress(tmp_path):
    scores = [0.5, 0.6, 0.6, 0.55, 0.7, 0.8]
    engine, _, _, _ = training(tmp_path, scores, 6, extra=[lambda judge: StopEarly(judge, patience=2)])
    engine.run()
    assert engine.state.epoch == 4

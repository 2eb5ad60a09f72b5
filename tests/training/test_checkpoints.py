"""Exact resume on a training of a few milliseconds; `tests/faults` kills those of the bundles."""

import io
import logging
import os
import random
import signal
import zipfile

import pytest
import torch
from ignite.engine import Events
from small_training import EPOCHS, STEPS, Training, content, same, samples

from custom.training.checkpoints import adapted, check_whole, find_last
from custom.training.preemption import REQUEUE, leave
from custom.training.randomness import SeedSteps
from custom.weights.transfer import WeightsError


class KilledError(BaseException):
    """The process is gone: nothing of the training runs after it."""


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory):
    """What the training leaves that is not stopped, and how many events it has."""
    folder = tmp_path_factory.mktemp("whole")
    count = Training(folder).run()
    return content(folder), count


@pytest.fixture(autouse=True)
def _sigterm():
    """A killed training leaves its handler; the next test starts with that of Python."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def killed():
    raise KilledError


some_or_all = pytest.mark.parametrize("stride", [13, pytest.param(1, marks=pytest.mark.slow)])


def test_another_seed_or_a_missing_random_state_would_show(never_stopped, tmp_path):
    training = Training(tmp_path)
    training.run(20, lambda: torch.manual_seed(11))  # between two steps: the next starts its own
    assert same(content(tmp_path), never_stopped[0])
    other = Training(tmp_path / "other")
    handler = next(h for h, *_ in other.trainer._event_handlers[Events.ITERATION_STARTED] if isinstance(h, SeedSteps))
    handler.seed = 1
    other.run()
    assert not same(content(tmp_path / "other"), never_stopped[0])


@some_or_all
def test_a_training_killed_anywhere_ends_as_if_it_had_not_been(stride, never_stopped, tmp_path):
    whole, count = never_stopped
    for at in range(1, count + 1, stride):
        folder = tmp_path / str(at)
        with pytest.raises(KilledError):
            Training(folder).run(at, killed)
        Training(folder).run()
        assert same(content(folder), whole), at


def test_a_training_killed_again_and_again_ends_as_if_it_had_not_been(never_stopped, tmp_path):
    whole, count = never_stopped
    kills = 0
    for chain in range(6):
        draw, folder = random.Random(chain), tmp_path / str(chain)
        for _ in range(100):
            try:
                Training(folder).run(draw.randrange(1, count), killed)
            except KilledError:
                kills += 1
            else:
                break
        assert same(content(folder), whole), chain
    assert kills > 10


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_training_killed_while_it_writes_ends_as_if_it_had_not_been(function, never_stopped, tmp_path, monkeypatch):
    genuine, calls = getattr(os, function), 0

    def counted(*args):
        nonlocal calls
        calls += 1
        if calls == at:
            raise KilledError
        return genuine(*args)

    monkeypatch.setattr(os, function, counted)
    at = 0
    Training(tmp_path / "counted").run()
    for at in range(1, calls + 1):
        folder, calls = tmp_path / str(at), 0
        with pytest.raises(KilledError):
            Training(folder).run()
        Training(folder).run()
        assert same(content(folder), never_stopped[0]), at
    assert at >= EPOCHS + 1  # a state after every epoch, and the best weights at least once


@some_or_all
def test_sigterm_anywhere_loses_no_step_and_the_training_ends_as_if_it_had_not_come(stride, never_stopped, tmp_path):
    whole, count = never_stopped
    cuts = 0
    for at in range(1, count, stride):  # the last event is the end, after which there is nothing to save
        folder, training = tmp_path / str(at), Training(tmp_path / str(at))
        training.run(at, training.ask_to_leave)
        stopped = torch.load(folder / "last.ckpt", weights_only=True)
        assert training.asked_in <= stopped["trainer"]["iteration"] <= training.asked_in + 1
        cuts += training.evaluator.should_terminate == "skip_completed"
        with pytest.raises(SystemExit) as left:
            leave(training.trainer)
        assert left.value.code == REQUEUE == 75
        training.preemption.ignore()
        again = Training(folder)
        again.run()
        leave(again.trainer)  # does nothing
        assert same(content(folder), whole), at
    assert cuts > 0  # validations that were left in the middle


def test_after_a_training_sigterm_does_what_it_did(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    Training(tmp_path).run()
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_scale_of_the_loss_goes_on_where_it_stood(tmp_path):
    count = Training(tmp_path / "whole", scale=4.0).run()
    draw = random.Random(0)
    for at in (draw.randrange(count // 2, count) for _ in range(5)):
        folder = tmp_path / str(at)
        with pytest.raises(KilledError):
            Training(folder, scale=4.0).run(at, killed)
        Training(folder, scale=4.0).run()
        assert same(content(folder), content(tmp_path / "whole")), at
    assert content(tmp_path / "whole")[0]["scaler"]["scale"] == 4.0 * 2 ** (EPOCHS * STEPS // 2)


@pytest.mark.parametrize(("before", "after"), [(None, 4.0), (4.0, None)])
def test_a_training_goes_on_in_another_precision(tmp_path, before, after):
    with pytest.raises(KilledError):
        Training(tmp_path, scale=before).run(60, killed)
    assert bool(content(tmp_path)[0]["scaler"]) == bool(before)
    Training(tmp_path, scale=after).run()
    assert content(tmp_path)[0]["trainer"]["iteration"] == EPOCHS * STEPS
    assert bool(content(tmp_path)[0]["scaler"]) == bool(after)


def test_a_training_that_stopped_early_stays_stopped(tmp_path):
    training = Training(tmp_path, max_epochs=12, patience=1)
    training.run()
    stopped = content(tmp_path)
    assert training.trainer.state.epoch < 12
    Training(tmp_path, max_epochs=12, patience=1).run()
    assert same(content(tmp_path), stopped)
    Training(tmp_path, max_epochs=12, patience=50).run()
    assert content(tmp_path)[0]["trainer"]["iteration"] == 12 * STEPS


def test_patience_goes_on_counting_after_a_kill(tmp_path):
    whole = Training(tmp_path / "whole", max_epochs=12, patience=2)
    count = whole.run()
    assert whole.trainer.state.epoch < 12
    with pytest.raises(KilledError):
        Training(tmp_path / "parts", max_epochs=12, patience=2).run(count - 20, killed)
    Training(tmp_path / "parts", max_epochs=12, patience=2).run()
    assert same(content(tmp_path / "parts"), content(tmp_path / "whole"))


# ---- damaged and missing files


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_with_a_warning(never_stopped, tmp_path, caplog):
    Training(tmp_path).run()
    last = tmp_path / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING):
        again = Training(tmp_path)
    assert f"going on from {tmp_path / 'previous.ckpt'}: {last} is damaged" in caplog.text
    again.run()
    assert same(content(tmp_path), never_stopped[0])


def test_a_kill_between_two_renames_leaves_the_one_before(never_stopped, tmp_path, caplog):
    Training(tmp_path).run()
    (tmp_path / "last.ckpt").unlink()
    with caplog.at_level(logging.WARNING):
        Training(tmp_path, resume=True).run()
    assert "last.ckpt is missing" in caplog.text
    assert same(content(tmp_path), never_stopped[0])


def test_a_damaged_checkpoint_never_takes_the_place_of_the_sound_one(never_stopped, tmp_path, monkeypatch):
    Training(tmp_path, max_epochs=EPOCHS - 1).run()
    (tmp_path / "last.ckpt").write_bytes(b"half a file")
    genuine = os.replace

    def before_the_last(source, target):
        if str(target).endswith("last.ckpt"):
            raise KilledError
        genuine(source, target)

    monkeypatch.setattr(os, "replace", before_the_last)
    with pytest.raises(KilledError):
        Training(tmp_path).run()
    monkeypatch.undo()
    Training(tmp_path).run()
    assert content(tmp_path)[0]["trainer"]["iteration"] == EPOCHS * STEPS


def test_a_training_from_the_start_does_not_fall_back_on_another_one(tmp_path):
    Training(tmp_path).run()
    training = Training(tmp_path, resume=False)
    with pytest.raises(KilledError):
        training.run(50, killed)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["trainer"]["iteration"] == STEPS
    assert not (tmp_path / "previous.ckpt").exists()


def test_no_sound_checkpoint_is_an_error_that_names_both(tmp_path):
    for name in ("last.ckpt", "previous.ckpt"):
        (tmp_path / name).write_bytes(b"half a file")
    with pytest.raises(WeightsError, match=r"no sound checkpoint .*last.ckpt is damaged.*previous.ckpt is damaged"):
        find_last(tmp_path, "auto")


def test_auto_starts_anew_where_there_is_nothing_and_true_does_not(tmp_path):
    assert find_last(tmp_path, "auto") == find_last(tmp_path, False) == ""
    with pytest.raises(WeightsError, match=r"nothing to resume from"):
        find_last(tmp_path, True)


def test_every_flipped_bit_that_changes_what_is_read_is_found(tmp_path):
    Training(tmp_path).run()
    whole, path = (tmp_path / "last.ckpt").read_bytes(), tmp_path / "flipped.pt"
    state, found, silent = torch.load(tmp_path / "last.ckpt", weights_only=True), 0, 0
    for draw in map(random.Random, range(300)):
        content, place = bytearray(whole), draw.randrange(len(whole))
        content[place] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        try:
            check_whole(path)
        except WeightsError:
            found += 1
        else:
            silent += 1
            assert same(torch.load(path, weights_only=True), state), place
    assert found > 100, (found, silent)


def test_torch_itself_passes_over_a_flipped_bit():
    """Why `check_whole` is there; if this fails, it may go."""
    file = io.BytesIO()
    torch.save({"weight": torch.zeros(1000)}, file)
    content = bytearray(file.getvalue())
    with zipfile.ZipFile(file) as archive:
        entry = max(archive.infolist(), key=lambda info: info.file_size)
        content[entry.header_offset + 2000] ^= 64
    assert torch.load(io.BytesIO(content), weights_only=True)["weight"].abs().sum() > 0


def test_what_a_killed_run_left_half_written_is_cleared(tmp_path):
    (tmp_path / ".partial_1_next.ckpt").write_bytes(b"half")
    (tmp_path / "next.ckpt").write_bytes(b"whole, but too late")
    Training(tmp_path).run()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "model.pt", "previous.ckpt"]


def test_another_number_of_steps_per_epoch_is_refused(tmp_path):
    Training(tmp_path, max_epochs=1).run()
    with pytest.raises(WeightsError, match=r"had 3 steps per epoch, this run has 6; resume with the cohort"):
        Training(tmp_path, batch_size=1).run()


def test_a_state_of_another_implementation_of_the_optimiser_goes_on_with_this_runs(tmp_path):
    network = torch.nn.Linear(2, 2)
    usual, fused = (torch.optim.AdamW(network.parameters(), 0.05, fused=choice) for choice in (None, True))
    network(torch.ones(1, 2)).sum().backward()
    usual.step()
    fused.load_state_dict(adapted(usual.state_dict(), fused))
    assert fused.param_groups[0]["fused"] is True
    assert fused.param_groups[0]["lr"] == 0.05
    assert same(fused.state_dict()["state"], usual.state_dict()["state"])
    with pytest.raises(ValueError, match="zip"):
        adapted({"param_groups": []}, fused)


def from_files(folder, subjects, **options):
    """A training whose cases are read from files, so that it can be told who they are."""
    training, read = Training(folder, **options), samples(6)
    dataset = training.trainer.data_loader.dataset.dataset
    augment = dataset.transform
    dataset.data = [{"image": f"/data/{i}.nii.gz", "subject": name} for i, name in enumerate(subjects)]
    dataset.transform = lambda case: augment(read[int(case["image"][6])])
    return training


def test_a_training_that_goes_on_with_other_cases_is_told(tmp_path, caplog):
    from_files(tmp_path, "abcdef", max_epochs=1).run()
    from_files(tmp_path, "abcdef", max_epochs=2).run()
    assert "other cases" not in caplog.text
    from_files(tmp_path, "abcdeg", max_epochs=3).run()
    assert "last.ckpt was trained on other cases, labels or images than this run has" in caplog.text


def test_a_checkpoint_that_does_not_know_its_cases_goes_on_without_a_word(tmp_path, caplog):
    from_files(tmp_path, "abcdef", max_epochs=1).run()
    state = content(tmp_path)[0]
    del state["cohort"]
    torch.save(state, tmp_path / "last.ckpt")
    from_files(tmp_path, "uvwxyz", max_epochs=2).run()
    assert "other cases" not in caplog.text

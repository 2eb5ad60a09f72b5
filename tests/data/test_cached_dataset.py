"""Cases that cannot be taken are all named, the process ends with 1, and workers start as they must."""

import subprocess
import sys
import textwrap
import threading

import pytest
import torch
from monai.transforms import Transform

from custom.data.case import CohortError
from custom.data.dataset import CachedDataset, loader_context
from custom.support.errors import UserError, root_cause
from custom.transforms.contract import UntrustedPlaneError


class Doing(Transform):
    """What MONAI caches: a transform that is not random."""

    def __init__(self, work):
        self.work = work

    def __call__(self, case):
        return self.work(case)


def test_good_cases_are_held_in_their_order():
    cases = [{"image": i} for i in range(9)]
    calls = []
    square = Doing(lambda case: calls.append(1) or case["image"] ** 2)
    dataset = CachedDataset(cases, square, num_workers=4, progress=False)
    assert len(calls) == 9
    assert [dataset[i] for i in range(9)] == [i**2 for i in range(9)]
    assert len(calls) == 9
    half = CachedDataset(cases, square, cache_rate=0.34, progress=False)
    assert len(calls) == 12
    assert [half[i] for i in range(9)] == [i**2 for i in range(9)]


def bad(numbers, error):
    def work(case):
        if case["image"] in numbers:
            raise error(case["image"])
        return case

    return Doing(work)


def make(numbers, error, count=40):
    return CachedDataset([{"image": i} for i in range(count)], bad(numbers, error), num_workers=3, progress=False)


def test_all_that_cannot_be_taken_are_named_with_the_remedy_once():
    remedy = UntrustedPlaneError.remedy
    with pytest.raises(CohortError) as stop:
        make((3, 7, 11), lambda n: UntrustedPlaneError(f"{n}.nii: too steep; {remedy}"))
    first, *lines = str(stop.value).split("\n  ")
    assert first == "3 of 40 cases cannot be taken:"
    assert lines == ["3.nii: too steep", "7.nii: too steep", "11.nii: too steep", remedy]


def test_one_alone_says_its_own_sentence():
    with pytest.raises(UntrustedPlaneError, match=r"^9: steep$"):
        make((9,), lambda n: UntrustedPlaneError(f"{n}: steep"))


def test_after_twenty_it_is_enough():
    with pytest.raises(CohortError, match=r"(?s)20 of 400 cases .*more were not tried after these 20") as stop:
        make(range(400), lambda n: UserError(f"no {n}"), 400)
    assert isinstance(root_cause(stop.value), CohortError)


def test_what_no_user_can_mend_stops_at_once_and_no_thread_is_left():
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="applying transform"):
        make((5,), lambda n: IndexError(n))
    assert threading.active_count() == before


@pytest.mark.slow
def test_the_process_ends_with_one_however_busy_its_threads_are():
    script = """
        import torch
        from monai.transforms import Transform
        from custom.data.dataset import CachedDataset
        from custom.support.errors import UserError, report_errors
        report_errors()
        class Work(Transform):
            def __call__(self, case):
                if case["image"] == 0:
                    raise UserError("no")
                volume = torch.rand(1, 1, 60, 60, 60)
                return [torch.nn.functional.interpolate(volume, size=(90,) * 3).sum() for _ in range(4)]
        CachedDataset([{"image": i} for i in range(64)], Work(), num_workers=4, progress=False)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("error: no\n")


def test_workers_start_as_mirrored_transforms_need_it():
    assert loader_context(0) is None
    assert loader_context(2) == ("fork" if sys.platform == "linux" else "spawn")
    data = [{"image": torch.zeros(2)}] * 3
    loader = torch.utils.data.DataLoader(data, num_workers=1, multiprocessing_context=loader_context(1))
    assert len(list(loader)) == 3

"""The unit test of `sa_swin_classify` in the MONAI Model Zoo."""

import unittest

from sa_swin_bundles import BundleCase


class TestSASwinClassify(BundleCase):
    """Its workflows."""

    def test_train_evaluate_infer(self) -> None:
        self.check_workflows("sa_swin_classify")


if __name__ == "__main__":
    unittest.main()

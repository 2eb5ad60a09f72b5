"""The unit test of `sa_swin_pretrain` in the MONAI Model Zoo."""

import unittest

from sa_swin_bundles import BundleCase


class TestSASwinPretrain(BundleCase):
    """Its workflows."""

    def test_train_evaluate_infer(self) -> None:
        self.check_workflows("sa_swin_pretrain", roi_size=[32, 64, 64])


if __name__ == "__main__":
    unittest.main()

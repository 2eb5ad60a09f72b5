"""Which sizes the encoder takes; refused before anything is loaded."""

import pytest

from custom.networks.encoding import refuse_size
from custom.support.errors import UserError


def test_a_size_may_be_one_number_and_is_that_of_the_volume_where_that_is_smaller():
    refuse_size(96)
    refuse_size([96, 96, 96], within=[64, 64, 32])
    for size, within, told in (
        (48, None, "48, 48, 48"),
        (96, 32, "32, 32, 32"),
        ([64, 64, 96], [64, 64, 40], "64, 64, 40"),
    ):
        with pytest.raises(UserError, match=rf"got \({told}\); pad the volume or ROI"):
            refuse_size(size, within=within)

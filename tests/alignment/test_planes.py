"""Planes set by hand: read with their conventions, found for their image, and refused where they say nothing."""

import pytest

from custom.alignment.planes import HandPlane, plane_for, read_planes
from custom.support.errors import UserError

HEAD = "image,yaw_deg,roll_deg,offset_mm\n"


def written(tmp_path, text):
    path = tmp_path / "planes.csv"
    path.write_bytes(text.encode())
    return path


def test_a_table_is_read_with_other_columns_a_mark_and_empty_rows(tmp_path):
    rows = [
        "\ufeffimage,status,yaw_deg,roll_deg,offset_mm",
        "a/T1.nii.gz,left out,1.5,-2,3",
        ",,,,",
        "b\\T1.nii,x,0,0,-4.5",
    ]
    planes = read_planes(written(tmp_path, "\r\n".join(rows)))
    assert planes == [HandPlane("a/T1.nii.gz", 1.5, -2, 3), HandPlane("b/T1.nii", 0, 0, -4.5)]
    assert read_planes(None) == read_planes("") == []


def test_the_row_is_that_whose_path_is_the_end_of_the_images():
    planes = [HandPlane("sub-01/anat/T1.nii.gz", 1, 0, 0), HandPlane("sub-02_T1.nii.gz", 2, 0, 0)]
    assert plane_for(planes, "/data/sub-01/anat/T1.nii.gz").yaw_deg == 1
    assert plane_for(planes, "/data/sub-02_T1.nii.gz").yaw_deg == 2
    assert plane_for(planes, "/data/xsub-02_T1.nii.gz") is None
    assert plane_for(planes, "T1.nii.gz") is None
    with pytest.raises(UserError, match=r"has two planes in the table, of T1.nii and of a/T1.nii"):
        plane_for([HandPlane("T1.nii", 0, 0, 0), HandPlane("a/T1.nii", 0, 0, 0)], "/d/a/T1.nii")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,yaw_deg\na,1\n", "lacks the columns roll_deg, offset_mm"),
        ("", "lacks the columns image, yaw_deg"),
        (HEAD + "a,1,2\n", "line 2: .* should be numbers"),
        (HEAD + "a,1,2,left\n", "line 2: .* should be numbers"),
        (HEAD + "a,1,nan,2\n", "line 2: expected an image, yaw and roll within 60 degrees"),
        (HEAD + "a,95,0,0\n", "line 2: expected an image, yaw and roll within 60 degrees"),
        (HEAD + "a,0,0,inf\n", "line 2"),
        (HEAD + ",0,0,1\n", "line 2: expected an image"),
        (HEAD + "a,0,0,0\na,1,1,1\n", "a has two planes; keep one"),
    ],
)
def test_what_says_nothing_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_planes(written(tmp_path, text))


def test_a_table_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(UserError, match=r"none.csv: the table of planes cannot be read: .*No such file"):
        read_planes(tmp_path / "none.csv")

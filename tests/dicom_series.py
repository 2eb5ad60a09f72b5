"""DICOM series as scanners write them, made with pydicom."""

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

SPACING = 4.0  # mm


def write_series(folder, number, description, slices=20, **facts):
    """Write a series of axial MR slices of 24 x 28 voxels, one file each; more facts go into every file's header."""
    folder.mkdir(parents=True, exist_ok=True)
    series, study = generate_uid(), generate_uid(entropy_srcs=[str(folder)])
    for index in range(slices):
        path = folder / f"{number:03d}_{index:03d}.dcm"
        image = _header(path, index, number, description)
        image.SeriesInstanceUID, image.StudyInstanceUID = series, study
        image.FrameOfReferenceUID = study
        pixels = np.full((28, 24), 10 * number, np.uint16)
        pixels[4:-4, 4:-4] = 400 + 10 * index
        image.PixelData = pixels.tobytes()
        for name, value in facts.items():
            setattr(image, name, value)
        image.save_as(path, enforce_file_format=True)


def _header(path, index, number, description):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    image.PatientName, image.PatientID, image.PatientBirthDate = "Doe^Jane", "MRN-4711", "19500101"
    image.StudyDate, image.StudyTime, image.AcquisitionTime = "20200101", "120000", f"12{number:02d}00"
    image.Modality, image.Manufacturer, image.ImageType = "MR", "SIEMENS", ["ORIGINAL", "PRIMARY", "M", "ND"]
    image.SeriesDescription, image.ProtocolName = description, description
    image.SeriesNumber, image.InstanceNumber, image.AcquisitionNumber = number, index + 1, 1
    image.EchoTime, image.RepetitionTime, image.FlipAngle, image.MagneticFieldStrength = 3.0, 2000.0, 9.0, 3.0
    image.ScanningSequence, image.MRAcquisitionType = "GR", "3D"
    image.Rows, image.Columns, image.SamplesPerPixel, image.PhotometricInterpretation = 28, 24, 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
    image.PixelSpacing, image.SliceThickness = [SPACING, SPACING], SPACING
    image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    image.ImagePositionPatient = [-46.0, -54.0, -38.0 + SPACING * index]
    return image

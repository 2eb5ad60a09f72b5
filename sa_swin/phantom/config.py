"""What decides the content of a built-in cohort."""

from dataclasses import asdict, dataclass, fields
from functools import cached_property

from sa_swin.phantom.anatomy import label_maps
from sa_swin.phantom.contrast import CONTRASTS
from sa_swin.phantom.lesion import FINDINGS, LOOKS
from sa_swin.phantom.people import healthy_people

OF_THE_IMAGES = ("modality", "spacing", "skull", "tilt", "noise", "anatomies")
"""Options that say nothing where images of real heads are given."""
SKULL = ("true", "false", "mixed")


@dataclass(frozen=True)
class Config:
    """What decides a cohort's content.

    Args:
        subjects: how many, 4 at least.
        seed: of every random draw.
        modality: one or more of `CONTRASTS`.
        spacing: voxel size, mm.
        patients: share of the subjects with a lesion.
        findings: those of the patients, among `FINDINGS`.
        skull: whether skull and scalp are there, one of `SKULL`.
        tilt: largest roll, yaw and pitch, degrees.
        noise: factor on noise, texture and bias field.
        anatomies: folder of FreeSurfer label maps in place of ICBM152.
        lesions: folder of lesion masks in standard space, for infarcts and haemorrhages.
        images: BIDS folder of healthy people's T1w images, on which lesions are painted in place of whole heads.
        lesion_ml: smallest and largest volume of painted lesions; None leaves it to the finding.
        bilateral: share of the patients whose lesion has a twin at the mirrored place.
        midline: share of the patients whose lesion lies across the midsagittal plane, as much on either side; painted.
        shares: of the subjects in training, validation and testing.
    """

    subjects: int = 40
    seed: int = 0
    modality: tuple[str, ...] = ("T1w",)
    spacing: float = 2.0
    patients: float = 0.5
    findings: tuple[str, ...] = FINDINGS
    skull: str = "true"
    tilt: float = 8.0
    noise: float = 1.0
    anatomies: str | None = None
    lesions: str | None = None
    images: str | None = None
    lesion_ml: tuple[float, float] | None = None
    bilateral: float = 0.0
    midline: float = 0.0
    shares: tuple[float, float, float] = (0.6, 0.15, 0.25)

    def __post_init__(self) -> None:
        """Refuse what cannot be made, in one sentence."""
        for name, known in (("modality", tuple(CONTRASTS)), ("findings", FINDINGS)):
            values = getattr(self, name)
            unknown = [value for value in values if value not in known]
            if unknown or not values or len(set(values)) < len(values):
                raise ValueError(
                    f"{name} must be one or more of {', '.join(known)}, each once; got {', '.join(values)}"
                )
        if self.skull not in SKULL:
            raise ValueError(f"skull must be one of {', '.join(SKULL)}; got {self.skull}")
        ranges = {
            "subjects": (4, 999_999),
            "seed": (0, 2**32 - 1),
            "spacing": (0.5, 8),
            "patients": (0, 1),
            "bilateral": (0, 1),
            "midline": (0, 1),
            "tilt": (0, 45),
        }
        for name, (low, high) in {**ranges, "noise": (0, 10)}.items():
            value = getattr(self, name)
            if isinstance(value, str) or not low <= value <= high:
                raise ValueError(f"{name} must lie between {low} and {high}; got {value}")
        if self.bilateral + self.midline > 1:
            raise ValueError(f"bilateral and midline together must be 1 at most; got {self.bilateral + self.midline:g}")
        if self.lesion_ml is not None and (
            len(self.lesion_ml) != 2 or not 3 <= self.lesion_ml[0] < self.lesion_ml[1] <= 150
        ):
            raise ValueError(f"lesion_ml must be smallest,largest between 3 and 150 ml; got {self.lesion_ml}")
        if len(self.shares) != 3 or min(self.shares) <= 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"shares must be three positive numbers with sum 1; got {self.shares}")
        for folder in (self.anatomies, self.lesions):
            if folder is not None:
                label_maps(folder)
        if self.images is not None:
            self.check_images()

    def check_images(self) -> None:
        """Refuse what real heads do not allow."""
        people = len(healthy_people(str(self.images)))
        if self.subjects > people:
            raise ValueError(f"subjects must be {people} at most, the people in {self.images}; got {self.subjects}")
        if given := [own.name for own in fields(self) if own.name in OF_THE_IMAGES and self.is_set(own.name)]:
            raise ValueError(f"with images, leave out {', '.join(given)}: the images have their own (T1w)")
        if self.lesions is None:
            raise ValueError("with images, lesions must be a folder of lesion masks in standard space")
        if unknown := [finding for finding in self.findings if finding not in LOOKS]:
            raise ValueError(f"with images, findings must be among {', '.join(LOOKS)}; got {', '.join(unknown)}")

    def is_set(self, name: str) -> bool:
        """Whether an option differs from its default."""
        return getattr(self, name) != next(own.default for own in fields(self) if own.name == name)

    @property
    def factor(self) -> int:
        """Voxels of the source, per axis, that are averaged before sampling: an antialiasing filter."""
        return max(1, round(self.spacing / 1.6))

    @cached_property
    def record(self) -> dict[str, object]:
        """The configuration as JSON holds it."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

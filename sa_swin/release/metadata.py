"""The metadata of a package, fitted to its weights."""

from collections.abc import Mapping, Sequence
from typing import Any

from custom.weights.settings import channels_of, names_to
from sa_swin.release.errors import ReleaseError
from sa_swin.release.evaluation import Evaluation


def check_changelog(metadata: Mapping[str, Any]) -> None:
    """Refuse a version that the changelog does not mention.

    Raises:
        ReleaseError: names the version and those that have an entry.
    """
    version, changelog = metadata.get("version"), metadata.get("changelog", {})
    if not changelog.get(version):
        raise ReleaseError(
            f"configs/metadata.json is of version {version}, but its changelog has "
            f"{', '.join(changelog) or 'nothing'}; say there what changed"
        )


def fitted(
    metadata: Mapping[str, Any],
    settings: Mapping[str, Any],
    output_channels: int,
    evaluation: Evaluation | None,
    class_names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Metadata with the channels of these weights, and with the figures of their evaluation.

    Args:
        metadata: of the bundle.
        settings: of the package's config: `in_channels`, `asymmetry_map`, `modality`.
        output_channels: what the network gives, at axis 1.
        evaluation: None leaves `eval_metrics` out.
        class_names: that the training knew.
    """
    data_format = metadata["network_data_format"]
    image, pred = data_format["inputs"]["image"], data_format["outputs"]["pred"]
    count = int(settings["in_channels"])
    channels = [""] if count == 1 else [f"_{i}" for i in range(count)]
    channels += ["_asymmetry"] if channels_of(settings) > count else []
    names = [half + channel for half in ("image", "mirrored") for channel in channels]
    image = image | {
        "num_channels": len(names),
        "modality": settings["modality"],
        "channel_def": {str(i): name for i, name in enumerate(names)},
    }
    pred = pred | {"num_channels": output_channels}
    if pred.get("format") != "embedding":
        called = names_to(output_channels, class_names, pred.get("format") == "segmentation")
        pred["channel_def"] = {str(number): name for number, name in enumerate(called)}
    fitted_format = data_format | {
        "inputs": data_format["inputs"] | {"image": image},
        "outputs": data_format["outputs"] | {"pred": pred},
    }
    out = dict(metadata) | {"network_data_format": fitted_format}
    out.pop("eval_metrics", None)
    return out | ({"eval_metrics": evaluation.entries()} if evaluation else {})

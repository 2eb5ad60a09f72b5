"""Case tables, metrics, calibration, inferers, evaluators."""

from custom.support.rooms import opened

__getattr__, __all__ = opened(
    __name__,
    {
        "batch_inference": ["FinishedCases", "InferenceTable"],
        "case_table": ["CalibrationFit", "CaseTable", "PredictionGuard"],
        "conformal": ["Conformal"],
        "ensemble": ["MeanOfMembersd", "ensemble_of"],
        "evaluators": ["TolerantEvaluator"],
        "inferers": ["MirroredSlidingWindow", "PretextEvaluation", "WindowedEmbedding", "sliding_window"],
        "probe": ["FrozenProbe"],
        "metrics": [
            "classification_row",
            "classification_summary",
            "embedding_row",
            "pretext_row",
            "pretext_summary",
            "segmentation_row",
            "segmentation_summary",
        ],
    },
)

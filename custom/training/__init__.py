"""What ignite lacks: checkpoints and exact resume, step guard, preemption, randomness, progress."""

from custom.support.rooms import opened

__getattr__, __all__ = opened(
    __name__,
    {
        "best_weights": ["BestWeights"],
        "checkpoints": ["Checkpoints", "find_last", "starting_weights"],
        "preemption": ["Preemption", "leave", "shield_worker"],
        "progress": ["LossParts", "StopEarly"],
        "randomness": ["ReproducibleLoader", "SampleOrder", "SeedSteps", "SeededSamples"],
        "replay": ["TrainingStep"],
        "step_guard": ["StepGuard"],
        "tracking": ["TrackedRun", "sqlite_uri"],
    },
)

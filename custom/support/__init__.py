"""What everything stands on: errors, files, processes, precision, progress, the record of a run."""

from custom.support.rooms import opened

__getattr__, __all__ = opened(
    __name__,
    {
        "bundle_command": ["check_options"],
        "distributed": ["GlobalBatchLoss"],
        "errors": ["UserError", "report_errors"],
        "files": ["write_whole"],
        "precision": ["MixedPrecision", "needs_loss_scale"],
        "progress": ["Progress"],
        "run_record": ["of_weights", "record_run"],
    },
)

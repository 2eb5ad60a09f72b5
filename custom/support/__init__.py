"""What everything stands on: errors, files, processes, precision, the record of a run."""

from custom.support.rooms import opened

__getattr__, __all__ = opened(
    __name__,
    {
        "bundle_command": ["check_options"],
        "distributed": ["GlobalBatchLoss"],
        "errors": ["UserError", "report_errors"],
        "files": ["write_whole"],
        "precision": ["MixedPrecision", "needs_loss_scale"],
        "run_record": ["of_weights", "record_run"],
    },
)

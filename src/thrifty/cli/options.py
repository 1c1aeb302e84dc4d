"""Arguments, options and exit codes that verbs of the command line share."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from thrifty.studies.constraints import Choice

DONE, FAILED, USAGE, KEEP, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes. `KEEP`: all went well, and nothing is better than the model as it is."""


def answered(choice: Choice) -> int:
    """The exit code of a verb that chooses a trial."""
    if choice.trial is not None:
        return DONE
    return KEEP if choice.keep is not None else FAILED



class SavedAs(enum.Enum):
    """What `thrifty best --save` writes."""

    artifact = "artifact"
    hf = "hf"
    compressed_tensors = "compressed-tensors"


WorkloadArgument = Annotated[str, typer.Argument(
    metavar="WORKLOAD", help="An embedded workload (thrifty workloads lists them), a file that defines `workload`, a "
                             "Hugging Face directory, or the name (org/name) of one in the Hugging Face cache.")]
RecipeArgument = Annotated[str, typer.Argument(
    metavar="RECIPE", help='The recipe, such as "train(adamw, epochs=2) | quantize(w8a8) | compile(onnxruntime)".')]
StudyOption = Annotated[Path | None, typer.Option(
    "--study", metavar="DIR", help="The study's directory; study-NAME by default, after the workload. The same command again "
                                   "resumes.")]
StudyArgument = Annotated[Path | None, typer.Argument(
    metavar="STUDY", help="A study's directory; by default the one study in the current directory.")]
DeviceOption = Annotated[str, typer.Option("--device", help="The device to run on: cpu or cuda.")]
TrainingDeviceOption = Annotated[str | None, typer.Option(
    "--training-device", help="The device that trains: cpu or cuda; that of --device by default.")]
ThreadsOption = Annotated[int, typer.Option("--threads", help="Threads for inference; 1 gives the steadiest timings.")]
TrainingThreadsOption = Annotated[int | None, typer.Option(
    "--training-threads", min=1, help="Threads for training; one per processor by default. Give fewer on a busy machine.")]
SeedOption = Annotated[int, typer.Option("--seed", help="The seed for all random numbers.")]
PairsOption = Annotated[int, typer.Option(
    "--pairs", min=1, help="Pairs of processes to time: 1 gives an estimate, 5 or more a confidence interval.")]
PriceOption = Annotated[float | None, typer.Option("--price", help="The price of this machine, in dollars per hour.")]
LogOption = Annotated[list[str] | None, typer.Option(
    "--log", metavar="KIND[:DIR]", help="Log trials and training curves, offline, to mlflow, tensorboard, trackio or wandb; in "
                                        "the study's directory, or DIR. May be repeated.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout and everything else on stderr.")]
NprocOption = Annotated[int | None, typer.Option(
    "--nproc", min=1, help="The number of processes that train together; under torchrun, its own.")]
RestartsOption = Annotated[int, typer.Option(
    "--max-restarts", min=0, help="How often to restart the training processes after one failed.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Train in a precision even if this processor only emulates it.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Check everything and print what would run, but run nothing.")]
BudgetOption = Annotated[str, typer.Option("--budget", help="Total time for the study, resumed parts included: 90s, 5m, 2h.")]
MaxDropOption = Annotated[str | None, typer.Option(
    "--max-drop", help="Constraint: largest loss of quality, at the upper end of its interval: 1pt (absolute), 1% (relative).")]
MaxBytesOption = Annotated[str | None, typer.Option("--max-bytes", help="Constraint: largest artifact, such as 500kB or 2MB.")]
MaxLatencyOption = Annotated[str | None, typer.Option(
    "--max-latency", help="Constraint: longest median latency, such as 200us or 5ms.")]
MinimizeOption = Annotated[str, typer.Option("--minimize", help="What to minimize: latency, bytes, memory or training.")]
TrafficOption = Annotated[float | None, typer.Option(
    "--requests-per-day", min=0.0, help="Expected traffic; break-even is then given in days too.")]
TrustOption = Annotated[bool, typer.Option("--trust-native-code", help="Allow an artifact to run the machine code in it.")]

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
    metavar="WORKLOAD", help="An embedded workload (thrifty workloads), a file that defines `workload`, a Hugging Face "
                             "directory, or the name (org/name) of one in the Hugging Face cache.")]
RecipeArgument = Annotated[str, typer.Argument(
    metavar="RECIPE", help='Such as "train(adamw, epochs=2) | quantize(w8a8) | compile(onnxruntime)".')]
StudyOption = Annotated[Path | None, typer.Option(
    "--study", metavar="DIR", help="The study's directory; study-NAME by default, after the workload. The same command again "
                                   "resumes.")]
StudyArgument = Annotated[Path | None, typer.Argument(
    metavar="STUDY", help="A study's directory; by default the one study in the current directory.")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
ThreadsOption = Annotated[int, typer.Option("--threads", help="Threads for inference; one gives the steadiest timings.")]
TrainingThreadsOption = Annotated[int | None, typer.Option(
    "--training-threads", min=1, help="Threads for training; by default one per processor. Fewer where the machine is busy.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of all random streams.")]
PairsOption = Annotated[int, typer.Option("--pairs", min=1, help="Process pairs: 1 screens, 5 or more claim.")]
PriceOption = Annotated[float | None, typer.Option("--price", help="Dollars an hour of this machine.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, all else on stderr.")]
NprocOption = Annotated[int | None, typer.Option("--nproc", min=1, help="Processes that train together; torchrun's, under it.")]
RestartsOption = Annotated[int, typer.Option("--max-restarts", min=0, help="How often they start again after one failed.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Run a precision even where this processor emulates it.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Check, say what would run, and run nothing.")]
BudgetOption = Annotated[str, typer.Option("--budget", help="Time that the study may take in all: 90s, 5m, 2h.")]
MaxDropOption = Annotated[str | None, typer.Option(
    "--max-drop", help="Quality that may be lost, judged by the interval's upper end: 1pt, 1% or 0.02.")]
MaxBytesOption = Annotated[str | None, typer.Option("--max-bytes", help="Largest size of the artifact: 500kB, 2MB.")]
MaxLatencyOption = Annotated[str | None, typer.Option("--max-latency", help="Median of a request: 200us, 5ms.")]
MinimizeOption = Annotated[str, typer.Option("--minimize", help="latency, bytes, memory or training.")]
TrafficOption = Annotated[float | None, typer.Option("--requests-per-day", min=0.0, help="Tells break-even in days.")]
TrustOption = Annotated[bool, typer.Option("--trust-native-code", help="Let an artifact run its machine code.")]

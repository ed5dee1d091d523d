"""What the person who runs the app may set, each from one environment variable. Knows nothing about models or runs."""

import logging
import os
import warnings
from pathlib import Path

from peft_space.redaction import redact_logs


def home() -> Path:
    """Folder under which the runs that the page starts are kept (`PEFT_SPACE_HOME`)."""
    return (
        Path(os.environ.get("PEFT_SPACE_HOME") or Path.home() / ".local" / "share" / "peft_space")
        .expanduser()
        .absolute()
    )


def max_file_megabytes() -> float:
    """Largest data file that is read, in MB of 10^6 bytes (`PEFT_SPACE_MAX_FILE_MB`)."""
    return float(os.environ.get("PEFT_SPACE_MAX_FILE_MB", "200"))


def most_open_runs() -> int | None:
    """How many trainings a visitor may have queued or running (`PEFT_SPACE_MAX_OPEN_RUNS`): 3 on a Space, elsewhere as many as they like."""
    return int(_limit("PEFT_SPACE_MAX_OPEN_RUNS", "3")) or None


def most_stored_bytes() -> int | None:
    """How much the runs of a visitor may take on the disk (`PEFT_SPACE_MAX_STORED_MB`, of 10^6 bytes): 5,000 MB on a Space."""
    return int(float(_limit("PEFT_SPACE_MAX_STORED_MB", "5000")) * 1e6) or None


def largest_run_bytes() -> float:
    """How large a run may be that comes from a job or is taken up from the Hub (`PEFT_SPACE_MAX_RUN_MB`, of 10^6 bytes): on a Space 5,000 MB."""
    return float(os.environ.get("PEFT_SPACE_MAX_RUN_MB") or (5_000 if on_space() else 20_000)) * 1e6


def keep_days() -> float | None:
    """After how many days without a change a run is removed (`PEFT_SPACE_KEEP_DAYS`): 14 on a Space, elsewhere never."""
    return float(_limit("PEFT_SPACE_KEEP_DAYS", "14")) or None


def _limit(name: str, on_a_space: str) -> str:
    """A limit; 0 is none."""
    return os.environ.get(name) or (on_a_space if on_space() else "0")


def report_to() -> list[str]:
    """What trainings are also reported to, with commas between (`PEFT_SPACE_REPORT_TO`): tensorboard, trackio or wandb. Mostly nothing."""
    return [
        name.strip()
        for name in os.environ.get("PEFT_SPACE_REPORT_TO", "").split(",")
        if name.strip()
    ]


def num_processes() -> int | None:
    """How many processes share a training (`PEFT_SPACE_PROCESSES`); None for one a GPU."""
    return int(os.environ.get("PEFT_SPACE_PROCESSES", "0")) or None


def on_space() -> bool:
    """Whether this is a Hugging Face Space, where visitors are strangers and folders of the machine are not theirs."""
    return os.environ.get("SYSTEM") == "spaces"


def signs_in() -> bool:
    """Whether visitors can sign in with their Hub account: on a Space whose README says `hf_oauth: true`."""
    return on_space() and bool(os.environ.get("SPACE_ID") and os.environ.get("OAUTH_CLIENT_ID"))


def disk_is_kept(mounts: str | Path = "/proc/self/mounts") -> bool:
    """Whether the runs are there after a restart. On a Space they are only where `home` lies on a volume that was mounted, such as a bucket."""
    if not on_space():
        return True
    kinds = {
        Path(fields[1]): fields[2]
        for line in Path(mounts).read_text().splitlines()
        if len(fields := line.split()) > 2
    }
    place = next((parent for parent in (home(), *home().parents) if parent in kinds), Path("/"))
    return place != Path("/") and kinds[place] not in ("tmpfs", "ramfs", "overlay")


def on_zerogpu() -> bool:
    """Whether GPUs are lent for moments, to functions that ask for one (ZeroGPU), so that trainings go in slices."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def slice_seconds() -> int:
    """Longest slice of a training on ZeroGPU (`PEFT_SPACE_SLICE_SECONDS`)."""
    return int(os.environ.get("PEFT_SPACE_SLICE_SECONDS", "60"))


def prepare_libraries() -> None:
    """Switch off what libraries report about their use, and what they print between our own words. Every entry point calls it first.

    Call it before torch is imported: OpenMP reads its settings once.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ["USE_HUB_KERNELS"] = (
        "NO"  # they are code from the Hub, which a model's config could ask for
    )
    redact_logs()
    if on_space():  # its own token is not its visitors': they shall not read private models with it
        os.environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            os.environ.pop(name, None)  # nor is it in any child's environment
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # OpenMP's threads spin for some microseconds and then sleep: threads that spin on keep other
    # processes from their CPU, and threads that sleep at once wake too late for each other
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_EXPERIMENTAL_WARNING", "1")  # run_uv_job
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # transformers says so whenever a GPTQ or AWQ base is told to compute with a kernel that can be trained
    warnings.filterwarnings(
        "ignore", message="You passed `quantization_config`", module="transformers"
    )
    # it looks for a faster kernel, says that it found none, and goes on
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

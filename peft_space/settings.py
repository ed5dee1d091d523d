"""Settings of the app, each from one environment variable."""

import logging
import os
import warnings
from pathlib import Path

from peft_space.redaction import redact_logs


def home() -> Path:
    """The folder of the page's runs, its cache and its queue (`PEFT_SPACE_HOME`)."""
    default = Path.home() / ".local" / "share" / "peft_space"
    return Path(os.environ.get("PEFT_SPACE_HOME") or default).expanduser().absolute()


def max_file_megabytes() -> float:
    """Size limit of a data file in MB of 10^6 bytes (`PEFT_SPACE_MAX_FILE_MB`)."""
    return float(os.environ.get("PEFT_SPACE_MAX_FILE_MB", "200"))


def max_open_runs() -> int | None:
    """How many queued or running trainings a visitor may have (`PEFT_SPACE_MAX_OPEN_RUNS`).

    3 on a Space, no limit elsewhere.
    """
    return int(_limit("PEFT_SPACE_MAX_OPEN_RUNS", "3")) or None


def max_stored_bytes() -> int | None:
    """Size limit of all runs of a visitor (`PEFT_SPACE_MAX_STORED_MB`, in MB of 10^6 bytes).

    5,000 MB on a Space, no limit elsewhere.
    """
    return int(float(_limit("PEFT_SPACE_MAX_STORED_MB", "5000")) * 1e6) or None


def max_run_bytes() -> float:
    """Size limit of a run from a job or a backup (`PEFT_SPACE_MAX_RUN_MB`, in MB of 10^6 bytes).

    5,000 MB on a Space, 20,000 MB elsewhere.
    """
    default = 5_000 if on_space() else 20_000
    return float(os.environ.get("PEFT_SPACE_MAX_RUN_MB") or default) * 1e6


def keep_days() -> float | None:
    """Days without a change after which a run is removed (`PEFT_SPACE_KEEP_DAYS`).

    14 on a Space, never elsewhere.
    """
    return float(_limit("PEFT_SPACE_KEEP_DAYS", "14")) or None


def _limit(name: str, default_on_space: str) -> str:
    """A limit as text; "0" means no limit."""
    return os.environ.get(name) or (default_on_space if on_space() else "0")


def report_to() -> list[str]:
    """Trackers that receive the losses, separated by commas (`PEFT_SPACE_REPORT_TO`).

    The trackers are tensorboard, trackio and wandb. By default there is none.
    """
    names = os.environ.get("PEFT_SPACE_REPORT_TO", "").split(",")
    return [name.strip() for name in names if name.strip()]


def num_processes() -> int | None:
    """How many processes share a training (`PEFT_SPACE_PROCESSES`); None for one per GPU."""
    return int(os.environ.get("PEFT_SPACE_PROCESSES", "0")) or None


def on_space() -> bool:
    """True on a Hugging Face Space, where visitors are strangers and must not see the machine."""
    return os.environ.get("SYSTEM") == "spaces"


def signs_in() -> bool:
    """True if visitors can sign in: on a Space whose README says `hf_oauth: true`."""
    return on_space() and bool(os.environ.get("SPACE_ID") and os.environ.get("OAUTH_CLIENT_ID"))


def disk_is_kept(mounts: str | Path = "/proc/self/mounts") -> bool:
    """True if runs survive a restart: on a Space only if `home` is on a mounted volume."""
    if not on_space():
        return True
    lines = (line.split() for line in Path(mounts).read_text().splitlines())
    kinds = {Path(fields[1]): fields[2] for fields in lines if len(fields) > 2}
    mount = next((parent for parent in (home(), *home().parents) if parent in kinds), Path("/"))
    return mount != Path("/") and kinds[mount] not in ("tmpfs", "ramfs", "overlay")


def on_zerogpu() -> bool:
    """True on ZeroGPU, which grants a GPU for seconds at a time, so training runs in slices."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def slice_seconds() -> int:
    """Longest slice on ZeroGPU in seconds (`PEFT_SPACE_SLICE_SECONDS`)."""
    return int(os.environ.get("PEFT_SPACE_SLICE_SECONDS", "60"))


def prepare_libraries() -> None:
    """Switch off telemetry, progress bars and warnings of libraries, and redact the logs.

    Every entry point calls this first, before torch is imported: OpenMP reads its settings once.
    """
    redact_logs()
    os.environ["USE_HUB_KERNELS"] = "NO"  # code from the Hub, which a model's config can request
    if on_space():  # visitors must not read private models with the Space's own token
        os.environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            os.environ.pop(name, None)  # so that no child process has it either
    defaults = {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # OpenMP threads spin for some microseconds and then sleep. Threads that spin longer keep
        # the CPU from other processes; threads that sleep at once wake too late for each other.
        "GOMP_SPINCOUNT": "1000",
        # batches differ in length, and fixed blocks of GPU memory would leave holes between them
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        # Tensors of 2 MB and more begin on a huge page of memory on a CPU. Otherwise the heap has
        # holes as large as its tensors: SmolLM2's shape took 2.2 GB instead of 1.2 GB.
        "THP_MEM_ALLOC_ENABLE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_EXPERIMENTAL_WARNING": "1",  # about run_uv_job
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # transformers warns whenever a GPTQ or AWQ model is loaded with a kernel that can be trained
    warnings.filterwarnings(
        "ignore", message="You passed `quantization_config`", module="transformers"
    )
    # it reports that it has no faster kernel for this CPU, and works without one
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

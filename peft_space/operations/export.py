"""What becomes of a trained adapter: exported, compressed, described, pushed."""

from dataclasses import asdict
from pathlib import Path

from peft_space.operations.model_cache import forget, load_cached
from peft_space.operations.progress import Json, Report, progress
from peft_space.runs.run import Run


def export(
    run: str,
    out: str,
    target: str = "adapter",
    dtype: str = "bfloat16",
    merge_into: str | None = None,
    insist: bool = False,
    as_zip: bool = False,
    gguf: Json | None = None,
    report: Report | None = None,
) -> Json:
    """The adapter, or a model that it is merged into, or either as GGUF files (`gguf`, `ollama`), in the new folder `out`, or as a .zip in the folder `out`; with its `proof`, in `words` too.

    `commands` serve it, by engine. Raises UserError where the proof does not pass, unless `insist`.

    Args:
        gguf: `numbers` (f32, f16, q8_0), whether base and adapter are `apart`, and for Ollama a `system` message.
    """
    from peft_space.export.export import make_export_spec, serving_commands, zip_of

    folder, opened = Path(out, target) if as_zip else Path(out), Run(run)
    asked = make_export_spec(target, dtype, merge_into, insist, gguf)
    forget()  # two models are compared, one after the other, and a third would take room
    made = asked.deliver(opened, folder, progress(report))
    path = zip_of(made.path, opened, target) if as_zip else made.path
    proof = asdict(made.proof) | {"passed": made.proof.passed}
    at = Path("path/of/the/unpacked", target) if as_zip else made.path
    serve = serving_commands(opened, target, at, dtype, elsewhere=as_zip, gguf=asked.gguf)  # type: ignore[arg-type]
    return {"path": str(path), "proof": proof, "words": made.proof.words(), "commands": serve}


def serving(run: str) -> Json:
    """How PEFT, vLLM and TGI can serve the run's adapter: `ways`, each as an adapter, merged, or not; `quantization` of the base in training."""
    from peft_space.export.export import traits_of
    from peft_space.export.serving_support import engine_support

    traits = traits_of(Run(run))
    return {
        "ways": [asdict(way) for way in engine_support(traits)],
        "quantization": traits.quantization,
    }


def spectrum(run: str) -> Json:
    """How much of its rank the run's adapter uses: `rank`, `used`, `curve` (mean singular value as a share of the largest), `layers` (used by each)."""
    from peft_space.export.rank_reduction import KEPT_ENERGY, read_spectrum

    found = read_spectrum(Run(run))
    used = dict(zip(found.layers, found.rank_for(KEPT_ENERGY).tolist(), strict=True))
    return {
        "rank": found.rank,
        "used": found.used_rank,
        "curve": found.mean_curve().tolist(),
        "layers": used,
    }


def reduce_rank(run: str, out: str, rank: int | None = None, report: Report | None = None) -> Json:
    """A smaller adapter in the folder `out`, of `rank` or the rank that is used, and the held-out loss before and after."""
    from peft_space.evaluation.evaluate import held_out_loss
    from peft_space.export.rank_reduction import reduce_rank as compress_run
    from peft_space.models.loading import load_adapted

    opened, on_progress = Run(run), progress(report)
    on_progress(0.0, "Taking the adapter apart")
    smaller = compress_run(opened, out, rank)
    on_progress(0.3, "Scoring the adapter as it was")
    before = held_out_loss(opened, load_cached(run))
    on_progress(0.6, "Scoring the smaller adapter")
    after = held_out_loss(opened, load_adapted(opened, Path(out)))
    return {
        "path": str(Path(out).absolute()),
        "rank": smaller,
        "loss_before": before,
        "loss_after": after,
    }


def model_card(run: str) -> Json:
    """The model card as it would be pushed now: `card`; and `pictures`, the SVG of each by the name that the card has for it."""
    import tempfile

    from peft_space.export.export import copy_adapter

    with tempfile.TemporaryDirectory() as scratch:
        copy_adapter(Run(run), Path(scratch))
        pictures = {
            path.name: path.read_text(encoding="utf-8") for path in Path(scratch).glob("*.svg")
        }
        return {
            "card": Path(scratch, "README.md").read_text(encoding="utf-8"),
            "pictures": pictures,
        }


def push(
    run: str,
    repo: str,
    token: str | None = None,
    public: bool = False,
    card: str | None = None,
    export: Json | None = None,
    report: Report | None = None,
) -> Json:
    """Push the adapter to the Hub: `url`. A `card` takes the place of the one that `card` shows.

    Args:
        export: what to push in place of the adapter as it is: `target`, `dtype`, `merge_into`, `insist` and `gguf` as `export` takes them. It is proven first.
    """
    from peft_space.export.export import make_export_spec
    from peft_space.hub import push as hub_push

    if not export or export.get("target", "adapter") == "adapter":
        return {"url": hub_push.push(Run(run), repo, token, public, progress(report), card)}
    asked = make_export_spec(**export)
    forget()

    def write(opened: Run, folder: Path) -> None:
        asked.deliver(opened, folder, progress(report))

    return {
        "url": hub_push.push(
            Run(run), repo, token, public, progress(report), card, asked.in_words(), write
        )
    }

"""The claims that the benchmarks check, each with its script, its bar and its text.

`python -m benchmarks --record` stores the result of a script in benchmarks/results/, one JSON file
per run. The table of docs/benchmarks.md is generated from the newest record of each claim.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]
RESULTS = Path(__file__).parent / "results"
_NO_BAR = "none"


@dataclass(frozen=True)
class Claim:
    """A claim about speed, memory or quality.

    Args:
        script: the benchmark that checks it.
        sentence: the claim.
        bar: the limit that it must keep, as text.
        summarize: the measured value as text, from the JSON lines that the script printed.
        met: True if the figures keep the bar. None if there is no bar.
    """

    script: str
    sentence: str
    bar: str
    summarize: Callable[[list[Json]], str]
    met: Callable[[list[Json]], bool] | None = None


def _line(lines: list[Json], **values: Any) -> Json:
    """The last line that has these values; a value of `...` only has to exist."""
    return next(
        line
        for line in reversed(lines)
        if all(key in line and value in (..., line[key]) for key, value in values.items())
    )


def _demo(lines: list[Json]) -> str:
    seconds = sorted(line["training_seconds"] for line in lines)
    scores = [
        f"{line['base_exact_match']:.0%} to {line['adapter_exact_match']:.0%}" for line in lines
    ]
    return f"exact match {', '.join(scores)}; {seconds[0]} to {seconds[-1]} s of training"


def _crashes(lines: list[Json]) -> str:
    record = lines[-1]
    problems = sum(len(part["problems"]) for part in record.values() if isinstance(part, dict))
    return (
        f"{problems} problems in {record['kills']['kills']} kills "
        f"({record['kills']['inside_saves']} inside saves), {record['process_trees']['kills']} "
        f"killed process trees, {record['tampered_checkpoints']['tampered']} tampered checkpoints, "
        f"{record['full_disks']['filled']} full disks"
    )


def _no_problems(lines: list[Json]) -> bool:
    return not any(part["problems"] for part in lines[-1].values() if isinstance(part, dict))


def _times_as_fast(lines: list[Json], figure: str) -> str:
    ratios = [
        f"{line['times_as_fast'][figure]:.1f} ({line['rows']})"
        for line in lines
        if "times_as_fast" in line
    ]
    return ", ".join(ratios)


def _quality(lines: list[Json]) -> str:
    return ", ".join(f"{line['file']} {line['above_best_percent']} %" for line in lines)


def _best_factors(lines: list[Json]) -> str:
    """For each model, file, rank and alpha: the factor of the rate with the lowest loss."""
    best: dict[tuple[str, str, str], Json] = {}
    for line in lines:
        key = (line["model"], line["file"], f"{line['rank']}/{line['alpha']}")
        if key not in best or line["loss"] < best[key]["loss"]:
            best[key] = line
    groups: dict[str, list[str]] = {}
    for (model, file, arm), line in best.items():
        groups.setdefault(f"{model} on {file}", []).append(f"{arm} x {line['factor']:g}")
    return "; ".join(f"{group}: {', '.join(arms)}" for group, arms in groups.items())


def _part(lines: list[Json], name: str) -> Json:
    return _line(lines, part=name)


def _journey(lines: list[Json]) -> str:
    training, scores, estimate = (_part(lines, name) for name in ("training", "scores", "estimate"))
    memory = training["peak_bytes"] / 1e9
    return (
        f"exact match {scores['base']['exact_match']:.0%} to "
        f"{scores['adapter']['exact_match']:.0%} on {scores['rows']} rows after "
        f"{training['steps']} steps; {training['seconds'] / 60:.0f} min, {memory:.2f} GB with the "
        f"libraries, {estimate['memory']['total'] / 1e9:.2f} GB estimated without them"
    )


def _against(name: str) -> Callable[[list[Json]], Json]:
    return lambda lines: next(
        line for line in lines if str(line.get("against", "")).startswith(name)
    )


def _ours_over_bare(lines: list[Json]) -> Json:
    return _line(lines, ours_over_bare=...)["ours_over_bare"]


_BY_HAND = _against("the best loop by hand")
_TRL_SLOW = _against("TRL's defaults, no native bfloat16")


def _trl_native(lines: list[Json]) -> Json:
    return _line(lines, against="TRL's defaults")


CLAIMS: dict[str, Claim] = {
    "startup": Claim(
        "startup_time",
        "The page starts about as fast as `import gradio`",
        _NO_BAR,
        lambda lines: f"{lines[0]['ratio']} times ({lines[0]['page_seconds']} s)",
    ),
    "demo": Claim(
        "demo",
        "The default recipe teaches the built-in model the sample task",
        "base at most 10 %, adapter at least 80 %",
        _demo,
        lambda lines: all(
            line["base_exact_match"] <= 0.1 and line["adapter_exact_match"] >= 0.8 for line in lines
        ),
    ),
    "million_rows": Claim(
        "million_rows",
        "A million rows need little memory",
        _NO_BAR,
        lambda lines: (
            f"{lines[0]['most_memory_gb']} GB, {lines[0]['rows_a_second']:,.0f} rows/s to "
            f"token ids, first preview after {lines[0]['first_preview_seconds']} s"
        ),
    ),
    "preparation": Claim(
        "million_rows",
        "Preparing conversations is faster than in TRL, with the same tokens and labels",
        _NO_BAR,
        lambda lines: (
            f"{lines[0]['times_trl']} times as fast, "
            f"{lines[0]['times_trl_with_two_processes']} with two processes"
        ),
    ),
    "memory": Claim(
        "memory",
        "The memory estimate is close to the peak of a training on a CPU",
        _NO_BAR,
        lambda lines: (
            f"error {lines[-1]['median_error_percent']} % (median), "
            f"{lines[-1]['worst_error_percent']} % (worst of {lines[-1]['recipes']})"
        ),
    ),
    "real_shapes": Claim(
        "real_shapes",
        "Memory and time of a training are estimated well for the shapes of T5-small, BERT-base, "
        "SmolLM2-135M and Qwen3-0.6B",
        "memory within 10 % (median 5 %), time within 25 %",
        lambda lines: (
            f"memory {lines[-1]['median_memory_error_percent']} % (median), "
            f"{lines[-1]['worst_memory_error_percent']} % (worst); time "
            f"{lines[-1]['median_time_error_percent']} % (median), "
            f"{lines[-1]['worst_time_error_percent']} % (worst of {lines[-1]['trainings']})"
        ),
        lambda lines: (
            lines[-1]["worst_memory_error_percent"] <= 10
            and lines[-1]["median_memory_error_percent"] <= 5
            and lines[-1]["worst_time_error_percent"] <= 25
        ),
    ),
    "large_vocabulary_memory": Claim(
        "large_vocabulary",
        "A model with 151,936 tokens trains in less memory than in TRL (shape of Qwen3-0.6B)",
        "0.75 times with checkpointing, 0.6 without",
        lambda lines: "; ".join(
            f"{line['peak_of_trl'].split()[0]} times ({line['batch']}, "
            f"{'with' if line['checkpointing'] else 'without'} checkpointing)"
            for line in lines
        ),
        lambda lines: all(
            float(line["peak_of_trl"].split()[0]) <= (0.75 if line["checkpointing"] else 0.6)
            for line in lines
        ),
    ),
    "large_vocabulary_time": Claim(
        "large_vocabulary",
        "The whole command takes less CPU time than with TRL's defaults (shape of Qwen3-0.6B)",
        "0.22 times",
        lambda lines: f"{_line(lines, cpu_time_of_defaults=...)['cpu_time_of_defaults']} times",
        lambda lines: (
            float(_line(lines, cpu_time_of_defaults=...)["cpu_time_of_defaults"].split()[0]) <= 0.22
        ),
    ),
    "pictures": Claim(
        "pictures",
        "The memory estimate counts pictures and the vision tower",
        "within 15 % of the peak on a CPU",
        lambda lines: (
            f"error {lines[-1]['median_error_percent']} % (median), "
            f"{lines[-1]['worst_error_percent']} % (worst of {len(lines) - 1})"
        ),
        lambda lines: lines[-1]["worst_error_percent"] <= 15,
    ),
    "compare_time": Claim(
        "compare",
        "Comparing takes no longer than both columns alone",
        "1.025 times their sum",
        lambda lines: f"{_line(lines, both_over_their_sum=...)['both_over_their_sum']} times",
        lambda lines: _line(lines, both_over_their_sum=...)["both_over_their_sum"] <= 1.025,
    ),
    "compare_base": Claim(
        "compare",
        "The base column gives the same answers as the base alone in transformers",
        "0 of 1,000 answers differ",
        lambda lines: (
            f"{_line(lines, prompts=...)['base_column_mismatches']} of "
            f"{_line(lines, prompts=...)['prompts']:,}"
        ),
        lambda lines: _line(lines, prompts=...)["base_column_mismatches"] == 0,
    ),
    "compare_memory": Claim(
        "compare",
        "One base with its adapter needs about half the memory of two models",
        _NO_BAR,
        lambda lines: f"{_line(lines, one_base_mib=...)['ratio']} times",
    ),
    "rank_reduction": Claim(
        "rank_sweep",
        "A rank-64 adapter keeps its loss when the app reduces it to the rank that it uses",
        _NO_BAR,
        lambda lines: (
            f"{lines[-1]['change_of_held_out_loss_percent']:+} % loss at rank {lines[-1]['used']}"
        ),
    ),
    "rank_capacity": Claim(
        "rank_capacity",
        "An adapter stores 2 bits per parameter, within a factor of two",
        "14 of 16 cells",
        lambda lines: f"{lines[-1]['within_a_factor_of_two']} of {lines[-1]['of']} cells",
        lambda lines: lines[-1]["within_a_factor_of_two"] >= 14,
    ),
    "recommendation_quality": Claim(
        "recommendation_quality",
        "The recommended recipe is close to the best of nine around it",
        "2 % above the best held-out loss, on three of four files",
        _quality,
        lambda lines: sum(line["above_best_percent"] <= 2 for line in lines) >= 3,
    ),
    "rate_sweep": Claim(
        "rate_sweep",
        "The best learning rate falls with the rank if alpha is 2 x rank (rank/alpha x factor)",
        _NO_BAR,
        _best_factors,
    ),
    "real_model": Claim(
        "real_model",
        "A pretrained model, SmolLM2-135M-Instruct, learns the sample data on a CPU",
        "adapter at least 80 %",
        _journey,
        lambda lines: _part(lines, "scores")["adapter"]["exact_match"] >= 0.8,
    ),
    "crash_recovery": Claim(
        "crash_recovery",
        "A killed run ends like an uninterrupted one: same losses, adapter bytes and events",
        "0 problems",
        _crashes,
        _no_problems,
    ),
    "overhead": Claim(
        "overhead",
        "A run costs no more CPU time than a bare Trainer script; the losses are equal",
        "1.03 times; 1.1 until the first step",
        lambda lines: (
            f"{_ours_over_bare(lines)['loop_cpu']} times; "
            f"{_ours_over_bare(lines)['start_seconds']} until the first step"
        ),
        lambda lines: (
            _ours_over_bare(lines)["loop_cpu"] <= 1.03
            and _ours_over_bare(lines)["start_seconds"] <= 1.1
        ),
    ),
    "vs_loop": Claim(
        "vs_trl",
        "Training is as fast as the best plain loop",
        "0.97 times",
        lambda lines: f"{_BY_HAND(lines)['times_theirs']} times",
        lambda lines: _BY_HAND(lines)["times_theirs"] >= 0.97,
    ),
    "vs_trl": Claim(
        "vs_trl",
        "On a CPU without native bfloat16, training is faster than TRL's defaults",
        "25 times",
        lambda lines: f"{_TRL_SLOW(lines)['times_theirs']} times",
        lambda lines: _TRL_SLOW(lines)["times_theirs"] >= 25,
    ),
    "vs_trl_native": Claim(
        "vs_trl",
        "With native bfloat16, training is faster than TRL's defaults",
        _NO_BAR,
        lambda lines: f"{_trl_native(lines)['times_theirs']} times",
    ),
    "packing": Claim(
        "packing",
        "Rows laid end to end train faster than rows ordered by length, on a CPU",
        "1.15 times",
        lambda lines: (
            f"{lines[-1]['times_by_length']} times; "
            f"{lines[-1]['times_shuffled']} times random order"
        ),
        lambda lines: float(lines[-1]["times_by_length"].split()[0]) >= 1.15,
    ),
    "vs_llamafactory": Claim(
        "vs_llamafactory",
        "Training on a CPU is faster than in LLaMA-Factory",
        _NO_BAR,
        lambda lines: f"{_times_as_fast(lines, 'loop_seconds')} times",
    ),
    "vs_llamafactory_command": Claim(
        "vs_llamafactory",
        "The whole command, from data to adapter, is faster than in LLaMA-Factory",
        _NO_BAR,
        lambda lines: f"{_times_as_fast(lines, 'seconds')} times",
    ),
    "resume": Claim(
        "resume",
        "A paused run ends with the same adapter; a checkpoint is cheap",
        "same bytes",
        lambda lines: (
            f"same bytes; {lines[-1]['checkpoint_seconds']} s per checkpoint, "
            f"{lines[-1]['with_a_pause_cpu'] - lines[-1]['whole_cpu']:.1f} CPU s per pause"
        ),
        lambda lines: all(line.get("same_adapter", True) for line in lines),
    ),
    "zerogpu": Claim(
        "zerogpu",
        "On ZeroGPU a slice spends most of its time on training (a CPU stands in for the GPU)",
        "85 % of used time",
        lambda lines: (
            f"{lines[-1]['useful_share_percent']} % of used time, "
            f"{lines[-1]['full_slices_percent']} % of full slices"
        ),
        lambda lines: lines[-1]["useful_share_percent"] >= 85,
    ),
    "load": Claim(
        "load",
        "Fifty visitors of a Space upload, check and poll while one trains",
        "0 faults, no value of another visitor, polls within 1 s (p95)",
        lambda lines: (
            f"{lines[-1]['faults']} faults, {lines[-1]['tagged_values']:,} values, "
            f"polls {lines[-1]['poll']['p95']} s (p95)"
        ),
        lambda lines: lines[-1]["faults"] == 0 and lines[-1]["poll"]["p95"] <= 1,
    ),
    "gptq_awq": Claim(
        "gptq_awq",
        "The app trains GPTQ and AWQ bases on a CPU, with the logits of plain PEFT",
        "difference 1e-4",
        lambda lines: "; ".join(
            f"{line['method']}: held-out loss {line['base_held_out_loss']} to "
            f"{line['adapter_held_out_loss']}, difference "
            f"{line['max_logit_difference_to_plain_peft']}"
            for line in lines
        ),
        lambda lines: all(line["max_logit_difference_to_plain_peft"] <= 1e-4 for line in lines),
    ),
    "leaks": Claim(
        "tests/slow/test_leaks.py",
        "Starting and stopping trainings leaks no process, file or folder",
        "no growth",
        lambda lines: (
            f"after {lines[0]['trainings']} and {lines[-1]['trainings']} trainings "
            f"{lines[0]['processes']} and {lines[-1]['processes']} processes, "
            f"{lines[0]['open_files']} and {lines[-1]['open_files']} open files"
        ),
        lambda lines: lines[0]["open_files"] == lines[-1]["open_files"],
    ),
}


def claims_of(script: str) -> dict[str, Claim]:
    """The claims that a script checks."""
    return {name: claim for name, claim in CLAIMS.items() if claim.script == script}


def records() -> list[Json]:
    """Every stored record, the oldest first."""
    paths = sorted(RESULTS.glob("*.json"), key=lambda path: path.stem)
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def table() -> str:
    """One row per claim, from its newest record, as Markdown."""
    newest: dict[str, Json] = {}
    for record in records():
        newest |= dict.fromkeys(record["claims"], record)
    rows = [
        "| claim | measured | bar | date | machine and versions | script |",
        "|---|---|---|---|---|---|",
    ]
    rows += [_row(name, claim, newest[name]) for name, claim in CLAIMS.items() if name in newest]
    return "\n".join(rows)


def _row(name: str, claim: Claim, record: Json) -> str:
    measured, met = record["claims"][name]["measured"], record["claims"][name]["met"]
    mark = {True: "✓ ", False: "✗ ", None: ""}[met]
    old = f" ({record['code']})" if record.get("code") else ""
    versions = ", ".join(f"{library} {version}" for library, version in record["versions"].items())
    where = "; ".join(part for part in (record["machine"], versions) if part)
    cells = [claim.sentence + old, mark + measured, claim.bar, record["date"], where, claim.script]
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"

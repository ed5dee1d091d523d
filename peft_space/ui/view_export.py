"""What the export on the Publish tab shows, from results alone: without gradio."""

from typing import Any

from peft_space.ui.view import escape

PLACES = [
    ("In PEFT, or that is not decided yet", "PEFT"),
    ("vLLM", "vLLM"),
    ("TGI", "TGI"),
    ("Somewhere that takes whole models alone", "whole"),
]
TARGETS = [("The adapter alone", "adapter"), ("A model it is merged into", "merged")]
DTYPES = [("bfloat16, as most models are published", "bfloat16"), ("float16", "float16"), ("float32, exact and twice as large", "float32")]
INTO = [("the numbers that the adapter was trained on", "dequantized"), ("the base in full precision", "full")]
ABOUT_INTO = (
    "The adapter learnt on a base in 4 or 8 bits, whose weights stand for slightly other numbers than those published. Merged into the former it "
    "answers as it did here; into full precision, other than here, for better or worse. The proof says how far off."
)


def advice(place: str, found: dict[str, Any]) -> tuple[str, str]:
    """(target, words) for where it is to be deployed, from what the verb `serving` says."""
    if place == "whole":
        return "merged", "Merge it, and look at the proof before you deploy it."
    way = next(way for way in found["ways"] if way["engine"] == place)
    return ("merged" if way["how"] == "merged" else "adapter"), way["why"]


def exported_markdown(found: dict[str, Any]) -> str:
    """The proof of an export in words, and the commands that serve it."""
    serve = [f"{engine}:\n```\n{command}\n```" for engine, command in found["commands"].items()]
    return "\n\n".join([f"**Proof.** {escape(found['words'])}", *serve])

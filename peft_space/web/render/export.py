"""What the export on the Publish tab shows, from results alone: without gradio."""

from typing import Any

from peft_space.formatting import code_block, escape

PLACES = [
    ("In PEFT, or that is not decided yet", "PEFT"),
    ("vLLM", "vLLM"),
    ("TGI", "TGI"),
    ("llama.cpp", "llama.cpp"),
    ("Ollama", "Ollama"),
    ("Somewhere that takes whole models alone", "whole"),
]
TARGETS = [
    ("The adapter alone", "adapter"),
    ("A model it is merged into", "merged"),
    ("GGUF, for llama.cpp", "gguf"),
    ("GGUF with a Modelfile, for Ollama", "ollama"),
]
_GGUF = {"llama.cpp": "gguf", "Ollama": "ollama"}
NUMBERS = [("16 bits", "f16"), ("8 bits, half as large", "q8_0"), ("32 bits, exact", "f32")]
DTYPES = [
    ("bfloat16, as most models are published", "bfloat16"),
    ("float16", "float16"),
    ("float32, exact and twice as large", "float32"),
]
INTO = [
    ("the numbers that the adapter was trained on", "dequantized"),
    ("the base in full precision", "full"),
]
ABOUT_INTO = (
    "The adapter learnt on a base in 4 or 8 bits, whose weights stand for slightly other numbers than those published. Merged into the former it "
    "answers as it did here; into full precision, other than here, for better or worse. The proof says how far off."
)


def advice(place: str, found: dict[str, Any]) -> tuple[str, str]:
    """(target, words) for where it is to be deployed, from what the verb `serving` says."""
    if place == "whole":
        return "merged", "Merge it, and look at the proof before you deploy it."
    if place in _GGUF:
        return (
            _GGUF[place],
            f"{place} reads GGUF files. The proof reads the numbers back from the file and lets them answer.",
        )
    way = next(way for way in found["ways"] if way["engine"] == place)
    return ("merged" if way["how"] == "merged" else "adapter"), way["why"]


def exported_markdown(found: dict[str, Any]) -> str:
    """The proof of an export in words, and the commands that serve it."""
    serve = [f"{engine}:\n{code_block(command)}" for engine, command in found["commands"].items()]
    return "\n\n".join([f"**Proof.** {escape(found['words'])}", *serve])

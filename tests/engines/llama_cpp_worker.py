"""Asks llama.cpp what it makes of GGUF files; runs in the environment of llama-cpp-python, which has nothing of ours.

Reads one JSON object from standard input (`model`, `adapter`, `texts`, `prompts`, `stops`, `num_tokens`, `exact`) and writes one to standard output.
"""

import json
import sys

import llama_cpp.llama


def _without_matrix_units(default=llama_cpp.llama_model_default_params):
    """Some virtual machines announce AMX and end the process that uses it, as llama.cpp does with weights of 8 bits."""
    params = default()
    params.use_extra_bufts = False
    return params


def main() -> None:
    asked = json.load(sys.stdin)
    llama_cpp.llama.llama_cpp.llama_model_default_params = _without_matrix_units
    more = (
        {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
        if asked["exact"]
        else {}
    )
    model = llama_cpp.Llama(
        asked["model"], lora_path=asked["adapter"], n_ctx=asked["context"], n_batch=asked["context"], n_threads=1, n_threads_batch=1,
        logits_all=True, verbose=False, **more,
    )  # fmt: skip
    tokens = [model.tokenize(text.encode(), add_bos=False, special=True) for text in asked["texts"]]
    first, answers = [], []
    for prompt in asked["prompts"]:
        model.reset()
        model.eval(prompt)
        first.append(model.scores[len(prompt) - 1].tolist() if asked["logits"] else None)
        answer: list[int] = []
        while len(answer) < asked["num_tokens"] and (
            not answer or answer[-1] not in asked["stops"]
        ):
            answer.append(int(model.scores[model.n_tokens - 1].argmax()))
            model.eval(answer[-1:])
        answers.append(answer)
    found = {
        "version": llama_cpp.__version__,
        "metadata": model.metadata,
        "tokens": tokens,
        "logits": first,
        "answers": answers,
    }
    found["ends"] = [
        bool(llama_cpp.llama_vocab_is_eog(model._model.vocab, stop)) for stop in asked["stops"]
    ]
    json.dump(found, sys.stdout)


main()

"""Runs GGUF files in llama.cpp, in the environment of llama-cpp-python.

Reads one JSON object from standard input (`model`, `adapter`, `texts`, `prompts`, `stops`,
`num_tokens`, `exact`, `logits`, `context`) and writes one to standard output.
"""

import json
import sys

import llama_cpp.llama


def _without_matrix_units(default=llama_cpp.llama_model_default_params):
    """Some virtual machines report AMX but kill the process that uses it, as 8-bit weights do."""
    params = default()
    params.use_extra_bufts = False
    return params


def main() -> None:
    request = json.load(sys.stdin)
    llama_cpp.llama.llama_cpp.llama_model_default_params = _without_matrix_units
    options = {"n_ctx": request["context"], "n_batch": request["context"]}
    options |= {"n_threads": 1, "n_threads_batch": 1, "logits_all": True, "verbose": False}
    if request["exact"]:
        options |= {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    model = llama_cpp.Llama(request["model"], lora_path=request["adapter"], **options)
    tokens = [
        model.tokenize(text.encode(), add_bos=False, special=True) for text in request["texts"]
    ]
    first, answers = [], []
    for prompt in request["prompts"]:
        model.reset()
        model.eval(prompt)
        first.append(model.scores[len(prompt) - 1].tolist() if request["logits"] else None)
        answer: list[int] = []
        while len(answer) < request["num_tokens"] and (
            not answer or answer[-1] not in request["stops"]
        ):
            answer.append(int(model.scores[model.n_tokens - 1].argmax()))
            model.eval(answer[-1:])
        answers.append(answer)
    result = {
        "version": llama_cpp.__version__,
        "metadata": model.metadata,
        "tokens": tokens,
        "logits": first,
        "answers": answers,
    }
    result["ends"] = [
        bool(llama_cpp.llama_vocab_is_eog(model._model.vocab, stop)) for stop in request["stops"]
    ]
    json.dump(result, sys.stdout)


main()

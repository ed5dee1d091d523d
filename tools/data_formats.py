"""An example row of each format that `docs/data-formats.md` shows, and who writes it."""

from typing import Any

_QUESTION = {"role": "user", "content": "Price?"}
_ANSWER = {"role": "assistant", "content": "40."}
_CALL = {"id": "c1", "type": "function", "function": {"name": "price", "arguments": "{}"}}

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "messages": ("OpenAI, Hugging Face, ms-swift", {"messages": [_QUESTION, _ANSWER]}),
    "messages with a tool call": (
        "OpenAI; a row can end with the call",
        {"messages": [_QUESTION, {"role": "assistant", "tool_calls": [_CALL]}]},
    ),
    "messages with an older call": (
        "OpenAI until 2023",
        {"messages": [_QUESTION, {"role": "assistant", "function_call": _CALL["function"]}]},
    ),
    "messages with parts": (
        "Anthropic",
        {
            "messages": [
                _QUESTION,
                {"role": "assistant", "content": [{"type": "tool_use", "name": "price"}]},
            ]
        },
    ),
    "messages with thoughts": (
        "reasoning models; also `reasoning`, `thinking`, or `<think>` in the text",
        {"messages": [_QUESTION, _ANSWER | {"reasoning_content": "I look."}]},
    ),
    "messages with weights": (
        "OpenAI; also `loss`, `train`",
        {"messages": [_QUESTION, _ANSWER | {"weight": 1}]},
    ),
    "ShareGPT": (
        "Axolotl, LLaMA-Factory; also `function_call` and `observation`",
        {"conversations": [{"from": "human", "value": "Price?"}, {"from": "gpt", "value": "40."}]},
    ),
    "instruction": (
        "Alpaca, LLaMA-Factory",
        {"instruction": "Price?", "input": "Room 1", "output": "40.", "history": [["Hi", "Hello"]]},
    ),
    "prompt and completion": ("OpenAI, TRL", {"prompt": "Price?", "completion": "40."}),
    "question, context, answers": (
        "SQuAD",
        {"context": "It costs 40.", "question": "Price?", "answers": {"text": ["40."]}},
    ),
    "question with choices": (
        "MMLU, ARC",
        {"question": "Price?", "choices": ["30", "40"], "answer": 1},
    ),
    "question with thoughts": (
        "medical-o1, s1K",
        {"Question": "Price?", "Complex_CoT": "I look.", "Response": "40."},
    ),
    "query with calls": (
        "xLAM",
        {"query": "Price?", "answers": '[{"name": "price", "arguments": {}}]', "tools": "[{}]"},
    ),
    "preference": ("TRL", {"prompt": "Price?", "chosen": "40.", "rejected": "No."}),
    "preference with messages": (
        "OpenAI",
        {
            "input": {"messages": [_QUESTION]},
            "preferred_output": [_ANSWER],
            "non_preferred_output": [_ANSWER | {"content": "No."}],
        },
    ),
    "another last answer": (
        "ms-swift",
        {"messages": [_QUESTION, _ANSWER], "rejected_response": "No."},
    ),
    "dialogues": (
        "HH-RLHF",
        {
            "chosen": "Human: Price?\n\nAssistant: 40.",
            "rejected": "Human: Price?\n\nAssistant: No.",
        },
    ),
    "rated answer": (
        "TRL (KTO); also 1 and -1, true and false",
        {"prompt": "Price?", "completion": "40.", "label": "desirable"},
    ),
    "text with a label": ("Hugging Face", {"text": "Good soup", "label": "positive"}),
    "two texts with a label": (
        "GLUE",
        {"premise": "A man eats.", "hypothesis": "He sleeps.", "label": "contradiction"},
    ),
    "tagged words": ("CoNLL", {"tokens": ["In", "Oslo"], "ner_tags": ["O", "B-LOC"]}),
    "text with spans": (
        "Prodigy, spaCy; doccano with lists of three",
        {"text": "In Oslo", "entities": [{"start": 3, "end": 7, "label": "LOC"}]},
    ),
    "source and target": ("T5, BART", {"document": "A long text", "summary": "Short"}),
    "text": ("continued as it is", {"text": "Once upon a time"}),
}
"""Name -> (who writes it, a row)."""

"""An example row of each format that `docs/data-formats.md` shows, and who writes it."""

from typing import Any

_QUESTION = {"role": "user", "content": "Price?"}
_ANSWER = {"role": "assistant", "content": "40."}
_CALL = {"id": "c1", "type": "function", "function": {"name": "price", "arguments": "{}"}}


def _node(parent: str | None, role: str, text: str) -> dict[str, Any]:
    return {
        "message": {"author": {"role": role}, "content": {"parts": [text]}},
        "parent": parent,
    }


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
    "messages with parts of Gemini": (
        "Vertex AI; also `functionCall`",
        {
            "systemInstruction": {"parts": [{"text": "Be brief."}]},
            "contents": [
                {"role": "user", "parts": [{"text": "Price?"}]},
                {"role": "model", "parts": [{"text": "40."}]},
            ],
        },
    ),
    "messages with parts of Bedrock": (
        "Amazon Bedrock; also `toolUse`",
        {
            "system": [{"text": "Be brief."}],
            "messages": [
                {"role": "user", "content": [{"text": "Price?"}]},
                {"role": "assistant", "content": [{"text": "40."}]},
            ],
        },
    ),
    "messages of a chatbot": (
        "Cohere",
        {
            "messages": [
                {"role": "User", "content": "Price?"},
                {"role": "Chatbot", "content": "40."},
            ]
        },
    ),
    "messages of a sender": (
        "export of Claude",
        {
            "chat_messages": [
                {"sender": "human", "text": "Price?"},
                {"sender": "assistant", "text": "40."},
            ]
        },
    ),
    "texts that take turns": ("LIMA", {"conversations": ["Price?", "40."]}),
    "pairs": ("Capybara", {"conversation": [{"input": "Price?", "output": "40."}]}),
    "a conversation in a text": (
        "ChatML, Llama, Gemma, Phi, Guanaco, Alpaca, Dolly, Glaive, transcripts; the app asks",
        {"text": "<|im_start|>user\nPrice?<|im_end|>\n<|im_start|>assistant\n40.<|im_end|>"},
    ),
    "a tree of messages": (
        "OpenAssistant, also with a message in each row; the best-ranked thread",
        {
            "prompt": {
                "role": "prompter",
                "text": "Price?",
                "replies": [{"role": "assistant", "text": "40.", "rank": 0, "replies": []}],
            }
        },
    ),
    "a tree of nodes": (
        "export of ChatGPT; the open branch",
        {
            "mapping": {
                "a": _node(None, "user", "Price?"),
                "b": _node("a", "assistant", "40."),
            },
            "current_node": "b",
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
    "articles with questions": (
        "SQuAD's file",
        {
            "paragraphs": [
                {
                    "context": "It costs 40.",
                    "qas": [{"question": "Price?", "answers": [{"text": "40."}]}],
                }
            ]
        },
    ),
    "pairs about a text": (
        "synthetic questions about documents",
        {"context": "It costs 40.", "qa_pairs": [{"question": "Price?", "answer": "40."}]},
    ),
    "questions about a text": (
        "CoQA",
        {"story": "It costs 40.", "questions": ["Price?"], "answers": {"input_text": ["40."]}},
    ),
    "question with choices": (
        "MMLU, ARC",
        {"question": "Price?", "choices": ["30", "40"], "answer": 1},
    ),
    "question with a column for each choice": (
        "MedMCQA, WinoGrande, PIQA, MMLU as CSV",
        {"question": "Price?", "A": "30", "B": "40", "answer": "B"},
    ),
    "question with thoughts": (
        "medical-o1, s1K",
        {"Question": "Price?", "Complex_CoT": "I look.", "Response": "40."},
    ),
    "query with calls": (
        "xLAM",
        {
            "query": "Price?",
            "answers": '[{"name": "price", "arguments": {}}]',
            "tools": '[{"name": "price"}]',
        },
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
    "two answers and the better one": (
        "PKU-SafeRLHF, HelpSteer2, SHP, Chatbot Arena, WebGPT",
        {"prompt": "Price?", "response_0": "No.", "response_1": "40.", "better_response_id": 1},
    ),
    "several answers with scores": (
        "UltraFeedback; Nectar with ranks",
        {
            "instruction": "Price?",
            "completions": [
                {"response": "40.", "overall_score": 9},
                {"response": "No.", "overall_score": 2},
            ],
        },
    ),
    "several rejected answers": (
        "RewardBench 2; each pair is a row",
        {"prompt": "Price?", "chosen": ["40."], "rejected": ["No.", "4."]},
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
    "object as an answer": (
        "structured extraction",
        {"prompt": "Ann is 4.", "completion": {"name": "Ann", "age": 4}},
    ),
    "chat, and its last answer": (
        "logs of APIs",
        {"messages": [{"role": "user", "content": "Price?"}], "response": "40."},
    ),
    "endings to choose from": (
        "HellaSwag",
        {"ctx": "The lamp fell.", "endings": ["It broke.", "It sang."], "label": 0},
    ),
    "text with a label": ("Hugging Face", {"text": "Good soup", "label": "positive"}),
    "two texts with a label": (
        "GLUE",
        {"premise": "A man eats.", "hypothesis": "He sleeps.", "label": "contradiction"},
    ),
    "tagged words": ("CoNLL", {"tokens": ["In", "Oslo"], "ner_tags": ["O", "B-LOC"]}),
    "text with a tag for each word": (
        "Kaggle",
        {"sentence": "In Oslo", "word_labels": "O,B-LOC"},
    ),
    "text with spans": (
        "Prodigy, spaCy; doccano with lists of three",
        {"text": "In Oslo", "entities": [{"start": 3, "end": 7, "label": "LOC"}]},
    ),
    "a task with annotations": (
        "Label Studio; also `labels`, `text`, `rating`, `number` and `taxonomy`",
        {
            "data": {"text": "Good soup"},
            "annotations": [{"result": [{"value": {"choices": ["positive"]}}]}],
        },
    ),
    "a text with an annotation": (
        "Dataturks; also `labels`",
        {
            "content": "In Oslo",
            "annotation": [{"label": ["LOC"], "points": [{"start": 3, "end": 6}]}],
        },
    ),
    "a record with responses": (
        "Argilla; the first submitted response is read",
        {
            "text": "Good soup",
            "label.responses": ["positive"],
            "label.responses.status": ["submitted"],
        },
    ),
    "intents with patterns": (
        "chatbot tutorials (intents.json); each pattern is a row, and the app asks about responses",
        {"tag": "greeting", "patterns": ["Hi", "Hello there"], "responses": ["Hello!"]},
    ),
    "a record around a row": (
        "Airtable (`fields`), Elasticsearch (`_source`), GraphQL (`node`)",
        {"id": "rec1", "fields": {"question": "Price?", "answer": "40."}},
    ),
    "a stored completion": (
        "OpenAI; also logs with `request` and `response`",
        {
            "input": {"messages": [{"role": "user", "content": "Price?"}]},
            "choices": [{"message": _ANSWER}],
        },
    ),
    "a question of a FAQ page": (
        "schema.org",
        {"@type": "Question", "name": "Price?", "acceptedAnswer": {"text": "40."}},
    ),
    "a prompt that a chat template wrote": (
        "logs of servers; read as its messages",
        {
            "prompt": "<|im_start|>user\nPrice?<|im_end|>\n<|im_start|>assistant\n",
            "completion": "40.<|im_end|>",
        },
    ),
    "preference with an input": (
        "LLaMA-Factory; also with `history`",
        {"instruction": "Translate.", "input": "Tag", "chosen": "day", "rejected": "night"},
    ),
    "segments of a text": (
        "Axolotl; those with a true label are trained",
        {"segments": [{"label": False, "text": "Price?"}, {"label": True, "text": " 40."}]},
    ),
    "a word in a row": (
        "Kaggle",
        {"Sentence #": "Sentence: 1", "Word": "Oslo", "POS": "NNP", "Tag": "B-geo"},
    ),
    "translation": (
        "WMT, OPUS; the app asks for the direction",
        {"translation": {"en": "Good day", "de": "Guten Tag"}},
    ),
    "source and target": ("T5, BART", {"document": "A long text", "summary": "Short"}),
    "text": ("continued as it is", {"text": "Once upon a time"}),
    "a picture in a message": (
        "OpenAI, TRL; also an `images` column with `<image>` in the text (LLaMA-Factory, LLaVA)",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "price.png"}},
                        {"type": "text", "text": "Price?"},
                    ],
                },
                _ANSWER,
            ]
        },
    ),
    "a picture with a question": (
        "VQA data sets; the picture comes in the same .zip file or Parquet file",
        {"image": "price.png", "question": "Price?", "answer": "40."},
    ),
    "a picture with a caption": (
        "`datasets`: `imagefolder`; also a label in place of the caption",
        {"file_name": "soup.png", "text": "A soup"},
    ),
}
"""Name -> (who writes it, a row)."""

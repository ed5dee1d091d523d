"""Renders rows to token ids and trained spans, the same for preview, training and scores."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from peft_space.compat.transformers import special_tokens_as_text, target_mode
from peft_space.data.arrow_store import TokenizedExample
from peft_space.data.messages import Message
from peft_space.data.row_normalization import (
    Conversation,
    Preference,
    Row,
    Text,
    TextClassification,
    TokenClassification,
    UnpairedPreference,
    pictures_of,
)
from peft_space.data.tokenization.answer_spans import Answer, Note, Span, try_writing
from peft_space.data.tokenization.chat_template import (
    ChatTemplate,
    TemplateTimeout,
    Tools,
    load_chat_template,
    template_timeout,
)
from peft_space.data.tokenization.loss_mask import (
    AnnotatedText,
    Encoded,
    encode,
    escape_special_tokens,
    special_tokens_of,
    unknown_characters,
)
from peft_space.data.tokenization.template_sandbox import RowLimit
from peft_space.errors import UserError
from peft_space.recipe import Reasoning, Task, TrainOn

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerFast

    from peft_space.data.tokenization.picture_tokens import PictureProcessor

_UNTAGGED = ""
"""The tag of a token without a loss: a special token, or a later token of a word."""
_WITHOUT_TEMPLATE: tuple[Task, ...] = (
    "seq2seq-lm",
    "sequence-classification",
    "token-classification",
)


def render(
    tokenizer: "PreTrainedTokenizerFast",
    rows: Sequence[Row],
    max_length: int,
    train_on: TrainOn = "automatic",
    task: Task = "causal-lm",
    reasoning: Reasoning = "train",
    with_texts: bool = True,
    watch: Callable[[int | None], None] = lambda row: None,
) -> list[TokenizedExample]:
    """Tokenize rows. Answers and the token that ends each are trained, or labels, or tags.

    Args:
        rows: N rows of the task.
        max_length: limit of the tokens of a row. No row is longer than the model's positions.
        train_on: which messages of a conversation have a loss.
        reasoning: what is done with the reasoning before answers.
        with_texts: also store the text of each token.
        watch: receives the number of each row before the template writes it, then None.

    Returns:
        N examples.

    Raises:
        UserError: the template rejects a row; the message contains its number.
    """
    max_length = length_limit(tokenizer, max_length)
    if reasoning == "leave_out":
        kept = [without_reasoning(row) for row in rows]
        examples = render(tokenizer, kept, max_length, train_on, task, "train", with_texts, watch)
        return [
            example if row == whole else _with_note(example, "reasoning_dropped")
            for example, row, whole in zip(examples, kept, rows, strict=True)
        ]
    if task in _WITHOUT_TEMPLATE:
        return [
            _without_template(tokenizer, row, max_length, reasoning, with_texts) for row in rows
        ]
    rejected = [
        dataclasses.replace(row, chosen=row.rejected) for row in rows if isinstance(row, Preference)
    ]
    texts = []
    for row in (*rows, *rejected):
        watch(row.row)
        texts.append(_annotate(tokenizer, row, train_on, reasoning))
    watch(None)
    texts = [
        _with_pictures(tokenizer, row.row, text, pictures_of(row))
        for row, text in zip((*rows, *rejected), texts, strict=True)
    ]
    encoded = encode(tokenizer, texts, with_texts)
    examples = [
        _example(tokenizer, row, text, tokens, max_length)
        for row, text, tokens in zip((*rows, *rejected), texts, encoded, strict=True)
    ]
    if not rejected:
        return examples
    pairs = zip(examples, examples[len(rows) :], strict=False)
    return [dataclasses.replace(chosen, rejected=worse) for chosen, worse in pairs]


def without_reasoning(row: Row) -> Row:
    """Return a row without the reasoning in its messages."""
    match row:
        case Conversation() | UnpairedPreference():
            return dataclasses.replace(row, messages=_without(row.messages, "reasoning_content"))
        case Preference():
            return dataclasses.replace(
                row,
                prompt=_without(row.prompt, "reasoning_content"),
                chosen=_without(row.chosen, "reasoning_content"),
                rejected=_without(row.rejected, "reasoning_content"),
            )
    return row


def _without(messages: list[Message], *keys: str) -> list[Message]:
    if not any(key in message for message in messages for key in keys):
        return messages
    return [
        {key: value for key, value in message.items() if key not in keys} for message in messages
    ]


def _with_note(example: TokenizedExample, note: Note) -> TokenizedExample:
    return dataclasses.replace(example, notes=example.notes | {note})


def length_limit(tokenizer: "PreTrainedTokenizerFast", max_length: int) -> int:
    """Return the limit of the tokens of a row that the model has positions for."""
    return min(max_length, getattr(tokenizer, "num_places", None) or max_length)


def _example(
    tokenizer: "PreTrainedTokenizerFast",
    row: Row,
    annotated: AnnotatedText,
    encoded: Encoded,
    max_length: int,
) -> TokenizedExample:
    spans = [(start, min(end, max_length)) for start, end in encoded.trained if start < max_length]
    pictures = pictures_of(row)
    if pictures:
        spans = _without_picture_tokens(row.row, annotated, encoded.ids, spans, max_length)
    more: tuple[TokenizedExample, ...] = ()
    if isinstance(row, Text) and row.trained is None:
        more = _pieces(row, annotated, encoded, max_length)
    return TokenizedExample(
        row.row,
        encoded.ids[:max_length],
        spans,
        cut=0 if more else max(0, len(encoded.ids) - max_length),
        more=more,
        typed_controls=any(character in annotated.text for character in annotated.typed),
        notes=annotated.notes | ({"in_pieces"} if more else set()),
        texts=encoded.texts[:max_length],
        good=row.good if isinstance(row, UnpairedPreference) else None,
        unknown=unknown_characters(tokenizer, annotated, encoded),
        pictures=pictures,
    )


# Pictures


def _with_pictures(
    tokenizer: "PreTrainedTokenizerFast", row: int, annotated: AnnotatedText, pictures: list[str]
) -> AnnotatedText:
    """Put what stands for each picture in the place that the template writes for it.

    Raises:
        UserError: the template writes no such place.
    """
    if not pictures:
        return annotated
    processor = processor_of(tokenizer)
    if annotated.text.count(processor.placeholder) != len(pictures):
        raise UserError(
            "data.template_omits_pictures",
            f"Row {row}: the chat template writes {annotated.text.count(processor.placeholder)} "
            f"places for {len(pictures)} pictures. Use the model's own chat template, or another "
            "base model.",
        )
    processed = [processor.process(path) for path in pictures]
    text, gains = processor.expand(annotated.text, processed)

    def moved(place: int) -> int:
        return place + max((gain for end, gain in gains if end <= place), default=0)

    ids = frozenset(number for one in processed for number in processor.special_ids(one.text))
    trained = [(moved(start), moved(end)) for start, end in annotated.trained]
    begins = tuple(map(moved, annotated.begins))
    return dataclasses.replace(annotated, text=text, trained=trained, begins=begins, untrained=ids)


def processor_of(tokenizer: "PreTrainedTokenizerFast") -> "PictureProcessor":
    """Return what prepares pictures for the model of a tokenizer.

    Raises:
        UserError: the tokenizer was loaded for texts alone.
    """
    processor: PictureProcessor | None = getattr(tokenizer, "pictures", None)
    if processor is None:
        raise UserError(
            "models.reads_no_pictures",
            "The rows have pictures, and this model or task reads only text. Choose a base model "
            "that reads pictures, and the task image-text-to-text.",
        )
    return processor


def _without_picture_tokens(
    row: int, annotated: AnnotatedText, ids: list[int], spans: list[Span], max_length: int
) -> list[Span]:
    """Return the trained spans without the tokens that stand for pictures.

    Raises:
        UserError: the length limit would cut such tokens off, and the model needs all of them.
    """
    last = max((at for at, number in enumerate(ids) if number in annotated.untrained), default=0)
    if last >= max_length:
        raise UserError(
            "data.picture_too_long",
            f"Row {row}: its pictures end at token {last + 1:,}, and the limit is {max_length:,} "
            "tokens. Raise max_length in the recipe, or use fewer pictures in a row.",
        )
    kept: list[Span] = []
    for start, end in spans:
        for is_text, places in itertools.groupby(
            range(start, end), lambda place: ids[place] not in annotated.untrained
        ):
            run = list(places)
            kept += [(run[0], run[-1] + 1)] if is_text else []
    return kept


_OVERLAP = 8
"""A piece of a long text repeats the last eighth of the one before it."""


def _pieces(
    row: Text, annotated: AnnotatedText, encoded: Encoded, max_length: int
) -> tuple[TokenizedExample, ...]:
    """Return the pieces of a text after its first `max_length` tokens.

    Each begins like the text if that begins with BOS. Then follow the last tokens before the
    piece, which are only read, so that every token is trained once.
    """
    first = encoded.ids[:1] if annotated.add_bos and encoded.trained[0][0] == 1 else []
    num_read = max_length // _OVERLAP
    pieces, end = [], max_length
    while end < len(encoded.ids):
        start = end - num_read
        ids = [*first, *encoded.ids[start : start + max_length - len(first)]]
        texts = [*encoded.texts[: len(first)], *encoded.texts[start:][: len(ids) - len(first)]]
        pieces.append(
            TokenizedExample(row.row, ids, [(len(first) + num_read, len(ids))], texts=texts)
        )
        end = start + len(ids) - len(first)
    return tuple(pieces)


# Prompts


def render_prompt(
    tokenizer: "PreTrainedTokenizerFast", messages: list[Message], tools: Tools = None
) -> str:
    """Return the conversation so far with the opening of the assistant's answer."""
    return load_chat_template(tokenizer, tools).write_prompt(messages, tools)


def prompt_ids(
    tokenizer: "PreTrainedTokenizerFast", messages: list[Message], tools: Tools = None
) -> list[int]:
    """Return the token ids of `render_prompt`, which equal those before an answer in training."""
    escaped, typed = escape_special_tokens(tokenizer, messages)
    prompt = render_prompt(tokenizer, escaped, tools)
    begins = _begins(tokenizer, escaped, tools, prompt) if prompt[-1:].isspace() else ()
    text = AnnotatedText(prompt, [], typed, begins=begins)
    text = _with_pictures(tokenizer, 0, text, pictures_of(Conversation(0, messages)))
    [tokens] = encode(tokenizer, [text], with_texts=False)
    return tokens.ids


def _begins(
    tokenizer: "PreTrainedTokenizerFast", messages: list[Message], tools: Tools, prompt: str
) -> tuple[int, ...]:
    """Return where the earlier answers of a prompt begin."""
    begins = []
    for number, message in enumerate(messages):
        if message["role"] == "assistant" and number:
            write = functools.partial(render_prompt, tokenizer, messages[:number], tools)
            before = try_writing(write)
            begins += [len(before)] if before and prompt.startswith(before) else []
    return tuple(begins)


def stop_token_ids(tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    """Return the tokens that end an answer: those that are trained after answers, and EOS.

    Some templates end a message that calls tools with another token.
    """
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    system = [{"role": "system", "content": "c"}]
    ends: set[int] = set()
    for messages in (turn + turn, [*system, *turn, *turn], turn):  # as far as the template takes it
        with contextlib.suppress(UserError):
            [example] = render(tokenizer, [Conversation(0, messages)], 100_000, "all_assistant")
            ends = {example.input_ids[end - 1] for _, end in example.trained}
            break
    added = set(tokenizer.added_tokens_decoder)  # a template may write nothing after an answer
    return sorted(ends & added | _call_ends(tokenizer) | {tokenizer.eos_token_id})


def _call_ends(tokenizer: "PreTrainedTokenizerFast") -> set[int]:
    """The special token that ends a message with two calls, unless it also ends each call."""
    calls = [
        {"id": f"call0000{n}", "type": "function", "function": {"name": name, "arguments": {}}}
        for n, name in enumerate(("f", "g"))
    ]
    results = [
        {"role": "tool", "content": "1", "tool_call_id": call["id"], "name": name}
        for call, name in zip(calls, ("f", "g"), strict=True)
    ]
    messages: list[Message] = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        *results,
        {"role": "assistant", "content": "b"},
    ]
    try:
        [example] = render(tokenizer, [Conversation(0, messages)], 100_000, "all_assistant")
    except UserError:  # many templates write no calls, or one in a message
        return set()
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    start, end = example.trained[0]
    answer = example.input_ids[start:end]
    return {answer[-1]} & special if answer.count(answer[-1]) == 1 else set()


# Tasks with a chat template: the text of a row, and which characters of it are trained


def _annotate(
    tokenizer: "PreTrainedTokenizerFast", row: Row, train_on: TrainOn, reasoning: Reasoning
) -> AnnotatedText:
    match row:
        case Conversation():
            return _annotate_conversation(tokenizer, row, train_on, reasoning)
        case UnpairedPreference():
            conversation = Conversation(row.row, row.messages, row.tools)
            roles = [message["role"] for message in row.messages]
            asks = (n for n, role in enumerate(roles) if role not in ("assistant", "tool"))
            asked = max(asks, default=0)
            count = _num_answers(row.messages[asked:])
            return _annotate_conversation(
                tokenizer, conversation, "last_assistant", reasoning, count
            )
        case Preference():
            conversation = Conversation(row.row, [*row.prompt, *row.chosen], row.tools)
            count = _num_answers(row.chosen)
            return _annotate_conversation(
                tokenizer, conversation, "last_assistant", reasoning, count
            )
        case Text(keep_control_tokens=True):
            return _annotate_templated(tokenizer, row)
        case Text():
            message = {"role": "user", "content": row.text}
            [escaped], typed = escape_special_tokens(tokenizer, [message])
            text = escaped["content"]
            return AnnotatedText(text, [(0, len(text))], typed, add_bos=True, add_eos=True)
    raise AssertionError(f"{type(row).__name__} rows belong to tasks without a chat template")


def _annotate_templated(tokenizer: "PreTrainedTokenizerFast", row: Text) -> AnnotatedText:
    """A text that has special tokens already: what it begins and ends with is not added again."""
    text, trained = row.text, [(start, end) for start, end in row.trained or [(0, len(row.text))]]
    begins = bool(tokenizer.bos_token) and text.lstrip().startswith(str(tokenizer.bos_token))
    ends = text.rstrip().endswith(special_tokens_of(tokenizer)[0] or "\0")
    ends = ends or trained[-1][1] < len(text)
    return AnnotatedText(text, trained, {}, add_bos=not begins, add_eos=not ends)


def _annotate_conversation(
    tokenizer: "PreTrainedTokenizerFast",
    row: Conversation,
    train_on: TrainOn,
    reasoning: Reasoning,
    num_last: int = 1,
) -> AnnotatedText:
    """Write a conversation. `last_assistant` trains the last `num_last` answers of it."""
    messages, typed = escape_special_tokens(tokenizer, row.messages)
    escaped = Conversation(row.row, messages, row.tools)
    try:
        template = load_chat_template(tokenizer, row.tools)
        return _annotate_escaped(template, escaped, train_on, reasoning, typed, num_last)
    except TemplateTimeout:
        raise template_timeout(f"row {row.row}") from None
    except (UserError, RowLimit, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - a template can raise anything
        reason = (str(error).strip() or type(error).__name__)[:300]
        raise UserError(
            "data.template_rejects_row",
            f"Row {row.row}: the model's chat template rejects it ({reason}). "
            "Remove the row, or choose another base model.",
        ) from None


def _annotate_escaped(
    template: ChatTemplate,
    row: Conversation,
    train_on: TrainOn,
    reasoning: Reasoning,
    typed: dict[str, str],
    num_last: int,
) -> AnnotatedText:
    masks = [message.get("weight") for message in _answers_of(row)]
    has_weights = any(weight is not None for weight in masks)
    if train_on == "automatic":
        train_on = "message_weights" if has_weights else "all_assistant"
    written = template.find_answers(row.row, _without(row.messages, "weight", "trained"), row.tools)
    text, answers = written.text, written.answers
    if train_on == "all_tokens":
        whole = (0, len(text))
        add_eos = not _is_ended(template, text, [whole])
        return AnnotatedText(text, [whole], typed, add_eos=add_eos, notes=written.notes)
    last = answers[-1].spans
    is_last = not template.without_special_tokens(text[last[-1][1] :]).strip()
    add_eos = is_last and not _is_ended(template, text, last)
    is_trained = [True] * len(answers)
    if train_on == "last_assistant":
        is_trained = [n >= len(answers) - num_last for n in range(len(answers))]
    if train_on == "message_weights":
        is_trained = [weight != 0 for weight in masks]
    trained = [
        span
        for message, answer, yes in zip(_answers_of(row), answers, is_trained, strict=True)
        for span in (_spans_in_loss(message, answer, reasoning) if yes else [])
    ]
    add_eos = add_eos and is_trained[-1] and "trained" not in _answers_of(row)[-1]
    begins = tuple(answer.spans[0][0] for answer in answers if answer.spans[0][0])
    notes = frozenset(written.notes) | (set() if trained else {_UNTRAINED})
    return AnnotatedText(text, trained, typed, add_eos=add_eos, notes=notes, begins=begins)


_UNTRAINED: Note = "untrained_by_weight"


def _num_answers(messages: list[Message]) -> int:
    return sum(message["role"] == "assistant" for message in messages)


def _answers_of(row: Conversation) -> list[Message]:
    return [message for message in row.messages if message["role"] == "assistant"]


def _spans_in_loss(message: Message, answer: Answer, reasoning: Reasoning) -> list[Span]:
    """The spans of a trained answer: without reasoning that is read, or what the user marked."""
    if "trained" not in message or answer.content is None:
        if reasoning == "read" and answer.reasoning is not None:
            thought = answer.reasoning[1]
            return [(max(start, thought), end) for start, end in answer.spans if end > thought]
        return answer.spans
    content = message["content"]
    first = answer.content[0] - (len(content) - len(content.lstrip()))
    begin, end_of_answer = answer.spans[0][0], answer.spans[-1][1]
    spans = [
        (max(begin, first + start), end_of_answer if end >= len(content) else first + end)
        for start, end in message["trained"]
    ]
    return [(start, end) for start, end in spans if start < end]


def _is_ended(template: ChatTemplate, text: str, spans: list[Span]) -> bool:
    """Return True if the last answer ends with a special token.

    Otherwise the model has to learn EOS, or it would never stop.
    """
    return text[: spans[-1][1]].rstrip().endswith(tuple(template.specials))


# Tasks without a chat template: the tokenizer adds its own special tokens


def _without_template(
    tokenizer: "PreTrainedTokenizerFast",
    row: Row,
    max_length: int,
    reasoning: Reasoning,
    with_texts: bool,
) -> TokenizedExample:
    match row:
        case TextClassification():
            return _text_classification(tokenizer, row, max_length, with_texts)
        case TokenClassification():
            return _token_classification(tokenizer, row, max_length, with_texts)
        case Conversation():
            return _source_target(tokenizer, row, max_length, reasoning, with_texts)
    raise AssertionError(f"{type(row).__name__} rows belong to tasks with a chat template")


def _text_classification(
    tokenizer: "PreTrainedTokenizerFast", row: TextClassification, max_length: int, with_texts: bool
) -> TokenizedExample:
    pair = (row.text,) if row.second is None else (row.text, row.second)
    encoding, cut = _encode(tokenizer, pair, max_length)
    has_types = any(encoding.type_ids) and "token_type_ids" in tokenizer.model_input_names
    texts = _token_texts(encoding, [row.text, row.second or ""]) if with_texts else []
    types = encoding.type_ids if has_types else []
    return TokenizedExample(
        row.row, encoding.ids, [], cut, texts=texts, label=row.label, types=types
    )


def _token_classification(
    tokenizer: "PreTrainedTokenizerFast",
    row: TokenClassification,
    max_length: int,
    with_texts: bool,
) -> TokenizedExample:
    """Tokenize words. The first token of a word has its tag."""
    encoding, cut = _encode(tokenizer, (row.tokens,), max_length)
    tags, previous = [], None
    for word in encoding.word_ids:
        tags.append(_UNTAGGED if word is None or word == previous else row.tags[word])
        previous = word
    tokens = zip(encoding.tokens, encoding.word_ids, encoding.offsets, strict=True)
    texts = [
        token if word is None else row.tokens[word][start:end]
        for token, word, (start, end) in tokens
    ]
    return TokenizedExample(
        row.row, encoding.ids, [], cut, texts=texts if with_texts else [], tags=tags
    )


def _source_target(
    tokenizer: "PreTrainedTokenizerFast",
    row: Conversation,
    max_length: int,
    reasoning: Reasoning,
    with_texts: bool,
) -> TokenizedExample:
    """Tokenize the messages before the answer as source, and the answer as target."""
    num_answers = sum(message["role"] == "assistant" for message in row.messages)
    answer = row.messages[-1]
    if num_answers != 1 or row.tools or answer.get("tool_calls"):
        raise UserError(
            "data.several_turns",
            f"Row {row.row}: a sequence-to-sequence model takes one question and one answer, "
            "without tools. Remove the row, or choose a causal language model.",
        )

    def encoded(text: str) -> tuple[list[int], int, list[str]]:
        encoding, cut = _encode(tokenizer, (text,), max_length)
        return encoding.ids, cut, _token_texts(encoding, [text]) if with_texts else []

    thought = answer.get("reasoning_content")
    if "trained" in answer or (thought and reasoning == "read"):
        raise UserError(
            "data.part_of_target",
            f"Row {row.row}: a sequence-to-sequence model learns the whole answer, and not a part "
            "of it. Remove train_detail from the row, set reasoning to train or leave_out, or "
            "choose a causal language model.",
        )
    before = f"<think>\n{thought}\n</think>\n\n" if thought else ""
    whole = f"{before}{answer['content']}"
    with target_mode(tokenizer):
        ids, cut, texts = encoded(whole)
    is_trained = answer.get("weight") != 0
    trained = [(0, len(ids))] if is_trained else []
    annotated = AnnotatedText(whole, [(0, len(whole))], {})
    unknown = unknown_characters(tokenizer, annotated, Encoded(ids, trained, []))
    target = TokenizedExample(row.row, ids, trained, cut, texts=texts, unknown=unknown)
    ids, cut, texts = encoded(source_text(row.messages[:-1]))
    notes: frozenset[Note] = frozenset() if is_trained else frozenset([_UNTRAINED])
    return TokenizedExample(row.row, ids, [], cut, texts=texts, target=target, notes=notes)


def source_text(messages: list[Message]) -> str:
    """Return the messages before an answer as the source of a sequence-to-sequence model."""
    return "\n\n".join(message["content"] for message in messages)


def _encode(
    tokenizer: "PreTrainedTokenizerFast", texts: tuple[Any, ...], max_length: int
) -> tuple["Encoding", int]:
    """Return the encoding and the number of tokens that were cut off.

    Special tokens that the row's author typed stay text.
    """
    backend = tokenizer.backend_tokenizer
    encode_texts = functools.partial(backend.encode, is_pretokenized=not isinstance(texts[0], str))
    backend.no_padding()
    backend.no_truncation()
    with special_tokens_as_text(tokenizer):
        encoding = encode_texts(*texts)
        length = len(encoding.ids)
        if length > max_length:
            backend.enable_truncation(max_length, strategy="longest_first")
            encoding = encode_texts(*texts)
            backend.no_truncation()
    return encoding, length - len(encoding.ids)


def _token_texts(encoding: "Encoding", texts: list[str]) -> list[str]:
    """Return the text of each token, or its name if the tokenizer added it."""
    tokens = zip(encoding.tokens, encoding.sequence_ids, encoding.offsets, strict=True)
    return [
        token if sequence is None else texts[sequence][start:end]
        for token, sequence, (start, end) in tokens
    ]

"""Pictures become the tokens and arrays of the model's own processor, and never have a loss."""

import numpy as np
import pytest
import torch
from PIL import Image

from peft_space.compat.transformers import render_chat_template
from peft_space.data.arrow_store import MASKED
from peft_space.data.batches import collator_of
from peft_space.data.dataset import load_dataset
from peft_space.data.row_normalization import Conversation
from peft_space.data.tokenization.render import prompt_ids, render
from peft_space.data.tokenization.tokenize import preview, tokenize
from peft_space.errors import UserError
from peft_space.models.resolve import find_base, load_tokenizer
from peft_space.recipe import Recipe, TaskSpec
from tests.fixtures.pictures import COLORS, chats, picture
from tests.fixtures.vision_models import MAKERS

TASK = "image-text-to-text"
MARK = "\U0010e000"


@pytest.fixture(scope="module", params=MAKERS)
def base(request, tmp_path_factory):
    """The folder of a tiny model that reads pictures."""
    return MAKERS[request.param](tmp_path_factory.mktemp("vision") / "base")


@pytest.fixture
def tokenizer(base):
    return load_tokenizer(find_base(base), task=TASK)


@pytest.fixture
def stored(tmp_path):
    """Writes pictures as the copies of a dataset."""

    def store(name, size, color="red"):
        path = tmp_path / f"{name}.png"
        Image.new("RGB", size, color).save(path)
        return str(path)

    return store


def user(content, *images):
    return {"role": "user", "content": content, "images": list(images)}


def answer(content):
    return {"role": "assistant", "content": content}


def as_parts(message):
    """What transformers takes for a message with pictures."""
    parts = []
    for number, text in enumerate(message["content"].split(MARK)):
        parts += [{"type": "image"}] * bool(number) + [{"type": "text", "text": text}] * bool(text)
    return {"role": message["role"], "content": parts}


def official(tokenizer, messages):
    """The inputs that the model's own processor makes of a conversation."""
    processor = tokenizer.pictures._processor
    specials = tokenizer.special_tokens_map
    text = render_chat_template(
        tokenizer.chat_template, list(map(as_parts, messages)), None, False, specials
    )
    paths = [path for message in messages for path in message.get("images", [])]
    pictures = [Image.open(path).convert("RGB") for path in paths]
    return processor(
        text=[text],
        images=[pictures],
        add_special_tokens=False,
        return_tensors="pt",
    )


def test_tokens_and_arrays_are_those_of_the_models_own_processor(tokenizer, stored):
    one, two = stored("a", (70, 40)), stored("b", (20, 30), "blue")
    messages = [
        user(f"{MARK}first {MARK} second?", one, two), answer("one"),
        user(f"again {MARK}", one), answer("two"),
    ]  # fmt: skip
    [example] = render(tokenizer, [Conversation(1, messages)], 10_000, task=TASK)
    expected = official(tokenizer, messages)
    assert example.input_ids == expected["input_ids"][0].tolist()
    batch = collator_of(TaskSpec(TASK), tokenizer)([example])
    for name in set(expected) - {"attention_mask", "input_ids"}:
        assert torch.equal(batch[name], torch.as_tensor(expected[name])), name


def test_only_answers_and_their_ends_have_a_loss(tokenizer, stored):
    path = stored("a", (70, 40))
    messages = [
        user(f"{MARK}USERONE look", path), answer("ANSWERONE words"),
        user(f"USERTWO {MARK}{MARK} and", path, path), answer("ANSWERTWO more"),
    ]  # fmt: skip
    [example] = render(tokenizer, [Conversation(1, messages)], 10_000, task=TASK)
    trained = ["".join(example.texts[start:end]).strip() for start, end in example.trained]
    assert [
        text.startswith(name)
        for text, name in zip(trained, ("ANSWERONE", "ANSWERTWO"), strict=True)
    ] == [True, True]
    assert not any("USER" in text for text in trained)
    assert all(text.endswith(tokenizer.eos_token) for text in trained)
    for train_on, count in (("last_assistant", 1), ("all_tokens", None)):
        [other] = render(tokenizer, [Conversation(1, messages)], 10_000, train_on, task=TASK)
        image_ids = tokenizer.pictures.special_ids(tokenizer.pictures.process(path).text)
        assert not image_ids & {label for label in other.labels if label != MASKED}
        assert count is None or len(other.trained) == count


def test_a_prompt_is_the_beginning_of_the_trained_row(tokenizer, stored):
    messages = [user(f"{MARK}What?", stored("a", (70, 40))), answer("this")]
    [example] = render(tokenizer, [Conversation(1, messages)], 10_000, task=TASK)
    ids = prompt_ids(tokenizer, messages[:1])
    assert ids == example.input_ids[: len(ids)]
    assert len(ids) == example.trained[0][0]


def test_a_typed_placeholder_stays_text(tokenizer, stored):
    typed = tokenizer.pictures.placeholder
    messages = [user(f"{MARK}what is {typed}?", stored("a", (20, 20))), answer("a token")]
    [example] = render(tokenizer, [Conversation(1, messages)], 10_000, task=TASK)
    plain = [user(f"{MARK}what is it?", stored("a", (20, 20))), answer("a token")]
    [other] = render(tokenizer, [Conversation(1, plain)], 10_000, task=TASK)
    number = tokenizer.convert_tokens_to_ids(typed)
    assert example.input_ids.count(number) == other.input_ids.count(number)
    assert typed in "".join(example.texts)


def test_the_preview_shows_the_batch(tokenizer, tmp_path):
    contents = [
        (f"Color {n}?", color, [picture(color, (30 + 9 * n, 20))]) for n, color in enumerate(COLORS)
    ]
    contents.append(("No picture?", "none", []))
    rows = load_dataset(chats(tmp_path / "rows.jsonl", contents), 0.0, 0).train
    shown = preview(tokenizer, list(rows), 512, task=TASK)
    tokens = tokenize(tokenizer, rows, 512, task=TASK)
    batch = collator_of(TaskSpec(TASK), tokenizer)(list(tokens))
    for number, one in enumerate(shown):
        ids = batch["input_ids"][number][batch["attention_mask"][number].bool()].tolist()
        labels = batch["labels"][number].tolist()
        assert [trained for _, trained in one["tokens"]] == [
            label != MASKED for label in labels[: len(ids)]
        ]
        assert tokenizer.decode(ids) == "".join(text for text, _ in one["tokens"])
        assert len(one.get("pictures", [])) == (number < len(COLORS))
    count = sum(picture["tokens"] for one in shown for picture in one.get("pictures", []))
    assert count > len(COLORS)


def test_a_picture_beyond_the_limit_and_a_template_without_a_place_are_refused(tokenizer, stored):
    row = Conversation(7, [user(f"{MARK}What?", stored("a", (70, 40))), answer("this")])
    with pytest.raises(UserError) as cut:
        render(tokenizer, [row], 8, task=TASK)
    assert cut.value.code == "data.picture_too_long"
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    with pytest.raises(UserError) as refused:
        render(tokenizer, [row], 500, task=TASK)
    assert refused.value.code in ("data.template_omits_pictures", "data.template_rejects_row")
    assert "7" in str(refused.value)


def test_a_picture_is_processed_once(tokenizer, stored, monkeypatch):
    path = stored("a", (70, 40))
    first = tokenizer.pictures.process(path)
    monkeypatch.setattr(Image, "open", None)
    second = tokenizer.pictures.process(path)
    assert first.text == second.text
    assert all(np.array_equal(first.arrays[name], second.arrays[name]) for name in first.arrays)


def test_a_model_without_a_processor_is_refused(base, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(base, copy)
    for name in ("processor_config.json", "preprocessor_config.json"):
        (copy / name).unlink(missing_ok=True)
    with pytest.raises(UserError) as refused:
        load_tokenizer(find_base(str(copy)), Recipe(), TASK)
    assert refused.value.code == "models.no_picture_processor"

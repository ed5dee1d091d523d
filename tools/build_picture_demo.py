"""Builds sample pictures with captions, and a tiny base model that reads pictures.

`python tools/build_picture_demo.py [--steps N] [--out DIR]` writes `pictures.zip` and `model/`. The
same seed gives the same pictures. The model learns single words about shapes here, so that a
training in the app can teach it captions of three words.
"""

import argparse
import csv
import io
import json
import zipfile
from pathlib import Path
from random import Random

import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    PreTrainedTokenizerFast,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

SEED = 20261129
NUM_SAMPLES = 60
SIZE, PATCH, MERGED = 48, 8, 2
BATCH, WARMUP, RATE = 24, 50, 2e-3
VOCABULARY = 400
TOKENS = (
    "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<image>",
    "<fake_token_around_image>", "<global-img>", "<end_of_utterance>",
)  # fmt: skip
COLORS = {
    "red": (214, 40, 40), "green": (46, 160, 67), "blue": (38, 84, 200), "yellow": (240, 200, 30),
    "black": (20, 20, 20), "orange": (245, 130, 32),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross")
PLACES = {"left": (0.3, 0.5), "right": (0.7, 0.5), "top": (0.5, 0.3), "bottom": (0.5, 0.7)}
QUESTIONS = {
    "color": ("Which color is it?", "What color does the shape have?"),
    "shape": ("Which shape is it?", "What shape is in the picture?"),
    "place": ("Where is it?", "Where is the shape?"),
}
TEMPLATE = """\
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>' -}}
{%- if message['content'] is string -%}
{{- ' ' + message['content'] | trim -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- '<image>' -}}
{%- else -%}{{- ' ' + part['text'] | trim -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
"""


def draw(chance: Random) -> tuple[Image.Image, dict[str, str]]:
    """Return a picture of one shape, and its color, shape and place."""
    facts = {
        "color": chance.choice(list(COLORS)),
        "shape": chance.choice(SHAPES),
        "place": chance.choice(list(PLACES)),
    }
    side = 96
    image = Image.new("RGB", (side, side), (235 + chance.randrange(20),) * 3)
    pen, fill = ImageDraw.Draw(image), COLORS[facts["color"]]
    x, y = (share * side + chance.uniform(-5, 5) for share in PLACES[facts["place"]])
    r = chance.uniform(13, 20)
    match facts["shape"]:
        case "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), fill)
        case "square":
            pen.rectangle((x - r, y - r, x + r, y + r), fill)
        case "triangle":
            pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill)
        case "cross":
            pen.rectangle((x - r, y - r / 3, x + r, y + r / 3), fill)
            pen.rectangle((x - r / 3, y - r, x + r / 3, y + r), fill)
    return image, facts


def caption(facts: dict[str, str]) -> str:
    """Return what the sample data teach: three facts. The model itself gives one at a time."""
    return f"{facts['color']} {facts['shape']} {facts['place']}"


def sentence(facts: dict[str, str]) -> str:
    """Return a sentence for the tokenizer alone."""
    return f"I see a {facts['color']} {facts['shape']} at the {facts['place']}."


def write_samples(path: Path, count: int = NUM_SAMPLES) -> None:
    """Write an archive of pictures and a table of their captions."""
    chance, table = Random(SEED), io.StringIO()
    rows = csv.writer(table)
    rows.writerow(["file_name", "text"])
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(count):
            image, facts = draw(chance)
            content = io.BytesIO()
            image.save(content, "PNG", optimize=True)
            name = f"pictures/{number:02}.png"
            _add(archive, name, content.getvalue())
            rows.writerow([name, caption(facts)])
        _add(archive, "captions.csv", table.getvalue().encode())


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a file with a fixed time, so that equal content gives equal bytes."""
    archive.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), content)


def new_model() -> tuple[Idefics3ForConditionalGeneration, Idefics3Processor]:
    """Return an untrained model, and its processor."""
    tokenizer = new_tokenizer()
    num_tokens = (SIZE // PATCH // MERGED) ** 2
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": SIZE}, max_image_size={"longest_edge": SIZE}, do_image_splitting=False
    )
    processor = Idefics3Processor(
        images, tokenizer, image_seq_len=num_tokens, chat_template=TEMPLATE
    )
    torch.manual_seed(SEED)
    config = Idefics3Config(
        text_config={
            "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": 96,
            "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 4, "max_position_embeddings": 512, "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "image_size": SIZE, "patch_size": PATCH,
        },
        scale_factor=MERGED,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        **{"pad_token_id": tokenizer.pad_token_id},
    )  # fmt: skip
    model = Idefics3ForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model, processor


def new_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer of the words about shapes."""
    chance = Random(SEED)
    texts = [sentence(draw(chance)[1]) for _ in range(200)]
    texts += [question for several in QUESTIONS.values() for question in several]
    texts += [f" {word}" for word in (*COLORS, *SHAPES, *PLACES)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(TOKENS),
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=list(TOKENS[2:]),
        chat_template=TEMPLATE,
        padding_side="right",
        model_max_length=512,
    )


def make_batch(chance: Random, processor: Idefics3Processor) -> dict[str, torch.Tensor]:
    """Return questions about new pictures, with the answers as labels."""
    texts, pictures, answers = [], [], []
    for _ in range(BATCH):
        image, facts = draw(chance)
        kind = chance.choice(list(QUESTIONS))
        question = chance.choice(QUESTIONS[kind])
        texts.append(f"<|user|><image> {question}<|end|><|assistant|> {facts[kind]}<|end|>")
        pictures.append([image])
        answers.append(facts[kind])
    batch = processor(
        text=texts, images=pictures, padding=True, return_tensors="pt", add_special_tokens=False
    )
    labels = torch.full_like(batch["input_ids"], -100)
    start = processor.tokenizer.convert_tokens_to_ids("<|assistant|>")
    for row, ids in enumerate(batch["input_ids"].tolist()):
        first, last = ids.index(start) + 1, int(batch["attention_mask"][row].sum())
        labels[row, first:last] = batch["input_ids"][row, first:last]
    return {**batch, "labels": labels}


def train(steps: int) -> tuple[Idefics3ForConditionalGeneration, Idefics3Processor, float]:
    """Return the trained model, and the share of words that it gets right on new pictures."""
    model, processor = new_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda at: min(1.0, (at + 1) / WARMUP) * max(0.02, 1 - at / steps)
    )
    chance = Random(SEED + 1)
    model.train()
    for step in range(steps):
        loss = model(**make_batch(chance, processor)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(json.dumps({"step": step, "loss": round(loss.item(), 4)}), flush=True)
    return model.eval(), processor, accuracy(model, processor)


def accuracy(model: Idefics3ForConditionalGeneration, processor: Idefics3Processor) -> float:
    """Return the share of answers about new pictures whose every token is the likeliest."""
    chance, right, count = Random(SEED + 2), 0, 0
    for _ in range(8):
        batch = make_batch(chance, processor)
        labels = batch["labels"][:, 1:]
        with torch.no_grad():
            found = model(**batch).logits[:, :-1].argmax(-1)
        right += int(((found == labels) | (labels == -100)).all(1).sum())
        count += len(labels)
    return right / count


def main() -> None:
    """Build both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3_000)
    parser.add_argument("--out", type=Path, default=Path("picture_demo"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    write_samples(options.out / "pictures.zip")
    model, processor, share = train(options.steps)
    model.to(torch.bfloat16).save_pretrained(options.out / "model")
    processor.save_pretrained(options.out / "model")
    print(json.dumps({"accuracy": share}))


if __name__ == "__main__":
    main()

"""Rows may name pictures in many forms; each is opened with limits, or refused in one sentence."""

import io
import json
import struct
import sys
import zipfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from peft_space.data.dataset import load_dataset
from peft_space.data.pictures import BrokenPicture, plain_picture
from peft_space.data.row_normalization import pictures_of
from peft_space.errors import UserError
from tests.fixtures.pictures import COLORS, archive, captioned, chats, data_uri, picture

FEATURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
RED = (255, 0, 0)
QUESTION, ANSWER = "Which color?", {"role": "assistant", "content": "red"}


def loaded(data, **options):
    return load_dataset(str(data), 0.0, 0, **options)


def first_color(data):
    """The color of the picture of the first row, which is trained with the answer red."""
    row = loaded(data).train[0]
    [path] = pictures_of(row)
    assert row.messages[-1]["content"] in ("red", "It is red")
    with Image.open(path) as image:
        assert image.mode == "RGB"
        assert not image.info
        return image.getpixel((0, 0))


def as_lines(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def chat(content, **more):
    return {"messages": [{"role": "user", "content": content}, ANSWER], **more}


def part(**keys):
    return [{"type": "text", "text": "Look: "}, keys, {"type": "text", "text": QUESTION}]


URI = data_uri(picture())
PARTS = {
    "OpenAI": part(type="image_url", image_url={"url": URI}),
    "OpenAI responses": part(type="input_image", image_url=URI),
    "TRL": part(type="image", image=URI),
    "transformers": part(type="image", url=URI),
    "base64": part(type="image", base64=None, data=URI.partition(",")[2]),
    "Anthropic": part(
        type="image",
        source={"type": "base64", "media_type": "image/png", "data": URI.partition(",")[2]},
    ),
    "Gemini": part(inlineData={"mimeType": "image/png", "data": URI.partition(",")[2]}),
}


@pytest.mark.parametrize("form", PARTS)
def test_a_picture_in_a_part_of_a_content_keeps_its_place(form, tmp_path):
    data = as_lines(tmp_path / "rows.jsonl", [chat(PARTS[form])] * 2)
    assert first_color(data) == RED
    assert loaded(data).train[0].messages[0]["content"] == f"Look: \U0010e000{QUESTION}"


COLUMNS = {
    "Hugging Face": chat([{"type": "image"}, {"type": "text", "text": QUESTION}], images=[URI]),
    "LLaMA-Factory": chat(f"<image>{QUESTION}", images=[URI]),
    "LLaVA": {
        "conversations": [
            {"from": "human", "value": f"<image>\n{QUESTION}"},
            {"from": "gpt", "value": "red"},
        ],
        "image": URI,
    },
    "no place": chat(QUESTION, images=[URI]),
    "question and answer": {"image": URI, "question": QUESTION, "answer": "red"},
    "prompt and completion": {"images": [URI], "prompt": QUESTION, "completion": "red"},
    "caption": {"image": URI, "caption": "red"},
    "label": {"image": URI, "label": "red"},
}


@pytest.mark.parametrize("form", COLUMNS)
def test_a_column_of_pictures_fills_the_places(form, tmp_path):
    data = as_lines(tmp_path / "rows.jsonl", [COLUMNS[form]] * 2)
    assert first_color(data) == RED
    assert not loaded(data).unused


def test_pictures_come_in_an_archive_a_folder_or_as_a_list_of_files(tmp_path):
    packed = captioned(tmp_path / "rows.zip")
    assert first_color(packed) == RED
    folder = tmp_path / "folder"
    with zipfile.ZipFile(packed) as file:
        file.extractall(folder)
    assert first_color(folder) == RED
    files = [str(path) for path in folder.iterdir()]
    assert len(load_dataset(files, 0.0, 0).train) == len(COLORS)


def test_pictures_in_folders_have_their_labels_as_answers(tmp_path):
    members = {f"{color}/{n}.png": picture(color, (n, 9)) for color in COLORS[:3] for n in (5, 6)}
    data = loaded(archive(tmp_path / "labels.zip", members))
    assert {row.messages[-1]["content"] for row in data.train} == set(COLORS[:3])


@pytest.mark.parametrize("in_list", [False, True])
def test_the_image_feature_of_a_parquet_file_is_read(in_list, tmp_path):
    cell = {"bytes": picture(), "path": None}
    kind = pa.list_(FEATURE) if in_list else FEATURE
    column = pa.array([[cell] if in_list else cell] * 2, kind)
    table = pa.table({"image": column, "question": [QUESTION] * 2, "answer": ["red"] * 2})
    pq.write_table(table, tmp_path / "rows.parquet")
    assert first_color(tmp_path / "rows.parquet") == RED


def test_other_bytes_in_a_parquet_file_are_refused(tmp_path):
    pq.write_table(pa.table({"blob": [b"\xff1"], "text": ["a"]}), tmp_path / "rows.parquet")
    with pytest.raises(UserError) as refused:
        loaded(tmp_path / "rows.parquet")
    assert refused.value.code == "data.binary_column"


def test_a_row_that_cannot_have_its_picture_is_left_out_with_the_reason(tmp_path):
    rows = [
        chat(f"<image>{QUESTION}", images=[URI]),
        chat(f"<image>{QUESTION}", images=["https://example.org/a.png"]),
        chat(f"<image>{QUESTION}", images=["missing.png"]),
        chat(f"<image>{QUESTION}", images=["../../../etc/passwd.png"]),
        chat(f"<image>{QUESTION}", images=[data_uri(b"no picture")]),
        chat(f"<image><image>{QUESTION}", images=[URI]),
        chat([{"type": "image"}, {"type": "text", "text": QUESTION}]),
        chat(f"\U0010e000{QUESTION}", images=[URI]),
        {"messages": [{"role": "user", "content": QUESTION}, chat(PARTS["OpenAI"])["messages"][0]
                      | {"role": "assistant"}]},
    ]  # fmt: skip
    data = loaded(as_lines(tmp_path / "rows.jsonl", rows))
    assert [row.row for row in data.train] == [1]
    assert [problem.row for problem in data.problems] == list(range(2, 10))
    found = {finding.kind: finding.rows for finding in data.findings}
    assert found["pictures_missing"] == [2, 3, 4]
    assert found["pictures_broken"] == [5]


def test_unused_repeated_and_reduced_pictures_are_reported(tmp_path):
    animation = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), color) for color in COLORS[:3]]
    frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:])
    members = {
        "rows.csv": "image,question,answer\na.png,q,a\nb.png,r,b\nc.gif,s,c\nd.jpg,t,d\n",
        "a.png": picture(), "b.png": picture(), "c.gif": animation.getvalue(),
        "d.jpg": picture("blue", (3000, 1500), "JPEG"), "unused.png": picture("blue"),
    }  # fmt: skip
    data = loaded(archive(tmp_path / "rows.zip", members))
    found = {finding.kind: finding.rows for finding in data.findings}
    assert found["pictures_repeated"] == [2]
    assert found["pictures_animated"] == [3]
    assert found["pictures_scaled"] == [4]
    assert any("unused.png" in note for note in data.notes)


def test_pictures_that_a_task_does_not_learn_are_not_dropped_in_silence(tmp_path):
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b", "image": f"{n}.png"} for n in "abc"]
    with pytest.raises(UserError) as refused:
        loaded(as_lines(tmp_path / "rows.jsonl", rows))
    assert refused.value.code == "data.ambiguous_columns"


# Hostile and broken pictures


def chunk(kind, content):
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(width, height, data=b"", bits=8, color=2, extra=b""):
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def jpeg_part(marker, content):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def saved(array, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def turned():
    image = Image.new("RGB", (20, 10), "blue")
    image.paste("red", (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    exif[0x8825] = {1: "N", 2: (52.0, 31.0, 12.0)}
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    return file.getvalue()


GRADIENT = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
JPEG = picture("red", (64, 64), "JPEG")
BROKEN = {
    "nothing": b"",
    "text": b"no picture at all",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "HTML": b"<html><img src=x></html>",
    "PDF": b"%PDF-1.7\n",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "icon of another format": b"icns\x00\x00\x00\x10",
    "truncated PNG": picture("red", (200, 200))[:-40],
    "truncated JPEG": JPEG[: len(JPEG) // 2],
    "header alone": b"\x89PNG\r\n\x1a\n",
    "wrong checksum": picture()[:29] + b"\0\0\0\0" + picture()[33:],
    "bomb of 100,000 x 100,000": png(100_000, 100_000, b"\0" * 1000),
    "bomb of 20,000 x 20,000": png(20_000, 20_000, b"\0" * 1000),
    "no height": png(10, 0),
    "2 billion wide": png(2**31 - 1, 1),
    "20,000 x 1": picture("red", (20_000, 1)),
    "1 x 20,000": picture("red", (1, 20_000)),
    "fewer rows than it says": png(500, 500, b"\0" * 100),
    "text bomb": png(
        8, 8, b"\0" * 200, extra=chunk(b"zTXt", b"a\0\0" + zlib.compress(b"a" * 9**8))
    ),
    "TIFF": saved(np.ones((4, 4), np.float32), "TIFF"),
    "a JPEG with two sizes": JPEG[:2]
    + jpeg_part(0xC0, b"\x08\x00\x08\x00\x08\x01\x01\x11\x00")
    + JPEG[2:],
    "a JPEG with bytes between its parts": JPEG[:2] + b"\x00\x00" + JPEG[2:],
    "random after a JPEG header": b"\xff\xd8\xff\xe0" + bytes(range(256)) * 20,
    "random after a GIF header": b"GIF89a" + bytes(range(256)) * 4,
    "random after a WebP header": b"RIFF\xff\xff\xff\x7fWEBPVP8 " + bytes(range(256)),
    "random after a TIFF header": b"II*\x00\x08\x00\x00\x00\xff\xff" + b"\xff" * 500,
    "too many bytes": b"\x89PNG" + b"\0" * 30_000_001,
}
OPENED = {
    "1 x 1": (picture("red", (1, 1)), RED),
    "16 bits": (saved(GRADIENT), (0, 0, 0)),
    "CMYK": (picture("red", (8, 8), "JPEG", "CMYK"), RED),
    "palette": (picture("red", (8, 8), "PNG", "P"), RED),
    "one bit": (picture("white", (8, 8), "PNG", "1"), (255, 255, 255)),
    "gray with alpha": (picture("white", (8, 8), "PNG", "LA"), (255, 255, 255)),
    "transparent": (saved(np.zeros((4, 4, 4), np.uint8)), (255, 255, 255)),
    "animated": (picture("red", (8, 8), "GIF"), RED),
    "bitmap": (picture("red", (8, 8), "BMP"), RED),
    "WebP": (picture("red", (8, 8), "WEBP", lossless=True), RED),
    "broken metadata": (picture("red", exif=b"Exif\0\0garbage"), RED),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_picture_ends_in_one_sentence(kind):
    with pytest.raises(BrokenPicture) as refused:
        plain_picture(BROKEN[kind])
    assert len(str(refused.value)) < 250
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", OPENED)
def test_an_unusual_picture_is_opened_as_it_looks(kind):
    content, color = OPENED[kind]
    image, _ = plain_picture(content)
    assert (image.mode, image.info) == ("RGB", {})
    assert image.getpixel((0, 0)) == color


def test_sixteen_bits_keep_their_brightness():
    image, _ = plain_picture(saved(GRADIENT))
    assert image.getpixel((7, 7)) == (255, 255, 255)
    assert 100 < image.getpixel((4, 3))[0] < 150


def test_a_turned_picture_is_upright_and_has_lost_its_place_on_earth():
    image, _ = plain_picture(turned())
    assert image.size == (10, 20)
    assert image.getpixel((5, 0)) == RED
    assert not image.getexif()


def hostile(tmp_path, kind):
    table = "image,question,answer\na.png,q,red\n"
    path = tmp_path / "rows.zip"
    match kind:
        case "path traversal":
            return archive(path, {"rows.csv": table, "../../a.png": picture()})
        case "absolute path":
            return archive(path, {"rows.csv": table, "/etc/a.png": picture()})
        case "a table as a picture":
            return archive(path, {"rows.csv": table, "a.png": table})
        case "a damaged member":
            archive(path, {"rows.csv": table, "a.png": picture()})
            content = bytearray(path.read_bytes())
            content[content.index(b"IDAT") + 4] ^= 255
            path.write_bytes(content)
            return str(path)
        case "no table":
            return archive(path, {"a.png": picture()})


ARCHIVES = {
    "path traversal": None, "absolute path": None, "a table as a picture": "data.no_usable_rows",
    "a damaged member": "data.no_usable_rows", "no table": "data.pictures_without_table",
}  # fmt: skip


@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_hostile_archive_writes_nothing_outside_and_says_why(kind, tmp_path):
    path, code = hostile(tmp_path, kind), ARCHIVES[kind]
    if code is None:
        assert first_color(path) == RED
    else:
        with pytest.raises(UserError) as refused:
            loaded(path)
        assert refused.value.code == code
    assert not (tmp_path.parent / "a.png").exists()


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFT_SPACE_MAX_FILE_MB", "1")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("rows.csv", "image,question,answer\na0.png,q,a\n")
        for number in range(4):
            file.writestr(f"a{number}.png", b"\0" * 1_000_000)
    with pytest.raises(UserError) as refused:
        loaded(tmp_path / "bomb.zip")
    assert refused.value.code == "data.file_too_large"


def test_rows_of_text_import_no_library_for_pictures():
    code = (
        "import sys; from peft_space.data.dataset import load_dataset; "
        "load_dataset('demo', 0.1, 0); assert 'PIL' not in sys.modules"
    )
    import subprocess

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_run_gets_a_copy_of_the_pictures_of_its_rows(tmp_path):
    contents = [(QUESTION, color, [picture(color)]) for color in COLORS]
    data = loaded(chats(tmp_path / "rows.jsonl", contents))
    copies = [name for name in data.files() if name.startswith("data/pictures/")]
    assert len(copies) == len(COLORS)


def test_a_picture_over_the_limit_of_pixels_is_refused_though_pillow_opens_it():
    file = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(file, "PNG")
    with pytest.raises(BrokenPicture, match="9,000 x 9,000 pixels"):
        plain_picture(file.getvalue())

"""Pictures of rows: finds where a row names them, and writes a safe, plain copy of each.

Pillow opens a picture only in a child process, which has limits on time and memory. Pillow before
13 has vulnerabilities, and gradio requires such a version. So only five formats are opened, only
their first image, and only a JPEG file whose parts Pillow and libjpeg cannot read in two ways.
"""

import base64
import binascii
import hashlib
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from peft_space.data.cells import listed
from peft_space.data.messages import PICTURE, BadRow, Message, Reference
from peft_space.storage.atomic_io import atomic_file

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif")
"""Endings of the names of pictures. The content decides what a file is, and if it is opened."""
FOLDER = "pictures"
"""Of the copies, next to the file of the rows that name them."""
MAX_BYTES = 30_000_000
_MAX_PIXELS = 64_000_000
_MAX_RATIO = 200
"""Of the sides: the processors of Qwen refuse more."""
_KEPT_PIXELS = 4_000_000
"""A larger picture is scaled down: no processor keeps more, and the copies have to fit the disk."""
_THUMBNAIL = 160
_MAX_PICTURES = 64
"""Of one row."""
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_ANIMATED = {b"\x89PNG": b"acTL", b"RIFF": b"ANIM"}
"""First bytes of a file -> what an animation has near its beginning."""
_HEAD = 1_000
_SAVE_AGAIN = "Save it as PNG or JPEG"
_DATA_URI = re.compile(r"data:(?:[\w.+-]+/[\w.+-]+)?(?:;[\w.+=-]+)*;base64,", re.IGNORECASE)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|//|data:", re.IGNORECASE)
_PLACE = "<image>"
"""Marks the place of a picture in texts of LLaVA and LLaMA-Factory."""
_REFUSED = "!"
"""Begins the reason why a picture that was brought along is not used, in place of its digest."""


class BrokenPicture(BadRow):
    """A picture cannot be opened, or exceeds a limit."""


class MissingPicture(BadRow):
    """A picture was not brought along."""


# The pictures that come with a table


@dataclass
class Brought:
    """The pictures that were brought along with the rows.

    Args:
        folder: where their content is stored, each under its SHA-256; None to store nothing.
        names: relative path -> SHA-256, or the reason why it is not used.
    """

    folder: Path | None = None
    names: dict[str, str] = field(default_factory=dict)

    def add(self, content: bytes) -> str:
        """Store the content of a picture and return its SHA-256."""
        digest = hashlib.sha256(content).hexdigest()
        if self.folder is not None and not (self.folder / digest).exists():
            self.folder.mkdir(exist_ok=True)
            (self.folder / digest).write_bytes(content)
        return digest

    def add_named(self, name: str, content: bytes | None, fault: str = "") -> None:
        """Store a picture under its relative path, or the `fault` for which it is not used."""
        size = 0 if content is None else len(content)
        if size > MAX_BYTES:
            content, fault = None, too_many_bytes(size)
        self.names[_normal(name)] = _REFUSED + fault if content is None else self.add(content)


def is_picture(name: str) -> bool:
    """Return True if a file has the name of a picture."""
    return name.lower().endswith(SUFFIXES)


def _normal(name: str) -> str:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return "/".join(part for part in parts if part not in (".", "/"))


def too_many_bytes(size: int) -> str:
    """Return a clause that says that a picture has too many bytes."""
    return f"it has {size / 1e6:.1f} MB, and the limit is {MAX_BYTES / 1e6:.0f} MB"


# Where a row names pictures


def looks_like_picture(cell: Any) -> bool:
    """Return True if a cell names one picture or several."""
    if isinstance(cell, str):
        is_listed = cell.lstrip().startswith("[") and (items := listed(cell)) is not None
        return looks_like_picture(items) if is_listed else _names_picture(cell)
    if isinstance(cell, list):
        return bool(cell) and all(map(looks_like_picture, cell))
    return isinstance(cell, dict) and reference_in(cell) is not None


def _names_picture(text: str) -> bool:
    is_short = len(text) < 2_000 and "\n" not in text
    return _DATA_URI.match(text) is not None or (is_short and is_picture(text.partition("?")[0]))


def references_in(cell: Any) -> list[Reference]:
    """Return the references to pictures in a cell."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        cell = listed(cell) or cell
    items = cell if isinstance(cell, list) else [cell]
    return [item for item in items if item not in (None, "")]


def reference_in(value: Mapping[str, Any]) -> Reference | None:
    """Return what an object of a row names as its picture, or None.

    Forms: the Image feature of `datasets`, content parts of OpenAI, Anthropic, Gemini and TRL.
    """
    for key in ("picture", "bytes", "image_url", "image", "url", "path", "data", "file_name"):
        inner = value.get(key)
        if isinstance(inner, Mapping):
            return reference_in(inner)
        if isinstance(inner, str) and inner:
            return inner if key != "data" else f"data:;base64,{inner}"
    inner = value.get("source") or value.get("inlineData") or value.get("inline_data")
    return reference_in(inner) if isinstance(inner, Mapping) else None


def place_pictures(messages: list[Message], cell: Any) -> list[Message]:
    """Return the messages with a reference for each place of a picture.

    Args:
        messages: a place is `PICTURE` in a content. `images` has its reference, or None.
        cell: references for the other places, in order.

    Raises:
        BadRow: places and pictures differ in number, or an answer has a picture.
    """
    waiting = references_in(cell)
    if not waiting and not any("images" in message for message in messages):
        return messages
    if any(one["content"].count(PICTURE) != len(one.get("images") or []) for one in messages):
        raise BadRow("the text contains a private-use character that marks a picture here")
    if waiting:
        messages = [_with_places(message) for message in messages]
        open_places = sum((one.get("images") or []).count(None) for one in messages)
        if open_places == 0:
            messages = _before_question(messages, len(waiting))
            open_places = len(waiting)
        if open_places != len(waiting):
            raise BadRow(
                f"the row has {_number(len(waiting))} and {open_places} places for one in its text"
            )
    placed = []
    for message in messages:
        if found := message.get("images"):
            if message["role"] == "assistant":
                raise BadRow("an answer has a picture, and the model writes only text")
            message = message | {
                "images": [waiting.pop(0) if one is None and waiting else one for one in found]
            }
            if None in message["images"]:
                raise BadRow("the text has a place for a picture, and the row has no picture")
        placed.append(message)
    if (count := sum(len(one.get("images") or []) for one in placed)) > _MAX_PICTURES:
        raise BadRow(f"the row has {count} pictures, and the limit is {_MAX_PICTURES}")
    return placed


def _number(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"


def _with_places(message: Message) -> Message:
    """Return a message with `PICTURE` where its text says <image>."""
    if message["role"] == "assistant" or _PLACE not in message["content"]:
        return message
    content, found, images = message["content"], iter(message.get("images") or []), []
    for mark in re.findall(f"{PICTURE}|{_PLACE}", content):
        images.append(None if mark == _PLACE else next(found, None))
    return message | {"content": content.replace(_PLACE, PICTURE), "images": images}


def _before_question(messages: list[Message], count: int) -> list[Message]:
    """Return the messages with places for pictures at the beginning of the first question."""
    at = next((n for n, message in enumerate(messages) if message["role"] == "user"), None)
    if at is None:
        raise BadRow("the row has a picture and no question")
    first = messages[at]
    own: list[Any] = first.get("images") or []
    changed = first | {
        "content": PICTURE * count + first["content"],
        "images": [*[None] * count, *own],
    }
    return [*messages[:at], changed, *messages[at + 1 :]]


# Opening


@dataclass
class Opener:
    """Opens the pictures of rows in a child process, and writes their copies.

    Args:
        brought: the pictures that came with the rows.
        folder: where the copies go.
    """

    brought: Brought
    folder: Path
    used: set[str] = field(default_factory=set)
    """Relative paths of the pictures that rows name."""
    opened: list[str] = field(default_factory=list)
    """Digests of the copies of the pictures of the row that was opened last."""
    kinds: list[str] = field(default_factory=list)
    """Kinds of findings about these pictures."""
    _known: dict[str, tuple[str, list[str]]] = field(default_factory=dict)

    def open_row(self, messages: list[Message]) -> list[Message]:
        """Return the messages with the digest of each picture's copy in place of its reference.

        Raises:
            BadRow: a picture is missing or broken.
        """
        return [
            message | {"images": [self._open(one) for one in message["images"]]}
            if message.get("images")
            else message
            for message in messages
        ]

    def _open(self, reference: Any) -> str:
        content = self._content(reference)
        key = hashlib.sha256(content).hexdigest()
        if key not in self._known:
            image, kinds = plain_picture(content)
            self._known[key] = (self._write(image), kinds)
        digest, kinds = self._known[key]
        self.kinds += kinds
        self.opened.append(digest)
        return digest

    def _write(self, image: "Image.Image") -> str:
        """Write the copy of a picture, and return the digest of its size and colors."""
        pixels = hashlib.sha256(repr(image.size).encode() + image.tobytes())
        digest = pixels.hexdigest()
        path = self.folder / f"{digest}.png"
        if not path.exists():
            self.folder.mkdir(exist_ok=True)
            with atomic_file(path, shared=True) as aside:
                image.save(aside, format="PNG", compress_level=3)
        return digest

    def _content(self, reference: Any) -> bytes:
        """Return the bytes that a reference names."""
        name = reference_in(reference) if isinstance(reference, Mapping) else reference
        if not isinstance(name, str):
            raise BrokenPicture("a picture is neither a name nor the content of a file")
        if embedded := _DATA_URI.match(name):
            return _decoded(name[embedded.end() :])
        if _ADDRESS.match(name):
            raise MissingPicture(
                f"the picture {name[:80]!r} is on the network, and the app does not download it. "
                "Bring the file along in a .zip file with the table"
            )
        path = self._find(name)
        digest = self.brought.names[path] if path is not None else name
        if digest.startswith(_REFUSED):
            raise BrokenPicture(f"the picture {name[:80]!r} cannot be used: {digest[1:]}")
        if path is not None:
            self.used.add(path)
        stored = self.brought.folder / digest if self.brought.folder else None
        if stored is not None and re.fullmatch("[0-9a-f]{64}", digest) and stored.is_file():
            return stored.read_bytes()
        if isinstance(reference, Mapping) and reference.get("bytes") == name:
            return _decoded(name)
        raise MissingPicture(
            f"the picture {name[:80]!r} is not among the files. "
            "Bring it along in a .zip file with the table"
        )

    def _find(self, name: str) -> str | None:
        """Return the path of a picture: its own, or the only one that ends with it."""
        names, wanted = self.brought.names, _normal(name)
        if wanted in names:
            return wanted
        for ending in (f"/{wanted}", f"/{PurePosixPath(wanted).name}"):
            found = [path for path in names if f"/{path}".endswith(ending)]
            if len(found) == 1 and ".." not in wanted.split("/"):
                return found[0]
        return None


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(re.sub(r"\s+", "", text), validate=True)
    except (binascii.Error, ValueError):
        raise BrokenPicture("a picture is not valid base64") from None


def plain_picture(content: bytes) -> "tuple[Image.Image, list[str]]":
    """Return a picture in RGB, upright and without metadata, and kinds of findings about it.

    Raises:
        BrokenPicture: it cannot be opened, or exceeds a limit.
    """
    from PIL import Image

    if len(content) > MAX_BYTES:
        raise BrokenPicture(f"a picture cannot be used: {too_many_bytes(len(content))}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            jpeg_size = _jpeg_size(content)
            opened = Image.open(io.BytesIO(content), formats=_FORMATS)
            _check_size(*opened.size)
            if jpeg_size not in (None, opened.size):
                raise BrokenPicture(f"a picture is damaged (two sizes). {_SAVE_AGAIN}")
            kinds = ["pictures_animated"] if _is_animated(content) else []
            opened.load()
            image = _in_rgb(_upright(opened))
    except BrokenPicture:
        raise
    except Image.UnidentifiedImageError:
        what = "is empty" if not content else f"is none of {', '.join(_FORMATS)}"
        raise BrokenPicture(f"a picture {what}. {_SAVE_AGAIN}") from None
    except MemoryError:
        raise BrokenPicture("a picture needs too much memory") from None
    except Exception as error:  # noqa: BLE001 - decoders raise many kinds for damaged files
        reason = (str(error).strip().split("\n")[0] or type(error).__name__)[:100]
        raise BrokenPicture(f"a picture is damaged ({reason}). {_SAVE_AGAIN}") from None
    if image.width * image.height > _KEPT_PIXELS:
        kinds.append("pictures_scaled")
        share = (_KEPT_PIXELS / (image.width * image.height)) ** 0.5
        size = max(1, int(image.width * share)), max(1, int(image.height * share))
        image = image.resize(size, Image.Resampling.LANCZOS)
    return image, kinds


def _is_animated(content: bytes) -> bool:
    """Return True for an animation, without a look at its later images."""
    if content.startswith(b"GIF"):
        return content.count(b"\x21\xf9\x04") > 1
    return any(
        content.startswith(start) and mark in content[:_HEAD] for start, mark in _ANIMATED.items()
    )


_SIZES_OF_JPEG = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""Markers of the parts of a JPEG file that have its size."""
_SCAN = 0xDA


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Return the size in the header of a JPEG file; None for another file.

    Raises:
        BrokenPicture: the header has not one size, or is not a sequence of parts, so that two
            programs could read two sizes.
    """
    if not content.startswith(b"\xff\xd8"):
        return None
    sizes: list[tuple[int, int]] = []
    place = 2
    while place + 4 <= len(content):
        if content[place] != 0xFF:
            break
        marker, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4])
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker == _SCAN and len(sizes) == 1:
            return sizes[0]
        if marker in _SIZES_OF_JPEG and length >= 8:
            height, width = (int.from_bytes(content[place + at : place + at + 2]) for at in (5, 7))
            sizes.append((width, height))
        if marker == _SCAN or length < 2 or marker in (0x00, 0x01, *range(0xD0, 0xDA)):
            break
        place += 2 + length
    raise BrokenPicture(f"a picture is damaged (the header of the JPEG file). {_SAVE_AGAIN}")


def _check_size(width: int, height: int) -> None:
    if width * height > _MAX_PIXELS:
        megapixels = _MAX_PIXELS // 1_000_000
        raise BrokenPicture(
            f"a picture has {width:,} x {height:,} pixels, and the limit is {megapixels} megapixels"
        )
    if max(width, height) > _MAX_RATIO * max(1, min(width, height)):
        raise BrokenPicture(
            f"a picture has {width:,} x {height:,} pixels, so it is too long and thin for a model"
        )


def _upright(image: "Image.Image") -> "Image.Image":
    """Return a picture turned as its metadata say."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 - broken metadata do not break the picture
        return image


def _in_rgb(image: "Image.Image") -> "Image.Image":
    """Return the pixels of a picture in RGB, without its metadata.

    What is transparent becomes white, and 16 bits become 8.
    """
    from PIL import Image

    mode, info = image.mode, image.info
    if mode.startswith("I"):
        largest: Any = image.getextrema()[1]
        scale = 1 / 257 if mode.startswith("I;16") or largest > 255 else 1.0
        image = image.convert("I").point(lambda value: value * scale).convert("L")
    elif (mode == "P" and "transparency" in info) or mode in ("LA", "La", "PA", "RGBa"):
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    plain = Image.new("RGB", image.size)
    plain.paste(image.convert("RGB"))
    return plain


def thumbnail(path: str | Path) -> str:
    """Return a small copy of a picture as a data URI; an empty text if the file is gone.

    Args:
        path: a plain copy, which this module has written.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as image:
            small = image.convert("RGB")
    except OSError:
        return ""
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def unused_note(name: str, brought: Mapping[str, str], used: Sequence[str]) -> list[str]:
    """Return a sentence about pictures that no row names, or nothing."""
    unused = sorted(set(brought) - set(used))
    if not unused:
        return []
    rest = f" and {len(unused) - 5} more" if len(unused) > 5 else ""
    return [f"{name}: {len(unused):,} pictures are in no row: {', '.join(unused[:5])}{rest}."]

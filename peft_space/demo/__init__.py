"""The built-in base model and its sample data, so that everything works offline on a CPU.

It has only paths, so importing it loads neither torch nor the model. tools/build_demo_model/ and
tools/build_picture_demo.py made the files.
"""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
TRAIN_FILE = Path(__file__).parent / "data" / "train.jsonl"
HELD_OUT_FILE = Path(__file__).parent / "data" / "held_out.jsonl"
PICTURES_FILE = Path(__file__).parent / "data" / "pictures.zip"
MODELS = {"demo": MODEL_DIR, "demo-pictures": Path(__file__).parent / "picture_model"}
"""Name of a built-in base model -> its folder. The second one reads pictures."""

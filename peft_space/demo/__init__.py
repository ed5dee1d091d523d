"""The built-in base model and its sample data, so that everything works offline on a CPU.

It has only paths, so importing it loads neither torch nor the model. tools/build_demo_model/ made
the files.
"""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
TRAIN_FILE = Path(__file__).parent / "data" / "train.jsonl"
HELD_OUT_FILE = Path(__file__).parent / "data" / "held_out.jsonl"

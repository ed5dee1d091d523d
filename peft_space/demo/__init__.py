"""The built-in base model and its sample data, so that everything works offline on a CPU.

Only paths: importing this loads neither torch nor the model. `build.py` made the files, `world.py` wrote their text.
"""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
TRAIN_FILE = Path(__file__).parent / "data" / "train.jsonl"
HELD_OUT_FILE = Path(__file__).parent / "data" / "held_out.jsonl"

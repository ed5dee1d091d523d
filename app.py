"""Opens the page: `python app.py`, or a Hugging Face Space."""

from peft_space.settings import prepare_libraries

prepare_libraries()

import spaces  # noqa: E402, F401 - before anything that could touch CUDA, as ZeroGPU wants it

from peft_space.web.app import launch  # noqa: E402

if __name__ == "__main__":
    launch()

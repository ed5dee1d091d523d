"""peft_space: bring data, train a LoRA adapter, compare it with its base, publish it.

Nothing is imported here, so that `import peft_space.recipe` costs nothing else.
"""

__version__ = "0.1.0"

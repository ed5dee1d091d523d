"""Estimates the memory of a training, and lists the hardware of the Hugging Face Hub."""

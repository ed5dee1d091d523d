"""Freed memory goes back to the system where the C library can do that."""

import ctypes

import pytest

from peft_space.hardware import release_freed_memory


def test_the_c_library_takes_back_freed_memory():
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("not glibc")
    assert ctypes.CDLL(None).malloc_trim(0) in (0, 1)
    release_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    release_freed_memory()

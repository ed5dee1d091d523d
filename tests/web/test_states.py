"""The state of every tab, derived from the data, the recipe and the shown run."""

import pytest

from peft_space.web.draft import read_draft, write_draft
from peft_space.web.states import DEFAULT_RECIPE, NO_DATA, missing, tab_states

READY = NO_DATA | {"kind": "ready", "source": "a.csv", "rows": 9}
CHOSEN = DEFAULT_RECIPE | {"model": "a/b"}


def kinds(data, recipe, run="", run_state=None, progress=None):
    """The kind of each tab's state."""
    return [one.kind for one in tab_states(data, recipe, run, run_state, progress).values()]


@pytest.mark.parametrize(
    ("data", "recipe", "expected"),
    [
        (NO_DATA, DEFAULT_RECIPE, ["ready", "ready", "blocked", "blocked", "blocked"]),
        (NO_DATA | {"kind": "reading"}, CHOSEN, ["running", "ready", *["blocked"] * 3]),
        (NO_DATA | {"kind": "question"}, CHOSEN, ["failed", "ready", *["blocked"] * 3]),
        (NO_DATA | {"kind": "failed"}, CHOSEN, ["failed", "ready", *["blocked"] * 3]),
        (READY, DEFAULT_RECIPE, ["done", "ready", *["blocked"] * 3]),
        (READY, CHOSEN, ["done", "ready", "ready", "blocked", "blocked"]),
        (READY | {"message": "no such model"}, CHOSEN, ["done", "failed", *["blocked"] * 3]),
        (READY, CHOSEN | {"seen": True}, ["done", "done", "ready", "blocked", "blocked"]),
        (READY, CHOSEN | {"problems": {"lora_rank": "x"}}, ["done", "failed", *["blocked"] * 3]),
    ],
)
def test_the_tabs_of_a_new_fine_tune_tell_what_is_missing(data, recipe, expected):
    assert kinds(data, recipe) == expected
    reason = tab_states(data, recipe, "", None, None)["Train"].reason
    assert bool(reason) == (expected[2] == "blocked")
    assert reason == missing(data, recipe)


@pytest.mark.parametrize(
    ("run_state", "expected"),
    [
        (["queued", False, False], ["running", "blocked", "blocked"]),
        (["paused", True, False], ["ready", "ready", "ready"]),
        (["paused", False, False], ["ready", "blocked", "blocked"]),
        (["failed", False, False], ["failed", "blocked", "blocked"]),
        (["finished", True, False], ["done", "ready", "ready"]),
        (["finished", True, True], ["done", "done", "ready"]),
    ],
)
def test_the_tabs_of_a_run_ignore_the_new_fine_tune(run_state, expected):
    assert kinds(NO_DATA, DEFAULT_RECIPE, "id", run_state) == ["done", "done", *expected]


def test_a_running_tab_shows_its_share():
    states = tab_states(READY, CHOSEN, "id", ["running", False, False], [0.62, 14])
    assert states["Train"].mark == "62 %"
    assert states["Compare"].reason


@pytest.mark.slow
def test_a_draft_is_kept_without_files_that_are_gone(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFT_SPACE_HOME", str(tmp_path))
    assert read_draft("maria")["data"] == ""
    kept = tmp_path / "a.csv"
    kept.write_text("a,b\n")
    draft = {"data": [str(kept)], "held_out": "", "column_mapping": {"fixes": []}, "recipe": {}}
    write_draft("maria", draft | {"recipe": {"lora_rank": 8}})
    assert read_draft("maria") == draft | {"recipe": {"lora_rank": 8}}
    assert read_draft("otto")["recipe"] == {}
    kept.unlink()
    assert read_draft("maria")["data"] == ""
    assert read_draft("maria")["recipe"] == {"lora_rank": 8}

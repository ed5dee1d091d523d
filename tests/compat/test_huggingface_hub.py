"""The private parts of `huggingface_hub` exist, and its errors are explained by their class."""

import dataclasses
from unittest import mock

import httpx2
import pytest
from huggingface_hub import JobStage, errors, is_offline_mode

from peft_space.compat import huggingface_hub
from peft_space.compat.huggingface_hub import (
    TERMINAL_JOB_STAGES,
    JobHardwareInfo,
    explain_hub_error,
)


def test_the_terminal_stages_of_jobs_are_stages_and_leave_out_running_ones():
    stages = {getattr(stage, "value", stage) for stage in TERMINAL_JOB_STAGES}
    assert stages <= {stage.value for stage in JobStage}
    assert {"COMPLETED", "CANCELED", "ERROR"} <= stages
    assert "RUNNING" not in stages


def test_job_hardware_has_the_fields_that_the_app_reads():
    names = {"name", "pretty_name", "ram", "accelerator", "unit_cost_usd", "unit_label"}
    fields = set(getattr(JobHardwareInfo, "__annotations__", {}))
    if dataclasses.is_dataclass(JobHardwareInfo):
        fields |= {field.name for field in dataclasses.fields(JobHardwareInfo)}
    assert names <= fields


def test_without_the_hub_the_client_reads_its_cache_and_with_it_asks_again(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    assert huggingface_hub.ignore_hub_if_unreachable().code == "hub.unreachable"
    assert is_offline_mode()
    answers = mock.Mock()
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: answers)
    assert huggingface_hub.ignore_hub_if_unreachable() is None
    assert not is_offline_mode()


def http_error(cls=errors.HfHubHTTPError, status=400):
    request = httpx2.Request("GET", "https://huggingface.co/api")
    return cls("no", response=httpx2.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (http_error(status=401), "hub.unauthorized"),
        (http_error(status=402), "hub.payment_required"),
        (http_error(status=403), "hub.forbidden"),
        (http_error(status=404), "hub.not_found"),
        (http_error(status=429), "hub.rate_limited"),
        (http_error(status=500), "hub.server_error"),
        (http_error(status=400), "hub.refused"),
        (http_error(errors.RepositoryNotFoundError, 401), "hub.not_found"),
        (http_error(errors.GatedRepoError, 403), "hub.gated"),
        (http_error(errors.RevisionNotFoundError, 404), "hub.no_revision"),
        (errors.OfflineModeIsEnabled("offline"), "hub.offline"),
        (errors.LocalTokenNotFoundError("no token"), "hub.no_token"),
        (errors.LocalEntryNotFoundError("not cached"), "hub.unreachable"),
        (httpx2.ConnectError("refused"), "hub.unreachable"),
    ],
)
def test_each_error_has_its_code_even_as_the_cause_of_another(error, code):
    wrapped = OSError("cannot load")
    wrapped.__cause__ = error
    for raised in (error, wrapped):
        failure = explain_hub_error(raised, "ana/model", revision="v1")
        assert failure.code == code
        assert not failure.reason.endswith(".")


def test_an_error_of_something_else_is_not_explained():
    assert explain_hub_error(ValueError("bad config"), "ana/model") is None
    assert explain_hub_error(OSError("bad file"), "ana/model") is None


def test_a_caller_can_replace_a_reason():
    failure = explain_hub_error(
        http_error(status=403), "ana/model", reasons={"hub.forbidden": "ask Ana"}
    )
    assert failure.reason == "ask Ana"

"""Sign in with Hugging Face on a Space: the real app as a Space runs it, against an OpenID provider and a Hub of our own, over HTTP."""

import shutil
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from peft_space.run import owners_folder
from peft_space.ui.page import owner_of
from tests.app_process import App
from tests.conftest import WRITER
from tests.openid import CLIENT, OpenIdProvider

pytestmark = pytest.mark.slow
SECRET = "a-secret-of-a-visitor-s-browser"
RUN = "0123456789abcdef01234567"


@pytest.fixture(scope="module")
def provider():
    with OpenIdProvider(WRITER) as running:
        yield running


@pytest.fixture(scope="module")
def space(provider, hub_environment, tmp_path_factory):
    """The app as the Hub starts it for a README that says `hf_oauth: true`."""
    hub = {name: hub_environment[name] for name in ("HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET", "HF_HOME", "NO_PROXY")}
    running = App(tmp_path_factory.mktemp("space"), SYSTEM="spaces", **hub, **provider.environment)
    running.start()
    yield running
    running.kill()


@pytest.fixture
def run(space, own_run, monkeypatch):
    """The id of a visitor's run with an adapter."""
    monkeypatch.setenv("PEFT_SPACE_HOME", str(space.home))
    monkeypatch.setenv("SYSTEM", "spaces")
    shutil.copytree(own_run.directory, owners_folder(owner_of(SECRET)) / RUN, dirs_exist_ok=True)
    return RUN


def cookie_of(answer: httpx.Response) -> str:
    return answer.headers["set-cookie"].split(";")[0]


def sign_in(url: str) -> str:
    """Go the way of a browser, and return the cookie that it would keep. (A client of Python keeps no secure cookie without https.)"""
    asked = httpx.get(f"{url}/login/huggingface")
    granted = httpx.get(asked.headers["location"])
    answer = httpx.get(granted.headers["location"], headers={"Cookie": cookie_of(asked)})
    assert (answer.status_code, urlsplit(answer.headers["location"]).path) == (307, "/")
    return cookie_of(answer)


def client(url: str, **options) -> Client:
    return Client(url, verbose=False, download_files=False, analytics_enabled=False, **options)


def test_signing_in_asks_the_provider_for_the_scopes_of_the_space(space, provider):
    sign_in(space.url)
    asked = provider.asked[-1]
    assert (asked["client_id"], asked["response_type"]) == (CLIENT, "code")
    assert asked["scope"].split() == ["openid", "profile", "contribute-repos", "write-discussions"]
    assert urlsplit(asked["redirect_uri"]).path == "/login/callback"


def test_a_callback_that_nobody_asked_for_signs_nobody_in(space):
    answer = httpx.get(f"{space.url}/login/callback?code=once&state=forged")
    assert urlsplit(answer.headers["location"]).path == "/login/huggingface"
    assert "oauth_info" not in answer.headers.get("set-cookie", "")


def test_who_is_signed_in_pushes_without_a_token(space, the_hub, run):
    signed_in = client(space.url, headers={"Cookie": sign_in(space.url)})
    pushed = signed_in.predict(run=run, owner=SECRET, repo="maria/signed-in", api_name="/push")
    assert pushed["url"] == f"{the_hub.url}/maria/signed-in"
    assert the_hub.repositories["maria/signed-in"].private


def test_a_programs_oauth_token_counts_as_signing_in(space, the_hub, run):
    caller = client(space.url, oauth_token=WRITER)
    caller.predict(run=run, owner=SECRET, repo="maria/by-a-program", api_name="/push")
    saved = caller.predict(run=run, owner=SECRET, repo="maria/saved", api_name="/save")
    assert saved["url"] == f"{the_hub.url}/datasets/maria/saved"
    taken = caller.predict(repo="maria/saved", owner=SECRET, api_name="/take_up")
    assert (taken["owner"], taken["status"]) == (SECRET, "finished")
    assert {line["run"] for line in caller.predict(owner=SECRET, api_name="/runs")} >= {run, taken["run"]}


def test_a_typed_token_counts_before_the_one_of_signing_in(space, the_hub, run):
    caller = client(space.url, oauth_token=WRITER)
    with pytest.raises(AppError, match="does not accept the token"):
        caller.predict(run=run, owner=SECRET, repo="maria/new", token="hf_wrong", api_name="/push")


@pytest.mark.parametrize("endpoint", ["push", "save"])
def test_without_either_nothing_is_pushed_with_the_spaces_own_token(space, the_hub, run, endpoint):
    with pytest.raises(AppError, match=r"There is no Hub token\. Sign in at the top of the page, or paste one"):
        client(space.url).predict(run=run, owner=SECRET, repo="maria/new", api_name=f"/{endpoint}")
    assert not the_hub.repositories


def test_a_sign_in_that_has_expired_is_none(space, provider, the_hub, run, monkeypatch):
    monkeypatch.setattr(provider, "seconds", -1)
    with pytest.raises(AppError, match="There is no Hub token"):
        client(space.url, headers={"Cookie": sign_in(space.url)}).predict(run=run, owner=SECRET, repo="maria/new", api_name="/push")


def test_signing_out_ends_it(space, the_hub, run):
    out = httpx.get(f"{space.url}/logout", headers={"Cookie": sign_in(space.url)})
    assert parse_qs(urlsplit(out.headers["location"]).query) == {}
    left = out.headers["set-cookie"]
    assert "oauth_info" not in left
    with pytest.raises(AppError, match="There is no Hub token"):
        client(space.url, headers={"Cookie": cookie_of(out)}).predict(run=run, owner=SECRET, repo="maria/new", api_name="/push")


def test_the_endpoints_are_the_same_as_without_signing_in(space):
    named = client(space.url).view_api(print_info=False, return_format="dict")["named_endpoints"]
    assert not [name for name in named if "login" in name]
    [push] = [named["/push"]]
    assert "signed_in" not in {one["parameter_name"] for one in push["parameters"]}

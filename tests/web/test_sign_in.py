"""Sign in with Hugging Face on a Space: the real app as a Space runs it, against an OpenID provider and a Hub of our own, over HTTP."""

import shutil
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from peft_space.runs.store import owner_directory
from peft_space.web.auth import _digest, owner_of
from tests.conftest import READER, WRITER
from tests.fixtures.app_process import App
from tests.fixtures.fake_hub import User
from tests.fixtures.fake_oidc import CLIENT, OpenIdProvider
from tests.web.test_isolation import OF_A_RUN

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
    hub = {
        name: hub_environment[name]
        for name in ("HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET", "HF_HOME", "NO_PROXY")
    }
    running = App(tmp_path_factory.mktemp("space"), SYSTEM="spaces", **hub, **provider.environment)
    running.start()
    yield running
    running.kill()


@pytest.fixture
def run(space, own_run, monkeypatch):
    """The id of a visitor's run with an adapter."""
    monkeypatch.setenv("PEFT_SPACE_HOME", str(space.home))
    monkeypatch.setenv("SYSTEM", "spaces")
    shutil.copytree(own_run.directory, owner_directory(owner_of(SECRET)) / RUN, dirs_exist_ok=True)
    return RUN


@pytest.fixture(scope="module")
def maria_s(space):
    """The id of a run of maria's account."""
    program = client(space.url, oauth_token=WRITER)
    return program.predict(data="demo", recipe={"max_steps": 1}, later=True, api_name="/start")[
        "run"
    ]


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
    assert {line["run"] for line in caller.predict(owner=SECRET, api_name="/runs")} >= {
        run,
        taken["run"],
    }


def test_a_program_with_a_token_has_the_runs_of_its_account_as_the_page_has(
    space, the_hub, provider
):
    program = client(space.url, oauth_token=WRITER)
    started = program.predict(data="demo", recipe={"max_steps": 1}, later=True, api_name="/start")
    assert (started["owner"], started["status"]) == ("", "new")
    assert [
        path.parent.parent.name for path in space.home.glob(f"runs/*/{started['run']}/run.json")
    ] == [f"hub-{_digest(provider.sub)}"]
    browser = client(space.url, headers={"Cookie": sign_in(space.url)})
    for same in (
        program,
        browser,
        client(space.url, oauth_token=WRITER),
        client(space.url, oauth_token=READER),
    ):  # both tokens are maria's
        assert started["run"] in {line["run"] for line in same.predict(api_name="/runs")}
        assert same.predict(run=started["run"], api_name="/status")["status"] == "new"
    own = program.predict(
        data="demo", recipe={"max_steps": 1}, later=True, owner=SECRET, api_name="/start"
    )
    assert own["owner"] == SECRET
    assert own["run"] in {
        line["run"] for line in client(space.url).predict(owner=SECRET, api_name="/runs")
    }
    assert own["run"] not in {line["run"] for line in program.predict(api_name="/runs")}
    assert {started["run"], own["run"]} <= {
        line["run"] for line in program.predict(owner=SECRET, api_name="/runs")
    }


def test_the_hub_is_not_asked_at_every_call_whose_a_token_is(space, the_hub):
    token = "hf_asked_once_and_then_known"
    the_hub.tokens[token] = User("maria")
    program = client(space.url, oauth_token=token)
    for _ in range(3):
        program.predict(api_name="/runs")
    assert [request.path for request in the_hub.requests if request.token == token] == [
        "/api/whoami-v2"
    ]


@pytest.mark.parametrize("endpoint", OF_A_RUN)
def test_neither_a_wrong_token_nor_anothers_opens_a_run_of_an_account(
    space, the_hub, maria_s, endpoint
):
    the_hub.tokens["hf_of_otto"] = User("otto", id="60" * 12)
    for caller, words in (
        (client(space.url), "whose runs these are"),
        (client(space.url, oauth_token="hf_wrong"), "does not accept the `oauth_token`"),
        (client(space.url, oauth_token="hf_of_otto"), "You have no run"),
        (client(space.url, oauth_token=WRITER[:-1]), "does not accept the `oauth_token`"),
        (
            client(
                space.url,
                headers={"Cookie": "session=forged", "x-hf-authorization": f"Bearer {WRITER}"},
            ),
            "whose runs these are",
        ),
    ):
        with pytest.raises(AppError, match=words):
            caller.predict(run=maria_s, api_name=f"/{endpoint}", **OF_A_RUN[endpoint])


def test_a_wrong_token_lists_no_runs_and_anothers_lists_none_of_mine(space, the_hub, maria_s):
    the_hub.tokens["hf_of_otto"] = User("otto", id="60" * 12)
    assert maria_s in {
        line["run"] for line in client(space.url, oauth_token=WRITER).predict(api_name="/runs")
    }
    assert client(space.url, oauth_token="hf_of_otto").predict(api_name="/runs") == []
    with pytest.raises(AppError, match="does not accept the `oauth_token`"):
        client(space.url, oauth_token="hf_wrong").predict(api_name="/runs")
    the_hub.fail_next("whoami", 500, times=9)
    with pytest.raises(
        AppError,
        match=r"The runs of your account were not looked up: the Hub answered with an error of its own \(500\)",
    ):
        client(space.url, oauth_token="hf_never_asked_for").predict(api_name="/runs")


def test_a_typed_token_counts_before_the_one_of_signing_in(space, the_hub, run):
    caller = client(space.url, oauth_token=WRITER)
    with pytest.raises(AppError, match="does not accept the token"):
        caller.predict(run=run, owner=SECRET, repo="maria/new", token="hf_wrong", api_name="/push")


@pytest.mark.parametrize("endpoint", ["push", "save"])
def test_without_either_nothing_is_pushed_with_the_spaces_own_token(space, the_hub, run, endpoint):
    with pytest.raises(
        AppError, match=r"There is no Hub token\. Sign in at the top of the page, or paste one"
    ):
        client(space.url).predict(run=run, owner=SECRET, repo="maria/new", api_name=f"/{endpoint}")
    assert not the_hub.repositories


def test_a_sign_in_that_has_expired_is_none(space, provider, the_hub, run, monkeypatch):
    monkeypatch.setattr(provider, "seconds", -1)
    with pytest.raises(AppError, match="There is no Hub token"):
        client(space.url, headers={"Cookie": sign_in(space.url)}).predict(
            run=run, owner=SECRET, repo="maria/new", api_name="/push"
        )


def test_signing_out_ends_it(space, the_hub, run):
    out = httpx.get(f"{space.url}/logout", headers={"Cookie": sign_in(space.url)})
    assert parse_qs(urlsplit(out.headers["location"]).query) == {}
    left = out.headers["set-cookie"]
    assert "oauth_info" not in left
    with pytest.raises(AppError, match="There is no Hub token"):
        client(space.url, headers={"Cookie": cookie_of(out)}).predict(
            run=run, owner=SECRET, repo="maria/new", api_name="/push"
        )


def test_the_endpoints_are_the_same_as_without_signing_in(space):
    named = client(space.url).view_api(print_info=False, return_format="dict")["named_endpoints"]
    assert not [name for name in named if "login" in name]
    [push] = [named["/push"]]
    assert "signed_in" not in {one["parameter_name"] for one in push["parameters"]}

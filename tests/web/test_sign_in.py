"""Sign-in with Hugging Face: the app as on a Space, against stand-ins of the Hub and provider."""

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
UNKNOWN_OWNER = r"\[web\.unknown_owner\]"
UNKNOWN_RUN = r"\[(runs\.unknown|todo)\]"
UNAUTHORIZED = r"\[(hub\.unauthorized|todo)\]"
NO_TOKEN = r"\[(hub\.no_token|todo)\]"


@pytest.fixture(scope="module")
def provider():
    with OpenIdProvider(WRITER) as running:
        yield running


@pytest.fixture(scope="module")
def space(provider, hub_environment, tmp_path_factory):
    """Start the app as the Hub does for a README with `hf_oauth: true`."""
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
    """Store a visitor's run with an adapter and return its id."""
    monkeypatch.setenv("PEFT_SPACE_HOME", str(space.home))
    monkeypatch.setenv("SYSTEM", "spaces")
    shutil.copytree(own_run.directory, owner_directory(owner_of(SECRET)) / RUN, dirs_exist_ok=True)
    return RUN


@pytest.fixture(scope="module")
def marias_run(space):
    """Start a run of maria's account and return its id."""
    program = client(space.url, oauth_token=WRITER)
    return program.predict(data="demo", recipe={"max_steps": 1}, no_train=True, api_name="/train")[
        "run"
    ]


def cookie_of(answer: httpx.Response) -> str:
    return answer.headers["set-cookie"].split(";")[0]


def sign_in(url: str) -> str:
    """Sign in as a browser does and return its cookie.

    Python's clients keep no secure cookie without https.
    """
    login = httpx.get(f"{url}/login/huggingface")
    granted = httpx.get(login.headers["location"])
    answer = httpx.get(granted.headers["location"], headers={"Cookie": cookie_of(login)})
    assert (answer.status_code, urlsplit(answer.headers["location"]).path) == (307, "/")
    return cookie_of(answer)


def client(url: str, **options) -> Client:
    return Client(url, verbose=False, download_files=False, analytics_enabled=False, **options)


def test_sign_in_requests_the_scopes_of_the_space(space, provider):
    sign_in(space.url)
    request = provider.asked[-1]
    assert (request["client_id"], request["response_type"]) == (CLIENT, "code")
    scopes = ["openid", "profile", "contribute-repos", "write-discussions", "jobs"]
    assert request["scope"].split() == scopes
    assert urlsplit(request["redirect_uri"]).path == "/login/callback"


def test_an_unrequested_callback_signs_nobody_in(space):
    answer = httpx.get(f"{space.url}/login/callback?code=once&state=forged")
    assert urlsplit(answer.headers["location"]).path == "/login/huggingface"
    assert "oauth_info" not in answer.headers.get("set-cookie", "")


def test_a_signed_in_visitor_pushes_without_a_token(space, the_hub, run):
    signed_in = client(space.url, headers={"Cookie": sign_in(space.url)})
    pushed = signed_in.predict(run=run, owner=SECRET, repo="maria/signed-in", api_name="/push")
    assert pushed["url"] == f"{the_hub.url}/maria/signed-in"
    assert the_hub.repositories["maria/signed-in"].private


def test_a_program_s_oauth_token_counts_as_sign_in(space, the_hub, run):
    caller = client(space.url, oauth_token=WRITER)
    caller.predict(run=run, owner=SECRET, repo="maria/by-a-program", api_name="/push")
    saved = caller.predict(run=run, owner=SECRET, repo="maria/saved", api_name="/backup")
    assert saved["url"] == f"{the_hub.url}/datasets/maria/saved"
    taken = caller.predict(repo="maria/saved", owner=SECRET, api_name="/restore")
    assert (taken["owner"], taken["status"]) == (SECRET, "finished")
    assert {line["run"] for line in caller.predict(owner=SECRET, api_name="/list")} >= {
        run,
        taken["run"],
    }


def test_a_program_with_a_token_sees_its_account_s_runs_as_the_page_does(space, the_hub, provider):
    program = client(space.url, oauth_token=WRITER)
    started = program.predict(
        data="demo", recipe={"max_steps": 1}, no_train=True, api_name="/train"
    )
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
    ):  # both tokens belong to maria
        assert started["run"] in {line["run"] for line in same.predict(api_name="/list")}
        assert same.predict(run=started["run"], api_name="/status")["status"] == "new"
    own = program.predict(
        data="demo", recipe={"max_steps": 1}, no_train=True, owner=SECRET, api_name="/train"
    )
    assert own["owner"] == SECRET
    assert own["run"] in {
        line["run"] for line in client(space.url).predict(owner=SECRET, api_name="/list")
    }
    assert own["run"] not in {line["run"] for line in program.predict(api_name="/list")}
    assert {started["run"], own["run"]} <= {
        line["run"] for line in program.predict(owner=SECRET, api_name="/list")
    }


def test_the_owner_of_a_token_is_cached(space, the_hub):
    token = "hf_asked_once_and_then_known"
    the_hub.tokens[token] = User("maria")
    program = client(space.url, oauth_token=token)
    for _ in range(3):
        program.predict(api_name="/list")
    assert [request.path for request in the_hub.requests if request.token == token] == [
        "/api/whoami-v2"
    ]


@pytest.mark.parametrize("endpoint", OF_A_RUN)
def test_a_wrong_or_foreign_token_opens_no_run_of_an_account(space, the_hub, marias_run, endpoint):
    the_hub.tokens["hf_of_otto"] = User("otto", id="60" * 12)
    # who makes a run without an owner becomes a new one
    anonymous = UNKNOWN_RUN if endpoint == "merge_adapters" else UNKNOWN_OWNER
    for caller, code in (
        (client(space.url), anonymous),
        (client(space.url, oauth_token="hf_wrong"), UNAUTHORIZED),
        (client(space.url, oauth_token="hf_of_otto"), UNKNOWN_RUN),
        (client(space.url, oauth_token=WRITER[:-1]), UNAUTHORIZED),
        (
            client(
                space.url,
                headers={"Cookie": "session=forged", "x-hf-authorization": f"Bearer {WRITER}"},
            ),
            anonymous,
        ),
    ):
        with pytest.raises(AppError, match=code):
            caller.predict(run=marias_run, api_name=f"/{endpoint}", **OF_A_RUN[endpoint])


def test_a_wrong_or_foreign_token_lists_no_runs_of_mine(space, the_hub, marias_run):
    the_hub.tokens["hf_of_otto"] = User("otto", id="60" * 12)
    assert marias_run in {
        line["run"] for line in client(space.url, oauth_token=WRITER).predict(api_name="/list")
    }
    assert client(space.url, oauth_token="hf_of_otto").predict(api_name="/list") == []
    with pytest.raises(AppError, match=UNAUTHORIZED):
        client(space.url, oauth_token="hf_wrong").predict(api_name="/list")
    the_hub.fail_next("whoami", 500, times=9)
    with pytest.raises(AppError, match=r"500.*\[hub\.server_error\]"):
        client(space.url, oauth_token="hf_never_asked_for").predict(api_name="/list")


def test_a_typed_token_takes_precedence_over_sign_in(space, the_hub, run):
    caller = client(space.url, oauth_token=WRITER)
    with pytest.raises(AppError, match=UNAUTHORIZED):
        caller.predict(run=run, owner=SECRET, repo="maria/new", token="hf_wrong", api_name="/push")


@pytest.mark.parametrize("endpoint", ["push", "backup"])
def test_the_space_s_own_token_is_never_used_for_visitors(space, the_hub, run, endpoint):
    with pytest.raises(AppError, match=NO_TOKEN):
        client(space.url).predict(run=run, owner=SECRET, repo="maria/new", api_name=f"/{endpoint}")
    assert not the_hub.repositories


def test_an_expired_sign_in_does_not_count(space, provider, the_hub, run, monkeypatch):
    monkeypatch.setattr(provider, "seconds", -1)
    with pytest.raises(AppError, match=NO_TOKEN):
        client(space.url, headers={"Cookie": sign_in(space.url)}).predict(
            run=run, owner=SECRET, repo="maria/new", api_name="/push"
        )


def test_signing_out_ends_the_session(space, the_hub, run):
    out = httpx.get(f"{space.url}/logout", headers={"Cookie": sign_in(space.url)})
    assert parse_qs(urlsplit(out.headers["location"]).query) == {}
    left = out.headers["set-cookie"]
    assert "oauth_info" not in left
    with pytest.raises(AppError, match=NO_TOKEN):
        client(space.url, headers={"Cookie": cookie_of(out)}).predict(
            run=run, owner=SECRET, repo="maria/new", api_name="/push"
        )


def test_sign_in_adds_no_endpoints(space):
    named = client(space.url).view_api(print_info=False, return_format="dict")["named_endpoints"]
    assert not [name for name in named if "login" in name]
    [push] = [named["/push"]]
    assert "signed_in" not in {one["parameter_name"] for one in push["parameters"]}

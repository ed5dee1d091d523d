"""Tokens that enter through the page leave no trace: by sign-in, in fields, in Hub errors.

Two places may hold one: the field that the visitor typed it into, and the sign-in cookie, which no
script can read.
"""

import base64
import json
import re
import secrets
import socket
import threading
import time
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import (
    SLOW,
    new_fine_tune,
    open_all_runs,
    open_panel,
    open_tab,
    start_with_sample_data,
    use_sample_data,
    wait_until_finished,
)
from tests.browser.test_sign_in import press_sign_in
from tests.fixtures.app_process import App
from tests.fixtures.fake_hub import User
from tests.fixtures.fake_oidc import OpenIdProvider
from tests.security.test_secrets import found_in_files, found_in_processes, new_token

pytestmark = [pytest.mark.browser, pytest.mark.slow]
STATUSES = (401, 403, 500)
FAULTS = [
    *(("whoami", status) for status in STATUSES),
    ("create", 403),
    ("create", 500),
    ("commit", 401),
    ("commit", 403),
]


class Wire:
    """A proxy that records everything that the app sends to the browser."""

    def __init__(self, url: str):
        self._app = urlsplit(url)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self._sent: list[bytearray] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            browser, _ = self._server.accept()
            app = socket.create_connection((self._app.hostname, self._app.port))
            sent = bytearray()
            self._sent.append(sent)
            for come, go, keep in ((browser, app, None), (app, browser, sent)):
                threading.Thread(target=self._pass_on, args=(come, go, keep), daemon=True).start()

    def _pass_on(self, come: socket.socket, go: socket.socket, sent: bytearray | None) -> None:
        with suppress(OSError):
            while content := come.recv(1 << 16):
                if sent is None:  # no compression, in a header of the same length
                    content = re.sub(
                        rb"(?i)\r\naccept-encoding:", b"\r\nNo-Accept-Coding:", content
                    )
                else:
                    sent += content
                go.sendall(content)
        for end in (come, go):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def sent(self) -> bytes:
        """Return everything, without the separators between chunks."""
        return re.sub(rb"\r\n[0-9a-f]{1,8}\r\n", b"", b"\n\n".join(self._sent))


class Visit:
    """A signed-in visitor with tokens. Everything that the page shows is stored for the scan."""

    def __init__(self, page, hub, folder):
        self.page, self.hub, self.folder, self.flows = page, hub, folder, 0
        self.tokens: list[str] = []
        self.said: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.said.append(request.url))

    def token(self, known: bool = True) -> str:
        """Create a token, of maria if the Hub should know it."""
        self.tokens.append(new_token())
        if known:
            self.hub.tokens[self.tokens[-1]] = User("maria")
        return self.tokens[-1]

    def typed(self, field: str, text: str) -> None:
        self.page.locator(f"#{field} input, #{field} textarea").first.fill(text)

    def refused(self, button: str, **fields: str) -> str:
        """Fill in fields, press a button and return the error."""
        self.page.evaluate(
            "() => document.querySelectorAll('[data-testid=toast-close]')"
            ".forEach(button => button.click())"
        )
        expect(self.page.get_by_test_id("toast-body")).to_have_count(0, timeout=SLOW)
        for field, text in fields.items():
            self.typed(field.replace("_", "-"), text)
        expect(self.page.locator(f"#{button}")).to_be_enabled(timeout=SLOW)
        self.page.locator(f"#{button}").click(timeout=SLOW)
        words = self.page.wait_for_selector("[data-testid=toast-body]", timeout=SLOW).inner_text()
        self.hub._faults.clear()
        self.look()
        return words

    def look(self) -> None:
        """Store the page as it is, and what its scripts have stored in the browser."""
        self.flows += 1
        contents = self.page.evaluate(
            "() => [document.documentElement.outerHTML, {...localStorage}, {...sessionStorage}]"
        )
        (self.folder / f"page-{self.flows}").write_text(
            "\n".join(map(str, contents)) + self.page.title() + self.page.url
        )


def parts_of(token: str) -> list[str]:
    """Return a sign-in token and its parts, none of which may be found."""
    return [token, *token.removeprefix("hf_oauth_").split(".")]


@pytest.fixture
def oauth_token(the_hub):
    """Create a sign-in token as the Hub does: three parts with dots between."""
    token = "hf_oauth_" + ".".join(secrets.token_urlsafe(30) for _ in range(3))
    the_hub.tokens[token] = User("maria")
    return token


@pytest.fixture
def space(oauth_token, hub_environment, tmp_path):
    (tmp_path / "tmp").mkdir()
    hub = {
        name: hub_environment[name]
        for name in ("HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET", "NO_PROXY")
    }
    own = {
        "HF_HOME": str(tmp_path / "hf"),
        "TMPDIR": str(tmp_path / "tmp"),
        "HOME": str(tmp_path / "user"),
    }
    with OpenIdProvider(oauth_token) as provider:
        running = App(tmp_path / "home", SYSTEM="spaces", **hub, **own, **provider.environment)
        running.log = tmp_path / "log"
        running.start()
        running.wire = Wire(running.url)
        running.url = running.wire.url
        yield running
        running.kill()


@pytest.fixture
def page(browser):
    """Open a page that tolerates JavaScript errors: they are scanned here."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield context.new_page()
    context.close()


def test_tokens_that_enter_through_the_page_leave_no_trace(
    space, page, the_hub, oauth_token, tmp_path
):
    the_hub.job_environment = None
    visit = Visit(page, the_hub, tmp_path)
    visit.tokens += parts_of(oauth_token)
    page.goto(space.url)
    press_sign_in(page, "Logout (maria)")
    start_with_sample_data(page, space, 2)
    wait_until_finished(page)
    for part in (push, back_up_and_restore, misplace, submit_job):
        part(visit)
        assert found_in_processes(visit.tokens, but=the_jobs(the_hub)) == []
    assert token_fields(page) == {
        "token",
        "backup-token",
        "job-token",
    }  # add a new field to this test
    assert visit.flows >= 40
    scan(space, visit, oauth_token)


def scan(space, visit, oauth_token):
    page = visit.page
    [cookie] = [one for one in page.context.cookies() if one["name"] == "session"]
    signed_in = base64.b64decode(cookie["value"].split(".")[0] + "==")
    assert json.loads(signed_in)["oauth_info"]["access_token"] == oauth_token
    assert cookie["httpOnly"]  # the browser keeps it, and no script on the page can read it
    assert cookie["secure"]
    sent = space.wire.sent()
    assert b"text/event-stream" in sent
    assert b"process_completed" in sent
    assert len(re.findall(rb'"success":\s*false', sent)) > 9
    assert b"400: no hf_oauth_" in sent
    assert not re.search(rb"(?i)\r\ncontent-encoding:", sent)
    (visit.folder / "sent").write_bytes(re.sub(rb"(?i)\r\nset-cookie: [^\r\n]*", b"", sent))
    (visit.folder / "said").write_text("\n".join(visit.said))
    space.kill()
    assert found_in_files([visit.folder], visit.tokens) == []


def push(visit):
    open_tab(visit.page, "Publish")
    for place, status in FAULTS:
        token = visit.token()
        visit.hub.fail_next(place, status, times=9, message=f"no {token} here")
        assert visit.refused("push", repo="maria/a", token=token)
    assert "token" in visit.refused("push", repo="maria/a", token=visit.token(known=False))
    assert "token" in visit.refused("push", repo="maria/a", token=f"{visit.token()}…")
    for status in (*STATUSES, 400):  # a 400 quotes the Hub's own message
        visit.hub.fail_next("whoami", status, times=9, message=f"no {visit.tokens[0]} here")
        assert visit.refused("push", repo="maria/a", token="")
    open_panel(visit.page, "card-panel")
    expect(visit.page.locator("#card-shown")).to_contain_text("demo", timeout=SLOW)
    visit.typed("token", visit.token())
    visit.page.locator("#push").click()
    expect(visit.page.locator("#pushed")).to_contain_text("Pushed to", timeout=SLOW)
    expect(visit.page.locator("#token input")).to_have_value("")
    visit.look()


def back_up_and_restore(visit):
    page = visit.page
    open_all_runs(page)
    open_panel(page, "backup-panel")
    for button, faults in (
        ("backup", FAULTS),
        ("restore", [("/api/datasets", status) for status in STATUSES]),
    ):
        for place, status in faults:
            token = visit.token()
            visit.hub.fail_next(place, status, times=9, message=f"no {token} here")
            assert visit.refused(button, backup_repo="maria/kept", backup_token=token)
    for button, words in (("backup", "Backed up to"), ("restore", "✓ Restored")):
        visit.typed("backup-token", visit.token())
        page.locator(f"#{button}").click()
        expect(page.locator("#backup-progress")).to_contain_text(words, timeout=SLOW)
        if not page.locator("#runs").is_visible():
            open_all_runs(page)
        expect(page.locator("#backup-token input")).to_have_value("")
        visit.look()


def misplace(visit):
    """Type tokens into fields where none belongs."""
    open_tab(visit.page, "Publish")
    for repo in ("{}", "maria/{}"):
        visit.refused("push", repo=repo.format(visit.token()), token=visit.token())
    open_all_runs(visit.page)
    for button in ("backup", "restore"):
        visit.refused(button, backup_repo=visit.token(), backup_token=visit.token())
    open_panel(visit.page, "import-panel")
    visit.refused("import-adapter", import_name=f"maria/{visit.token()}")
    new_fine_tune(visit.page)
    visit.page.locator("#remove-data").click()
    visit.refused("use-hub", hub_dataset=visit.token())


def submit_job(visit):
    page = visit.page
    use_sample_data(page)
    open_tab(page, "Train")
    open_panel(page, "jobs")
    page.locator("#prepare-run").click()
    expect(page.locator("#status")).to_contain_text("ready", timeout=SLOW)
    for status in STATUSES:
        token = visit.token()
        visit.hub.fail_next("/api/jobs/hardware", status, times=9, message=f"no {token} here")
        visit.refused("job-hardware", job_token=token)
    visit.typed("job-token", visit.token())
    page.locator("#job-hardware").click()
    expect(page.locator("#job-offers")).to_contain_text("cpu-basic", timeout=SLOW)
    expect(page.locator("#submit-job")).to_be_enabled(timeout=SLOW)
    for place, status in (*FAULTS, ("/api/jobs/maria", 500)):
        token = visit.token()
        visit.hub.fail_next(place, status, times=9, message=f"no {token} here")
        assert visit.refused("submit-job", job_token=token)
    visit.typed("job-token", visit.token())
    page.locator("#submit-job").click()
    expect(page.locator("#status")).to_contain_text("training on Hugging Face Jobs", timeout=SLOW)
    time.sleep(6)  # a process that knows the token watches the job
    assert found_in_processes(visit.tokens, but=the_jobs(visit.hub)) == []
    for status in STATUSES:
        token = visit.token()
        visit.hub.fail_next("/cancel", status, times=9, message=f"no {token} here")
        visit.refused("cancel-job", job_token=token)
    visit.typed("job-token", visit.token())
    page.locator("#cancel-job").click()
    expect(page.locator("#status")).to_contain_text("paused", timeout=SLOW)
    visit.look()


def the_jobs(hub):
    """Return the process ids of the jobs, which the stand-in Hub runs here with the token."""
    return {job._process.pid for job in hub.jobs.values()}


def token_fields(page) -> set[str]:
    """Return the page's password fields."""
    return set(
        page.evaluate(
            "() => window.gradio_config.components"
            ".filter(c => c.props.type == 'password').map(c => c.props.elem_id)"
        )
    )

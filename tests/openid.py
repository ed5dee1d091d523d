"""An OpenID provider in this process, which signs in whoever comes as one user: as much of the Hub's as Gradio's sign-in needs."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwk, jwt

CLIENT, SECRET = "the-space", "the-secret-of-the-space"


class OpenIdProvider:
    """The server; use it in a `with` statement. `sub` and `name` may be changed: the next sign-in is that user's."""

    def __init__(self, token: str, name: str = "maria"):
        self.token, self.name, self.sub = token, name, "5f0c746619cb630495b814fd"
        self.seconds = 28_800
        """For which a sign-in holds."""
        self.asked: list[dict[str, str]] = []
        """What came to /oauth/authorize, oldest first."""
        self._key = jwk.RSAKey.generate_key(2048, parameters={"kid": "one"})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.provider = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "OpenIdProvider":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """What the Hub sets in a Space whose README says `hf_oauth: true`."""
        scopes = "openid profile contribute-repos write-discussions"
        return {
            "OAUTH_CLIENT_ID": CLIENT,
            "OAUTH_CLIENT_SECRET": SECRET,
            "OAUTH_SCOPES": scopes,
            "OPENID_PROVIDER_URL": self.url,
            "SPACE_ID": "maria/lora",
        }

    def metadata(self) -> dict[str, Any]:
        paths = {"authorization_endpoint": "/oauth/authorize", "token_endpoint": "/oauth/token", "jwks_uri": "/oauth/jwks"}
        return {"issuer": self.url} | {name: self.url + path for name, path in paths.items()}

    def keys(self) -> dict[str, Any]:
        return {"keys": [self._key.as_dict(private=False)]}

    def grant(self) -> dict[str, Any]:
        """The answer to the code of the last sign-in."""
        now, asked = int(time.time()), self.asked[-1]
        who = {"sub": self.sub, "name": "Maria", "preferred_username": self.name, "profile": f"{self.url}/{self.name}", "picture": ""}
        claims = who | {"iss": self.url, "aud": CLIENT, "iat": now, "exp": now + 3600, "nonce": asked["nonce"]}
        signed = jwt.encode({"alg": "RS256", "kid": "one"}, claims, self._key)
        return {"access_token": self.token, "token_type": "bearer", "expires_in": self.seconds, "id_token": signed, "scope": asked["scope"]}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        provider: OpenIdProvider = self.server.provider  # type: ignore[attr-defined]
        address = urlsplit(self.path)
        match address.path:
            case "/.well-known/openid-configuration":
                self._answer(provider.metadata())
            case "/oauth/jwks":
                self._answer(provider.keys())
            case "/oauth/authorize":
                asked = {name: values[0] for name, values in parse_qs(address.query).items()}
                provider.asked.append(asked)
                self.send_response(302)
                separator = "&" if "?" in asked["redirect_uri"] else "?"
                self.send_header("Location", asked["redirect_uri"] + separator + urlencode({"code": "once", "state": asked["state"]}))
                self.send_header("Content-Length", "0")
                self.end_headers()
            case _:
                self.send_error(404)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self._answer(self.server.provider.grant())  # type: ignore[attr-defined]

    def _answer(self, value: dict[str, Any]) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *message: object) -> None:
        """Nothing."""
